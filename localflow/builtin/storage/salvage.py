"""What is left of the records in a damaged SQLite store.

A row counts if its checksum fits, and if what it belongs to is there as well.
"""

from __future__ import annotations

import sqlite3
import struct
from collections import defaultdict
from contextlib import closing
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from localflow.builtin.storage import rows
from localflow.builtin.storage.blocks import Unpacked, unpacked
from localflow.builtin.storage.checksums import Row, odd_checksum
from localflow.builtin.storage.schema import TABLES
from localflow.builtin.storage.spooled import packed_change, packed_result, packed_task_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from localflow.builtin.storage.database_pages import Cell, Pages
    from localflow.builtin.storage.repair import Account
    from localflow.interfaces import FlowRun, LogEntry, Payload, Record, StateChange, TaskRun

_INCREDIBLE = 100_000  # so many things are not lost at once: a number is damaged

_CHANGE = (
    *("flow_run", "number", "sequence", "type", "name", "message", "timestamp", "previous", "attempt", "worker", "pid"),
    *("started_at", "ended_at", "cpu_seconds", "peak_rss_bytes", "cause", "result_format", "checksum"),
)
_RESULT = ("result_format", "result", "result_checksum")
_OF_RUNS = ("task_runs", "state_changes", "large_results", "log_entries")  # tables whose rows begin with a run's key


class Salvage:
    """The records in the pages of a database; `account` gets to know what is lost."""

    def __init__(self, pages: Pages, account: Account) -> None:
        self._pages = pages
        self._lost = account.lost
        columns = _columns()
        self._change_of = itemgetter(*map(columns["state_changes"].index, _CHANGE))
        self._count = columns["progress"].index("changes")
        self._result_of = itemgetter(*map(columns["state_changes"].index, _RESULT))
        # By table and flow run: where the rows are. All values at once may be more than the memory holds.
        self._cells: dict[str, defaultdict[int, list[Cell]]] = {table: defaultdict(list) for table in _OF_RUNS}
        self._flow_runs: dict[int, Row] = {}
        self._progress: dict[int, Row] = {}
        self._removed: set[int] = set()
        self._blocks: defaultdict[int, list[Cell]] = defaultdict(list)  # by flow run
        self._cached: dict[Row, Row] = {}  # key and end of cache entries, by the places of their state changes
        self._sort(
            keyed={len(columns[table]): table for table in _OF_RUNS},
            others={len(names): table for table, names in columns.items() if table not in _OF_RUNS},
        )

    def runs(self) -> Iterator[list[Record]]:
        """Yield the records of one flow run after the other, itself at first, in the order they were recorded."""
        flow_runs: dict[int, FlowRun] = {}
        for key, row in sorted(self._flow_runs.items()):
            flow_run = _made(rows.flow_run_of, row[1:])
            if flow_run is not None and key not in self._removed:
                flow_runs[key] = flow_run
        self._lose("flow run", len(self._progress.keys() - flow_runs.keys() - self._removed))
        ids = {flow_run.id for flow_run in flow_runs.values()}
        for key, flow_run in flow_runs.items():
            if flow_run.root_id in ids:
                yield self._records(key, flow_run)
            else:  # it can neither be resumed nor removed with what it was part of
                self._lose("flow run", 1)

    def _sort(self, keyed: dict[int, str], others: dict[int, str]) -> None:
        """Learn of which table and of which flow run each row is, by the number of its columns."""
        for cell in self._pages.cells():
            if not cell.has_rowid:
                count, key, ends_in_data = _made(self._pages.glance, cell) or (0, None, False)
                table = keyed.get(count, "")
                if type(key) is int and table and (table != "large_results" or ends_in_data):  # else it is of an index
                    self._cells[table][key].append(cell)
                continue
            rowid, _, *values = self._row(cell) or (None, None)
            if type(rowid) is not int:
                continue
            row = (rowid, *values)  # the column that is the rowid is empty itself
            table = others.get(len(row), "")
            if table == "flow_runs":
                self._flow_runs[row[0]] = row
            elif table == "progress":
                self._progress[row[0]] = row
            elif table == "removed_runs":
                self._removed.add(row[0])
            elif table == "blocks" and type(row[1]) is int:
                self._blocks[row[1]].append(cell)
            elif table == "cache_entries" and _made(odd_checksum, row[1:-1]) == row[-1]:
                self._cached[row[3:6]] = row[1:3]

    def _records(self, key: int, flow_run: FlowRun) -> list[Record]:
        runs: dict[int, FlowRun | TaskRun] = {0: flow_run}
        numbers = [0]
        packed = self._packed(key)
        for row in packed.task_rows:
            numbers.append(row[0])
            runs[row[0]] = packed_task_run(flow_run, row)
        for row in self._rows("task_runs", key):
            numbers.append(row[1])
            task_run = _made(rows.task_run_of, flow_run, row)
            if task_run is not None:
                runs[task_run.number] = task_run
        self._lose("task run", max(numbers) + 1 - len(runs))
        changes = self._changes(key, runs)
        for row in packed.change_rows:
            if row[0] in runs:
                changes.append(packed_change(runs[row[0]], row)._replace(result=packed_result(row)))
        recorded = self._progress[key][self._count] if key in self._progress else None  # once it has ended
        self._lose("state change", max(_gaps(changes), recorded - len(changes) if isinstance(recorded, int) else 0))
        return [*runs.values(), *changes, *self._log(key, runs)]

    def _packed(self, key: int) -> Unpacked:
        """Return what is in the blocks of a flow run."""
        found = Unpacked([], [])
        for cell in self._blocks.get(key, ()):
            rowid, _, *values = self._row(cell)
            for all_rows, more in zip(found, _made(unpacked, (rowid, *values)) or ((), ()), strict=True):
                all_rows.extend(more)
        return found

    def _changes(self, key: int, runs: dict[int, FlowRun | TaskRun]) -> list[StateChange]:
        large = {row[:3]: row[3] for row in self._rows("large_results", key)}
        changes = []
        for row in self._rows("state_changes", key):
            run = runs.get(row[1])
            change = _made(rows.state_change_of, run, (*self._change_of(row), *self._cached.get(row[:3], (None, None))))
            if run is not None and change is not None:
                changes.append(change._replace(result=self._result(row, large)))
        return changes

    def _result(self, row: Row, large: dict[Row, bytes]) -> Payload | None:
        format, data, checksum = self._result_of(row)
        if checksum is None:
            return None
        result: Payload | None = _made(rows.result_of, (format, large.get(row[:3]) if data is None else data, checksum))
        self._lose("result", int(result is None))
        return result

    def _log(self, key: int, runs: dict[int, FlowRun | TaskRun]) -> list[LogEntry]:
        entries = []
        last = 0
        for row in self._rows("log_entries", key):
            last = row[1]
            run = runs.get(row[2])
            entry = _made(rows.log_entry_of, run, row)
            if run is not None and entry is not None:
                entries.append(entry)
        self._lose("log entry", last - len(entries))
        return entries

    def _rows(self, table: str, key: int) -> list[Row]:
        """Return the rows of a flow run in a table, in the order of their keys."""
        width = 3 if table in ("state_changes", "large_results") else 2
        found = [self._row(cell) for cell in self._cells[table].get(key, ())]
        by_key = {row[:width]: row for row in found if row and all(type(value) is int for value in row[:width])}
        return [by_key[place] for place in sorted(by_key)]

    def _row(self, cell: Cell) -> Row:
        try:
            return self._pages.row(cell)
        except (ValueError, IndexError, struct.error):
            return ()

    def _lose(self, noun: str, count: int) -> None:
        if 0 < count < _INCREDIBLE:
            self._lost[noun] += count


def _made(make: Callable[..., Any], *arguments: Any) -> Any:
    """Return what is made of a row, None if the row is not as it was written."""
    try:
        return make(*arguments)
    except Exception:  # whatever damage can make of it
        return None


def _gaps(changes: Iterable[StateChange]) -> int:
    """Return how many state changes must be missing: those of one run are numbered without gaps."""
    newest: dict[int, int] = {}
    count = 0
    for change in changes:
        count += 1
        newest[change.run.number] = max(change.sequence, newest.get(change.run.number, 0))
    return sum(newest.values()) - count


def _columns() -> dict[str, list[str]]:
    """Return the columns of each table."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in TABLES:
            connection.execute(statement)
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        listing = "SELECT name FROM pragma_table_info(?) ORDER BY cid"
        return {name: [column for (column,) in connection.execute(listing, (name,))] for name in names}
