"""The engine's moving parts: lanes, live task runs and active flow runs. Plain data, changed by the engine alone."""

from __future__ import annotations

import copy
import itertools
import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

from localflow import arguments
from localflow.calls import Call
from localflow.errors import ExecutorError, ForeignFutureError, OutsideFlowError, PluginError
from localflow.futures import TaskFuture, futures_in
from localflow.interrupts import STOPS
from localflow.payloads import Packed, type_name
from localflow.records import FlowRun, StateChange, TaskRun
from localflow.states import Pending, Returned, State, type_and_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from localflow.engine import Engine
    from localflow.interfaces import Executor, Report
    from localflow.payloads import Payload
    from localflow.records import Execution
    from localflow.tasks import Task

PENDING = Pending()
_SPARE = "_localflow_spare"
_INPUTS = (TaskFuture, State, arguments.quote)


class Lane:
    """An executor at work for an engine, and the runs that are ready for it."""

    __slots__ = ("executor", "in_hand", "name", "ready")

    def __init__(self, name: str, executor: Executor) -> None:
        self.name = name
        self.executor = executor
        self.ready: deque[LiveRun] = deque()
        self.in_hand = 0

    def start(self, report: Report) -> None:
        """Start the executor; one that cannot is a mistake in it or in its options."""
        try:
            self.executor.start(report)
        except STOPS:
            raise
        except BaseException as error:
            raise PluginError(f"executor {self.described()} cannot start: {type_and_text(error)}") from error

    def described(self) -> str:
        """Return the executor's name and class, for messages."""
        return f"'{self.name}' ({type_name(self.executor)})"

    def room(self) -> int:
        """Return how many more calls the executor wants now."""
        try:
            capacity = self.executor.capacity
        except Exception as error:
            raise ExecutorError(f"executor {self.described()} does not tell its capacity: {error!r}") from error
        return len(self.ready) if capacity is None else min(len(self.ready), capacity - self.in_hand)


class LiveRun:
    """A task run between its call and its end."""

    __slots__ = (
        "active", "args", "blocker", "call", "function", "future", "go", "kwargs", "lane", "node", "record",
        "resolve", "sequence", "state", "upstreams",
    )  # fmt: skip

    def __init__(
        self,
        active: ActiveFlow,
        lane: Lane,
        record: TaskRun,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        upstreams: Sequence[TaskFuture[Any]],
        resolve: bool,
    ) -> None:
        self.active = active
        self.lane = lane
        self.record = record
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.upstreams = upstreams
        self.resolve = resolve
        """Whether futures, states or quotes are to be replaced in the arguments."""
        self.blocker: State | None = None
        """A state passed as an argument or in `wait_for` that had not completed."""
        self.node = -1
        self.sequence = 0
        self.state: State = PENDING
        self.call: Call | None = None
        self.go = False
        """Whether its start is stored, so that a caller that runs its call itself may do so."""
        self.future: TaskFuture[Any]

    def change(self, state: State, execution: Execution | None = None, result: Payload | None = None) -> StateChange:
        """Move on to `state` and return the record of it."""
        previous, self.state = self.state.name, state
        self.sequence += 1
        return StateChange(
            self.record, self.sequence, state.type, state.name, state.message, state.instant, previous, 1, execution,
            state.cause, result,
        )  # fmt: skip

    def make_call(self) -> None:
        """Put data in the place of futures and keep the call; if that fails, a call that raises the reason."""
        args, kwargs, holds_packed = self.args, self.kwargs, False
        function: Callable[..., Any] = self.function
        if self.resolve:
            packed: list[Packed] = []

            def data(item: TaskFuture[Any] | State) -> object:
                state = item._ending if isinstance(item, TaskFuture) else item
                assert state is not None  # a run is ready only when its upstreams have ended
                value = state.packed_data
                if isinstance(value, Packed):
                    packed.append(value)
                elif isinstance(value, Returned):
                    value = state.result()
                return value

            try:
                args, kwargs = arguments.replace((args, kwargs), (TaskFuture, State), data)
            except Exception as error:  # such as a list put in the place of a future in a set
                function, args, kwargs = _raise, (error,), {}
            holds_packed = bool(packed)
        self.call = Call(self.node, self.record, 1, function, args, kwargs, holds_packed)


class ActiveFlow:
    """A flow run whose body is at work, or whose task runs have not all ended."""

    def __init__(self, engine: Engine, record: FlowRun, lane: Lane, depth: int) -> None:
        self.engine = engine
        self.record = record
        self.lane = lane
        self.depth = depth
        self.futures: list[TaskFuture[Any]] = []
        self.subflows: list[State] = []
        self.ended = 0
        self.over = False
        """Whether all that it started has ended and nothing may be added."""
        self._numbers = itertools.count(1)
        self._ordinals: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)

    def submit(
        self,
        task: Task[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        wait_for: object = None,
    ) -> TaskFuture[Any]:
        """Make a task run of a call; with an executor that runs in the caller it has ended on return."""
        engine = self.engine
        lane = self.lane if task.executor is None else engine.lane(task.executor)
        if self.over:
            raise OutsideFlowError(task.name, "submit", f"after flow run '{self.record.name}' had ended")
        found = arguments.find((args, kwargs), _INPUTS)
        resolve = bool(found)
        if resolve:
            args, kwargs = _snapshot(args, kwargs)
        if wait_for is not None:
            found = [*found, *futures_in(wait_for)]
        upstreams, blocker, ids = self._sort(found) if found else ((), None, ())
        number, ordinal = next(self._numbers), next(self._ordinals[task.name])
        name = f"{task.name}-{ordinal}"
        record = TaskRun(self.record, number, name, task.name, ordinal, time.time(), ids, task.tags, task.version or "")
        run = LiveRun(self, lane, record, task, args, kwargs, upstreams, resolve)
        run.blocker = blocker
        run.future = TaskFuture((self.record.id, number), name, PENDING, engine, engine.lock)
        engine.submit(run)
        return run.future

    def _sort(self, found: Sequence[Any]) -> tuple[tuple[TaskFuture[Any], ...], State | None, tuple[str, ...]]:
        """Return the futures to wait for, the first state that blocks, and the ids of the runs they all belong to."""
        futures: dict[TaskFuture[Any], None] = {}
        ids: dict[str, None] = {}
        blocker = None
        for item in found:
            if isinstance(item, TaskFuture):
                ids[item.task_run_id] = None
                if item._engine is self.engine:
                    futures[item] = None
                    continue
                if not item.done():
                    raise ForeignFutureError(item.name, item.task_run_id, self.record.name)
                item = item.state
            if isinstance(item, State):
                if item.run_id:
                    ids[item.run_id] = None
                if blocker is None and not item.is_completed():
                    blocker = item
        return tuple(futures), blocker, tuple(ids)


def _snapshot(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Copy the containers that hold futures: the caller may change them before the call runs."""
    if all(isinstance(value, _INPUTS) for value in (*args, *kwargs.values())):
        return args, kwargs
    copies: tuple[tuple[Any, ...], Mapping[str, Any]]
    copies = arguments.replace((args, kwargs), _INPUTS, lambda item: item)
    return copies


def executor_name(executor: str | Executor) -> str:
    """Return how an executor is recorded: its configured name, or the class of an instance given in code."""
    return executor if isinstance(executor, str) else type(executor).__name__


def _raise(error: Exception) -> None:
    """Raise: the body of a call whose arguments could not be put together."""
    raise error


def claim(executor: Executor) -> Executor:
    """Return the executor, or a copy of it while another engine has it.

    An instance named in code may be wanted by several flow runs at once. The copy is taken before the instance starts,
    when it is nothing but its options.
    """
    spare = copy.copy(executor)
    kept = vars(executor).setdefault(_SPARE, spare)
    return executor if kept is spare else copy.copy(kept)


def release(executor: Executor) -> None:
    """Let an executor be used by the next engine that wants it."""
    vars(executor).pop(_SPARE, None)
