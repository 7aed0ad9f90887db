"""The directory of one flow run in the JSON store: its journal, its log, and large results in files of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow.builtin.storage.directory import write_private_file
from localflow.builtin.storage.encoding import to_json
from localflow.builtin.storage.entries import EntryReader, entry_of, log_entry_of
from localflow.builtin.storage.failures import was_removed
from localflow.builtin.storage.journal import Journal, Place, mark_of, read_lines, sealed, telling, whole_lines
from localflow.builtin.storage.result_cache import has_expired, keys_in
from localflow.builtin.storage.result_files import ResultFiles, file_named_in
from localflow.builtin.storage.run_index import Results, Summaries
from localflow.builtin.storage.run_log import RunLog
from localflow.builtin.storage.tally import Tally
from localflow.errors import StoreError
from localflow.failpoints import reach
from localflow.interfaces import CachedResult, FlowRun, LogEntry, StateChange, StateType
from localflow.states import FINAL_TYPES

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from localflow.builtin.storage.entries import Entry
    from localflow.builtin.storage.journal import Line
    from localflow.builtin.storage.result_cache import Hint, ResultCache
    from localflow.builtin.storage.unfinished import UnfinishedTrees
    from localflow.builtin.storage.value_files import ValueFiles
    from localflow.interfaces import FlowRunSummary, Payload, Record


class RunDirectory:
    """The records of a flow run and of all subflows below it.

    One thread at a time may write, and one may read meanwhile.
    """

    def __init__(
        self, path: Path, unfinished: UnfinishedTrees, values: ValueFiles | None = None, *, power_safe: bool
    ) -> None:
        self._path = path
        self._values = values
        self._journal_path = path / "journal.jsonl"
        self._unfinished = unfinished
        self._power_safe = power_safe
        self._journal: Journal | None = None  # while it is open for writing
        self._tally = Tally()  # of the lines up to
        self._tallied = Place()
        self._is_listed = False  # as unfinished, as far as we know
        self._files = ResultFiles(path, power_safe=power_safe)
        self._summaries = Summaries(self._journal_path, self._files.load)
        self._results = Results(self._journal_path, self._files.load)
        self._log = RunLog(path / "logs.jsonl", self._journal_path, self._files.load, power_safe=power_safe)

    def exists(self) -> bool:
        """Return whether anything was recorded here."""
        return self._journal_path.exists()

    def append(self, records: Sequence[Record]) -> Place:
        """Add records as one line, log entries as one in the log; return where the line stands."""
        journal = self._open_journal(records)
        with journal.locked() as end:
            self._catch_up(end)
            self._tally.refuse(records)
            files: list[Path] = []
            try:
                place = self._write(journal, records, files)
            except BaseException:
                if journal.end == end:
                    for file in files:  # no line names them
                        file.unlink(missing_ok=True)
                raise
            self._tally.add(records)
            self._tallied = place
            if self._is_listed and not self._tally.unfinished:
                self._unfinished.discard(self._path.name)
                self._is_listed = False
        return place

    def refuse(self, records: Sequence[Record]) -> None:
        """Raise StoreError for records that could not be added now."""
        if self.exists():
            self._catch_up()
        self._tally.refuse(records)

    def unlist_if_finished(self) -> None:
        """Say that the tree is finished if it is, where a writer did not live to do so."""
        if not self.exists():
            self._unfinished.discard(self._path.name)
            return
        journal = self._journal or Journal(self._journal_path, power_safe=self._power_safe, make=False)
        try:
            with journal.locked() as end:
                self._catch_up(end)
                if not self._tally.unfinished:
                    self._unfinished.discard(self._path.name)
                    self._is_listed = False
        finally:
            if journal is not self._journal:
                journal.close()

    def read(self, flow_run_id: str, numbers: Collection[int] | None = None, called: str | None = None) -> list[Record]:
        """Return the records of one of the flow runs: itself, its task runs by number, its state changes.

        With `numbers` only those of the runs with these numbers, and of the task runs called like that.
        """
        try:
            return self._read(flow_run_id, numbers, called)
        except StoreError:
            if self.exists():
                raise
            return []  # removed by another process meanwhile

    def summaries(self) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, in the order they were recorded."""
        return list(self._summaries.read())

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the result that a run has last completed with, if it was recorded."""
        return self._results.load(flow_run_id, number)

    def find_cached(self, hint: Hint, now: float) -> CachedResult | None:
        """Return the result that a hint leads to, if it is there, may be found under the hint's key and is valid."""
        try:
            _, results = self._results.at(Place(0, hint.offset, hint.length))
            entry = results[hint.flow_run, hint.number, hint.sequence]
            expires_at = entry["cache"]["expires_at"]
            if entry["cache"]["key"] != hint.key or entry["type"] != "COMPLETED" or has_expired(expires_at, now):
                return None
            result = self._files.load(entry["result"])
        except (StoreError, KeyError, TypeError, ValueError):
            return None
        task_run_id = f"{hint.flow_run}-{hint.number}"
        return CachedResult(task_run_id, hint.name, hint.flow_run_name, entry["timestamp"], expires_at, result)

    def results(self) -> list[Payload]:
        """Return the results that lie in the lines of the journal, references to files among them."""
        if not self.exists():
            return []
        entries = [entry for line in read_lines(self._journal_path) for entry in line.entries()]
        return [self._files.load(entry["result"]) for entry in entries if "text" in entry.get("result", ())]

    def read_log(self, flow_run_id: str, after: int) -> list[tuple[int, LogEntry]]:
        """Return the log entries of one of the flow runs after a position, each with its own."""
        return self._log.read(flow_run_id, after)

    def remove_results(self, cache: ResultCache) -> None:
        """Write the journal anew without results, and remove their files; this object is of no use afterwards."""
        journal = Journal(self._journal_path, power_safe=self._power_safe, make=False)
        try:
            with journal.locked():
                keys = keys_in(self._journal_path)
                lines, files = [], set()
                for line in read_lines(self._journal_path):
                    entries = line.entries()
                    for entry in entries:
                        entry.pop("result", None)
                    files |= {file for entry in entries if (file := file_named_in(entry))}
                    lines.append(sealed(to_json({"records": entries})))
                self._log.settle()
                write_private_file(self._journal_path, b"".join(lines), sync=self._power_safe)
                reach("in-remove")
                self._files.keep_only(files)
                cache.forget(keys, self._path.name)
        finally:
            journal.close()

    def problems(self) -> list[str]:
        """Return a line for each thing that is wrong in the journal, the log and the files of results."""
        if not self.exists():
            return []
        found: list[str] = []
        results: list[str] = []
        reader = EntryReader(self._files.load)
        for line in whole_lines(self._journal_path):
            with telling(found), line.making_sense():
                for entry in line.entries():
                    if not found:  # else it may be about a run in the damaged line
                        reader.record(entry)
                    if "result" in entry:
                        with telling(results):
                            result = self._files.load(entry["result"])
                            if self._values is not None and (problem := self._values.problem(result)):
                                results.append(problem)
        return [*found, *results, *self._log.problems(None if found else reader)]

    def close(self) -> None:
        """Release the files that are open; the next append opens them again."""
        self._log.close()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if not self._tally.unfinished:  # most likely nothing will be added any more
            self._tally, self._tallied = Tally(), Place()

    def _read(self, flow_run_id: str, numbers: Collection[int] | None, called: str | None) -> list[Record]:
        runs: dict[int, tuple[Line, Entry]] = {}
        changes: list[tuple[Line, Entry]] = []
        for line in read_lines(self._journal_path):
            with line.making_sense():
                for entry in line.entries():
                    kind = entry["kind"]
                    if entry["id" if kind == "flow_run" else "flow_run"] == flow_run_id:
                        if kind == "state":
                            changes.append((line, entry))
                        else:
                            runs[entry.get("number", 0)] = line, entry
        chosen = set(runs if numbers is None else numbers)
        if called is not None:
            chosen.update(n for n, (_, entry) in runs.items() if n and called in (entry["name"], entry["task"]))
        reader = EntryReader(self._files.load)
        records = []
        for line, entry in [*(runs[number] for number in sorted(runs) if not number or number in chosen), *changes]:
            with line.making_sense():
                if entry["kind"] != "state" or entry["number"] in chosen:
                    records.append(reader.record(entry))
        return records if 0 in chosen else records[1:]  # all others refer to the flow run

    def _open_journal(self, records: Sequence[Record]) -> Journal:
        if self._journal is None:
            is_new = not self.exists()
            if is_new and self._tallied.number:
                raise was_removed(self._journal_path)
            if is_new:
                self._tally.refuse(records)  # which must begin a flow run
            self._journal = Journal(self._journal_path, power_safe=self._power_safe, make=is_new)
        return self._journal

    def _catch_up(self, end: int | None = None) -> None:
        """Learn what others have written; up to `end` if the journal is locked."""
        if end is not None and end == self._tallied.offset + self._tallied.length:
            return
        is_first = not self._tallied.number
        files: set[str] = set()
        for line in read_lines(self._journal_path, self._tallied):
            names_files = b'"file":' in line.content  # of a map the line is long: look through it once
            with line.making_sense():
                for entry in line.entries():
                    if entry["kind"] == "flow_run":
                        self._tally.add_flow_run(entry["id"])
                    elif entry["kind"] == "state":
                        place = entry["flow_run"], entry["number"], entry["sequence"]
                        self._tally.add_change(*place, StateType(entry["type"]))
                    if names_files and (file := file_named_in(entry)):
                        files.add(file)
            self._tallied = line.place
        self._is_listed = False
        if is_first and end is not None:
            self._files.keep_only(files)

    def _write(self, journal: Journal, records: Sequence[Record], files: list[Path]) -> Place:
        """Write both lines, or the one there is; `files` gets to know those of large results."""

        def keep(name: str, payload: Payload) -> Entry:
            return self._files.keep(name, payload, files)

        entries = [entry_of(record, keep) for record in records if not isinstance(record, LogEntry)]
        log_entries = [log_entry_of(record) for record in records if isinstance(record, LogEntry)]
        if not entries:
            self._log.add(log_entries)
            return self._tallied
        if not self._is_listed and (self._tally.unfinished or any(map(_is_unfinished, records))):
            self._unfinished.add(self._path.name)
            self._is_listed = True
        line = sealed(to_json({"records": entries}))
        place = Place(self._tallied.number + 1, journal.end, len(line))
        if log_entries:
            with self._log.adding(log_entries, mark_of(line, journal.end)):
                journal.write(line)
        else:
            journal.write(line)
        return place


def _is_unfinished(record: Record) -> bool:
    """Return whether a flow run is unfinished by this record."""
    if isinstance(record, StateChange):
        return record.run.number == 0 and record.type not in FINAL_TYPES
    return isinstance(record, FlowRun)
