"""What readers ask of a journal again and again: learned from each of its lines once."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from localflow.builtin.storage.entries import EntryReader
from localflow.builtin.storage.journal import Follower, inode_of, read_line
from localflow.builtin.storage.summary import summarise
from localflow.errors import StoreError
from localflow.interfaces import FlowRun, StateChange

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localflow.builtin.storage.entries import Entry
    from localflow.builtin.storage.journal import Line, Place
    from localflow.interfaces import FlowRunSummary, Payload

Results: TypeAlias = "dict[tuple[str, int, int], Entry]"


class RunIndex:
    """The summaries of the flow runs in one journal, and where the results stand."""

    def __init__(self, path: Path, load: Callable[[Entry], Payload]) -> None:
        """Read the journal at `path`, and payloads in it by `load`."""
        self._path = path
        self._load = load
        self._follower = Follower(path, self._forget)
        self._at_hand: tuple[Line, Results] | None = None  # the line that was read last for a result
        self._forget()

    def summaries(self) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, in the order they were recorded."""
        self._learn()
        return [summarise(run, self._changes.get(run.id, ())) for run in self._flow_runs.values()]

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the newest result of a run."""
        while True:
            self._learn()
            found = self._results.get((flow_run_id, number))
            if found is None:
                return None
            place, sequence = found
            try:
                line, results = self.results_at(place)
                with line.making_sense():
                    return self._load(results[flow_run_id, number, sequence]["result"])
            except StoreError:
                if inode_of(self._path) == self._follower.inode:  # else it was removed or written anew meanwhile
                    raise

    def results_at(self, place: Place) -> tuple[Line, Results]:
        """Return a line and the results in it: those asked for one after the other are often in the same."""
        if self._at_hand is None or self._at_hand[0].place.offset != place.offset:
            line = read_line(self._path, place)
            self._at_hand = line, _results_in(line)
        return self._at_hand

    def _forget(self) -> None:
        self._reader = EntryReader(self._load)
        self._flow_runs: dict[str, FlowRun] = {}
        self._changes: dict[str, list[StateChange]] = {}  # of flow runs
        self._results: dict[tuple[str, int], tuple[Place, int]] = {}  # by run: the line of the newest, its sequence
        self._at_hand = None

    def _learn(self) -> None:
        """Read the lines that are new since the last time."""
        for line in self._follower.new_lines():
            content = line.content
            is_about_flows = b'"kind":"flow_run"' in content or b'"number":0,' in content
            if not is_about_flows and b'"result":' not in content:
                continue  # as most lines are
            with line.making_sense():
                for entry in line.entries():
                    if entry.get("kind") == "flow_run" or entry.get("number") == 0:
                        record = self._reader.record(entry)
                        if isinstance(record, FlowRun):
                            self._flow_runs[record.id] = record
                        elif isinstance(record, StateChange):
                            self._changes.setdefault(record.run.flow_run.id, []).append(record)
                    if "result" in entry:
                        self._results[entry["flow_run"], entry["number"]] = line.place, entry["sequence"]


def _results_in(line: Line) -> Results:
    """Return the state changes with a result in a line, by flow run, number and sequence."""
    with line.making_sense():
        return {
            (entry["flow_run"], entry["number"], entry["sequence"]): entry
            for entry in line.entries()
            if "result" in entry
        }
