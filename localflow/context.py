"""Which flow run or task run the current code belongs to."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from localflow.errors import NoRunError
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from localflow.active import ActiveFlow
    from localflow.records import FlowRun, LogLine, Record, TaskRun


class FlowContext(NamedTuple):
    """The body of a flow is running: task calls become task runs of it."""

    flow_run: FlowRun
    active: ActiveFlow
    attempt: int
    log: Callable[[LogLine], None]
    """Takes what the body says."""
    log_prints: bool = False
    """Whether what it prints becomes log lines."""


class TaskContext(NamedTuple):
    """The body of a task is running: task calls are plain calls."""

    task_run: TaskRun
    attempt: int
    records: list[Record]
    """What flows called inside the task record; it travels to the store with the task's outcome."""
    log: Callable[[LogLine], None]
    """Takes what the body says."""
    log_prints: bool = False
    """Whether what it prints becomes log lines."""
    depth: int = 1
    """How many flows it is inside of, as far as this process knows."""


_current: ContextVar[FlowContext | TaskContext | None] = ContextVar("localflow_run", default=None)

#: Make a context the current one, and the one before it again: what `entered` does, for where each call passes.
enter, leave = _current.set, _current.reset


def flow_depth() -> int:
    """Return how many flows a task that begins here is inside of: one at least, and those of this process."""
    context = _current.get()
    return context.active.depth + 1 if isinstance(context, FlowContext) else 1


def current_run() -> FlowContext | TaskContext | None:
    """Return the innermost flow or task that the calling code runs in, or None outside."""
    return _current.get()


class entered:
    """Make a context the current one for the block."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: FlowContext | TaskContext) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token = _current.set(self._context)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


class FlowRunInfo(NamedTuple):
    """A flow run, as its own code and the code of its tasks may look at it."""

    id: str
    name: str
    flow: str
    tags: tuple[str, ...]
    attempt: int
    parameters: Mapping[str, object]
    """As they are recorded: values that JSON cannot hold are there as their bounded `repr`."""


class TaskRunInfo(NamedTuple):
    """A task run, as its own code, its hooks and conditions may look at it."""

    id: str
    name: str
    task: str
    tags: tuple[str, ...]
    attempt: int
    map_index: int | None
    """The place of the item in its `map` call, from 0; None for a call of its own."""


class RunContext(NamedTuple):
    """Which run the calling code belongs to."""

    flow_run: FlowRunInfo
    task_run: TaskRunInfo | None = None
    """The task run, None in the body of a flow."""


def get_run_context() -> RunContext:
    """Return the flow run, and the task run if there is one, that the calling code belongs to.

    Raises:
        NoRunError: it belongs to none.
    """
    context = _current.get()
    if context is None:
        raise NoRunError("get_run_context()")
    if isinstance(context, FlowContext):
        return RunContext(flow_run_info(context.flow_run, context.attempt))
    return task_run_context(context.task_run, context.attempt)


def task_run_context(task_run: TaskRun, attempt: int) -> RunContext:
    """Return what a task run may look at."""
    return RunContext(flow_run_info(task_run.flow_run), task_run_info(task_run, attempt))


def flow_run_info(run: FlowRun, attempt: int = 1) -> FlowRunInfo:
    """Return what others may look at of a flow run."""
    return FlowRunInfo(run.id, run.name, run.flow, run.tags, attempt, run.parameters)


def task_run_info(run: TaskRun, attempt: int) -> TaskRunInfo:
    """Return what others may look at of a task run."""
    index = run.map_index if run.map_number else None
    return TaskRunInfo(run.id, run.name, run.task, run.tags, attempt, index)
