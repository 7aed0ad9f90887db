"""A state store in memory: nothing survives the process."""

from __future__ import annotations

import os
import threading
from operator import attrgetter
from typing import TYPE_CHECKING

from localflow.builtin.storage.lifetime import Lifetime
from localflow.builtin.storage.summary import summarise
from localflow.builtin.storage.tally import Tally
from localflow.interfaces import CachedResult, FlowRun, LogEntry, StateChange, StateStore, StateType, TaskRun

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localflow.interfaces import CacheEntry, Claim, FlowRunSummary, Payload, Record


class MemoryStateStore(StateStore):
    """Keeps records in lists, for tests and for flows whose history nobody asks for."""

    survives = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lifetime = Lifetime(self.location)
        self._tally = Tally()
        self._runs: dict[str, _RecordedRun] = {}
        self._cached: dict[str, list[tuple[str, CachedResult]]] = {}  # by cache key, with the root's id, newest last
        self._claimed: set[str] = set()

    @property
    def location(self) -> str:
        """The word `memory`."""
        return "memory"

    def append(self, records: Sequence[Record]) -> None:
        """Add records, all or none."""
        with self._lock:
            self._lifetime.check()
            self._tally.refuse(records)
            self._tally.add(records)
            for record in records:
                if isinstance(record, FlowRun):
                    if record.id in self._runs:
                        self._runs[record.id].flow_run = record
                    else:
                        self._runs[record.id] = _RecordedRun(record)
                elif isinstance(record, TaskRun):
                    self._runs[record.flow_run.id].task_runs[record.number] = record
                elif isinstance(record, LogEntry):
                    self._runs[record.run.flow_run.id].log.append(record)
                else:
                    self._runs[record.run.flow_run.id].add_change(record)
                    if record.cache is not None:
                        self._add_cached(record, record.cache)

    def list_flow_runs(
        self, limit: int | None = None, *, root_id: str | None = None, unfinished: bool = False
    ) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, last recorded first."""
        with self._lock:
            self._lifetime.check()
            runs = [
                run
                for run in reversed(self._runs.values())
                if (root_id is None or run.flow_run.root_id == root_id)
                and (not unfinished or run.flow_run.id in self._tally.unfinished)
            ]
            return [run.summary() for run in runs[:limit]]

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Yield a flow run, its task runs by number, then all state changes."""
        with self._lock:
            self._lifetime.check()
            run = self._runs.get(flow_run_id)
            return iter(run.records() if run else ())

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the result that a run has last completed with, if it was recorded."""
        with self._lock:
            self._lifetime.check()
            run = self._runs.get(flow_run_id)
            return run.results.get(number) if run else None

    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Return the newest result recorded with this cache key that has not expired at `now`."""
        with self._lock:
            self._lifetime.check()
            found = (cached for _, cached in reversed(self._cached.get(key, ())))
            return next((cached for cached in found if cached.expires_at is None or cached.expires_at > now), None)

    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Yield a flow run's log entries after a position, with theirs, all as of one instant."""
        with self._lock:
            self._lifetime.check()
            run = self._runs.get(flow_run_id)
            return enumerate(run.log_entries(after) if run else [], after + 1)

    def claim(self, flow_run_id: str) -> Claim | None:
        """Take hold of a flow run: only this store object can be asked for another claim on it."""
        with self._lock:
            self._lifetime.check()
            if flow_run_id in self._claimed:
                return None
            self._claimed.add(flow_run_id)
            return _MemoryClaim(self._claimed, flow_run_id)

    def remove(self, root_ids: Sequence[str], *, results_only: bool = False) -> None:
        """Remove trees of flow runs, or only their results."""
        with self._lock:
            self._lifetime.check()
            roots = set(root_ids)
            for id, run in list(self._runs.items()):
                if run.flow_run.root_id in roots:
                    if results_only:
                        run.results.clear()
                    else:
                        del self._runs[id]
                        self._tally.remove(id)
            for key, found in list(self._cached.items()):
                kept = [(root, cached) for root, cached in found if root not in roots]
                if kept:
                    self._cached[key] = kept
                else:
                    del self._cached[key]

    def close(self) -> None:
        """Let the records go."""
        if self._lifetime.end():
            self._runs.clear()
            self._cached.clear()

    def _add_cached(self, change: StateChange, cache: CacheEntry) -> None:
        run, result = change.run, change.result
        if isinstance(run, TaskRun) and change.type is StateType.COMPLETED and result is not None:
            cached = CachedResult(run.id, run.name, run.flow_run.name, change.timestamp, cache.expires_at, result)
            self._cached.setdefault(cache.key, []).append((run.flow_run.root_id, cached))


class _RecordedRun:
    def __init__(self, flow_run: FlowRun) -> None:
        self.flow_run = flow_run
        self.task_runs: dict[int, TaskRun] = {}
        self.changes: list[StateChange] = []
        self.results: dict[int, Payload] = {}
        self.log: list[LogEntry] = []
        self._flow_changes: list[StateChange] = []

    def add_change(self, change: StateChange) -> None:
        if change.type is StateType.COMPLETED:
            self.results.pop(change.run.number, None)
            if change.result is not None:
                self.results[change.run.number] = change.result
        if change.result is not None:
            change = change._replace(result=None)
        self.changes.append(change)
        if change.run.number == 0:
            self._flow_changes.append(change)

    def summary(self) -> FlowRunSummary:
        return summarise(self.flow_run, self._flow_changes)

    def records(self) -> list[Record]:
        runs = self._runs()
        by_number = sorted(runs.values(), key=attrgetter("number"))
        return [*by_number, *(change._replace(run=runs.get(change.run.number, change.run)) for change in self.changes)]

    def log_entries(self, after: int) -> list[LogEntry]:
        runs = self._runs()
        return [entry._replace(run=runs.get(entry.run.number, entry.run)) for entry in self.log[after:]]

    def _runs(self) -> dict[int, FlowRun | TaskRun]:
        """Return the flow run and its task runs by number, as they were recorded last."""
        flow_run = self.flow_run
        runs: dict[int, FlowRun | TaskRun] = {0: flow_run}
        for number, run in self.task_runs.items():
            runs[number] = run if run.flow_run is flow_run else run._replace(flow_run=flow_run)
        return runs


class _MemoryClaim:
    def __init__(self, claimed: set[str], flow_run_id: str) -> None:
        self._claimed, self._flow_run_id = claimed, flow_run_id
        self._pid = os.getpid()
        self._released = False

    def release(self) -> None:
        """Let the flow run go; a second time, or in a forked child, nothing happens."""
        if not self._released and os.getpid() == self._pid:
            self._released = True
            self._claimed.discard(self._flow_run_id)
