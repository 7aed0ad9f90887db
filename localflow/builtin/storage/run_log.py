"""The log of a flow run in the JSON store: a file beside the journal, which stays short by it.

Whoever adds to it holds the journal's lock. Log entries that were appended together with other records carry the mark
of the line that these make in the journal, and count only if it stands there: their writer may have died in between.
So the fate of each line is known before the next one is written.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING

from localflow.builtin.storage.directory import write_private_file
from localflow.builtin.storage.encoding import to_json
from localflow.builtin.storage.entries import EntryReader
from localflow.builtin.storage.journal import (
    Follower,
    Journal,
    Mark,
    Place,
    inode_of,
    marks_in,
    read_lines,
    sealed,
    telling,
    whole_lines,
)
from localflow.errors import StoreError
from localflow.interfaces import LogEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from localflow.builtin.storage.entries import Entry
    from localflow.builtin.storage.journal import Line
    from localflow.interfaces import Payload

_STRIDE = 100  # so many entries may be read again to find a position


class RunLog:
    """The log entries of a flow run and of all subflows below it.

    One thread at a time may write, and one may read meanwhile.
    """

    def __init__(self, path: Path, journal_path: Path, load: Callable[[Entry], Payload], *, power_safe: bool) -> None:
        """Keep the entries in `path`; read payloads in the journal by `load`."""
        self._path = path
        self._journal_path = journal_path
        self._load = load
        self._power_safe = power_safe
        self._file: Journal | None = None  # while it is open for writing
        self._inode = 0
        self._starts: dict[str, list[tuple[int, Place]]] = {}  # by flow run: positions, and the lines they end in
        self._journal = Follower(journal_path, self._forget_runs)
        self._forget_runs()

    def add(self, entries: Sequence[Entry]) -> None:
        """Add entries as one line."""
        file = self._for_writing()
        with file.locked():
            file.write(sealed(to_json({"records": entries})))

    @contextmanager
    def adding(self, entries: Sequence[Entry], mark: Mark) -> Iterator[None]:
        """Add entries as one line, which counts once the line of `mark` is in the journal; undo it if that fails."""
        file = self._for_writing()
        with file.locked() as end:
            file.write(sealed(to_json({"records": entries, "mark": mark})))
            try:
                yield
            except BaseException:
                file.cut(end)
                raise

    def read(self, flow_run_id: str, after: int) -> list[tuple[int, LogEntry]]:
        """Return the entries of one of the flow runs after a position, each with its own."""
        while (inode := inode_of(self._path)) is not None:
            if inode != self._inode:  # it was written anew, with lines in other places
                self._inode = inode
                self._starts.clear()
            try:
                return self._read(flow_run_id, after)
            except StoreError:
                if inode_of(self._path) == inode:
                    raise
        return []  # nothing was said yet

    def _read(self, flow_run_id: str, after: int) -> list[tuple[int, LogEntry]]:
        starts = self._starts.setdefault(flow_run_id, [(0, Place())])
        position, place = starts[max(0, bisect_right(starts, after, key=itemgetter(0)) - 1)]
        found: list[tuple[int, Line, Entry]] = []
        with marks_in(self._journal_path) as stands:
            for line in read_lines(self._path, place):
                entries, mark = line.entries_and_mark()
                if mark is not None and not stands(mark):
                    continue  # lost with its writer if others follow; else perhaps just being committed: ask again
                for entry in entries:
                    if entry.get("flow_run") == flow_run_id:
                        position += 1
                        if position > after:
                            found.append((position, line, entry))
                if position >= starts[-1][0] + _STRIDE:
                    starts.append((position, line.place))
        if found:
            self._learn_runs()
        return [(position, self._log_entry(line, entry)) for position, line, entry in found]

    def settle(self) -> None:
        """Write the log anew so that it counts whatever becomes of the journal; the journal is locked."""
        if not self._path.exists():
            return
        lines = []
        with marks_in(self._journal_path) as stands:
            for line in read_lines(self._path):
                entries, mark = line.entries_and_mark()
                if mark is None or stands(mark):
                    lines.append(sealed(to_json({"records": entries})))
        write_private_file(self._path, b"".join(lines), sync=self._power_safe)

    def problems(self, reader: EntryReader | None) -> list[str]:
        """Return a line for each that is damaged; `reader` knows the runs in the journal if that makes sense."""
        found: list[str] = []
        if not self._path.exists():
            return found
        with marks_in(self._journal_path) as stands:
            for line in whole_lines(self._path):
                with telling(found), line.making_sense():
                    entries, mark = line.entries_and_mark()
                    if reader is not None and (mark is None or stands(mark)):
                        for entry in entries:
                            reader.record(entry)
        return found

    def close(self) -> None:
        """Release the file; the next entries open it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _for_writing(self) -> Journal:
        if self._file is None:
            self._file = Journal(self._path, power_safe=self._power_safe)
        return self._file

    def _forget_runs(self) -> None:
        self._reader = EntryReader(self._load)  # which knows the runs in the journal

    def _learn_runs(self) -> None:
        """Read the runs that were recorded since the last time."""
        for line in self._journal.new_lines():
            if b'"kind":"task_run"' in line.content or b'"kind":"flow_run"' in line.content:
                for entry in line.entries():
                    if entry.get("kind") in ("flow_run", "task_run"):
                        with line.making_sense():
                            self._reader.record(entry)

    def _log_entry(self, line: Line, entry: Entry) -> LogEntry:
        with line.making_sense():
            record = self._reader.record(entry)
            if not isinstance(record, LogEntry):
                raise TypeError(f"{entry.get('kind')!r} in a log")
            return record
