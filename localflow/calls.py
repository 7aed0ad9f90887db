"""What an executor gets and gives back: calls and outcomes, and how a call is run."""

from __future__ import annotations

import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from localflow import arguments
from localflow.context import TaskContext, entered
from localflow.payloads import Packed
from localflow.records import Execution
from localflow.states import Cause, State, StateType, exception_message, exception_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from localflow.payloads import Payload
    from localflow.records import Record, TaskRun


class Call(NamedTuple):
    """A task run that is ready: what to call, with every future replaced by its data.

    Data that came from a worker process is still `Packed`; `run()` unpacks it, and a pickled call arrives unpacked.
    """

    id: int
    task_run: TaskRun
    attempt: int
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    holds_packed: bool = False
    attempts: int = 1
    """How many attempts the task run may have in all."""

    def run(self, worker: str = "", cpu_clock: Callable[[], float] = time.thread_time) -> Outcome:
        """Run the call here and return its outcome; no exception escapes, whatever the task raises.

        Args:
            worker: the name of the worker that runs it, as `localflow show` prints it.
            cpu_clock: CPU seconds used so far by whatever runs the call.
        """
        context = TaskContext(self.task_run, self.attempt, [])
        started_at, cpu_before = time.time(), cpu_clock()
        with entered(context):
            try:
                args, kwargs = self.unpacked_arguments() if self.holds_packed else (self.args, self.kwargs)
                value = self.function(*args, **kwargs)
            except BaseException as error:  # sys.exit() in a task is that task's failure, nobody else's
                state = failed_state(error)
                result = None
            else:
                state = value if isinstance(value, State) else State(StateType.COMPLETED, data=value)
                result = state.recordable()
        execution = Execution(worker, os.getpid(), started_at, time.time(), cpu_clock() - cpu_before, peak_rss_bytes())
        return Outcome(self.id, state, result, execution, tuple(context.records))

    def unpacked_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return args and kwargs with packed data unpacked."""
        args, kwargs = arguments.replace((self.args, dict(self.kwargs)), (Packed,), Packed.get)
        return args, kwargs


class Outcome(NamedTuple):
    """How a call ended. `state.data` is the value or the exception, `Packed` if it comes from another process."""

    call_id: int
    state: State
    result: Payload | None = None
    """The value as the store keeps it; None if there is none or it cannot be pickled."""
    execution: Execution | None = None
    records: tuple[Record, ...] = ()
    """What flows called inside the task have recorded; committed together with the task's own state."""


def failed_state(error: BaseException, run: str = "Task") -> State:
    """Return the FAILED state for an exception of a task (or of a flow's body)."""
    cause = Cause("exception", type(error).__name__, exception_text(error), traceback_text(error))
    return State(StateType.FAILED, message=exception_message(run, error), data=error, cause=cause)


def traceback_text(error: BaseException) -> str:
    """Return the traceback without the frames of localflow that lead to the user's code."""
    frames: TracebackType | None = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith("localflow."):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))


def peak_rss_bytes() -> int | None:
    """Return the largest resident size this process has had, or None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
