"""A SQLite store of an earlier format becomes one of this format: in one transaction, after a copy was put beside it.

Version 1 had no checksums, no fingerprints, and did not note which runs have ended; version 2 had no blocks.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING
from zlib import crc32

from localflow.builtin.storage import statements
from localflow.builtin.storage.checksums import change_checksum, log_checksum, odd_checksum, task_run_checksum
from localflow.builtin.storage.database import begin, connect
from localflow.builtin.storage.directory import create_private_file
from localflow.builtin.storage.removal import give_space_back
from localflow.builtin.storage.schema import FORMAT_VERSION, SET_VERSION, TABLES
from localflow.failpoints import reach

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localflow.builtin.storage.checksums import Row

_log = logging.getLogger("localflow.stores")

_SET_ASIDE = (
    "DROP INDEX cache_entries_by_key",
    "ALTER TABLE flow_runs RENAME TO old_flow_runs",
    "ALTER TABLE task_runs RENAME TO old_task_runs",
    "ALTER TABLE state_changes RENAME TO old_state_changes",
    "ALTER TABLE large_results RENAME TO old_large_results",
    "ALTER TABLE cache_entries RENAME TO old_cache_entries",
    "ALTER TABLE log_entries RENAME TO old_log_entries",
)
_DROP = (
    "DROP TABLE old_flow_runs",
    "DROP TABLE old_task_runs",
    "DROP TABLE old_state_changes",
    "DROP TABLE old_large_results",
    "DROP TABLE old_cache_entries",
    "DROP TABLE old_log_entries",
)
_COPY_LARGE_RESULTS = "INSERT INTO large_results SELECT * FROM old_large_results"
_READ_FLOW_RUNS = """
    SELECT key, id, name, flow, created_at, root_id, parent_id, parameters, entry_point, executor, versions, host, pid,
           tags, '', '', arguments_format, arguments
    FROM old_flow_runs ORDER BY key
"""
_ADD_FLOW_RUN = "INSERT INTO flow_runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_READ_TASK_RUNS = """
    SELECT flow_run, number, name, task, ordinal, created_at, upstreams, tags, version, map_number, map_index, '', ''
    FROM old_task_runs
"""
_READ_CHANGES = """
    SELECT flow_run, number, sequence, type, name, message, timestamp, previous, attempt,
           worker, pid, started_at, ended_at, cpu_seconds, peak_rss_bytes, cause, result_format, result, data
    FROM old_state_changes LEFT JOIN old_large_results USING (flow_run, number, sequence)
"""
_READ_CACHE_ENTRIES = "SELECT entry, key, expires_at, flow_run, number, sequence FROM old_cache_entries"
_ADD_CACHE_ENTRY = "INSERT INTO cache_entries VALUES (?, ?, ?, ?, ?, ?, ?)"
_READ_LOG_ENTRIES = "SELECT * FROM old_log_entries"


def migrate(path: Path, version: int) -> None:
    """Bring the store of an earlier version to this one's format, unless another process has done so meanwhile.

    Raises:
        OSError: the copy of the store could not be made.
        sqlite3.Error: what SQLite said; the store is as it was.
    """
    with closing(connect(path, 5.0)) as connection:
        cursor = connection.cursor()
        begin(path, cursor)
        try:
            (found,) = cursor.execute("PRAGMA user_version").fetchone()
            if found != version:
                return
            copy = _copy_aside(path, version)
            if version == 1:
                for statement in (*_SET_ASIDE, *TABLES):
                    cursor.execute(statement)
                _fill(cursor)
                for statement in _DROP:
                    cursor.execute(statement)
            else:
                for statement in TABLES:
                    if " blocks" in statement:
                        cursor.execute(statement)
            cursor.execute(SET_VERSION)
            reach("in-migration")
            cursor.execute("COMMIT")
        finally:
            if connection.in_transaction:
                with suppress(sqlite3.Error):
                    cursor.execute("ROLLBACK")
        _log.warning(
            "state store %s was brought from format version %d to %d; as it was before it is in %s",
            *(path, version, FORMAT_VERSION, copy),
        )
        give_space_back(path, connection)


def _copy_aside(path: Path, version: int) -> Path:
    """Write the store as it is into a file beside it: nobody else writes meanwhile."""
    copy = path.with_name(f"{path.name}.version-{version}")
    draft = copy.with_name(copy.name + ".new")
    for leftover in ("", "-journal"):  # of a process that died in the middle of this
        draft.with_name(draft.name + leftover).unlink(missing_ok=True)
    os.close(create_private_file(draft))
    with closing(connect(path)) as source, closing(connect(draft)) as target:
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")  # one file, whole by itself
    draft.replace(copy)
    return copy


def _fill(cursor: sqlite3.Cursor) -> None:
    _convert(cursor, _READ_FLOW_RUNS, _ADD_FLOW_RUN, lambda row: (*row, odd_checksum(row[1:])))
    _convert(cursor, _READ_TASK_RUNS, statements.ADD_TASK_RUN, lambda row: (*row, task_run_checksum(row)))
    _convert(cursor, _READ_CHANGES, statements.ADD_FULL_CHANGE, _change_row)
    reach("in-migration")
    cursor.execute(_COPY_LARGE_RESULTS)
    _convert(cursor, _READ_CACHE_ENTRIES, _ADD_CACHE_ENTRY, lambda row: (*row, odd_checksum(row[1:])))
    _convert(cursor, _READ_LOG_ENTRIES, statements.ADD_LOG_ENTRY, lambda row: (*row, log_checksum(row)))
    for (key,) in cursor.execute("SELECT key FROM flow_runs").fetchall():
        cursor.execute(statements.ADD_PROGRESS, (key,))
        cursor.execute(statements.SET_FINAL, {"flow_run": key})
        cursor.execute(statements.COUNT_ALL, {"flow_run": key})


def _convert(cursor: sqlite3.Cursor, read: str, add: str, convert: Callable[[Row], Row]) -> None:
    cursor.executemany(add, map(convert, cursor.connection.execute(read)))


def _change_row(row: Row) -> Row:
    small, large = row[17:]
    data = small if small is not None else large
    # A result of which nothing is there was too large to keep.
    return *row[:17], change_checksum(row[:17]), small, None if data is None else crc32(data)
