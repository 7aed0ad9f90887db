"""What a state store keeps: flow runs, task runs and their state changes. Frozen; a change means a new record.

A FlowRun or TaskRun that is recorded again takes the place of the one before: a run that is resumed keeps its id and
its history, but another process may run it, with other code.

Instants are seconds since the epoch, in UTC; readers order by `sequence`, never by the clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from localflow.payloads import Payload
    from localflow.states import Cause, StateType


#: The tag of a flow run of which only a part has been copied to where it is read.
INCOMPLETE = "localflow:incomplete-copy"


class FlowRun(NamedTuple):
    """One execution of a flow. Its record implies the first state, PENDING at `created_at`."""

    id: str
    name: str
    flow: str
    created_at: float
    root_id: str
    """The flow run at the top of the tree of subflows; its own id for the one at the top."""
    parent_id: str | None = None
    """The id of the flow run, or of the task run, that called this flow."""
    parameters: Mapping[str, object] = {}
    """Parameters as JSON-safe values, for readers: what JSON cannot hold is there as its bounded `repr`."""
    arguments: Payload | None = None
    """Parameters as they were, for `resume`; None where they cannot be pickled."""
    entry_point: str = ""
    """Where the flow is found again: `/path/to/file.py:function`, or `module:function`."""
    executor: str = ""
    versions: Mapping[str, str] = {}
    """Versions of `localflow`, of `python` and, if it has one, of the `flow`."""
    host: str = ""
    pid: int = 0
    tags: tuple[str, ...] = ()
    code: str = ""
    """A fingerprint of the flow's code, by which `resume` notices that it has changed."""
    inputs: str = ""
    """A fingerprint of what it was called with; empty where that cannot be compared."""

    @property
    def flow_run(self) -> FlowRun:
        """The flow run itself: task runs answer to the same name."""
        return self

    @property
    def is_incomplete_copy(self) -> bool:
        """Whether only a part of it is there, for it is being copied or that was broken off; it has no engine here."""
        return INCOMPLETE in self.tags

    @property
    def number(self) -> int:
        """0: the task runs of a flow run are numbered from 1."""
        return 0


class TaskRun(NamedTuple):
    """One execution of a task in a flow run. Its record implies the first state, PENDING at `created_at`."""

    flow_run: FlowRun
    number: int
    """The place of the call in its flow run, from 1 in call order."""
    name: str
    task: str
    ordinal: int
    """The place of the call among those of the same task, from 0."""
    created_at: float
    upstreams: tuple[str, ...] = ()
    """Ids of the runs whose data or completion it waits for."""
    tags: tuple[str, ...] = ()
    version: str = ""
    map_number: int = 0
    """Which `map` call of the flow run it is part of, from 1; 0 for a call of its own."""
    map_index: int = 0
    """Its place among the runs of that `map` call, from 0."""
    code: str = ""
    """A fingerprint of the task's code, by which `resume` notices that it has changed."""
    inputs: str = ""
    """A fingerprint of what it was called with; empty where that cannot be compared."""

    @property
    def id(self) -> str:
        """The flow run's id and the number in it."""
        return f"{self.flow_run.id}-{self.number}"


class Execution(NamedTuple):
    """Where and how long a call really ran. Seconds and bytes."""

    worker: str = ""
    """`main`, a thread's name, or `pid 1234`."""
    pid: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None


class CacheEntry(NamedTuple):
    """Under which key the result of a COMPLETED task run may be found again, and until when."""

    key: str
    expires_at: float | None = None
    """Seconds since the epoch; None for never."""


class StateChange(NamedTuple):
    """A run has entered a state. The changes of one run are numbered from 1 without gaps."""

    run: FlowRun | TaskRun
    sequence: int
    type: StateType
    name: str
    message: str
    timestamp: float
    previous: str = "Pending"
    """The name of the state before."""
    attempt: int = 1
    execution: Execution | None = None
    cause: Cause | None = None
    result: Payload | None = None
    """The value of a completed run. Stores keep it apart: it is None in changes that are read back."""
    cache: CacheEntry | None = None
    """Set where others may use the result instead of computing it again."""


class LogLine(NamedTuple):
    """Something a run has said, before the engine knows of it."""

    timestamp: float
    level: int
    """As in `logging`: 20 for INFO. What was written to stdout counts as INFO, to stderr as WARNING."""
    source: str
    """The logger's name; `stdout` or `stderr` for what was written there."""
    message: str


class LogEntry(NamedTuple):
    """Something a run has said. Entries of one run are kept in the order they are appended."""

    run: FlowRun | TaskRun
    attempt: int
    timestamp: float
    level: int
    source: str
    message: str


Record: TypeAlias = FlowRun | TaskRun | StateChange | LogEntry


class CachedResult(NamedTuple):
    """A result found under a cache key, and the task run it comes from."""

    task_run_id: str
    task_run: str
    """The name of that task run."""
    flow_run: str
    """The name of its flow run."""
    timestamp: float
    """When it completed."""
    expires_at: float | None
    result: Payload


class FlowRunSummary(NamedTuple):
    """A flow run and its newest state change; None while it is PENDING as recorded."""

    flow_run: FlowRun
    change: StateChange | None
    started_at: float | None = None
    ended_at: float | None = None


class Standing(NamedTuple):
    """The task runs of a flow run that are in one state, those of each `map` call for themselves."""

    map_number: int
    """As in TaskRun."""
    type: StateType
    name: str
    numbers: tuple[range, ...]
    """Their numbers, in ascending order."""
    started_at: float | None = None
    """The first start of any of them."""
    ended_at: float | None = None
    """The last end of any of them."""

    @property
    def size(self) -> int:
        """How many task runs these are."""
        return sum(map(len, self.numbers))
