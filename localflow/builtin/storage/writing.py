"""Records into the tables of the SQLite store, on the one connection of a store that writes."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

from localflow.builtin.storage import blocks, rows, statements
from localflow.builtin.storage.checksums import DamagedRowError
from localflow.builtin.storage.database import begin, open_writer, sqlite_failure
from localflow.builtin.storage.failures import already_recorded, not_a_record, not_recorded, was_removed
from localflow.builtin.storage.spool import Mark
from localflow.builtin.storage.standing_rows import keep_standings
from localflow.errors import CorruptStoreError
from localflow.failpoints import reach
from localflow.interfaces import FlowRun, LogEntry, StateChange, TaskRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from localflow.builtin.storage.checksums import Row
    from localflow.builtin.storage.spooled import Pack
    from localflow.interfaces import Record

_AT_ONCE = 64  # rows that one statement inserts
_MAX_KEYS = 10_000
_NOTHING_MORE = (None, None, None, None)  # the last fields of most state changes: execution, cause, result, cache


class Writer:
    """Writes to the database at `path`; whoever has it sees to it that only one thread at a time does."""

    def __init__(self, path: Path, *, power_safe: bool) -> None:
        """Open the connection. Raises StoreError."""
        self._path = path
        self._connection = open_writer(path, power_safe=power_safe)
        self._cursor = self._connection.cursor()
        self._inode = path.stat().st_ino
        self._keys: dict[str, int] = {}  # of flow runs, by id
        self._blocks = blocks.BlockReader()

    def transact(self, work: Callable[[bool], None]) -> None:
        """Do work in a transaction; it is done anew, told to box rows, if something in it is nothing for SQLite.

        Raises:
            StoreError: it could not be done, and has not been done.
        """
        try:
            try:
                self._attempt(work, box=False)
            except (UnicodeEncodeError, OverflowError, sqlite3.IntegrityError):  # the last for NaN, as NULL
                self._attempt(work, box=True)
        except sqlite3.Error as error:
            raise sqlite_failure(self._path, error) from error
        except DamagedRowError as error:
            raise CorruptStoreError(self._path, str(error)) from error

    def refuse_removed(self) -> None:
        """Raise StoreError if the file has gone or is another one: SQLite would go on writing into the void."""
        try:
            removed = self._path.stat().st_ino != self._inode
        except OSError:
            removed = True
        if removed:
            raise was_removed(self._path)

    def _attempt(self, work: Callable[[bool], None], *, box: bool) -> None:
        self.refuse_removed()
        begin(self._path, self._cursor)
        try:
            work(box)
            reach("in-transaction")
            self._cursor.execute("COMMIT")
            reach("committed")
        finally:
            if self._connection.in_transaction:
                self.forget()  # the keys of flow runs that are now not there
                with suppress(sqlite3.Error):  # what went wrong before is what the caller must hear of
                    self._cursor.execute("ROLLBACK")

    def forget(self) -> None:
        """Look up the keys of flow runs anew: they may have been removed."""
        self._keys.clear()
        self._blocks = blocks.BlockReader()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def insert(self, records: Iterable[Record], box: bool, *, are_known_to_fit: bool = False) -> None:
        """Insert records within a transaction, their rows as they are or boxed.

        Of rows SQLite itself refuses what is there already, but not what is there in a block.
        """
        key_of = self._keys.get
        task_runs: list[Row] = []
        plain_changes: list[Row] = []
        full_changes: list[Row] = []
        large_results: list[Row] = []
        cache_entries: list[Row] = []
        log_entries: list[Row] = []
        log_ends: dict[int, int] = {}
        moved: set[int] = set()  # flow runs that have entered a state themselves
        for record in records:
            if isinstance(record, StateChange):
                run = record.run
                flow_run = run.flow_run
                key = key_of(flow_run.id) or self._find_key(flow_run.id)
                if run.number == 0:
                    moved.add(key)
                if record[8:] == _NOTHING_MORE:
                    plain_changes.append(rows.plain_change_row(key, record, box))
                    continue
                full_changes.append(rows.full_change_row(key, record, box))
                large_result = rows.large_result_row(key, record)
                if large_result is not None:
                    large_results.append(large_result)
                if record.cache is not None:
                    cache_entries.append(rows.cache_row(key, record, record.cache, box))
            elif isinstance(record, TaskRun):
                key = key_of(record.flow_run.id) or self._find_key(record.flow_run.id)
                task_runs.append(rows.task_run_row(key, record, box))
            elif isinstance(record, LogEntry):
                flow_run = record.run.flow_run
                key = key_of(flow_run.id) or self._find_key(flow_run.id)
                position = log_ends.get(key) or self._find_log_end(key)
                log_ends[key] = position + 1
                log_entries.append(rows.log_row(key, position, record, box))
            elif isinstance(record, FlowRun):
                self._cursor.execute(statements.ADD_FLOW_RUN, rows.flow_run_row(record))
                self._cursor.execute(statements.ADD_PROGRESS, (self._find_key(record.id),))
            else:
                raise not_a_record(record)
        if not are_known_to_fit:
            self._refuse_packed([*plain_changes, *full_changes])
        self._add(statements.ADD_TASK_RUN, task_runs)
        self._add(statements.ADD_PLAIN_CHANGE, plain_changes)
        self._add(statements.ADD_FULL_CHANGE, full_changes)
        self._add(statements.ADD_LARGE_RESULT, large_results)
        self._add(statements.ADD_CACHE_ENTRY, cache_entries)
        self._add(statements.ADD_LOG_ENTRY, log_entries)
        touched = {row[0] for group in (task_runs, plain_changes, full_changes) for row in group}
        for key in touched:
            self._cursor.execute(statements.FORGET_STANDINGS, (key,))
        for key in moved:
            self._cursor.execute(statements.SET_FINAL, {"flow_run": key})
            self._cursor.execute(statements.COUNT_ALL, {"flow_run": key})
            keep_standings(self._connection, key)

    def insert_packs(self, packs: Iterable[Pack]) -> list[Pack]:
        """Insert what is packed, which is known to fit, within a transaction; return what should become rows."""
        left: list[Pack] = []
        by_flow_run: dict[str, list[Pack]] = {}
        for pack in packs:
            by_flow_run.setdefault(pack.flow_run_id, []).append(pack)
        for id, of_flow_run in by_flow_run.items():
            key = self._keys.get(id) or self._find_key(id)
            for group in blocks.in_groups(of_flow_run):
                if blocks.are_dense(group):
                    self._cursor.execute(statements.ADD_BLOCK, blocks.block_row(key, group))
                else:
                    left += group
            self._cursor.execute(statements.FORGET_STANDINGS, (key,))
        return left

    def _refuse_packed(self, changes: Sequence[Row]) -> None:
        """Raise StoreError if one of these state changes is in a block."""
        for key in {row[0] for row in changes}:
            if blocks.are_there(self._cursor, key):
                for _, number, sequence in [row[:3] for row in changes if row[0] == key and type(row[1]) is int]:
                    if any(row[1] == sequence for row in self._blocks.change_rows(self._connection, key, number)):
                        raise already_recorded(self._path, f"state change {sequence} of task run {number}")

    def ends(self, flow_run_id: str) -> tuple[int, int] | None:
        """Return the highest number that anything is recorded of in a flow run, and the newest of its own sequences.

        None if the flow run is not recorded.
        """
        found = self._query(statements.FIND_ENDS, (flow_run_id,))
        return found[0] if found else None

    def _add(self, statement: str, added: Sequence[Row]) -> None:
        """Insert rows, many with one statement: between two statements every other thread may take its turn."""
        start = 0
        if len(added) >= _AT_ONCE:
            many = statements.repeated(statement, _AT_ONCE)
            while start + _AT_ONCE <= len(added):
                self._cursor.execute(many, [*chain.from_iterable(added[start : start + _AT_ONCE])])
                start += _AT_ONCE
        if start < len(added):
            self._cursor.executemany(statement, added[start:] if start else added)

    def _find_key(self, flow_run_id: str) -> int:
        """Return the key of a flow run that an earlier store object, maybe another process's, has recorded."""
        row = self._cursor.execute(statements.FIND_KEY, (flow_run_id,)).fetchone()
        if row is None:
            raise not_recorded(flow_run_id)
        if len(self._keys) >= _MAX_KEYS:
            self._keys.clear()
        key: int = row[0]
        self._keys[flow_run_id] = key
        return key

    def _find_log_end(self, key: int) -> int:
        """Return the first free position in a flow run's log: nobody else adds to it before we commit."""
        last: int = self._cursor.execute(statements.FIND_LOG_END, (key,)).fetchone()[0]
        return last + 1

    # -- what of which spool has been filed --------------------------------------------------------------------------

    def filed(self, spool: str) -> Mark | None:
        """Return how far a spool has been filed; None if nothing of it was."""
        found = self._query(statements.FIND_MARK, (spool,))
        return Mark._make(found[0]) if found else None

    def set_filed(self, spool: str, mark: Mark) -> None:
        """Note how far a spool has been filed."""
        self._cursor.execute(statements.SET_MARK, (spool, *mark))

    def forget_spools(self, spools: Iterable[str]) -> None:
        """Forget spools that are there no more."""
        self._cursor.executemany(statements.REMOVE_MARK, [(spool,) for spool in spools])

    def known_spools(self) -> list[str]:
        """Return the names of all spools of which something was filed."""
        return [name for (name,) in self._query(statements.LIST_MARKS)]

    def continues(self, record: TaskRun | StateChange | FlowRun) -> bool:
        """Return whether a record, which another database may have, fits what is there."""
        run = record.run if isinstance(record, StateChange) else record
        row = self._cursor.execute(statements.FIND_KEY, (run.flow_run.id,)).fetchone()
        if row is None or not isinstance(record, StateChange):
            return row is not None
        key, number = row[0], record.run.number
        if number and not (
            self._cursor.execute(statements.READ_TASK_RUN, (key, number)).fetchone()
            or self._blocks.task_row(self._connection, key, number)
        ):
            return False
        return record.sequence == self._newest(key, number) + 1

    def newest(self, flow_run_id: str, number: int) -> int:
        """Return the newest sequence of a run, 0 if it has none. Raises StoreError."""
        try:
            return self._newest(self._find_key(flow_run_id), number)
        except sqlite3.Error as error:
            raise sqlite_failure(self._path, error) from error
        except DamagedRowError as error:
            raise CorruptStoreError(self._path, str(error)) from error

    def _newest(self, key: int, number: int) -> int:
        last: int = self._cursor.execute(statements.FIND_LAST_CHANGE, (key, number)).fetchone()[0]
        packed: list[int] = [change[1] for change in self._blocks.change_rows(self._connection, key, number)]
        return max(last, *packed) if packed else last

    def _query(self, statement: str, values: Row = ()) -> list[Row]:
        try:
            return self._cursor.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise sqlite_failure(self._path, error) from error
