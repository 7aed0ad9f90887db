"""The directory of one flow run in the JSON store: its journal, its log, and large results in files of their own."""

from __future__ import annotations

import re
import zlib
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

from localflow.builtin.storage.directory import make_private_directory, write_private_file
from localflow.builtin.storage.encoding import to_json
from localflow.builtin.storage.entries import (
    EntryReader,
    entry_of,
    flow_run_of,
    log_entry_of,
    payload_entry,
    payload_of,
)
from localflow.builtin.storage.failures import not_recorded, os_failure, recorded_already
from localflow.builtin.storage.journal import Journal, Place, mark_of, read_line, read_lines, sealed
from localflow.builtin.storage.result_cache import has_expired
from localflow.builtin.storage.run_log import RunLog
from localflow.builtin.storage.summary import summarise
from localflow.errors import CorruptStoreError, StoreError
from localflow.interfaces import CachedResult, FlowRun, LogEntry, Payload, StateChange, TaskRun

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from localflow.builtin.storage.entries import Entry
    from localflow.builtin.storage.journal import Line
    from localflow.builtin.storage.result_cache import Hint
    from localflow.interfaces import FlowRunSummary, Record

Results: TypeAlias = "dict[tuple[str, int, int], Entry]"

SMALL_BYTES = 1 << 16  # up to this size a payload stands in the journal

_FILE = re.compile(r"results/[a-z0-9-]{1,120}")


class RunDirectory:
    """The records of a flow run and of all subflows below it.

    One thread at a time may write, and one may read meanwhile.
    """

    def __init__(self, path: Path, *, power_safe: bool) -> None:
        self._path = path
        self._journal_path = path / "journal.jsonl"
        self._power_safe = power_safe
        self._journal: Journal | None = None  # while it is open for writing
        self._flow_run_ids: set[str] = set()  # those known to be recorded here
        self._summarised: tuple[int, list[FlowRunSummary]] = (0, [])  # the summaries, and the journal's size then
        self._result_places: dict[tuple[str, int], tuple[Place, int]] = {}  # where a run's newest result is: the line
        self._indexed = Place()  # the last line that this was learned from
        self._at_hand: tuple[Line, Results] | None = None  # the line that was read last for a result
        self._log = RunLog(path / "logs.jsonl", self._journal_path, self._load, power_safe=power_safe)

    def exists(self) -> bool:
        """Return whether anything was recorded here."""
        return self._journal_path.exists()

    def append(self, records: Sequence[Record]) -> Place:
        """Add records as one line, log entries as one in the log; return where the line stands."""
        new_ids = self.check(records)
        if self._journal is None:
            self._journal = Journal(self._journal_path, power_safe=self._power_safe)
        files: list[Path] = []

        def keep(name: str, payload: Payload) -> Entry:
            return self._keep(name, payload, files)

        try:
            entries = [entry_of(record, keep) for record in records if not isinstance(record, LogEntry)]
            log_entries = [log_entry_of(record) for record in records if isinstance(record, LogEntry)]
            place = self._write(self._journal, entries, log_entries, first=self._path.name in new_ids)
        except BaseException:
            for file in files:  # no line names them
                file.unlink(missing_ok=True)
            raise
        self._flow_run_ids |= new_ids
        return place

    def check(self, records: Sequence[Record]) -> set[str]:
        """Refuse records of flow runs that are not recorded; return the ids of those that `records` begin."""
        new: set[str] = set()
        for record in records:
            flow_run_id = flow_run_of(record).id
            if isinstance(record, FlowRun):
                if flow_run_id in self._flow_run_ids or flow_run_id in new:
                    raise recorded_already(flow_run_id)
                new.add(flow_run_id)
            elif flow_run_id not in self._flow_run_ids and flow_run_id not in new:
                self._flow_run_ids = {summary.flow_run.id for summary in self.summaries()}
                if flow_run_id not in self._flow_run_ids:
                    raise not_recorded(flow_run_id)
        return new

    def read(self, flow_run_id: str) -> list[Record]:
        """Return the records of one of the flow runs: itself, its task runs by number, its state changes."""
        reader = EntryReader(self._load)
        flow_runs: list[Record] = []
        task_runs: list[TaskRun] = []
        changes: list[Record] = []
        for line in read_lines(self._journal_path):
            for entry in line.entries():
                if entry.get("id" if entry.get("kind") == "flow_run" else "flow_run") != flow_run_id:
                    continue
                record = _record(reader, line, entry)
                if isinstance(record, TaskRun):
                    task_runs.append(record)
                else:
                    (changes if isinstance(record, StateChange) else flow_runs).append(record)
        return [*flow_runs, *sorted(task_runs, key=attrgetter("number")), *changes]

    def summaries(self) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, in the order they were recorded."""
        try:
            size = self._journal_path.stat().st_size
        except FileNotFoundError:  # its writer has made the directory and not come further
            return []
        except OSError as error:
            raise os_failure(self._journal_path, error) from error
        if size != self._summarised[0]:
            self._summarised = (size, self._summarise())
        return self._summarised[1]

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the newest recorded result of a run."""
        self._index_results()
        place = self._result_places.get((flow_run_id, number))
        if place is None:
            return None
        line, results = self._results_at(place[0])
        with line.making_sense():
            return self._load(results[flow_run_id, number, place[1]]["result"])

    def find_cached(self, hint: Hint, now: float) -> CachedResult | None:
        """Return the result that a hint leads to, if it is there, may be found under the hint's key and is valid."""
        try:
            _, results = self._results_at(Place(0, hint.offset, hint.length))
            entry = results[hint.flow_run, hint.number, hint.sequence]
            expires_at = entry["cache"]["expires_at"]
            if entry["cache"]["key"] != hint.key or entry["type"] != "COMPLETED" or has_expired(expires_at, now):
                return None
            result = self._load(entry["result"])
        except (StoreError, KeyError, TypeError, ValueError):
            return None
        task_run_id = f"{hint.flow_run}-{hint.number}"
        return CachedResult(task_run_id, hint.name, hint.flow_run_name, entry["timestamp"], expires_at, result)

    def read_log(self, flow_run_id: str, after: int) -> list[tuple[int, LogEntry]]:
        """Return the log entries of one of the flow runs after a position, each with its own."""
        return self._log.read(flow_run_id, after)

    def close(self) -> None:
        """Release the files that are open; the next append opens them again."""
        self._log.close()
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _write(self, journal: Journal, entries: list[Entry], log_entries: list[Entry], *, first: bool) -> Place:
        """Write both lines, or the one there is; as `first`, only to an empty journal."""
        line = sealed(to_json({"records": entries})) if entries else b""
        with journal.locked() as end:
            if first and end:
                raise recorded_already(self._path.name)
            if not log_entries:
                journal.write(line)
            elif not entries:
                self._log.add(log_entries)
            else:
                with self._log.adding(log_entries, mark_of(line, end)):
                    journal.write(line)
        return Place(0, end, len(line))

    def _summarise(self) -> list[FlowRunSummary]:
        reader = EntryReader(self._load)
        flow_runs: list[FlowRun] = []
        changes: dict[str, list[StateChange]] = {}
        for line in read_lines(self._journal_path):
            if b'"kind":"flow_run"' not in line.content and b'"number":0,' not in line.content:
                continue  # about task runs only, as most lines are
            for entry in line.entries():
                if entry.get("kind") == "flow_run" or entry.get("number") == 0:
                    record = _record(reader, line, entry)
                    if isinstance(record, FlowRun):
                        flow_runs.append(record)
                    elif isinstance(record, StateChange):
                        changes.setdefault(record.run.flow_run.id, []).append(record)
        return [summarise(flow_run, changes.get(flow_run.id, ())) for flow_run in flow_runs]

    def _results_at(self, place: Place) -> tuple[Line, Results]:
        """Return a line and the results in it: those asked for one after the other are often in the same."""
        if self._at_hand is None or self._at_hand[0].place.offset != place.offset:
            line = read_line(self._journal_path, place)
            self._at_hand = line, _results_in(line)
        return self._at_hand

    def _index_results(self) -> None:
        """Learn where the results stand in the lines that are new since the last time."""
        for line in read_lines(self._journal_path, self._indexed):
            if b'"result":' in line.content:
                for flow_run_id, number, sequence in _results_in(line):
                    self._result_places[flow_run_id, number] = line.place, sequence
            self._indexed = line.place

    def _keep(self, name: str, payload: Payload, files: list[Path]) -> Entry:
        """Return the entry for a payload; a large one is first written to a file, which `files` gets to know."""
        if len(payload.data) <= SMALL_BYTES:
            return payload_entry(payload)
        file = f"results/{name}"
        if not _FILE.fullmatch(file):
            raise StoreError(f"'{name}' cannot name a file; ids of runs are made of lower-case letters, digits and -")
        path = self._path / file
        try:
            make_private_directory(path.parent)
            write_private_file(path, payload.data, sync=self._power_safe)
        except OSError as error:
            raise os_failure(path, error) from error
        files.append(path)
        return {"format": payload.format, "file": file, "crc": f"{zlib.crc32(payload.data):08x}"}

    def _load(self, entry: Entry) -> Payload:
        """Return the payload of an entry."""
        if "file" not in entry:
            return payload_of(entry)
        if not _FILE.fullmatch(entry["file"]):
            raise ValueError(f"{entry['file']!r} is no name of a result's file")
        path = self._path / entry["file"]
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CorruptStoreError(path, "the file is missing") from None
        except OSError as error:
            raise os_failure(path, error) from error
        if f"{zlib.crc32(data):08x}" != entry["crc"]:
            raise CorruptStoreError(path, "the file is not as it was written")
        return Payload(entry["format"], data)


def _record(reader: EntryReader, line: Line, entry: Entry) -> Record:
    try:
        return reader.record(entry)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise line.damage(repr(error)) from error


def _results_in(line: Line) -> Results:
    """Return the state changes with a result in a line, by flow run, number and sequence."""
    with line.making_sense():
        return {
            (entry["flow_run"], entry["number"], entry["sequence"]): entry
            for entry in line.entries()
            if "result" in entry
        }
