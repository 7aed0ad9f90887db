"""A state store in memory: nothing survives the process."""

from __future__ import annotations

import threading
from operator import attrgetter
from typing import TYPE_CHECKING

from localflow.builtin.storage.failures import not_a_record, not_recorded, recorded_already
from localflow.builtin.storage.lifetime import Lifetime
from localflow.builtin.storage.summary import summarise
from localflow.interfaces import CachedResult, FlowRun, LogEntry, StateChange, StateStore, StateType, TaskRun

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localflow.interfaces import CacheEntry, FlowRunSummary, Payload, Record


class MemoryStateStore(StateStore):
    """Keeps records in lists, for tests and for flows whose history nobody asks for."""

    survives = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lifetime = Lifetime(self.location)
        self._runs: dict[str, _RecordedRun] = {}
        self._cached: dict[str, list[CachedResult]] = {}  # by cache key, the newest last

    @property
    def location(self) -> str:
        """The word `memory`."""
        return "memory"

    def append(self, records: Sequence[Record]) -> None:
        """Add records, all or none."""
        with self._lock:
            self._lifetime.check()
            self._refuse_unknown(records)
            for record in records:
                if isinstance(record, FlowRun):
                    self._runs[record.id] = _RecordedRun(record)
                elif isinstance(record, TaskRun):
                    self._runs[record.flow_run.id].task_runs.append(record)
                elif isinstance(record, LogEntry):
                    self._runs[record.run.flow_run.id].log.append(record)
                else:
                    self._runs[record.run.flow_run.id].add_change(record)
                    if record.cache is not None:
                        self._add_cached(record, record.cache)

    def list_flow_runs(self, limit: int | None = None) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, last recorded first."""
        with self._lock:
            self._lifetime.check()
            newest_first = list(reversed(self._runs.values()))[:limit]
            return [summarise(run.flow_run, run.flow_changes) for run in newest_first]

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Yield a flow run, its task runs by number, then all state changes."""
        with self._lock:
            self._lifetime.check()
            run = self._runs.get(flow_run_id)
            if run is None:
                return iter(())
            return iter([run.flow_run, *sorted(run.task_runs, key=attrgetter("number")), *run.changes])

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the newest recorded result of a run."""
        with self._lock:
            self._lifetime.check()
            run = self._runs.get(flow_run_id)
            return run.results.get(number) if run else None

    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Return the newest result recorded with this cache key that has not expired at `now`."""
        with self._lock:
            self._lifetime.check()
            found = reversed(self._cached.get(key, ()))
            return next((cached for cached in found if cached.expires_at is None or cached.expires_at > now), None)

    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Yield a flow run's log entries after a position, with theirs, all as of one instant."""
        with self._lock:
            self._lifetime.check()
            run = self._runs.get(flow_run_id)
            return enumerate(run.log[after:] if run else [], after + 1)

    def close(self) -> None:
        """Let the records go."""
        if self._lifetime.end():
            self._runs.clear()
            self._cached.clear()

    def _add_cached(self, change: StateChange, cache: CacheEntry) -> None:
        run, result = change.run, change.result
        if isinstance(run, TaskRun) and change.type is StateType.COMPLETED and result is not None:
            cached = CachedResult(run.id, run.name, run.flow_run.name, change.timestamp, cache.expires_at, result)
            self._cached.setdefault(cache.key, []).append(cached)

    def _refuse_unknown(self, records: Sequence[Record]) -> None:
        """Find what cannot be added, before anything is."""
        added: set[str] = set()
        for record in records:
            if isinstance(record, FlowRun):
                if record.id in added or record.id in self._runs:
                    raise recorded_already(record.id)
                added.add(record.id)
                continue
            if not isinstance(record, (TaskRun, StateChange, LogEntry)):
                raise not_a_record(record)
            run = record.flow_run if isinstance(record, TaskRun) else record.run.flow_run
            if run.id not in added and run.id not in self._runs:
                raise not_recorded(run.id)


class _RecordedRun:
    def __init__(self, flow_run: FlowRun) -> None:
        self.flow_run = flow_run
        self.task_runs: list[TaskRun] = []
        self.changes: list[StateChange] = []
        self.flow_changes: list[StateChange] = []
        self.results: dict[int, Payload] = {}
        self.log: list[LogEntry] = []

    def add_change(self, change: StateChange) -> None:
        if change.result is not None:
            self.results[change.run.number] = change.result
            change = change._replace(result=None)
        self.changes.append(change)
        if change.run.number == 0:
            self.flow_changes.append(change)
