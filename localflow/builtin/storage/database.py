"""The SQLite file of a state store: made whole or not at all, looked at before it is used, never repaired or replaced.

A flow run's id is stored once, in `flow_runs`; all other rows have its small integer key instead, so that they are
short and the rows of one run are neighbours. A result of more than a few bytes lies apart for the same reason, and a
cache entry, which few state changes have, does so too.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from contextlib import closing
from typing import TYPE_CHECKING

from localflow.builtin.storage.directory import (
    create_private_file,
    make_state_directory,
    refuse_foreign,
    sole_maker,
    sync_directory,
)
from localflow.builtin.storage.failures import no_permission, no_space, os_failure
from localflow.errors import CorruptStoreError, StoreError, StoreVersionError

if TYPE_CHECKING:
    from pathlib import Path

APPLICATION_ID = 0x6C666C77  # "lflw", in the file's header: SQLite's way to say whose database a file is
FORMAT_VERSION = 2
BUSY_SECONDS = 30.0  # how long SQLite itself waits for another writer
PATIENCE_SECONDS = 60.0  # how long we wait in all
SMALLEST_BYTES = 512
CHECKED_BYTES = 4 << 20  # a file up to this size is checked as a whole at each opening: 10 milliseconds

SCHEMA = """
PRAGMA page_size = 2048;
PRAGMA application_id = 1818651767;
PRAGMA user_version = 2;
CREATE TABLE flow_runs (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    flow TEXT NOT NULL,
    created_at REAL NOT NULL,
    root_id TEXT NOT NULL,
    parent_id TEXT,
    parameters TEXT NOT NULL,
    entry_point TEXT NOT NULL,
    executor TEXT NOT NULL,
    versions TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    tags TEXT,
    code TEXT NOT NULL,
    inputs TEXT NOT NULL,
    arguments_format TEXT,
    arguments BLOB
);
CREATE INDEX flow_runs_by_root ON flow_runs (root_id);
CREATE TABLE task_runs (
    flow_run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    task TEXT NOT NULL,
    ordinal INTEGER NOT NULL,
    created_at REAL NOT NULL,
    upstreams TEXT,
    tags TEXT,
    version TEXT NOT NULL,
    map_number INTEGER NOT NULL,
    map_index INTEGER NOT NULL,
    code TEXT NOT NULL,
    inputs TEXT NOT NULL,
    PRIMARY KEY (flow_run, number)
) WITHOUT ROWID;
CREATE TABLE state_changes (
    flow_run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    type TEXT NOT NULL,
    name TEXT NOT NULL,
    message TEXT NOT NULL,
    timestamp REAL NOT NULL,
    previous TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    worker TEXT,
    pid INTEGER,
    started_at REAL,
    ended_at REAL,
    cpu_seconds REAL,
    peak_rss_bytes INTEGER,
    cause TEXT,
    result_format TEXT,
    result BLOB,
    PRIMARY KEY (flow_run, number, sequence)
) WITHOUT ROWID;
CREATE TABLE large_results (
    flow_run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (flow_run, number, sequence)
) WITHOUT ROWID;
CREATE TABLE cache_entries (
    entry INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    expires_at REAL,
    flow_run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    UNIQUE (flow_run, number, sequence)
);
CREATE INDEX cache_entries_by_key ON cache_entries (key);
CREATE TABLE log_entries (
    flow_run INTEGER NOT NULL,
    position INTEGER NOT NULL,
    number INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    timestamp REAL NOT NULL,
    level INTEGER NOT NULL,
    source TEXT NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (flow_run, position)
) WITHOUT ROWID;
PRAGMA journal_mode = WAL;
"""


def open_database(path: Path, *, power_safe: bool) -> sqlite3.Connection:
    """Return a connection to the database at `path`, made if it is missing, that has proved to take writes."""
    make_state_directory(path.parent)
    try:
        if not os.path.lexists(path):
            with sole_maker(path.parent):
                if not os.path.lexists(path):
                    _create(path)
        _inspect(path)
    except OSError as error:
        raise os_failure(path, error) from error
    connection = connect(path)
    try:
        _verify(path, connection)
        connection.execute("PRAGMA fullfsync = ON")  # without it macOS leaves the data in the disk's own memory
        connection.execute("PRAGMA synchronous = FULL" if power_safe else "PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 8000")  # 16 MB: each checkpoint waits for the disk
        begin(connection.cursor())
        connection.execute("COMMIT")
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise sqlite_failure(path, error) from error
        if isinstance(error, UnicodeDecodeError):  # SQLite quotes what it found, and that is no text
            raise CorruptStoreError(path, "its schema cannot be read") from error
        raise
    return connection


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection to the file, for any thread and without transactions of its own making."""
    try:
        # mode=rw: a file that has gone since we looked must not come back empty.
        return sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise sqlite_failure(path, error) from error


def begin(cursor: sqlite3.Cursor) -> None:
    """Begin to write, waiting for other writers.

    A transaction that begins with reading is refused at once, whatever the waiting time, if somebody else has written
    meanwhile; so every one that writes says so at its beginning.
    """
    try:
        cursor.execute("BEGIN IMMEDIATE")
        return
    except sqlite3.OperationalError as error:
        if not _is_busy(error):
            raise
    deadline = time.monotonic() + PATIENCE_SECONDS - BUSY_SECONDS
    while True:
        try:
            cursor.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def sqlite_failure(path: Path, error: sqlite3.Error) -> StoreError:
    """Return the StoreError for what SQLite said about the file."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return CorruptStoreError(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        return no_space(path)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return no_permission(path, str(error))
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreError(f"state store {path} cannot be opened: {error}; see that it is there and yours to write")
    if code == sqlite3.SQLITE_CONSTRAINT:
        return StoreError(f"a record is in state store {path} already ({error}); nothing of its batch was added")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(
            f"state store {path} has been locked by another process for {PATIENCE_SECONDS:.0f} seconds; "
            "end that process (`lsof` on the file names it) and run again"
        )
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return StoreError(f"state store {path} cannot be used: {error} ({name}); everything recorded so far is safe")


def _create(path: Path) -> None:
    """Make the database aside and put it in its place: nobody ever meets a half-made one."""
    draft = path.with_name(path.name + ".new")
    for leftover in ("", "-journal", "-wal", "-shm"):  # of a process that died in the middle of this
        draft.with_name(draft.name + leftover).unlink(missing_ok=True)
    descriptor = create_private_file(draft)  # SQLite gives the files it makes beside it the same mode
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.executescript(SCHEMA)
        os.fsync(descriptor)
    except sqlite3.Error as error:
        raise sqlite_failure(path, error) from error
    finally:
        os.close(descriptor)
    draft.rename(path)
    sync_directory(path.parent)


def _inspect(path: Path) -> None:
    """Refuse what is no file of ours before SQLite opens it."""
    status = path.lstat()
    refuse_foreign(path, status)
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"state store {path} is not a file; name the path of a file")
    if status.st_size < SMALLEST_BYTES:  # SQLite would take it for a new database
        raise CorruptStoreError(path, f"the file has {status.st_size} bytes, which is too few for any state store")


def _verify(path: Path, connection: sqlite3.Connection) -> None:
    """Refuse a database that is not ours, not of this version, or damaged, and leave it as it is."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise StoreError(
            f"state store {path} is a database of another application (application_id {application_id}); "
            "name another path"
        )
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != FORMAT_VERSION:
        raise StoreVersionError(path, version, FORMAT_VERSION)
    if path.stat().st_size <= CHECKED_BYTES:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise CorruptStoreError(path, verdict)
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(
            f"state store {path} is on a file system without shared memory, which SQLite needs to let several "
            "processes write; name a path on a local disk"
        )


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
