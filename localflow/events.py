"""State changes as plain data for the world outside: what a notifier sends, whatever its channel."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypedDict

from localflow.errors import LocalflowError
from localflow.printable import shortened
from localflow.records import TaskRun

if TYPE_CHECKING:
    from localflow.records import StateChange

_TEXT_LIMIT = 10_000


class DeliveryError(LocalflowError):
    """A notification did not reach whoever it was for; the message says why and holds no secret."""


class EventState(TypedDict):
    """The state that was entered."""

    type: str
    name: str
    message: str


class EventCause(TypedDict):
    """Why the run did not complete."""

    type: str
    message: str


class Event(TypedDict):
    """A state change as JSON-safe data. Arguments, parameters and results are never part of it."""

    id: str
    """The same each time the same change is told, so that a receiver can drop what it has already seen."""
    kind: Literal["flow_run", "task_run"]
    run_id: str
    run_name: str
    flow: str
    flow_run_id: str
    flow_run_name: str
    task: str | None
    state: EventState
    previous: str
    """The name of the state before."""
    attempt: int
    timestamp: str
    """ISO 8601, in UTC."""
    duration: float
    """Seconds since the run was created."""
    cause: EventCause | None
    host: str
    pid: int


def describe(change: StateChange) -> Event:
    """Return a state change as JSON-safe data; very long texts are shortened."""
    run, flow_run, cause = change.run, change.run.flow_run, change.cause
    return {
        "id": f"{run.id}:{change.sequence}",
        "kind": "task_run" if isinstance(run, TaskRun) else "flow_run",
        "run_id": run.id,
        "run_name": _text(run.name),
        "flow": _text(flow_run.flow),
        "flow_run_id": flow_run.id,
        "flow_run_name": _text(flow_run.name),
        "task": _text(run.task) if isinstance(run, TaskRun) else None,
        "state": {"type": change.type.value, "name": _text(change.name), "message": _text(change.message)},
        "previous": _text(change.previous),
        "attempt": change.attempt,
        "timestamp": datetime.fromtimestamp(change.timestamp, UTC).isoformat(timespec="microseconds"),
        "duration": round(duration(change), 6),
        "cause": {"type": _text(cause.exception_type or cause.kind), "message": _text(cause.message)}
        if cause
        else None,
        "host": _text(flow_run.host),
        "pid": flow_run.pid,
    }


def duration(change: StateChange) -> float:
    """Return the seconds from the creation of the run to the change, 0 if the clock was set back meanwhile."""
    return max(0.0, change.timestamp - change.run.created_at)


def _text(text: str) -> str:
    """Return text that every JSON parser takes: bounded, and without lone surrogates."""
    return shortened(text, _TEXT_LIMIT).encode("utf-8", "backslashreplace").decode("utf-8")
