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

ResultEntries: TypeAlias = "dict[tuple[str, int, int], Entry]"


class Summaries:
    """The flow runs in one journal with their newest states."""

    def __init__(self, path: Path, load: Callable[[Entry], Payload]) -> None:
        """Read the journal at `path`, and payloads in it by `load`."""
        self._load = load
        self._journal = Follower(path, self._forget)
        self._known: list[FlowRunSummary] | None = None
        self._forget()

    def read(self) -> list[FlowRunSummary]:
        """Return a summary of each flow run, in the order they were recorded."""
        for line in self._journal.new_lines():
            if b'"kind":"flow_run"' not in line.content and b'"number":0,' not in line.content:
                continue  # about task runs only, as most lines are
            self._known = None
            with line.making_sense():
                for entry in line.entries():
                    if entry.get("kind") == "flow_run" or entry.get("number") == 0:
                        record = self._reader.record(entry)
                        if isinstance(record, FlowRun):
                            self._flow_runs[record.id] = record
                        elif isinstance(record, StateChange):
                            self._changes.setdefault(record.run.flow_run.id, []).append(record)
        if self._known is None:
            self._known = [summarise(run, self._changes.get(run.id, ())) for run in self._flow_runs.values()]
        return self._known

    def _forget(self) -> None:
        self._reader = EntryReader(self._load)
        self._flow_runs: dict[str, FlowRun] = {}
        self._changes: dict[str, list[StateChange]] = {}
        self._known = None


class Results:
    """Where the newest result of each run stands in one journal."""

    def __init__(self, path: Path, load: Callable[[Entry], Payload]) -> None:
        """Read the journal at `path`, and payloads by `load`."""
        self._path = path
        self._load = load
        self._journal = Follower(path, self._forget)
        self._at_hand: tuple[Line, ResultEntries] | None = None  # the line that was read last for a result
        self._forget()

    def load(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the newest result of a run."""
        while True:
            try:
                self._learn()
            except StoreError:
                if inode_of(self._path) is None:  # removed meanwhile
                    return None
                raise
            found = self._places.get((flow_run_id, number))
            if found is None:
                return None
            place, sequence = found
            try:
                line, results = self.at(place)
                with line.making_sense():
                    return self._load(results[flow_run_id, number, sequence]["result"])
            except StoreError:
                if inode_of(self._path) == self._journal.inode:  # else it was removed or written anew meanwhile
                    raise

    def at(self, place: Place) -> tuple[Line, ResultEntries]:
        """Return a line and the results in it: those asked for one after the other are often in the same."""
        if self._at_hand is None or self._at_hand[0].place.offset != place.offset:
            line = read_line(self._path, place)
            self._at_hand = line, _results_in(line)
        return self._at_hand

    def _forget(self) -> None:
        self._places: dict[tuple[str, int], tuple[Place, int]] = {}  # by run: the line, and the sequence of the change
        self._at_hand = None

    def _learn(self) -> None:
        for line in self._journal.new_lines():
            if b"COMPLETED" in line.content:
                with line.making_sense():
                    for entry in line.entries():
                        if entry.get("type") == "COMPLETED":
                            run = entry["flow_run"], entry["number"]
                            self._places.pop(run, None)  # a completion without a result has none, not the one before
                            if "result" in entry:
                                self._places[run] = line.place, entry["sequence"]


def _results_in(line: Line) -> ResultEntries:
    """Return the state changes with a result in a line, by flow run, number and sequence."""
    with line.making_sense():
        return {
            (entry["flow_run"], entry["number"], entry["sequence"]): entry
            for entry in line.entries()
            if "result" in entry
        }
