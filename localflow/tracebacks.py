"""Why a run failed, as plain data: tracebacks as text, arguments as bounded texts.

A reader of a traceback looks for code of his own. So the frames of localflow are left out of `Cause.traceback_text`,
and those of libraries wherever code of the user comes after them; where a library raised, its last frame stays.
`Cause.full_traceback_text` has everything. All this happens only when something has failed, in workers too.
"""

from __future__ import annotations

import os
import re
import reprlib
import traceback
from itertools import groupby, islice, takewhile
from typing import TYPE_CHECKING, Any

from localflow.interrupts import STOPS
from localflow.masking import MASK, is_secret, without
from localflow.printable import shortened
from localflow.states import Cause, exception_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_TEXT_LIMIT = 256 * 1024  # characters
_ARGUMENT_LIMIT = 100  # characters
_ARGUMENTS = 10

_PACKAGE = __file__.rpartition(os.sep)[0] + os.sep
_TESTING = f"{_PACKAGE}testing{os.sep}"  # what it runs stands for code of users
_STDLIB = os.__file__.rpartition(os.sep)[0] + os.sep
# Patterns are compiled when something has failed, not at every start.
_INSTALLED = r"(?s:.*)[\\/](?:site|dist)-packages[\\/]"
_FROZEN = "<frozen "

_SECRET_FIELD = (  # by the names of masking.py
    r"(?i)(\b\w*(?:token|password|passwd|passphrase|secret|key|credential|authorization|cookie)s?['\"]?\s*[=:]\s*)"
    r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^,)}\]\s]+)"
)


def cause_of(error: BaseException, called_with: Mapping[str, str] | None = None) -> Cause:
    """Return what is to be recorded of an exception; `called_with` as `described_arguments` gives it."""
    text, full = _texts(error)
    message = shortened(exception_text(error), _TEXT_LIMIT)
    return Cause(
        "exception",
        type(error).__name__,
        message,
        text,
        full_traceback_text="" if full == text else full,
        arguments=called_with or {},
    )


def traceback_text(error: BaseException) -> str:
    """Return the traceback of an exception, and of those that led to it, with the user's frames."""
    return _texts(error)[0]


def _texts(error: BaseException) -> tuple[str, str]:
    """Return the traceback with the user's frames and the one with all frames."""
    try:
        report = traceback.TracebackException.from_exception(error)
        full = "".join(report.format())
        _keep_user_frames(report)
        text = "".join(report.format())
    except Exception:  # exceptions may override anything, and groups may be nested too deep
        text = full = f"{type(error).__name__}: {exception_text(error)}\n"
    return shortened(text, _TEXT_LIMIT), shortened(full, _TEXT_LIMIT)


# -- frames ----------------------------------------------------------------------------------------------------------

_USER, _LIBRARY, _OWN = "user", "library", "own"


class _Gap(traceback.FrameSummary):
    """Stands in a stack for frames that are left out."""

    def __init__(self, frames: Sequence[traceback.FrameSummary]) -> None:
        super().__init__("", 0, "", lookup_line=False)
        count = f"{len(frames):,} frame{'' if len(frames) == 1 else 's'}"
        self.text = f"  ... {count} of {_package_of(frames)} left out\n"


class _Stack(traceback.StackSummary):
    """A stack with gaps."""

    def format_frame_summary(self, frame_summary: traceback.FrameSummary, **options: Any) -> str:
        if isinstance(frame_summary, _Gap):
            return frame_summary.text
        return super().format_frame_summary(frame_summary, **options)


def _keep_user_frames(report: traceback.TracebackException) -> None:
    """Leave other frames out of an exception, of those that led to it and of those that a group holds."""
    pending: list[traceback.TracebackException | None] = [report]
    while pending:
        part = pending.pop()
        if part is not None:
            # Without any frame there shall be no heading for them either, and that is what None means there.
            part.stack = _Stack(_kept(part.stack)) or None  # type: ignore[assignment]
            pending += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]


def _kept(stack: Sequence[traceback.FrameSummary]) -> Iterator[traceback.FrameSummary]:
    segments = [(origin, list(frames)) for origin, frames in groupby(stack, _origin)]
    origins = [origin for origin, _ in segments]
    if _USER not in origins:
        if _LIBRARY in origins:  # the task itself is a function of a library
            yield from next(frames for origin, frames in reversed(segments) if origin == _LIBRARY)
        return
    for index, (origin, frames) in enumerate(segments):
        if origin == _USER:
            yield from frames
        elif origin == _LIBRARY:
            is_last = index == len(segments) - 1
            left_out = frames[:-1] if is_last else frames
            if left_out and index and origins[index - 1] == _USER:  # otherwise they are how localflow calls the user
                yield _Gap(left_out)
            if is_last:
                yield frames[-1]


def _origin(frame: traceback.FrameSummary) -> str:
    file = frame.filename
    if file.startswith(_PACKAGE) and not file.startswith(_TESTING):
        return _OWN
    return _LIBRARY if file.startswith((_STDLIB, _FROZEN)) or re.match(_INSTALLED, file) else _USER


def _package_of(frames: Sequence[traceback.FrameSummary]) -> str:
    """Return what frames of libraries have in common: the package they are all in, or else the packages."""
    modules = [_module_parts(frame.filename) for frame in frames]
    common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*modules, strict=False))]
    if common:
        return ".".join(common)
    packages = list(dict.fromkeys(parts[0] for parts in modules))
    return ", ".join(packages[:3]) + (" and others" if packages[3:] else "")


def _module_parts(file: str) -> list[str]:
    if file.startswith(_FROZEN):
        return file.removeprefix(_FROZEN).removesuffix(">").split(".")
    installed = re.match(_INSTALLED, file)
    relative = file[installed.end() :] if installed else file.removeprefix(_STDLIB)
    parts = re.split(r"[\\/]", relative.removesuffix(".py"))
    return parts[:-1] if parts[-1] == "__init__" and parts[:-1] else parts


# -- arguments -------------------------------------------------------------------------------------------------------


def described_arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, str]:
    """Return what a function was called with, by parameter: bounded texts, secrets masked.

    Of many arguments the first are there; an entry `...` says how many more there are.
    """
    named = list(_named(function, args, kwargs))
    described = {
        shortened(name, _ARGUMENT_LIMIT): MASK if is_secret(name) else _described(value)
        for name, value in named[:_ARGUMENTS]
    }
    if named[_ARGUMENTS:]:
        described["..."] = f"{len(named) - _ARGUMENTS:,} more"
    return described


def _named(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, object]]:
    """Yield the arguments with the names of their parameters; keywords of `**kwargs` have their own."""
    import inspect

    try:
        signature = inspect.signature(function)
        bound = signature.bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # it does not fit, or the function does not tell its signature
        yield from ((f"argument {place}", value) for place, value in enumerate(args, start=1))
        yield from kwargs.items()
        return
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        else:
            yield f"*{name}" if kind is inspect.Parameter.VAR_POSITIONAL else name, value


def _described(value: object) -> str:
    try:
        text = _BOUNDED.repr(value)
    except STOPS:
        raise
    except BaseException as error:  # sys.exit() in a __repr__ too: the failure to tell of is another one
        text = f"<{type(value).__name__}: repr() of it raised {type(error).__name__}>"
    text = re.sub(_SECRET_FIELD, rf"\g<1>{MASK}", without((), " ".join(text.split())))
    return text if len(text) <= _ARGUMENT_LIMIT else text[: _ARGUMENT_LIMIT - 3] + "..."


class _BoundedRepr(reprlib.Repr):
    """The beginning of a `repr`, without making all of it where the value is a large container."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxdeque = 10
        self.maxarray = 10
        self.maxstring = self.maxother = self.maxlong = 2 * _ARGUMENT_LIMIT

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value[: self.maxstring])

    def repr_bytearray(self, value: bytearray, level: int) -> str:
        return repr(value[: self.maxstring])

    def repr_set(self, value: set[Any], level: int) -> str:
        return f"{{{self._items(value, self.maxset, level)}}}" if value else "set()"

    def repr_frozenset(self, value: frozenset[Any], level: int) -> str:
        return f"frozenset({{{self._items(value, self.maxfrozenset, level)}}})" if value else "frozenset()"

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}"
        pairs = [
            f"{self.repr1(key, level - 1)}: {self.repr1(item, level - 1)}"
            for key, item in islice(value.items(), self.maxdict)
        ]
        return "{" + ", ".join([*pairs, *(["..."] if len(value) > self.maxdict else [])]) + "}"

    def _items(self, value: set[Any] | frozenset[Any], limit: int, level: int) -> str:
        if level <= 0:
            return "..."
        shown = [self.repr1(item, level - 1) for item in islice(value, limit)]
        return ", ".join([*shown, *(["..."] if len(value) > limit else [])])


_BOUNDED = _BoundedRepr()
