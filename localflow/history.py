"""What the store knows of runs, put together for readers; nothing is unpickled.

`as_json()` of the classes below is what `--json` prints: instants are ISO 8601 in UTC, secrets are `***`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from localflow.large_values import FILE, Reference
from localflow.masking import masked
from localflow.records import FlowRun, StateChange, TaskRun
from localflow.standings import first_start, last_end
from localflow.states import NOT_READY, StateType
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from localflow.interfaces import StateStore
    from localflow.payloads import Payload
    from localflow.records import CacheEntry, Execution, FlowRunSummary, Record
    from localflow.states import Cause

Json: TypeAlias = "dict[str, Any]"

_SHOWN_DEPTH = 50

UNSUCCESSFUL = frozenset({StateType.FAILED, StateType.CRASHED, StateType.CANCELLED})


class Moment(NamedTuple):
    """A state that a run was in, and since when."""

    type: StateType
    name: str
    message: str
    timestamp: float

    def as_json(self) -> Json:
        """Return the state as the list of a run's history has it."""
        return {**state_json(self), "timestamp": instant(self.timestamp)}


class RunHistory:
    """A flow run or a task run with all its state changes."""

    def __init__(self, run: FlowRun | TaskRun, changes: Sequence[StateChange] = ()) -> None:
        self.run = run
        self.changes = list(changes)

    @property
    def moments(self) -> list[Moment]:
        """All states it was in, from the PENDING that its record implies."""
        changes = (Moment(change.type, change.name, change.message, change.timestamp) for change in self.changes)
        return [self._first(), *changes]

    @property
    def state(self) -> Moment | StateChange:
        """The newest state."""
        return self.changes[-1] if self.changes else self._first()

    @property
    def is_blocked(self) -> bool:
        """Whether it never ran because an upstream did not complete."""
        return self.state.name == NOT_READY and self.state.type is StateType.PENDING

    @property
    def attempt(self) -> int:
        """The newest attempt."""
        return self.changes[-1].attempt if self.changes else 1

    @property
    def cause(self) -> Cause | None:
        """Why it did not complete, if it did not."""
        return self.changes[-1].cause if self.changes else None

    @property
    def cache(self) -> CacheEntry | None:
        """Under which key others find its result, if they do."""
        return self.changes[-1].cache if self.changes else None

    @property
    def execution(self) -> Execution | None:
        """Where the newest attempt ran."""
        return next((change.execution for change in reversed(self.changes) if change.execution), None)

    @property
    def started_at(self) -> float | None:
        """When it started to run, in the first attempt."""
        return first_start(self.changes)

    @property
    def ended_at(self) -> float | None:
        """When it ended, in the last attempt."""
        return last_end(self.changes)

    def as_json(self) -> Json:
        """Return all that is known of the run."""
        run, execution, cause = self.run, self.execution, self.cause
        view: Json = {"id": run.id, "name": run.name}
        if isinstance(run, TaskRun):
            view |= {
                "task": run.task,
                "number": run.number,
                "map_number": run.map_number or None,
                "map_index": run.map_index if run.map_number else None,
                "tags": list(run.tags),
                "version": run.version,
                "cache": _cache_json(self.cache),
            }
        return view | {
            "state": state_json(self.state),
            "history": [moment.as_json() for moment in self.moments],
            "attempt": self.attempt,
            "created_at": instant(run.created_at),
            "started_at": instant(self.started_at),
            "ended_at": instant(self.ended_at),
            "worker": execution.worker if execution else None,
            "pid": execution.pid if execution else None,
            "cpu_seconds": execution.cpu_seconds if execution else None,
            "peak_rss_bytes": execution.peak_rss_bytes if execution else None,
            "cause": _cause_json(cause),
        }

    def _first(self) -> Moment:
        return Moment(StateType.PENDING, "Pending", "", self.run.created_at)


class MapGroup(NamedTuple):
    """The task runs of one `map` call, in the order of its items."""

    members: list[RunHistory]

    @property
    def label(self) -> str:
        """The task's name and the range of the items, as `double[0..99]`."""
        runs = [member.run for member in self.members if isinstance(member.run, TaskRun)]
        return map_label(runs[0], runs[-1])

    @property
    def counts(self) -> Counter[tuple[StateType, str]]:
        """How many of its runs are in each state, by type and name."""
        return state_counts(self.members)


def map_label(first: TaskRun, last: TaskRun) -> str:
    """Return the name of the task of a `map` call and the range of its items, as `double[0..99]`."""
    start, end = first.map_index, last.map_index
    return f"{first.task}[{start}]" if start == end else f"{first.task}[{start}..{end}]"


def state_counts(runs: Iterable[RunHistory]) -> Counter[tuple[StateType, str]]:
    """Return how many runs are in each state, by type and name."""
    return Counter((run.state.type, run.state.name) for run in runs)


def grouped(task_runs: Iterable[RunHistory]) -> list[RunHistory | MapGroup]:
    """Return task runs in their order, those of one `map` call together in the place of the first."""
    groups: dict[int, MapGroup] = {}
    shown: list[RunHistory | MapGroup] = []
    for history in task_runs:
        number = history.run.map_number if isinstance(history.run, TaskRun) else 0
        if not number:
            shown.append(history)
        elif number in groups:
            groups[number].members.append(history)
        else:
            groups[number] = MapGroup([history])
            shown.append(groups[number])
    return shown


class FlowRunHistory(RunHistory):
    """A flow run with its task runs and the flow runs it called."""

    run: FlowRun

    def __init__(self, run: FlowRun) -> None:
        super().__init__(run)
        self.task_runs: list[RunHistory] = []
        self.subflow_runs: list[FlowRunSummary] = []

    @classmethod
    def read(cls, store: StateStore, run: FlowRun) -> FlowRunHistory:
        """Read a flow run's records and those of the flow runs that it or its tasks called."""
        return cls._of(store, run, store.read(run.id))

    @classmethod
    def read_chosen(cls, store: StateStore, run: FlowRun, numbers: Iterable[int] = ()) -> FlowRunHistory:
        """Read the same, but of the task runs only those with these numbers."""
        return cls._of(store, run, store.read_chosen(run.id, {0, *numbers}))

    @classmethod
    def _of(cls, store: StateStore, run: FlowRun, records: Iterable[Record]) -> FlowRunHistory:
        history = cls(run)
        history.task_runs = _gathered(records, history)
        family = reversed(store.list_flow_runs(root_id=run.root_id))
        history.subflow_runs = [summary for summary in family if run.id in _callers(summary.flow_run.parent_id or "")]
        return history

    def upstream_names(self, run: TaskRun) -> list[str]:
        """Return the names of the runs a task run waits for; the id where it belongs to another flow run."""
        names = self._names()
        return [names.get(upstream, upstream) for upstream in run.upstreams]

    def blocked_by(self) -> dict[str, list[RunHistory]]:
        """Return the task runs that never ran, under the name of the run at the root of it.

        Whether the task runs that completed were read makes no difference.
        """
        names = self._names()
        culprits: dict[str, str] = {}
        groups: dict[str, list[RunHistory]] = {}
        failed = {history.run.id for history in self.task_runs if history.state.type is not StateType.COMPLETED}
        for history in self.task_runs:  # in call order: what blocks a run comes before it
            if history.is_blocked and isinstance(history.run, TaskRun):
                blockers = (
                    upstream
                    for upstream in history.run.upstreams
                    if upstream in failed or self.run.id not in _callers(upstream)
                )
                first = next(blockers, "")
                culprit = culprits.get(first) or names.get(first, first)
                culprits[history.run.id] = culprit
                groups.setdefault(culprit, []).append(history)
        return groups

    def as_json(self) -> Json:
        """Return all that is known of the flow run but its task runs."""
        return {
            **flow_run_json(self.run, self.state, self.started_at, self.ended_at),
            "attempt": self.attempt,
            "history": [moment.as_json() for moment in self.moments],
            "cause": _cause_json(self.cause),
            "subflow_runs": [summary_json(summary) for summary in self.subflow_runs],
        }

    def task_runs_as_json(self, histories: Iterable[RunHistory] | None = None) -> Iterator[Json]:
        """Yield all that is known of task runs, of each of the flow run in call order if none are given."""
        names = self._names()
        for history in self.task_runs if histories is None else histories:
            assert isinstance(history.run, TaskRun)
            upstreams = history.run.upstreams
            yield history.as_json() | {
                "upstreams": [names.get(upstream, upstream) for upstream in upstreams],
                "upstream_ids": list(upstreams),
            }

    def task_run_json(self, history: RunHistory) -> Json:
        """Return all that is known of one of the task runs."""
        return next(self.task_runs_as_json([history]))

    def _names(self) -> dict[str, str]:
        names = {history.run.id: history.run.name for history in self.task_runs}
        return names | {summary.flow_run.id: summary.flow_run.name for summary in self.subflow_runs}


def flow_run_tree(store: StateStore, run: FlowRun) -> Iterator[FlowRunHistory]:
    """Yield the histories of a flow run and of the unsuccessful flow runs below it, top down, one at a time.

    Of the task runs they have those that did not complete.
    """
    pending = [run]
    while pending:
        flow_run = pending.pop(0)
        standings = store.read_standings(flow_run.id)
        unsuccessful = [each.numbers for each in standings if each.type is not StateType.COMPLETED]
        history = FlowRunHistory.read_chosen(store, flow_run, chain.from_iterable(chain.from_iterable(unsuccessful)))
        yield history
        pending += [
            summary.flow_run
            for summary in history.subflow_runs
            if summary.change is None or summary.change.type is not StateType.COMPLETED
        ]


def read_task_runs(
    store: StateStore, run: FlowRun, numbers: Iterable[int] = (), *, called: str | None = None
) -> list[RunHistory]:
    """Read the task runs of a flow run that have these numbers, and those of this name or of the task of this name."""
    return _gathered(store.read_chosen(run.id, set(numbers), called=called), RunHistory(run))


def _gathered(records: Iterable[Record], flow_run: RunHistory) -> list[RunHistory]:
    """Return the histories of the task runs among records; the changes of the flow run itself go to its own."""
    by_number = {0: flow_run}
    for record in records:
        if isinstance(record, TaskRun):
            by_number[record.number] = RunHistory(record)
        elif isinstance(record, StateChange):
            by_number[record.run.number].changes.append(record)
    del by_number[0]
    return list(by_number.values())


def _callers(run_id: str) -> tuple[str, str]:
    """Return what may be the flow run with this id, or that of the task run with this id."""
    return run_id, run_id.rpartition("-")[0]


# -- as JSON ---------------------------------------------------------------------------------------------------------


def summary_json(summary: FlowRunSummary) -> Json:
    """Return what `localflow runs --json` prints of a flow run."""
    run, change, started_at, ended_at = summary
    state = change or Moment(StateType.PENDING, "Pending", "", run.created_at)
    return flow_run_json(run, state, started_at, ended_at)


def flow_run_json(run: FlowRun, state: Moment | StateChange, started_at: float | None, ended_at: float | None) -> Json:
    """Return a flow run and its newest state."""
    return {
        "id": run.id,
        "name": run.name,
        "flow": run.flow,
        "state": state_json(state),
        "parameters": json_safe(masked(dict(run.parameters))),
        "created_at": instant(run.created_at),
        "started_at": instant(started_at),
        "ended_at": instant(ended_at),
        "root_id": run.root_id,
        "parent_id": run.parent_id,
        "executor": run.executor,
        "entry_point": run.entry_point,
        "versions": dict(run.versions),
        "host": run.host,
        "pid": run.pid,
    }


def state_json(state: Moment | StateChange) -> Json:
    """Return a state as every view has it."""
    return {"type": state.type.value, "name": state.name, "message": state.message}


def _cause_json(cause: Cause | None) -> Json | None:
    return None if cause is None else {**cause._asdict(), "arguments": dict(cause.arguments)}


def _cache_json(entry: CacheEntry | None) -> Json | None:
    return None if entry is None else {"key": entry.key, "expires_at": instant(entry.expires_at)}


def result_json(payload: Payload | None) -> object:
    """Return a recorded result: the value where it is kept as JSON, else a note that a pickle is there."""
    if payload is None:
        return None
    if payload.format == FILE:
        return f"<pickled, {Reference.of(payload.data).size} bytes>"
    if payload.format != "json":
        return f"<pickled, {len(payload.data)} bytes>"
    return json_safe(json.loads(payload.data))


def instant(timestamp: float | None) -> str | None:
    """Return an instant in ISO 8601, in UTC."""
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="microseconds")


def json_safe(value: Any, depth: int = _SHOWN_DEPTH) -> Any:
    """Return the value with what JSON has no word for, such as NaN, as text, and without its deepest parts."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, (list, tuple, dict)) and not depth:
        return "..."
    if isinstance(value, (list, tuple)):
        return [json_safe(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {key: json_safe(item, depth - 1) for key, item in value.items()}
    return value
