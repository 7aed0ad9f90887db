"""What a store remembers of the records it has, to refuse those that cannot be added to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow.builtin.storage.failures import not_a_record, not_recorded, sequence_taken
from localflow.interfaces import FlowRun, LogEntry, StateChange, TaskRun
from localflow.states import FINAL_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from localflow.interfaces import Record, StateType


class Tally:
    """Which flow runs are recorded, which of them are unfinished, and the sequences of all state changes."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[int, int]] = {}  # by flow run and number: its changes 1 to n are there
        self._beyond: set[tuple[str, int, int]] = set()  # those that came before one with a lower sequence
        self.unfinished: set[str] = set()
        """The ids of the flow runs whose newest state is not final."""

    def __contains__(self, flow_run_id: str) -> bool:
        """Return whether a flow run is recorded."""
        return flow_run_id in self._counts

    def refuse(self, records: Sequence[Record]) -> None:
        """Raise StoreError for what is no record, has no flow run, or has the sequence of another state change."""
        new: set[str] = set()
        taken: set[tuple[str, int, int]] = set()
        for record in records:
            if isinstance(record, FlowRun):
                new.add(record.id)
                continue
            if not isinstance(record, (TaskRun, StateChange, LogEntry)):
                raise not_a_record(record)
            id = record.flow_run.id if isinstance(record, TaskRun) else record.run.flow_run.id
            counts = self._counts.get(id)
            if counts is None and id not in new:
                raise not_recorded(id)
            if isinstance(record, StateChange):
                number, sequence = record.run.number, record.sequence
                place = id, number, sequence
                if (counts and 1 <= sequence <= counts.get(number, 0)) or place in taken or place in self._beyond:
                    raise sequence_taken(record.run.id, sequence)
                taken.add(place)

    def add(self, records: Iterable[Record]) -> None:
        """Remember records that were added."""
        for record in records:
            if isinstance(record, StateChange):
                run = record.run
                self.add_change(run.flow_run.id, run.number, record.sequence, record.type)
            elif isinstance(record, FlowRun):
                self.add_flow_run(record.id)

    def add_flow_run(self, id: str) -> None:
        """Remember that a flow run was added; one that is there already stays as finished as it is."""
        if id not in self._counts:
            self._counts[id] = {}
            self.unfinished.add(id)

    def add_change(self, flow_run_id: str, number: int, sequence: int, type: StateType) -> None:
        """Remember a state change of a run."""
        counts = self._counts[flow_run_id]
        if sequence == counts.get(number, 0) + 1:
            while (flow_run_id, number, sequence + 1) in self._beyond:
                sequence += 1
                self._beyond.discard((flow_run_id, number, sequence))
            counts[number] = sequence
        else:
            self._beyond.add((flow_run_id, number, sequence))
        if number == 0:
            if type in FINAL_TYPES:
                self.unfinished.discard(flow_run_id)
            else:
                self.unfinished.add(flow_run_id)

    def remove(self, flow_run_id: str) -> None:
        """Forget a flow run."""
        del self._counts[flow_run_id]
        self.unfinished.discard(flow_run_id)
        self._beyond = {place for place in self._beyond if place[0] != flow_run_id}
