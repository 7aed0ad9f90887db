"""States of flow runs and task runs, the rule that adds them up, and the wording of every state message."""

from __future__ import annotations

import enum
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from localflow import arguments
from localflow.errors import (
    RunCancelledError,
    RunFailedError,
    RunTimedOutError,
    TaskFailedError,
    UnfinishedRunError,
    UnpicklableError,
    UpstreamFailedError,
    WorkerCrashedError,
)
from localflow.payloads import Packed, pack
from localflow.printable import shortened
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from localflow.large_values import Folder
    from localflow.payloads import Payload


class StateType(enum.Enum):
    """Where a run is; names of states say more, types decide."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CRASHED = "CRASHED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"

    __hash__ = object.__hash__  # that of Enum is Python code, and types are looked up for every task run


FINAL_TYPES = frozenset({StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED})

#: The longest message of a state that an exception makes, in characters; its cause has more of the text.
_MESSAGE_LIMIT = 10_000

NOT_READY = "NotReady"
WORKER_LOST = "WorkerLost"
OOM_KILLED = "OOMKilled"
ENGINE_LOST = "EngineLost"
TIMED_OUT = "TimedOut"
CACHED = "Cached"
INTERRUPTED = "Interrupted"

#: What states are called that localflow gives: the capitalised types, and the names beside them.
STATE_NAMES = (
    *(type.value.capitalize() for type in StateType),
    *(NOT_READY, "AwaitingRetry", "Retrying", CACHED, TIMED_OUT),
    *(WORKER_LOST, OOM_KILLED, ENGINE_LOST, INTERRUPTED),
)


class Cause(NamedTuple):
    """Why a run did not complete, as plain data that any reader can show without unpickling anything."""

    kind: str
    """`"exception"`, `"timeout"`, `"worker"` (its process died) or `"engine"`."""
    exception_type: str = ""
    message: str = ""
    traceback_text: str = ""
    signal: int | None = None
    exit_code: int | None = None
    pid: int | None = None
    full_traceback_text: str = ""
    """The traceback with all frames, where `traceback_text` has the user's only; empty where both are the same."""
    arguments: Mapping[str, str] = {}
    """What the task or flow was called with, by parameter: the `repr` of it, bounded, secrets masked."""


class RunRef(NamedTuple):
    """Which run a state or future is of, in few bytes: there may be a million of them."""

    flow_run_id: str
    number: int
    """As in the run's record: 0 for the flow run itself."""
    name: str

    @property
    def id(self) -> str:
        """The id under which the run is recorded."""
        return f"{self.flow_run_id}-{self.number}" if self.number else self.flow_run_id

    @property
    def label(self) -> str:
        """The run as messages name it: `task run 'create_tables-0'`."""
        return f"{'task' if self.number else 'flow'} run '{self.name}'"


class State:
    """Where a run is, and with it the data or the exception that brought it there.

    A state never changes; a run that moves on gets a new one. `data` is the value of a completed run, the exception of
    a failed one, or the list of states (or the returned structure with states in it) of a flow.
    """

    __slots__ = ("_data", "_id", "cause", "instant", "message", "name", "run", "type")

    def __init__(
        self,
        type: StateType,
        name: str = "",
        message: str = "",
        data: object = None,
        *,
        instant: float | None = None,
        cause: Cause | None = None,
        run: RunRef | None = None,
    ) -> None:
        self.type = type
        self.name = name or type.value.capitalize()
        self.message = message
        self.cause = cause
        self.run = run
        """The run whose last state this is; None until the engine has taken it."""
        self.instant = time.time() if instant is None else instant
        """When the run changed, in seconds since the epoch."""
        self._data = data
        self._id: str | None = None

    @property
    def run_id(self) -> str:
        """The id of the run whose last state this is; empty until the engine has taken it."""
        return self.run.id if self.run is not None else ""

    @property
    def id(self) -> str:
        """A unique id of this state."""
        if self._id is None:  # made on demand: most states are never asked for theirs
            from uuid import uuid4

            self._id = str(uuid4())
        return self._id

    @property
    def timestamp(self) -> datetime:
        """The instant of the change, in UTC."""
        from datetime import UTC, datetime

        return datetime.fromtimestamp(self.instant, UTC)

    @property
    def data(self) -> Any:
        """The value, exception or states; a value from a worker process is unpacked here, a new object each time."""
        if isinstance(self._data, Packed):
            return self._data.get()
        if isinstance(self._data, Returned):
            return self._data.structure
        if isinstance(self._data, Blocked):
            return None
        return self._data

    @property
    def packed_data(self) -> object:
        """The data as it is kept: `Packed` where a worker process made it and nobody has asked for it yet."""
        return self._data

    def result(self, raise_on_failure: bool = True) -> Any:
        """Return the data of a completed run, or raise what kept the run from completing.

        Args:
            raise_on_failure: if false, a failed run's exception (or a flow's states) are returned instead of raised.

        Raises:
            The task's own exception, TaskFailedError where it cannot be rebuilt, WorkerCrashedError,
            RunCancelledError, UpstreamFailedError, or UnfinishedRunError if the run has not ended.
        """
        if isinstance(self._data, Returned):
            if raise_on_failure and not self.is_completed():
                raise self.exception()
            return self._data.resolved() if raise_on_failure else self._data.structure
        if self.type is StateType.COMPLETED:
            return self.data
        if raise_on_failure:
            raise self.exception()
        has_own_data = not (self._data is None or isinstance(self._data, (Packed, Blocked)))
        return self._data if has_own_data else self.exception()

    def exception(self) -> BaseException:
        """Return the exception that `result()` raises for a run that did not complete."""
        if isinstance(self._data, Blocked):
            error: BaseException = UpstreamFailedError(self.message)
            error.__cause__ = self._data.root().exception()
            return error
        if isinstance(self._data, Returned):
            failure = first_failure(self._data.states)
            if failure is not None:
                return failure.exception()
        if isinstance(self._data, Packed):
            try:
                loaded = self._data.get()
            except Exception:  # the class is missing or its unpickling fails here; the cause has it as text
                loaded = None
            if isinstance(loaded, BaseException):
                return _travelled(loaded, self.cause)
        elif isinstance(self._data, BaseException):
            if isinstance(self._data, Exception):
                return self._data
            # SystemExit or KeyboardInterrupt of a task must not end the program that asks for its result.
            text = self.cause.traceback_text if self.cause is not None else ""
            error = TaskFailedError(type(self._data).__name__, exception_text(self._data), text)
            error.__cause__ = self._data
            return error
        return self._worded_exception()

    def _worded_exception(self) -> BaseException:
        cause = self.cause
        if self.type is StateType.CRASHED:
            return WorkerCrashedError(self.message)
        if self.type is StateType.CANCELLED:
            return RunCancelledError(self.message or "the run was cancelled")
        if cause is not None and cause.exception_type:
            return TaskFailedError(cause.exception_type, cause.message, cause.traceback_text)
        if self.type is StateType.FAILED:
            return RunFailedError(self.message or "the run failed")
        if self.name == NOT_READY:
            return UpstreamFailedError(self.message)
        return UnfinishedRunError(self.name)

    def failure(self) -> object:
        """Return what stands for a run that did not complete where failures are allowed: the exception.

        It is `Packed` where a worker made it; nothing is unpickled.
        """
        if isinstance(self._data, Packed):
            return self._data
        if isinstance(self._data, Blocked):
            root = self._data.root()
            error = UpstreamFailedError(self.message)
            if not isinstance(root.packed_data, Packed):
                error.__cause__ = root.exception()
            return error
        return self.exception()

    def recordable(self, folder: Folder | None = None) -> Payload | None:
        """Return a completed run's value as the store keeps it: best effort, None where it cannot be pickled.

        A large one is written into `folder`, if there is one; raises LargeValueError where that fails.
        """
        if self.type is not StateType.COMPLETED or isinstance(self._data, Returned):
            return None
        if isinstance(self._data, Packed):
            return self._data.portable()
        try:
            return pack(self._data, folder)
        except UnpicklableError:
            return None

    def is_scheduled(self) -> bool:
        """Return whether the run waits for a moment to come."""
        return self.type is StateType.SCHEDULED

    def is_pending(self) -> bool:
        """Return whether the run has not started."""
        return self.type is StateType.PENDING

    def is_running(self) -> bool:
        """Return whether the run is at work."""
        return self.type is StateType.RUNNING

    def is_completed(self) -> bool:
        """Return whether the run ended well."""
        return self.type is StateType.COMPLETED

    def is_failed(self) -> bool:
        """Return whether the user's code failed."""
        return self.type is StateType.FAILED

    def is_crashed(self) -> bool:
        """Return whether the worker or the engine died."""
        return self.type is StateType.CRASHED

    def is_cancelling(self) -> bool:
        """Return whether the run is being stopped."""
        return self.type is StateType.CANCELLING

    def is_cancelled(self) -> bool:
        """Return whether the run was stopped."""
        return self.type is StateType.CANCELLED

    def is_final(self) -> bool:
        """Return whether the run has ended: COMPLETED, FAILED, CRASHED or CANCELLED."""
        return self.type in FINAL_TYPES

    def __repr__(self) -> str:
        message = f", message={self.message!r}" if self.message else ""
        return f"State(name={self.name!r}, type=StateType.{self.type.value}{message})"

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.type, self.name, self.message, self._data, self.instant, self.cause, self.run)
        return _restore, (self.id, *fields)


def _restore(
    id: str,
    type: StateType,
    name: str,
    message: str,
    data: object,
    instant: float,
    cause: Cause | None,
    run: RunRef | None,
) -> State:
    state = State(type, name, message, data, instant=instant, cause=cause, run=run)
    state._id = id
    return state


class Returned:
    """The data of a flow's aggregate: what it returned, with the states of its futures in their place.

    A flow that returned None has the list of its children's states instead, which stay states in its result.
    """

    __slots__ = ("states", "structure")

    def __init__(self, structure: object, states: Sequence[State]) -> None:
        self.structure = structure
        self.states = states

    def resolved(self) -> Any:
        """Return the structure with data in the place of states."""
        if self.structure is self.states:
            return self.structure
        return arguments.replace(self.structure, (State,), State.result)


class Blocked:
    """The data of a NotReady state: the upstream state that did not complete."""

    __slots__ = ("upstream",)

    def __init__(self, upstream: State) -> None:
        self.upstream = upstream

    def root(self) -> State:
        """Follow the chain of blocked runs to the state that started it. A loop: chains may be 10,000 long."""
        state = self.upstream
        while isinstance(state.packed_data, Blocked):
            state = state.packed_data.upstream
        return state

    def __reduce__(self) -> tuple[Any, ...]:
        return Blocked, (self.root(),)


# -- constructors ----------------------------------------------------------------------------------------------------


def Scheduled(message: str = "", data: object = None, name: str = "") -> State:
    """A run that waits for a moment to come."""
    return State(StateType.SCHEDULED, name, message, data)


def Pending(message: str = "", data: object = None, name: str = "") -> State:
    """A run that has not started."""
    return State(StateType.PENDING, name, message, data)


def Running(message: str = "", data: object = None, name: str = "") -> State:
    """A run at work."""
    return State(StateType.RUNNING, name, message, data)


def Completed(message: str = "", data: object = None, name: str = "") -> State:
    """A run that ended well, with its value as `data`."""
    return State(StateType.COMPLETED, name, message, data)


def Failed(message: str = "", data: object = None, name: str = "") -> State:
    """A run whose code failed, with its exception, if there is one, as `data`."""
    return State(StateType.FAILED, name, message, data)


def Crashed(message: str = "", data: object = None, name: str = "") -> State:
    """A run whose worker or engine died."""
    return State(StateType.CRASHED, name, message, data)


def Cancelled(message: str = "", data: object = None, name: str = "") -> State:
    """A run that was stopped."""
    return State(StateType.CANCELLED, name, message, data)


def AwaitingRetry(message: str = "", data: object = None, name: str = "AwaitingRetry") -> State:
    """A run that waits for its next attempt."""
    return State(StateType.SCHEDULED, name, message, data)


def Retrying(message: str = "", data: object = None, name: str = "Retrying") -> State:
    """A run in its second or a later attempt."""
    return State(StateType.RUNNING, name, message, data)


def not_ready(upstream: State, label: str = "") -> State:
    """A run that will never start because `upstream`, the state of the run that `label` names, did not complete."""
    if not label:
        label = upstream.run.label if upstream.run is not None else f"state '{upstream.name}'"
    return State(StateType.PENDING, NOT_READY, upstream_message(label), Blocked(upstream))


def timed_out(seconds: float, run: str = "Task") -> State:
    """A run, `"Task"` or `"Flow"`, that took longer than its timeout of so many seconds."""
    message = f"{run} run exceeded timeout of {float(seconds)} second(s)"
    cause = Cause("timeout", "TimeoutError", message)
    return State(StateType.FAILED, TIMED_OUT, message, RunTimedOutError(message), cause=cause)


# -- the aggregate ---------------------------------------------------------------------------------------------------


def aggregate(states: Sequence[State], data: object) -> State:
    """Return the one state that sums up `states`: COMPLETED only if every one of them is."""
    total = len(states)
    counts = Counter([state.type for state in states])
    failed = counts[StateType.FAILED] + counts[StateType.CRASHED]
    cancelled, completed = counts[StateType.CANCELLED], counts[StateType.COMPLETED]
    if completed == total:
        return Completed("All states completed.", data)
    if failed:
        return Failed(f"{failed}/{total} states failed.", data)
    if cancelled:
        return Failed(f"{cancelled}/{total} states cancelled.", data)
    return Failed(f"{total - completed}/{total} states are not final.", data)


def first_failure(states: Iterable[State]) -> State | None:
    """Return the first FAILED or CRASHED state, else the first that is not COMPLETED, else None."""
    unfinished = None
    for state in states:
        if state.type in (StateType.FAILED, StateType.CRASHED):
            return state
        if unfinished is None and state.type is not StateType.COMPLETED:
            unfinished = state
    return unfinished


# -- messages --------------------------------------------------------------------------------------------------------


def exception_message(run: str, error: BaseException) -> str:
    """Word a failure, as `Task run encountered an exception: ValueError: boom`; `run` is `"Task"` or `"Flow"`."""
    text = f"{run.lower()} called sys.exit({exception_text(error)})" if isinstance(error, SystemExit) else ""
    return shortened(f"{run} run encountered an exception: {type_and_text(error, text)}", _MESSAGE_LIMIT)


def type_and_text(error: BaseException, text: str = "") -> str:
    """Return `ValueError: boom`, or the type's name alone where there is no text."""
    text = text or exception_text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def exception_text(error: BaseException) -> str:
    """Return what `str()` of the exception gives, also when that itself raises."""
    try:
        return str(error)
    except Exception as unprintable:
        return f"<no message: str() of it raised {type(unprintable).__name__}>"


def engine_lost_message(pid: int) -> str:
    """Word what has ended a run whose engine is gone."""
    return f"its engine, in process {pid}, is gone"


def upstream_message(label: str) -> str:
    """Word what blocks a run; `label` is `task run 'create_tables-0'` or `flow run 'brave-otter'`."""
    return f"Upstream {label} did not reach a 'COMPLETED' state."


def _travelled(error: BaseException, cause: Cause | None) -> BaseException:
    """Return an exception from a worker with its traceback there as a note, so that a traceback here shows both."""
    if not isinstance(error, Exception):
        assert cause is not None
        return TaskFailedError(cause.exception_type, cause.message, cause.traceback_text)
    if cause is not None and cause.traceback_text:
        error.add_note(f"\nIn the worker process:\n\n{cause.traceback_text.rstrip()}")
    return error
