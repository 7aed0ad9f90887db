"""Task runs and flow runs while they live: what the engine knows of them beside their records."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from localflow import arguments
from localflow.calls import Call
from localflow.errors import ForeignFutureError, OutsideFlowError
from localflow.futures import TaskFuture, futures_in
from localflow.payloads import Packed
from localflow.records import FlowRun, StateChange, TaskRun
from localflow.run_names import run_name
from localflow.sameness import are_same, unmarked
from localflow.states import NOT_READY, Pending, Retrying, Returned, Running, State, StateType
from localflow.tags import current_tags, joined_tags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from localflow.engine import Engine
    from localflow.flows import Flow
    from localflow.interrupts import FlowStop
    from localflow.lanes import Lane
    from localflow.payloads import Payload
    from localflow.records import Execution, LogLine
    from localflow.tasks import Task

PENDING = Pending()
_RESULTS = (TaskFuture, State)
_INPUTS = (*_RESULTS, arguments.Marker)
_FIXED = (*_RESULTS, arguments.quote)


class LiveRun:
    """A task run between its call and its end."""

    __slots__ = (
        "active", "args", "attempt", "blocker", "cache_key", "call", "caller", "cancelling", "first_attempt",
        "future", "go", "in_hand", "is_new", "kwargs", "lane", "node", "note", "permit", "record", "resolve",
        "sequence", "state", "task", "tolerated", "upstreams",
    )  # fmt: skip

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
        self.tolerated: frozenset[int] = frozenset()
        """Ids of the futures and states whose failure is allowed."""
        self.blocker: State | None = None
        """A state passed as an argument or in `wait_for` that had not completed."""
        self.is_new = True
        """Whether its record is still to be stored; it is there already if an earlier attempt of the flow made it."""
        self.node = -1
        self.sequence = 0
        self.first_attempt = self.attempt = 1
        self.state: State = PENDING
        self.call: Call | None = None
        self.go = False
        """Whether a start is stored, so that a caller that runs its call itself may do so."""
        self.caller = threading.get_ident()
        """The thread that made the call."""
        self.in_hand = False
        """Whether an executor has the call."""
        self.cancelling: State | None = None
        """What it ends with once it has been stopped at its work, if it has been asked to end."""
        self.permit: Any = None
        """What the limits of its tags have given it."""
        self.cache_key: str | None = None
        self.note = ""
        """What is to be said with its start: why it has not been answered from the cache."""
        self.future: TaskFuture[Any]

    @property
    def has_ended(self) -> bool:
        """Whether its last state is decided, if not stored yet."""
        return self.future._ending is not None

    def change(self, state: State, execution: Execution | None = None, result: Payload | None = None) -> StateChange:
        """Move on to `state` and return the record of it."""
        previous, self.state = self.state.name, state
        self.sequence += 1
        return StateChange(
            self.record, self.sequence, state.type, state.name, state.message, state.instant, previous, self.attempt,
            execution, state.cause, result,
        )  # fmt: skip

    def begin(self) -> StateChange:
        """Move on to RUNNING, in the first or another attempt, and return the record of it."""
        assert self.call is not None
        if self.attempt == 1:
            return self.change(Running(self.note))
        self.call = self.call._replace(attempt=self.attempt)
        return self.change(Retrying())

    def wants_retry(self, state: State) -> bool:
        """Return whether there is to be another attempt after one that ended with `state`."""
        return self.cancelling is None and self.task.retry.wants(state, self.attempt - self.first_attempt + 1)

    def described(self) -> str:
        """Return what it is, for messages."""
        return f"task run '{self.record.name}'"

    def make_call(self) -> Call:
        """Put data in the place of futures and keep the call; if that fails, a call that raises the reason."""
        args, kwargs, holds_packed = self.args, self.kwargs, False
        task, active = self.task, self.active
        function: Callable[..., Any] = task
        if self.resolve:
            packed: list[Packed] = []

            def data(item: TaskFuture[Any] | State) -> object:
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
                args, kwargs = arguments.replace((args, kwargs), (TaskFuture, State), data)
            except Exception as error:  # such as a list put in the place of a future in a set
                function, args, kwargs = _raise, (error,), {}
            holds_packed = bool(packed)
        self.call = Call(
            self.node, self.record, self.attempt, function, args, kwargs, holds_packed,
            self.first_attempt + task.retry.retries, task.timeout_seconds,
            active.log_prints if task.log_prints is None else task.log_prints,
            self._log if self.lane.executor.shares_memory else None,
        )  # fmt: skip
        return self.call

    def _log(self, line: LogLine) -> None:
        if not self.has_ended:  # of a call that was given up and goes on all the same
            self.active.engine.log(self.record, self.attempt, (line,))


class SubflowCall:
    """A call of a subflow: which it is, with what, and its final state once it has one."""

    def __init__(self, key: tuple[str, int], inputs: object) -> None:
        self.key = key
        self.inputs = inputs
        self.state: State | None = None


class ActiveFlow:
    """A flow run whose body is at work, or whose task runs have not all ended."""

    def __init__(self, engine: Engine, record: FlowRun, lane: Lane, depth: int, flow: Flow[..., Any]) -> None:
        self.engine = engine
        self.record = record
        self.lane = lane
        self.depth = depth
        self.flow = flow
        self.log_prints = bool(flow.log_prints)
        self.attempt = 1
        self.futures: list[TaskFuture[Any]] = []
        self.subflows: list[State] = []
        self.submitted = 0
        """Task runs given to the engine in all attempts."""
        self.ended = 0
        self.over = False
        """Whether all that it started has ended and nothing may be added."""
        self.lock = threading.Lock()
        """Guards `interrupt`, and that what it does comes to the body or not at all."""
        self.stopped = threading.Event()
        """Set with `stop`."""
        self.stop: FlowStop | None = None
        """Why its body is to end, if somebody has said so."""
        self.interrupt: Callable[[FlowStop], None] | None = None
        """Ends the body where that can be done from outside."""
        self._numbers = itertools.count(1)
        self._map_numbers = itertools.count(1)
        self._ordinals: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
        self._keeps_runs = flow.retry.retries > 0
        self._kept: dict[tuple[str, int], tuple[LiveRun, object]] = {}
        self._kept_subflows: dict[tuple[str, int], SubflowCall] = {}
        self._subflow_ordinals: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)

    def begin_attempt(self) -> None:
        """Begin anew: the body will be called again, and completed runs of before stand for its calls."""
        self.attempt += 1
        self.futures, self.subflows = [], []
        self._ordinals.clear()
        self._subflow_ordinals.clear()

    def next_map_number(self) -> int:
        """Return the number for another `map` call."""
        return next(self._map_numbers)

    def submit(
        self,
        task: Task[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        wait_for: object = None,
        map_number: int = 0,
        map_index: int = 0,
    ) -> TaskFuture[Any]:
        """Make a task run of a call; with an executor that runs in the caller it has ended on return."""
        engine = self.engine
        if self.over:
            raise OutsideFlowError(task.name, "submit", f"after flow run '{self.record.name}' had ended")
        lane = self.lane if task.executor is None else engine.lane(task.executor)
        if task.timeout_seconds is not None and not lane.executor.kills_on_timeout and not task.is_async:
            engine.lanes.warn_of_timeout(task.name, lane)
        ordinal = next(self._ordinals[task.name])
        earlier = None
        if self._keeps_runs:
            inputs = unmarked((args, kwargs, wait_for))
            earlier, earlier_inputs = self._kept.get((task.name, ordinal), (None, None))
            if earlier is not None and earlier.state.is_completed() and are_same(inputs, earlier_inputs):
                self.futures.append(earlier.future)
                return earlier.future
        found = arguments.find((args, kwargs), _INPUTS)
        resolve = bool(found)
        tolerated: frozenset[int] = frozenset()
        if found or wait_for is not None:
            marked = found if wait_for is None else [*found, *arguments.find(wait_for, (arguments.allow_failure,))]
            if any(type(item) is arguments.allow_failure for item in marked):
                tolerated = frozenset(map(id, arguments.find_tolerated((args, kwargs, wait_for), _RESULTS)))
        if resolve:
            args, kwargs = _snapshot(args, kwargs)
        if wait_for is not None:
            found = [*found, *futures_in(wait_for)]
        upstreams, blocker, ids = self._sort(found, tolerated) if found else ((), None, ())
        if earlier is not None:
            record = earlier.record
        else:
            record = self._record(task, ordinal, args, kwargs, ids, map_number, map_index)
        run = LiveRun(self, lane, record, task, args, kwargs, resolve)
        run.upstreams, run.tolerated, run.blocker = upstreams, tolerated, blocker
        if earlier is not None:
            run.is_new, run.sequence, run.state = False, earlier.sequence, earlier.state
            run.first_attempt = run.attempt = earlier.attempt + 1
        run.future = TaskFuture((self.record.id, record.number), record.name, PENDING, engine, engine.lock)
        if self._keeps_runs:
            self._kept[task.name, ordinal] = run, inputs
        self.futures.append(run.future)
        engine.submit(run)
        return run.future

    def _record(
        self,
        task: Task[..., Any],
        ordinal: int,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        upstreams: tuple[str, ...],
        map_number: int,
        map_index: int,
    ) -> TaskRun:
        name = f"{task.name}-{ordinal}"
        if task.run_name is not None:
            name = run_name(task, args, kwargs, name)
        tags = current_tags()
        return TaskRun(
            self.record, next(self._numbers), name, task.name, ordinal, time.time(), upstreams,
            joined_tags(tags, task.tags) if tags else task.tags, task.version or "", map_number, map_index,
        )  # fmt: skip

    def subflow_call(self, name: str, inputs: object) -> SubflowCall:
        """Return another call of a subflow; it has its state if it completed in an earlier attempt."""
        key = (name, next(self._subflow_ordinals[name]))
        earlier = self._kept_subflows.get(key)
        if earlier is not None and are_same(unmarked(inputs), earlier.inputs):
            return earlier
        return SubflowCall(key, unmarked(inputs) if self._keeps_runs else None)

    def add_subflow(self, call: SubflowCall) -> None:
        """Take the final state of a subflow."""
        assert call.state is not None
        self.subflows.append(call.state)
        if self._keeps_runs and call.state.is_completed():
            self._kept_subflows[call.key] = call

    def _sort(
        self, found: Sequence[Any], tolerated: frozenset[int]
    ) -> tuple[tuple[TaskFuture[Any], ...], State | None, tuple[str, ...]]:
        """Return the futures to wait for, the first state that blocks, and the ids of the runs they all belong to."""
        futures: dict[TaskFuture[Any], None] = {}
        ids: dict[str, None] = {}
        blocker = None
        for item in found:
            state = item
            if isinstance(item, TaskFuture):
                ids[item.task_run_id] = None
                if item._engine is self.engine:
                    futures[item] = None
                    continue
                if not item.done():
                    raise ForeignFutureError(item.name, item.task_run_id, self.record.name)
                state = item.state
            if isinstance(state, State):
                if state.run_id:
                    ids[state.run_id] = None
                allowed = id(item) in tolerated and may_be_tolerated(state)
                if blocker is None and not allowed and not state.is_completed():
                    blocker = state
        return tuple(futures), blocker, tuple(ids)


def may_be_tolerated(state: State) -> bool:
    """Return whether `allow_failure` lets a run start after one that ended like this."""
    return state.type is StateType.FAILED or (state.type is StateType.PENDING and state.name == NOT_READY)


def _snapshot(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Copy the containers that hold futures: the caller may change them before the call runs."""
    if all(isinstance(value, _FIXED) for value in (*args, *kwargs.values())):
        return args, kwargs
    copies: tuple[tuple[Any, ...], Mapping[str, Any]]
    copies = arguments.replace((args, kwargs), _INPUTS, _copied)
    return copies


def _copied(item: Any) -> object:
    """Return a future or state itself, a marker with a copy of what it holds."""
    if not isinstance(item, arguments.Marker) or isinstance(item, arguments.quote):
        return item
    return type(item)(arguments.replace(item.value, _INPUTS, _copied))


def _raise(error: Exception) -> None:
    """Raise: the body of a call whose arguments could not be put together."""
    raise error
