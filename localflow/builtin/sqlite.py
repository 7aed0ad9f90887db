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
from typing import TYPE_CHECKING, Literal

from localflow.builtin.storage import rows
from localflow.builtin.storage.claims import Claims
from localflow.builtin.storage.database import begin, connect, open_database, sqlite_failure
from localflow.builtin.storage.failures import not_a_record, not_recorded, was_removed
from localflow.builtin.storage.lifetime import Lifetime
from localflow.builtin.storage.summary import summarise
from localflow.errors import CorruptStoreError
from localflow.interfaces import FlowRun, LogEntry, StateChange, StateStore, TaskRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from localflow.builtin.storage.rows import Row
    from localflow.interfaces import CachedResult, Claim, FlowRunSummary, Payload, Record

_MAX_KEYS = 10_000
_NOTHING_MORE = (None, None, None, None)  # the last fields of most state changes: execution, cause, result, cache

_ADD_FLOW_RUN = """
    INSERT INTO flow_runs (id, name, flow, created_at, root_id, parent_id, parameters, entry_point, executor, versions,
                           host, pid, tags, code, inputs, arguments_format, arguments)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET
        name = excluded.name, flow = excluded.flow, created_at = excluded.created_at, root_id = excluded.root_id,
        parent_id = excluded.parent_id, parameters = excluded.parameters, entry_point = excluded.entry_point,
        executor = excluded.executor, versions = excluded.versions, host = excluded.host, pid = excluded.pid,
        tags = excluded.tags, code = excluded.code, inputs = excluded.inputs,
        arguments_format = excluded.arguments_format, arguments = excluded.arguments
    RETURNING key
"""
_ADD_TASK_RUN = "INSERT OR REPLACE INTO task_runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
# Most state changes say nothing beyond these columns, and what is not bound takes no time.
_ADD_PLAIN_CHANGE = """
    INSERT INTO state_changes (flow_run, number, sequence, type, name, message, timestamp, previous, attempt)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_ADD_FULL_CHANGE = "INSERT INTO state_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADD_LARGE_RESULT = "INSERT INTO large_results VALUES (?, ?, ?, ?)"
_ADD_CACHE_ENTRY = "INSERT INTO cache_entries (key, expires_at, flow_run, number, sequence) VALUES (?, ?, ?, ?, ?)"

_ADD_LOG_ENTRY = "INSERT INTO log_entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)"

_FIND_FLOW_RUN = "SELECT key FROM flow_runs WHERE id = ?"
_FIND_LOG_END = "SELECT coalesce(max(position), 0) FROM log_entries WHERE flow_run = ?"
_READ_FLOW_RUNS = """
    SELECT key, id, name, flow, created_at, root_id, parent_id, parameters, entry_point, executor, versions, host, pid,
           tags, code, inputs, arguments_format, arguments
    FROM flow_runs WHERE ?1 IS NULL OR root_id = ?1 ORDER BY key DESC LIMIT ?2
"""
_READ_FLOW_RUN = """
    SELECT key, id, name, flow, created_at, root_id, parent_id, parameters, entry_point, executor, versions, host, pid,
           tags, code, inputs, arguments_format, arguments
    FROM flow_runs WHERE id = ?
"""
_SELECT_TASK_RUNS = """
    SELECT number, name, task, ordinal, created_at, upstreams, tags, version, map_number, map_index, code, inputs
    FROM task_runs
"""
_READ_TASK_RUNS = _SELECT_TASK_RUNS + "WHERE flow_run = ? ORDER BY number"
_READ_TASK_RUN = _SELECT_TASK_RUNS + "WHERE flow_run = ? AND number = ?"
_SELECT_CHANGES = """
    SELECT number, sequence, type, name, message, timestamp, previous, attempt,
           worker, pid, started_at, ended_at, cpu_seconds, peak_rss_bytes, cause, key, expires_at
    FROM state_changes LEFT JOIN cache_entries USING (flow_run, number, sequence)
"""
_READ_CHANGES = _SELECT_CHANGES + "WHERE flow_run = ? ORDER BY number, sequence"
_READ_FLOW_CHANGES = _SELECT_CHANGES + "WHERE flow_run = ? AND number = 0 ORDER BY sequence"
_READ_RESULT = """
    SELECT result_format, coalesce(result, (
        SELECT data FROM large_results AS large
        WHERE large.flow_run = change.flow_run AND large.number = change.number AND large.sequence = change.sequence
    ))
    FROM state_changes AS change
    WHERE flow_run = (SELECT key FROM flow_runs WHERE id = ?) AND number = ? AND result_format IS NOT NULL
    ORDER BY sequence DESC LIMIT 1
"""
# From the newest entry of the key on, along its index; a time that is no number has passed already.
_FIND_CACHED = """
    SELECT flow_runs.id, task_runs.number, task_runs.name, flow_runs.name, state_changes.timestamp, expires_at,
           result_format, coalesce(result, data)
    FROM cache_entries
    JOIN state_changes USING (flow_run, number, sequence)
    JOIN task_runs USING (flow_run, number)
    JOIN flow_runs ON flow_runs.key = cache_entries.flow_run
    LEFT JOIN large_results USING (flow_run, number, sequence)
    WHERE cache_entries.key = ? AND (expires_at IS NULL OR typeof(expires_at) <> 'blob' AND expires_at > ?)
          AND type = 'COMPLETED' AND result_format IS NOT NULL
    ORDER BY entry DESC LIMIT 1
"""
_READ_LOG_ENTRIES = """
    SELECT position, number, attempt, timestamp, level, source, message
    FROM log_entries WHERE flow_run = ? AND position > ? ORDER BY position
"""


class SqliteStateStore(StateStore):
    """Keeps records in the SQLite file at `path`, which is made if it is missing.

    Every commit is safe against the death of any process, with durability `full` against power loss too.
    """

    def __init__(
        self, path: Path = Path(".localflow/localflow.db"), durability: Literal["process", "full"] = "process"
    ) -> None:
        self._path = Path(path).absolute()
        self._lifetime = Lifetime(self.location)
        self._writer = open_database(self._path, power_safe=durability == "full")
        self._cursor = self._writer.cursor()
        self._write_lock = threading.Lock()
        self._reader = connect(self._path)
        self._read_lock = threading.Lock()
        self._file = str(self._path)
        self._inode = self._path.stat().st_ino
        self._keys: dict[str, int] = {}  # of flow runs, by id
        self._claims = Claims(self._path.parent / "engines")

    @property
    def location(self) -> str:
        """The path of the file."""
        return str(self._path)

    def append(self, records: Sequence[Record]) -> None:
        """Add records in one transaction."""
        with self._write_lock:
            self._lifetime.check()
            self._refuse_removed()
            try:
                try:
                    self._commit(records)
                except (UnicodeEncodeError, OverflowError, sqlite3.IntegrityError):  # the last for NaN, as NULL
                    self._roll_back()
                    self._commit(records, rows.boxed)
            except sqlite3.Error as error:
                raise sqlite_failure(self._path, error) from error
            finally:
                if self._writer.in_transaction:
                    self._roll_back()

    def list_flow_runs(
        self, limit: int | None = None, *, root_id: str | None = None, unfinished: bool = False
    ) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, last recorded first."""
        with self._read_lock, self._failures():
            self._lifetime.check()
            summaries = []
            count = -1 if limit is None else limit
            for key, *row in self._reader.execute(_READ_FLOW_RUNS, (root_id, count)).fetchall():
                flow_run = rows.flow_run_of(row)
                changes = self._reader.execute(_READ_FLOW_CHANGES, (key,))
                summaries.append(summarise(flow_run, [rows.state_change_of(flow_run, change) for change in changes]))
            return summaries

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Yield a flow run, its task runs by number, then all state changes, all as of one instant."""
        self._lifetime.check()
        return self._read(flow_run_id)

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the newest recorded result of a run."""
        with self._read_lock, self._failures():
            self._lifetime.check()
            row = self._reader.execute(_READ_RESULT, (flow_run_id, number)).fetchone()
            return rows.result_of(row) if row else None

    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Return the newest result recorded with this cache key that has not expired at `now`."""
        with self._read_lock, self._failures():
            self._lifetime.check()
            row = self._reader.execute(_FIND_CACHED, (*rows.boxed((key,)), now)).fetchone()
            return rows.cached_result_of(row) if row else None

    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Yield a flow run's log entries after a position, with theirs, all as of one instant."""
        self._lifetime.check()
        return self._read_logs(flow_run_id, after)

    def claim(self, flow_run_id: str) -> Claim | None:
        """Take hold of a flow run by a lock on a file in `engines`, beside the database."""
        self._lifetime.check()
        return self._claims.take(flow_run_id)

    def close(self) -> None:
        """Release the file; the last process to do so folds the write-ahead log into it."""
        with self._write_lock, self._read_lock:
            if self._lifetime.end():
                self._reader.close()
                self._writer.close()

    def _commit(self, records: Sequence[Record], box: Callable[[Row], Row] | None = None) -> None:
        """Insert all records in one transaction, their rows as they are or boxed."""
        key_of = self._keys.get
        task_runs: list[Row] = []
        plain_changes: list[Row] = []
        full_changes: list[Row] = []
        large_results: list[Row] = []
        cache_entries: list[Row] = []
        log_entries: list[Row] = []
        log_ends: dict[int, int] = {}
        begin(self._cursor)
        for record in records:
            if isinstance(record, StateChange):
                flow_run = record.run.flow_run
                key = key_of(flow_run.id) or self._find_key(flow_run)
                if record[8:] == _NOTHING_MORE:
                    plain_changes.append(rows.plain_change_row(key, record))
                    continue
                full_changes.append(rows.full_change_row(key, record))
                large_result = rows.large_result_row(key, record)
                if large_result is not None:
                    large_results.append(large_result)
                if record.cache is not None:
                    cache_entries.append(rows.cache_row(key, record, record.cache))
            elif isinstance(record, TaskRun):
                key = key_of(record.flow_run.id) or self._find_key(record.flow_run)
                task_runs.append(rows.task_run_row(key, record))
            elif isinstance(record, LogEntry):
                flow_run = record.run.flow_run
                key = key_of(flow_run.id) or self._find_key(flow_run)
                position = log_ends.get(key) or self._find_log_end(key)
                log_ends[key] = position + 1
                log_entries.append(rows.log_row(key, position, record))
            elif isinstance(record, FlowRun):
                (key,) = self._cursor.execute(_ADD_FLOW_RUN, rows.flow_run_row(record)).fetchone()
                self._keys[record.id] = key
            else:
                raise not_a_record(record)
        for statement, added in (
            (_ADD_TASK_RUN, task_runs),
            (_ADD_PLAIN_CHANGE, plain_changes),
            (_ADD_FULL_CHANGE, full_changes),
            (_ADD_LARGE_RESULT, large_results),
            (_ADD_CACHE_ENTRY, cache_entries),
            (_ADD_LOG_ENTRY, log_entries),
        ):
            if added:
                self._cursor.executemany(statement, map(box, added) if box else added)
        self._cursor.execute("COMMIT")

    def _find_key(self, flow_run: FlowRun) -> int:
        """Return the key of a flow run that an earlier store object, maybe another process's, has recorded."""
        row = self._cursor.execute(_FIND_FLOW_RUN, (flow_run.id,)).fetchone()
        if row is None:
            raise not_recorded(flow_run.id)
        if len(self._keys) >= _MAX_KEYS:
            self._keys.clear()
        key: int = row[0]
        self._keys[flow_run.id] = key
        return key

    def _find_log_end(self, key: int) -> int:
        """Return the first free position in a flow run's log: nobody else adds to it before we commit."""
        last: int = self._cursor.execute(_FIND_LOG_END, (key,)).fetchone()[0]
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

    def _read(self, flow_run_id: str) -> Iterator[Record]:
        with self._failures(), closing(connect(self._path)) as connection:
            connection.execute("BEGIN")  # all that follows sees the store as it is at the first SELECT
            for key, *row in connection.execute(_READ_FLOW_RUN, (flow_run_id,)).fetchall():
                flow_run = rows.flow_run_of(row)
                yield flow_run
                runs: dict[int, FlowRun | TaskRun] = {0: flow_run}
                for task_row in connection.execute(_READ_TASK_RUNS, (key,)):
                    task_run = rows.task_run_of(flow_run, task_row)
                    yield task_run
                    runs[task_run.number] = task_run
                for change_row in connection.execute(_READ_CHANGES, (key,)):
                    yield rows.state_change_of(runs[change_row[0]], change_row)

    def _read_logs(self, flow_run_id: str, after: int) -> Iterator[tuple[int, LogEntry]]:
        with self._failures(), closing(connect(self._path)) as connection:
            connection.execute("BEGIN")
            for key, *row in connection.execute(_READ_FLOW_RUN, (flow_run_id,)).fetchall():
                flow_run = rows.flow_run_of(row)
                runs: dict[int, FlowRun | TaskRun] = {0: flow_run}
                for position, number, *fields in connection.execute(_READ_LOG_ENTRIES, (key, after)):
                    if number not in runs:
                        (task_row,) = connection.execute(_READ_TASK_RUN, (key, number))
                        runs[number] = rows.task_run_of(flow_run, task_row)
                    yield position, rows.log_entry_of(runs[number], fields)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise sqlite_failure(self._path, error) from error
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptStoreError(self._path, f"a row makes no sense ({error!r})") from error
