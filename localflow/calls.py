"""What an executor gets and gives back: calls and outcomes, and how a call is run."""

from __future__ import annotations

import os
import time
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any

from localflow import arguments
from localflow.callables import is_coroutine_function, is_generator
from localflow.context import TaskContext, enter, entered, flow_depth, leave
from localflow.coroutines import Expired, drained, is_being_cancelled, run_to_its_end
from localflow.errors import LargeValueError
from localflow.interrupts import STOPS
from localflow.payloads import Packed
from localflow.recording import flush, recorder
from localflow.records import Execution
from localflow.states import State, StateType, exception_message, timed_out
from localflow.typed import NamedTuple
from localflow.usage import LoopMeter, ThreadMeter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from localflow.large_values import Folder
    from localflow.payloads import Payload
    from localflow.records import LogLine, Record, TaskRun
    from localflow.usage import Meter

_UNFINISHED = (CoroutineType, AsyncGeneratorType)


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
    timeout_seconds: float | None = None
    """How long it may take, counted from when it begins."""
    log_prints: bool = False
    """Whether what it prints becomes log lines."""
    log: Callable[[LogLine], None] | None = None
    """Takes what it says; set where the engine shares memory with it. Otherwise the outcome brings the lines."""
    folder: Folder | None = None
    """Where a large result is written that is to be recorded; set where the engine shares memory with it."""

    @property
    def is_async(self) -> bool:
        """Whether the function is async, so that `run_async` can share a loop with others."""
        known: bool | None = getattr(self.function, "is_async", None)
        return is_coroutine_function(self.function) if known is None else known

    def run(
        self,
        worker: str = "",
        meter: Meter | None = None,
        log: Callable[[LogLine], None] | None = None,
        folder: Folder | None = None,
    ) -> Outcome:
        """Run the call here and return its outcome; no exception escapes, whatever the task raises.

        An async function runs in a loop of its own, a generator is drained to a list.

        Args:
            worker: the name of the worker that runs it, as `localflow show` prints it.
            meter: measures what the call uses; without one its thread is measured.
            log: takes what the call says instead of the outcome.
            folder: where a large result is written, which then is the outcome's only way to tell it.
        """
        if log is None and self.log is None and not recorder.is_installed:
            from localflow import logs  # not for workers of the process executor, which may need no `logging`

            with logs.recording_elsewhere():
                return self._run(_Running(self, worker, meter or ThreadMeter(), log, folder))
        return self._run(_Running(self, worker, meter or ThreadMeter(), log, folder))

    def _run(self, running: _Running) -> Outcome:
        token = enter(running.context)
        try:
            try:
                value = self._value()
                if isinstance(value, _UNFINISHED):
                    value = run_to_its_end(value, self.timeout_seconds)
            except BaseException as error:  # sys.exit() in a task is that task's failure, nobody else's
                return running.failed(error)
            return running.returned(value)
        finally:
            leave(token)

    async def run_async(self, worker: str = "", log: Callable[[LogLine], None] | None = None) -> Outcome:
        """Run the call of an async function in the loop that is running here and return its outcome.

        Raises:
            asyncio.CancelledError: the asyncio task that runs it was cancelled.
        """
        running = _Running(self, worker, LoopMeter(), log)
        with entered(running.context):
            try:
                value = self._value()
                if isinstance(value, _UNFINISHED):
                    value = await drained(value, self.timeout_seconds)
            except BaseException as error:
                if is_being_cancelled(error):
                    flush(running.context)
                    raise
                return running.failed(error)
            return running.returned(value)

    def unpacked_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return args and kwargs with packed data unpacked."""
        args, kwargs = arguments.replace((self.args, dict(self.kwargs)), (Packed,), Packed.get)
        return args, kwargs

    def _value(self) -> Any:
        args, kwargs = self.unpacked_arguments() if self.holds_packed else (self.args, self.kwargs)
        value = self.function(*args, **kwargs)
        return list(value) if isinstance(value, GeneratorType) and self._is_generator else value

    @property
    def _is_generator(self) -> bool:
        return bool(getattr(self.function, "is_generator", False)) or is_generator(self.function)


class Output(NamedTuple):
    """What a call has said so far, while it is still running."""

    call_id: int
    lines: Sequence[LogLine]


class Outcome(NamedTuple):
    """How a call ended. `state.data` is the value or the exception, `Packed` if it comes from another process."""

    call_id: int
    state: State
    result: Payload | None = None
    """The value as the store keeps it; None if there is none or it cannot be pickled."""
    execution: Execution | None = None
    records: tuple[Record, ...] = ()
    """What flows called inside the task have recorded; committed together with the task's own state."""
    lines: Sequence[LogLine] = ()
    """What the call has said since its last `Output`."""


class _Running:
    """A call between its begin and its end."""

    __slots__ = ("_began", "_call", "_folder", "_lines", "_meter", "_started_at", "_worker", "context")

    def __init__(
        self,
        call: Call,
        worker: str,
        meter: Meter,
        log: Callable[[LogLine], None] | None,
        folder: Folder | None = None,
    ) -> None:
        self._call = call
        self._worker = worker
        self._folder = folder
        self._meter = meter
        self._lines: list[LogLine] = []
        log = log or call.log or self._lines.append
        # Here and below `tuple.__new__` makes the named tuples, at a third of the cost: this is done for every call.
        self.context = tuple.__new__(TaskContext, (call.task_run, call.attempt, [], log, call.log_prints, flow_depth()))
        self._started_at, self._began = time.time(), time.monotonic()
        meter.begin()

    def returned(self, value: object) -> Outcome:
        limit = self._call.timeout_seconds
        if limit is not None and time.monotonic() - self._began > limit:
            return self._ended(timed_out(limit))
        state = value if isinstance(value, State) else State(StateType.COMPLETED, "Completed", "", value)
        return self._ended(state, self._recordable(state))

    def _recordable(self, state: State) -> Payload | None:
        if self._folder is not None:
            return state.recordable(self._folder)
        return recordable_here(state, self._call.folder)

    def failed(self, error: BaseException) -> Outcome:
        limit = self._call.timeout_seconds
        is_late = limit is not None and (isinstance(error, Expired) or time.monotonic() - self._began > limit)
        if limit is not None and is_late and not isinstance(error, STOPS):
            return self._ended(timed_out(limit))
        return self._ended(failed_state(error, call=self._call))

    def _ended(self, state: State, result: Payload | None = None) -> Outcome:
        context, started_at = self.context, self._started_at
        flush(context)
        ended_at = started_at + (time.monotonic() - self._began)  # right also if the clock was set meanwhile
        execution = tuple.__new__(Execution, (self._worker, os.getpid(), started_at, ended_at, *self._meter.end()))
        records, lines = tuple(context.records), tuple(self._lines)
        return tuple.__new__(Outcome, (self._call.id, state, result, execution, records, lines))


def recordable_here(state: State, folder: Folder | None) -> Payload | None:
    """Return what is to be recorded of a value that is in the engine's own memory; a large one is in `folder` then."""
    try:
        return state.recordable(folder)
    except LargeValueError:  # as bytes it goes into the store, which tells if there is no room for it there either
        return state.recordable()


def failed_state(error: BaseException, run: str = "Task", call: Call | None = None) -> State:
    """Return the FAILED state for an exception of a task (or of a flow's body)."""
    from localflow.tracebacks import cause_of, described_arguments  # once something fails, as it takes its time

    called_with = {} if call is None else described_arguments(call.function, call.args, call.kwargs)
    cause = cause_of(error, called_with)
    return State(StateType.FAILED, message=exception_message(run, error), data=error, cause=cause)


def timed_out_outcome(call: Call, execution: Execution | None = None, lines: Sequence[LogLine] = ()) -> Outcome:
    """Return the outcome of a call that an executor has stopped, or given up, at its deadline."""
    assert call.timeout_seconds is not None
    return Outcome(call.id, timed_out(call.timeout_seconds), None, execution, (), lines)
