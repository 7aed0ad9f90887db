"""The default state store: one SQLite file that several processes write and read at the same time.

Records are only ever inserted, each `append` in one transaction on the one connection that writes. Reading has
connections of its own: with SQLite's write-ahead log readers and the writer do not wait for each other.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from localflow.builtin.storage import reading, rows, statements
from localflow.builtin.storage.audit import references, wrongs
from localflow.builtin.storage.checksums import DamagedRowError
from localflow.builtin.storage.claims import Claims
from localflow.builtin.storage.database import begin, connect, open_database, open_writer, sqlite_failure
from localflow.builtin.storage.failures import not_a_record, not_recorded, was_removed
from localflow.builtin.storage.lifetime import Lifetime
from localflow.builtin.storage.removal import remove_runs
from localflow.builtin.storage.schema import FORMAT_VERSION
from localflow.builtin.storage.value_files import ValueFiles
from localflow.errors import CorruptStoreError
from localflow.failpoints import reach
from localflow.interfaces import FlowRun, Folder, LogEntry, StateChange, StateStore, TaskRun

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localflow.builtin.storage.checksums import Row
    from localflow.interfaces import CachedResult, Claim, FlowRunSummary, Payload, Record

_MAX_KEYS = 10_000
_NOTHING_MORE = (None, None, None, None)  # the last fields of most state changes: execution, cause, result, cache


class SqliteStateStore(StateStore):
    """Keeps records in the SQLite file at `path`, which is made if it is missing.

    Every commit is safe against the death of any process, with durability `full` against power loss too.
    """

    format_version: ClassVar[int] = FORMAT_VERSION

    def __init__(
        self, path: Path = Path(".localflow/localflow.db"), durability: Literal["process", "full"] = "process"
    ) -> None:
        self._path = Path(path).absolute()
        self._lifetime = Lifetime(self.location)
        self._reader = open_database(self._path)
        try:
            self._writer = open_writer(self._path, power_safe=durability == "full")
        except BaseException:
            self._reader.close()
            raise
        self._cursor = self._writer.cursor()
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._file = str(self._path)
        self._inode = self._path.stat().st_ino
        self._keys: dict[str, int] = {}  # of flow runs, by id
        self._claims = Claims(self._path.parent / "engines")
        self._values = _values_of(self._path, power_safe=durability == "full")

    @classmethod
    def repair(
        cls, path: Path = Path(".localflow/localflow.db"), durability: Literal["process", "full"] = "process"
    ) -> list[str]:
        """Mend the file that a store with these options would open; return what was done."""
        from localflow.builtin.storage.database_repair import repair_database

        return repair_database(Path(path).absolute(), cls)

    @property
    def location(self) -> str:
        """The path of the file."""
        return str(self._path)

    def append(self, records: Sequence[Record]) -> None:
        """Add records in one transaction."""
        with self._write_lock:
            self._lifetime.check()
            self._refuse_removed()
            records = self._values.keep(records)
            try:
                try:
                    self._commit(records)
                except (UnicodeEncodeError, OverflowError, sqlite3.IntegrityError):  # the last for NaN, as NULL
                    self._roll_back()
                    self._commit(records, box=True)
            except sqlite3.Error as error:
                raise sqlite_failure(self._path, error) from error
            finally:
                if self._writer.in_transaction:
                    self._roll_back()

    def list_flow_runs(
        self, limit: int | None = None, *, root_id: str | None = None, unfinished: bool = False
    ) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, last recorded first."""
        with self._reading() as reader:
            return reading.summaries(reader, limit, root_id, unfinished)

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Yield a flow run, its task runs by number, then all state changes, all as of one instant."""
        self._lifetime.check()
        return self._read(flow_run_id)

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the result that a run has last completed with, if it was recorded."""
        with self._reading() as reader:
            result = reading.result(reader, flow_run_id, number)
            return None if result is None else self._values.found(result)

    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Return the newest result recorded with this cache key that has not expired at `now`."""
        with self._reading() as reader:
            (key_in_row,) = rows.boxed((key,))
            found = reading.cached_result(reader, key_in_row, now)
            return None if found is None else found._replace(result=self._values.found(found.result))

    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Yield a flow run's log entries after a position, with theirs, all as of one instant."""
        self._lifetime.check()
        return self._read_logs(flow_run_id, after)

    def claim(self, flow_run_id: str) -> Claim | None:
        """Take hold of a flow run by a lock on a file in `engines`, beside the database."""
        self._lifetime.check()
        claim = self._claims.take(flow_run_id)
        if claim is not None:
            self._values.sweep(flow_run_id, lambda: self._references_of(flow_run_id))
        return claim

    def value_folder(self, root_id: str) -> Folder:
        """Return a folder beside the database, in which each tree of flow runs has one of its own."""
        return self._values.folder(root_id)

    def remove(self, root_ids: Sequence[str], *, results_only: bool = False) -> None:
        """Remove flow runs at the top of a tree with all below them, in transactions of bounded size."""
        with self._failures():
            self._lifetime.check()
            self._refuse_removed()
            remove_runs(self._path, root_ids, results_only=results_only)
        for root_id in root_ids:
            self._values.remove(root_id)
        with self._write_lock:
            self._keys.clear()

    def check(self) -> list[str]:
        """Read everything; return a line for each thing that is wrong."""
        problems = self.check_database()
        if not problems:
            with self._snapshot() as connection:
                problems = self._values.problems(references(connection))
        return problems

    def _references_of(self, root_id: str) -> list[Payload]:
        with self._snapshot() as connection:
            return [*references(connection, root_id)]

    def check_database(self) -> list[str]:
        """Read everything but the files of large results; return a line for each thing that is wrong."""
        self._lifetime.check()
        with self._snapshot() as connection:
            return list(wrongs(connection))

    def close(self) -> None:
        """Release the file; the last process to do so folds the write-ahead log into it."""
        with self._write_lock, self._read_lock:
            if self._lifetime.end():
                self._reader.close()
                self._writer.close()

    def _commit(self, records: Sequence[Record], box: bool = False) -> None:
        """Insert all records in one transaction, their rows as they are or boxed."""
        key_of = self._keys.get
        task_runs: list[Row] = []
        plain_changes: list[Row] = []
        full_changes: list[Row] = []
        large_results: list[Row] = []
        cache_entries: list[Row] = []
        log_entries: list[Row] = []
        log_ends: dict[int, int] = {}
        moved: set[int] = set()  # flow runs that have entered a state themselves
        begin(self._path, self._cursor)
        for record in records:
            if isinstance(record, StateChange):
                run = record.run
                flow_run = run.flow_run
                key = key_of(flow_run.id) or self._find_key(flow_run)
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
                key = key_of(record.flow_run.id) or self._find_key(record.flow_run)
                task_runs.append(rows.task_run_row(key, record, box))
            elif isinstance(record, LogEntry):
                flow_run = record.run.flow_run
                key = key_of(flow_run.id) or self._find_key(flow_run)
                position = log_ends.get(key) or self._find_log_end(key)
                log_ends[key] = position + 1
                log_entries.append(rows.log_row(key, position, record, box))
            elif isinstance(record, FlowRun):
                self._cursor.execute(statements.ADD_FLOW_RUN, rows.flow_run_row(record))
                self._cursor.execute(statements.ADD_PROGRESS, (self._find_key(record),))
            else:
                raise not_a_record(record)
        for statement, added in (
            (statements.ADD_TASK_RUN, task_runs),
            (statements.ADD_PLAIN_CHANGE, plain_changes),
            (statements.ADD_FULL_CHANGE, full_changes),
            (statements.ADD_LARGE_RESULT, large_results),
            (statements.ADD_CACHE_ENTRY, cache_entries),
            (statements.ADD_LOG_ENTRY, log_entries),
        ):
            if added:
                self._cursor.executemany(statement, added)
        for key in moved:
            self._cursor.execute(statements.SET_FINAL, (key,))
            self._cursor.execute(statements.COUNT_ALL, (key,))
        reach("in-transaction")
        self._cursor.execute("COMMIT")
        reach("committed")

    def _find_key(self, flow_run: FlowRun) -> int:
        """Return the key of a flow run that an earlier store object, maybe another process's, has recorded."""
        row = self._cursor.execute(statements.FIND_KEY, (flow_run.id,)).fetchone()
        if row is None:
            raise not_recorded(flow_run.id)
        if len(self._keys) >= _MAX_KEYS:
            self._keys.clear()
        key: int = row[0]
        self._keys[flow_run.id] = key
        return key

    def _find_log_end(self, key: int) -> int:
        """Return the first free position in a flow run's log: nobody else adds to it before we commit."""
        last: int = self._cursor.execute(statements.FIND_LOG_END, (key,)).fetchone()[0]
        return last + 1

    def _roll_back(self) -> None:
        self._keys.clear()  # those of flow runs that are now not there
        with suppress(sqlite3.Error):  # what went wrong before is what the caller must hear of
            self._cursor.execute("ROLLBACK")

    def _refuse_removed(self) -> None:
        """Notice that the file has gone or is another one: SQLite would go on writing into the void."""
        try:
            removed = os.stat(self._file).st_ino != self._inode  # noqa: PTH116 - twice as quick, at every commit
        except OSError:
            removed = True
        if removed:
            raise was_removed(self._path)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for short reads, to which the store is as it is at the first SELECT."""
        with self._read_lock, self._failures():
            self._lifetime.check()
            self._reader.execute("BEGIN")  # or a run that ends between two SELECTs would seem damaged
            try:
                yield self._reader
            finally:
                self._reader.execute("COMMIT")

    def _read(self, flow_run_id: str) -> Iterator[Record]:
        with self._snapshot() as connection:
            run = reading.find_run(connection, flow_run_id)
            if run is not None:
                yield from reading.records(connection, run)

    def _read_logs(self, flow_run_id: str, after: int) -> Iterator[tuple[int, LogEntry]]:
        with self._snapshot() as connection:
            run = reading.find_run(connection, flow_run_id)
            if run is not None:
                yield from reading.log_entries(connection, run, after)

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """Give a connection of its own, to which the store is as it is at the first SELECT."""
        with self._failures(), closing(connect(self._path)) as connection:
            connection.execute("BEGIN")
            yield connection

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise sqlite_failure(self._path, error) from error
        except DamagedRowError as error:
            raise CorruptStoreError(self._path, str(error)) from error
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise CorruptStoreError(self._path, f"a row makes no sense ({error!r})") from error


def _values_of(path: Path, *, power_safe: bool) -> ValueFiles:
    folder = path.with_name(f"{path.name}-values")
    return ValueFiles(folder.joinpath, power_safe=power_safe)
