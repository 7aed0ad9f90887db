"""Hooks: the user's functions that are called when a run enters a state."""

from __future__ import annotations

import logging
from contextvars import Context
from typing import TYPE_CHECKING, Any

from localflow.callbacks import Callback
from localflow.interrupts import STOPS
from localflow.keywords import HOOK_OF

if TYPE_CHECKING:
    from localflow.functions import DecoratedFunction
    from localflow.states import State

_log = logging.getLogger("localflow.hooks")


def hooks_of(decorated: DecoratedFunction[..., Any], described: str, run: object, state: State) -> list[Callback]:
    """Return the hooks for a run that has entered a state, ready to be called in a context of their own.

    Args:
        decorated: the task or flow.
        described: the run, for the log.
        run: what the hooks get to see of the run.
        state: the state it has entered.
    """
    name = HOOK_OF.get(state.type, "")
    return [
        Callback(f"hook '{name}' of {described}", Context(), hook, (decorated, run, state))
        for hook in decorated.hooks.get(name, ())
    ]


def call_here(hooks: list[Callback]) -> None:
    """Call hooks in this thread; what goes wrong in one is logged."""
    for described, context, hook, args in hooks:
        try:
            context.run(hook, *args)
        except STOPS:
            raise
        except BaseException:  # sys.exit() in a hook does not end the program
            _log.exception("%s failed", described)
