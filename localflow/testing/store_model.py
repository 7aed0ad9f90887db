"""The contract of a state store: it does what a plain model does, whatever it is asked and in whatever order."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeAlias

import pytest

from localflow.interfaces import CachedResult, FlowRun, LogEntry, StateChange, StateType, TaskRun
from localflow.testing.promises import belongs_to
from localflow.testing.store_records import StoreFixtures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localflow.interfaces import Payload, Record, StateStore

_Key: TypeAlias = tuple[str, int, int]

_FINAL = {StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED}


@belongs_to("model")
class ModelContract(StoreFixtures):
    """What a store must do in orders that nobody has thought of."""

    #: How many times it begins anew, each time for some twenty operations; fewer for a store that is far away.
    model_examples: ClassVar[int] = 10

    def test_it_does_what_a_model_does(
        self, open_store: Callable[[], StateStore], make_store: Callable[[], StateStore]
    ) -> None:
        """Appending, refusing, reading, claiming, removing and opening again, in any order, agree with lists."""
        pytest.importorskip("hypothesis", reason="hypothesis is missing: pip install 'localflow-engine[testing]'")
        from localflow.testing.store_machine import check_against_model

        open_store()

        check_against_model(make_store, self.model_examples)


class StoreModel:
    """A state store as lists and dicts, without anything that makes one hard to write."""

    def __init__(self) -> None:
        self.flow_runs: dict[str, FlowRun] = {}
        self.task_runs: dict[tuple[str, int], TaskRun] = {}
        self.changes: list[StateChange] = []
        self.log: list[LogEntry] = []
        self.removed_results: set[_Key] = set()
        """The state changes whose results were removed."""

    def append(self, records: Sequence[Record]) -> None:
        """Add records that fit."""
        for record in records:
            if isinstance(record, FlowRun):
                self.flow_runs[record.id] = record
            elif isinstance(record, TaskRun):
                self.task_runs[record.flow_run.id, record.number] = record
            elif isinstance(record, LogEntry):
                self.log.append(record)
            else:
                self.changes.append(record)

    def run(self, flow_run_id: str, number: int) -> FlowRun | TaskRun:
        """Return a run as it was recorded last."""
        flow_run = self.flow_runs[flow_run_id]
        return self.task_runs[flow_run_id, number]._replace(flow_run=flow_run) if number else flow_run

    def numbers(self, flow_run_id: str) -> list[int]:
        """Return the numbers of a flow run's runs, 0 for itself."""
        return [0, *sorted(number for id, number in self.task_runs if id == flow_run_id)]

    def runs(self) -> list[FlowRun | TaskRun]:
        """Return all runs."""
        return [self.run(id, number) for id in self.flow_runs for number in self.numbers(id)]

    def sequence(self, run: FlowRun | TaskRun) -> int:
        """Return the sequence of a run's newest change, 0 if there is none."""
        return len(self.changes_of(run.flow_run.id, run.number))

    def changes_of(self, flow_run_id: str, number: int) -> list[StateChange]:
        """Return the changes of a run as they are read: without results, of the run as it was recorded last."""
        run = self.run(flow_run_id, number)
        return [
            change._replace(run=run, result=None)
            for change in self.changes
            if (change.run.flow_run.id, change.run.number) == (flow_run_id, number)
        ]

    def log_of(self, flow_run_id: str) -> list[tuple[int, LogEntry]]:
        """Return what a flow run and its task runs have said."""
        said = (entry for entry in self.log if entry.run.flow_run.id == flow_run_id)
        return [
            (place, entry._replace(run=self.run(flow_run_id, entry.run.number))) for place, entry in enumerate(said, 1)
        ]

    def result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return what a run has last completed with."""
        found = None
        for change in self.changes:
            if _key(change)[:2] == (flow_run_id, number) and change.type is StateType.COMPLETED:
                found = None if _key(change) in self.removed_results else change.result
        return found

    def cached(self, key: str, now: float) -> CachedResult | None:
        """Return the newest valid result of a key."""
        for change in reversed(self.changes):
            cache, run = change.cache, change.run
            if cache is None or cache.key != key or _key(change) in self.removed_results or change.result is None:
                continue
            if change.type is StateType.COMPLETED and (cache.expires_at is None or cache.expires_at > now):
                run = self.run(run.flow_run.id, run.number)
                return CachedResult(
                    run.id, run.name, run.flow_run.name, change.timestamp, cache.expires_at, change.result
                )
        return None

    def newest_change(self, flow_run_id: str) -> StateChange | None:
        """Return the newest change of a flow run."""
        changes = self.changes_of(flow_run_id, 0)
        return changes[-1] if changes else None

    def unfinished(self) -> list[FlowRun]:
        """Return the flow runs that have not ended, the one recorded last first."""
        newest = {id: self.newest_change(id) for id in self.flow_runs}
        return [
            run
            for run in reversed(self.flow_runs.values())
            if (last := newest[run.id]) is None or last.type not in _FINAL
        ]

    def remove(self, root_id: str, *, results_only: bool) -> None:
        """Remove a tree, or its results."""
        gone = {id for id, run in self.flow_runs.items() if run.root_id == root_id}
        if results_only:
            self.removed_results |= {_key(change) for change in self.changes if change.run.flow_run.id in gone}
            return
        for id in gone:
            del self.flow_runs[id]
        self.task_runs = {key: run for key, run in self.task_runs.items() if key[0] not in gone}
        self.changes = [change for change in self.changes if change.run.flow_run.id not in gone]
        self.log = [entry for entry in self.log if entry.run.flow_run.id not in gone]


def _key(change: StateChange) -> _Key:
    return change.run.flow_run.id, change.run.number, change.sequence
