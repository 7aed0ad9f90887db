"""Which flow run or task run the current code belongs to."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.live import ActiveFlow
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


_current: ContextVar[FlowContext | TaskContext | None] = ContextVar("localflow_run", default=None)


def current_run() -> FlowContext | TaskContext | None:
    """Return the innermost flow or task that the calling code runs in, or None outside."""
    return _current.get()


@contextmanager
def entered(context: FlowContext | TaskContext) -> Iterator[None]:
    """Make `context` the current one for the block."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
