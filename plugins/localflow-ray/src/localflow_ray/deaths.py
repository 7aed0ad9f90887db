"""What Ray says of a call that has no answer, as the state of its task run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ray import exceptions

from localflow.builtin.process.outcomes import unsendable
from localflow.printable import shortened
from localflow.states import OOM_KILLED, WORKER_LOST, Cause, State, StateType, type_and_text

if TYPE_CHECKING:
    from localflow.interfaces import Call
    from localflow_ray.mailbox import Begun

_TEXT_LIMIT = 5_000
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def is_cancelled(error: BaseException) -> bool:
    """Return whether Ray has stopped the call because it was told to."""
    return isinstance(error, exceptions.TaskCancelledError)


def is_lost_argument(error: BaseException) -> bool:
    """Return whether the call never began, because a value that it needs is in the object store no more."""
    return isinstance(error, (exceptions.ObjectLostError, exceptions.ObjectFetchTimedOutError))


def lost_state(call: Call, begun: Begun | None, seconds: float, error: BaseException) -> State:
    """Return the state of a call whose worker was lost, or which could not be run.

    Args:
        call: the call.
        begun: where it was at work, if that is known.
        seconds: for how long.
        error: what Ray says.
    """
    run = f"'{call.task_run.name}' (attempt {call.attempt}/{call.attempts})"
    if isinstance(error, exceptions.RayTaskError) and not is_lost_argument(error):
        return unsendable(f"Task '{call.task_run.task}' cannot be run by Ray: {_text(error)}")
    if is_lost_argument(error):
        message = (
            f"an argument of {run} was lost with its node, and there is no other copy of it; with persist_result=True "
            "for the task that has made it there would be"
        )
    elif isinstance(error, exceptions.RuntimeEnvSetupError):
        message = f"Ray cannot set up the runtime_env for {run}: {_text(error)}"
    else:
        worker = "a worker of Ray" if begun is None else f"worker {begun.pid}"
        message = f"{worker} was lost after {seconds:.1f}s while running {run}{_reason(error)}"
    pid = None if begun is None else begun.pid
    cause = Cause("worker", message=message, traceback_text=_text(error), pid=pid)
    name = OOM_KILLED if isinstance(error, exceptions.OutOfMemoryError) else WORKER_LOST
    return State(StateType.CRASHED, name, message, cause=cause)


def _reason(error: BaseException) -> str:
    """Say what is known of the cause; that a worker has gone is nothing new."""
    if isinstance(error, exceptions.OutOfMemoryError):
        return "; killed by Ray, as its node was running out of memory"
    if isinstance(error, exceptions.NodeDiedError):
        return "; its node died"
    if isinstance(error, exceptions.WorkerCrashedError):
        return ""
    return f"; {_text(error)}"


def _text(error: BaseException) -> str:
    return shortened(_COLOURS.sub("", type_and_text(error)), _TEXT_LIMIT)
