"""Mends a damaged JSON store: each damaged flow run is set aside, and what is sound of it is written anew.

A line counts if its checksum fits, also behind damage; an entry in it if what it belongs to is there as well. The new
directory is made apart and put in the place of the damaged one when it is complete. Between these two steps a flow run
is there under neither name for an instant; the next repair takes the step that a death there has left out.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from localflow.builtin.storage.claims import FLOW_RUN_ID
from localflow.builtin.storage.directory import make_private_directory, sole_maker, sync_directory
from localflow.builtin.storage.entries import EntryReader
from localflow.builtin.storage.failures import os_failure
from localflow.builtin.storage.journal import marks_in, whole_lines
from localflow.builtin.storage.marker import MARKER, is_damaged, write_marker
from localflow.builtin.storage.repair import Account, beside, copy_private, refuse_if_claimed, restore, stamp
from localflow.builtin.storage.result_files import ResultFiles
from localflow.builtin.storage.run_directory import RunDirectory
from localflow.builtin.storage.unfinished import UnfinishedTrees
from localflow.builtin.storage.value_files import VALUES
from localflow.errors import CorruptStoreError
from localflow.failpoints import reach
from localflow.interfaces import FlowRun, LogEntry, StateChange, TaskRun

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from localflow.builtin.storage.entries import Entry
    from localflow.builtin.storage.journal import Line
    from localflow.interfaces import Payload, Record

_JOURNAL, _LOG = "journal.jsonl", "logs.jsonl"


def repair_journals(path: Path) -> list[str]:
    """Mend the store in the directory `path` where it is damaged; return what was done, a line for each thing.

    Raises:
        StoreError: an engine is at work on it, or the disk is full, say.
    """
    try:
        with sole_maker(path):
            return _Repair(path).run()
    except OSError as error:
        raise os_failure(path, error) from error


class _Repair:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._bench = path / ".repair"
        self._unfinished = UnfinishedTrees(path / "unfinished", power_safe=True)

    def run(self) -> list[str]:
        refuse_if_claimed(self._path / "engines")
        done = self._finish_earlier()
        marker = self._path / MARKER
        if is_damaged(marker):
            aside = beside(marker, stamp())
            copy_private(marker, aside)
            write_marker(marker)
            done.append(f"copied {marker} as it was to {aside}, and wrote it anew")
        for directory in sorted(self._path.iterdir()):
            if (
                FLOW_RUN_ID.fullmatch(directory.name)
                and (directory / _JOURNAL).exists()
                and self._is_damaged(directory)
            ):
                done += self._mend(directory)
        shutil.rmtree(self._bench, ignore_errors=True)
        return done

    def _finish_earlier(self) -> list[str]:
        """Put in place what an earlier repair had made and did not live to put there."""
        done = []
        if self._bench.exists():
            for made in sorted(self._bench.iterdir()):
                place = self._path / made.name
                if FLOW_RUN_ID.fullmatch(made.name) and made.name != "new" and not place.exists():
                    made.rename(place)
                    done.append(f"finished an earlier repair of {place}")
        sync_directory(self._path)
        shutil.rmtree(self._bench, ignore_errors=True)
        return done

    def _is_damaged(self, directory: Path) -> bool:
        try:
            return bool(RunDirectory(directory, self._unfinished, power_safe=True).problems())
        except CorruptStoreError:
            return True

    def _mend(self, directory: Path) -> list[str]:
        account = Account()
        records = list(_Salvage(directory, account).records())
        made = self._bench / directory.name
        if records:
            for folder in (self._bench, self._bench / "new"):
                make_private_directory(folder)
            draft = RunDirectory(self._bench / "new" / directory.name, self._unfinished, power_safe=True)
            restore(draft, [records], account)
            draft.close()
            _link_files(directory / VALUES, self._bench / "new" / directory.name / VALUES)
            reach("in-repair")
            (self._bench / "new" / directory.name).rename(made)
            sync_directory(self._bench)
        refuse_if_claimed(self._path / "engines")
        reach("in-repair")
        aside = beside(directory, stamp())
        directory.rename(aside)
        reach("in-repair")
        if records:
            made.rename(directory)
        else:
            account.lost["flow run"] += 1
        sync_directory(self._path)
        return [f"set {directory} aside as it was: {aside}", *account.lines()]


def _link_files(source: Path, target: Path) -> None:
    """Have the files of large results in both places."""
    if source.is_dir():
        make_private_directory(target)
        for file in source.iterdir():
            try:
                (target / file.name).hardlink_to(file)
            except OSError:  # a file system without links
                shutil.copyfile(file, target / file.name)


class _Salvage:
    """What is sound in the directory of a flow run; `account` gets to know what is lost."""

    def __init__(self, directory: Path, account: Account) -> None:
        self._directory = directory
        self._files = ResultFiles(directory, power_safe=False)
        self._lost = account.lost
        self._reader = EntryReader(self._arguments)

    def records(self) -> Iterator[Record]:
        """Yield flow runs, then task runs, then state changes, then the log; nothing without the run at the top."""
        flow_runs: dict[str, FlowRun] = {}
        task_runs: dict[tuple[str, int], TaskRun] = {}
        changes: list[StateChange] = []
        journal = self._directory / _JOURNAL
        for line in whole_lines(journal):
            for entry in self._entries(line):
                record = self._record(entry)
                if isinstance(record, FlowRun):
                    flow_runs[record.id] = record
                elif isinstance(record, TaskRun):
                    task_runs[record.flow_run.id, record.number] = record
                elif isinstance(record, StateChange):
                    changes.append(record._replace(result=self._result(entry)))
        if self._directory.name in flow_runs:
            yield from flow_runs.values()
            yield from task_runs.values()
            yield from changes
            yield from self._log(journal)

    def _log(self, journal: Path) -> Iterator[LogEntry]:
        log = self._directory / _LOG
        if not log.exists():
            return
        size = journal.stat().st_size
        with marks_in(journal) as stands:
            for line in whole_lines(log):
                mark = None
                with suppress(CorruptStoreError):
                    _, mark = line.entries_and_mark()
                if mark is not None and not stands(mark) and mark.offset + mark.length > size:
                    continue  # its writer died before it had written the line in the journal
                for entry in self._entries(line):
                    record = self._record(entry)
                    if isinstance(record, LogEntry):
                        yield record

    def _entries(self, line: Line) -> list[Entry]:
        try:
            return line.entries()
        except CorruptStoreError:
            self._lost["line"] += 1
            return []

    def _record(self, entry: Entry) -> Record | None:
        try:
            return self._reader.record(entry)
        except Exception:  # what it belongs to is lost, or whatever else damage can make of it
            self._lost["record"] += 1
            return None

    def _result(self, entry: Entry) -> Payload | None:
        if "result" not in entry:
            return None
        try:
            return self._files.load(entry["result"])
        except Exception:
            self._lost["result"] += 1
            return None

    def _arguments(self, entry: Entry) -> Any:
        try:
            return self._files.load(entry)
        except Exception:
            self._lost["parameter"] += 1
            return None
