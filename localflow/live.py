"""A task run while it lives: what the engine knows of it beside its record."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from localflow import arguments
from localflow.arguments import Whole
from localflow.calls import Call
from localflow.earlier import EarlierRun
from localflow.futures import TaskFuture
from localflow.payloads import Packed, pack_once
from localflow.records import StateChange, TaskRun
from localflow.states import NOT_READY, Pending, Retrying, Returned, RunRef, State, StateType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from localflow.active import ActiveFlow
    from localflow.lanes import Lane
    from localflow.payloads import Payload
    from localflow.records import Execution, LogLine
    from localflow.tasks import Task

PENDING = Pending()

#: So many calls may wait for somebody who takes them to the engine, or along with something else.
MOST_WAITING = 64

# What most runs have, as one object for all of them.
NO_KEYWORDS: Mapping[str, Any] = {}
NONE_TOLERATED: frozenset[int] = frozenset()


class LiveRun:
    """A task run between its call and its end. Small: a million of them may wait."""

    __slots__ = (
        "active", "args", "attempt", "begun", "blocker", "cache_key", "call", "caller", "cancelling", "depth",
        "future", "go", "in_hand", "kwargs", "lane", "note", "permit", "record", "resolve", "sequence", "state", "task",
        "tolerated", "upstreams",
    )  # fmt: skip

    # Of all but a `LaterRun`.
    is_new: bool = True
    """Whether its record is still to be stored; it is there already if an earlier attempt of the flow made it."""
    outdated: Sequence[TaskRun] = ()
    """Records of earlier runs that are out of date when this one runs again."""
    answer: State | None = None
    """The state it completed with in an earlier process: it is not run again."""
    first_attempt: int = 1

    def __init__(
        self,
        active: ActiveFlow,
        lane: Lane,
        record: TaskRun,
        task: Task[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        resolve: bool,
    ) -> None:
        self.active = active
        self.lane = lane
        self.record = record
        self.task = task
        self.args = args
        self.kwargs = kwargs
        self.resolve = resolve
        """Whether futures, states or markers are to be replaced in the arguments."""
        self.upstreams: Sequence[TaskFuture[Any]] = ()
        self.tolerated = NONE_TOLERATED
        """Ids of the futures and states whose failure is allowed."""
        self.blocker: State | None = None
        """A state passed as an argument or in `wait_for` that had not completed."""
        self.depth = 0
        """How many runs are above it in the graph, one below the other."""
        self.sequence = 0
        self.attempt = 1
        self.begun = 0
        """The number of the last attempt that began."""
        self.state: State = PENDING
        self.call: Call | None = None
        self.go = False
        """Whether a start is stored, so that a caller that runs its call itself may do so."""
        self.caller = threading.get_ident() if lane.executor.runs_in_caller else 0
        """The thread that made the call, if it is to run it."""
        self.in_hand = False
        """Whether an executor has the call."""
        self.cancelling: State | None = None
        """What it ends with once it has been stopped at its work, if it has been asked to end."""
        self.permit: Any = None
        """What the limits of its tags have given it."""
        self.cache_key: str | None = None
        self.note = ""
        """What is to be said with its start: why it has not been answered from the cache, or from the store."""
        self.future: TaskFuture[Any]

    @property
    def node(self) -> int:
        """Its number in the graph."""
        return self.future._node

    @property
    def may_wait(self) -> bool:
        """Whether nothing is lost if this call is looked at with the next news: the lane's, or that of an upstream."""
        if self.answer is not None or self.blocker is not None:
            return False
        for upstream in reversed(self.upstreams):  # of many the last ones are open for longest
            if not upstream._done:
                return True
        lane, task = self.lane, self.task
        return lane.in_hand >= lane.plenty and task.caching is None and not task.is_async

    @property
    def has_ended(self) -> bool:
        """Whether its last state is decided, if not stored yet."""
        return self.future._ending is not None

    def change(self, state: State, execution: Execution | None = None, result: Payload | None = None) -> StateChange:
        """Move on to `state` and return the record of it."""
        previous, self.state = self.state.name, state
        self.sequence += 1
        # `tuple.__new__` makes a named tuple in a third of the time; two are made for every task run.
        return tuple.__new__(
            StateChange,
            (
                self.record, self.sequence, state.type, state.name, state.message, state.instant, previous,
                self.attempt, execution, state.cause, result, None,
            ),
        )  # fmt: skip

    def conclude(self, state: State) -> None:
        """Note the last state, which nobody is shown before it is stored."""
        record, future = self.record, self.future
        future._run = ref = tuple.__new__(RunRef, (record.flow_run.id, record.number, record.name))
        if state.run is None:
            state.run = ref
        future._ending = state

    def begin(self) -> StateChange:
        """Move on to RUNNING, in the first or another attempt, and return the record of it."""
        assert self.call is not None
        self.begun = self.attempt
        note, self.note = self.note, ""
        if self.attempt == 1:
            return self.change(State(StateType.RUNNING, "Running", note))
        self.call = self.call._replace(attempt=self.attempt)
        return self.change(Retrying(note))

    def wants_retry(self, state: State) -> bool:
        """Return whether there is to be another attempt after one that ended with `state`."""
        retry = self.task.retry
        return (
            retry.retries > 0 and self.cancelling is None and retry.wants(state, self.attempt - self.first_attempt + 1)
        )

    def described(self) -> str:
        """Return what it is, for messages."""
        return f"task run '{self.record.name}'"

    def make_call(self) -> Call:
        """Put data in the place of futures and keep the call; if that fails, a call that raises the reason."""
        args, kwargs, holds_packed = self.args, self.kwargs, False
        task, active = self.task, self.active
        function: Callable[..., Any] = task
        is_here = self.lane.executor.shares_memory
        if self.resolve:
            packed: list[Packed] = []
            wholes: list[Whole[Any]] = []

            def data(item: TaskFuture[Any] | State | Whole[Any]) -> object:
                if isinstance(item, Whole):
                    wholes.append(item)
                    return item
                state: State | None = item._ending if isinstance(item, TaskFuture) else item
                assert state is not None  # a run is ready only when its upstreams have ended
                if id(item) in self.tolerated and not state.is_completed():
                    value = state.failure()
                else:
                    value = state.packed_data
                if isinstance(value, Packed):
                    packed.append(value)
                elif isinstance(value, Returned) and value.structure is value.states:
                    value = value.structure
                elif isinstance(value, Returned):  # of a flow: states in it are replaced like states in arguments
                    value = arguments.replace(value.structure, (State,), data)
                return value

            try:
                args, kwargs = arguments.replace_in_call(args, kwargs, (TaskFuture, State, Whole), data)
                if wholes:
                    args, kwargs = self._unwrapped(args, kwargs, wholes, packed)
            except Exception as error:  # such as a list put in the place of a future in a set
                function, args, kwargs = _raise, (error,), {}
            holds_packed = bool(packed)
        self.call = call = tuple.__new__(
            Call,
            (
                self.node, self.record, self.attempt, function, args, kwargs, holds_packed,
                self.first_attempt + task.retry.retries, task.timeout_seconds,
                active.log_prints if task.log_prints is None else task.log_prints,
                self._log if is_here else None,
                active.engine.folder if is_here and task.persist_result is not False else None,
            ),
        )  # fmt: skip
        return call

    def _unwrapped(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], wholes: Sequence[Whole[Any]], packed: list[Packed]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Put data in the place of what goes to all runs of a map: if it is to travel, bytes made once for all of them.

        Pickled apart, two arguments would no longer share what they hold. So there are such bytes only for one that is
        beside nothing it could share anything with.
        """
        [first, *others] = wholes
        new = first.value
        rest = (value for value in (*args, *kwargs.values()) if value is not first)
        if (
            not (self.lane.executor.shares_memory or others or self.task.caching)
            and all(arguments.is_atom(value) or isinstance(value, Packed) for value in rest)
            and (shared := first.packed_once(lambda value: pack_once(value, self.lane.executor.folder))) is not None
        ):
            packed.append(shared)
            new = shared

        def bare(value: object) -> object:
            return new if value is first else value.value if isinstance(value, Whole) else value

        return tuple(map(bare, args)), {name: bare(value) for name, value in kwargs.items()}

    def as_earlier(self) -> EarlierRun[TaskRun]:
        """Return it as the next attempt of its flow sees it."""
        earlier, state = EarlierRun(self.record), self.state
        earlier.sequence, earlier.begun, earlier.future = self.sequence, self.begun, self.future
        earlier.type, earlier.name, earlier.message = state.type, state.name, state.message
        return earlier

    def _log(self, line: LogLine) -> None:
        if not self.has_ended:  # of a call that was given up and goes on all the same
            self.active.engine.log(self.record, self.attempt, (line,))


class LaterRun(LiveRun):
    """A task run of a flow run that has had an attempt before, in which the same call may have been made."""

    __slots__ = ("answer", "first_attempt", "is_new", "outdated")

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.is_new = True
        self.outdated = ()
        self.answer = None
        self.first_attempt = 1


def may_be_tolerated(state: State) -> bool:
    """Return whether `allow_failure` lets a run start after one that ended like this."""
    return state.type is StateType.FAILED or (state.type is StateType.PENDING and state.name == NOT_READY)


def _raise(error: Exception) -> None:
    """Raise: the body of a call whose arguments could not be put together."""
    raise error
