"""The SQLite file of a state store: made whole or not at all, looked at before it is used, never repaired."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import time
from contextlib import closing, suppress
from pathlib import Path

from localflow.builtin.storage.directory import (
    create_private_file,
    make_state_directory,
    refuse_foreign,
    refuse_lockless,
    sole_maker,
    sync_directory,
)
from localflow.builtin.storage.failures import already_recorded, failed_disk, no_permission, no_space, os_failure
from localflow.builtin.storage.schema import (
    APPLICATION_ID,
    FILE_PRAGMAS,
    FORMAT_VERSION,
    SELECT_TABLES,
    SET_VERSION,
    TABLES,
)
from localflow.errors import CorruptStoreError, StoreError, StoreVersionError
from localflow.failpoints import reach

_log = logging.getLogger("localflow.stores")

BUSY_SECONDS = 5.0  # how long SQLite itself waits for others, until we say so and go on
PATIENCE_SECONDS = 60.0  # how long we wait in all
SMALLEST_BYTES = 512
CHECKED_BYTES = 1 << 20  # a file up to this size is checked as a whole at each opening: 10 milliseconds


def open_database(path: Path) -> sqlite3.Connection:
    """Return a connection to read the database at `path`, which is made if it is missing, and looked at."""
    make_state_directory(path.parent)
    try:
        refuse_lockless(path.parent)
        if not os.path.lexists(path):
            with sole_maker(path.parent):
                if not os.path.lexists(path):
                    _create(path)
        _inspect(path)
    except OSError as error:
        raise os_failure(path, error) from error
    connection = connect(path)
    try:
        version = _verify(path, connection)
        if version < FORMAT_VERSION:
            from localflow.builtin.storage.migration import migrate  # hardly anybody ever needs it

            migrate(path, version)
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            raise os_failure(path, error) from error
        if isinstance(error, sqlite3.Error):
            raise sqlite_failure(path, error) from error
        if isinstance(error, UnicodeDecodeError):  # SQLite quotes what it found, and that is no text
            raise CorruptStoreError(path, "its schema cannot be read") from error
        raise
    return connection


def open_writer(path: Path, *, power_safe: bool) -> sqlite3.Connection:
    """Return a connection to the database at `path` that has proved to take writes."""
    connection = connect(path, BUSY_SECONDS)
    try:
        connection.execute("PRAGMA fullfsync = ON")  # without it macOS leaves the data in the disk's own memory
        connection.execute("PRAGMA synchronous = FULL" if power_safe else "PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 8000")  # 16 MB: each checkpoint waits for the disk
        begin(path, connection.cursor())
        connection.execute("COMMIT")
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise sqlite_failure(path, error) from error
        raise
    return connection


def connect(path: Path, patience: float | None = None) -> sqlite3.Connection:
    """Return a connection to the file, for any thread and without transactions of its own making.

    Args:
        path: the database, which must be there.
        patience: how many seconds SQLite waits for others; PATIENCE_SECONDS for None.
    """
    try:
        # mode=rw: a file that has gone since we looked must not come back empty.
        return sqlite3.connect(
            f"{path.as_uri()}?mode=rw",
            uri=True,
            timeout=PATIENCE_SECONDS if patience is None else patience,
            isolation_level=None,
            check_same_thread=False,
        )
    except sqlite3.Error as error:
        raise sqlite_failure(path, error) from error


def begin(path: Path, cursor: sqlite3.Cursor) -> None:
    """Begin to write, waiting for other writers.

    A transaction that begins with reading is refused at once, whatever the waiting time, if somebody else has written
    meanwhile; so every one that writes says so at its beginning.
    """
    begun = time.monotonic()
    told = False
    while True:
        try:
            cursor.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            waited = time.monotonic() - begun
            if not is_busy(error) or waited > PATIENCE_SECONDS:
                raise
        if not told and waited >= BUSY_SECONDS:
            told = True
            _log.warning("state store %s has been locked for %.0f seconds by %s; waiting", path, waited, holder(path))
        time.sleep(0.05)  # where SQLite sees no sense in waiting


def sqlite_failure(path: Path, error: sqlite3.Error) -> StoreError:
    """Return the StoreError for what SQLite said about the file."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return CorruptStoreError(path, str(error))
    if str(error).startswith("Could not decode"):
        return CorruptStoreError(path, "a text in it cannot be read")
    if code == sqlite3.SQLITE_FULL:
        return no_space(path)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return no_permission(path, str(error))
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreError(f"state store {path} cannot be opened: {error}; see that it is there and yours to write")
    if code == sqlite3.SQLITE_CONSTRAINT:
        return already_recorded(path, str(error))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(
            f"state store {path} has been locked by another process for {PATIENCE_SECONDS:.0f} seconds; "
            f"it is held by {holder(path)}; end that process and run again"
        )
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if code == sqlite3.SQLITE_IOERR:
        return failed_disk(path, f"{error}, {name}")
    return StoreError(f"state store {path} cannot be used: {error} ({name}); everything recorded so far is safe")


def _create(path: Path) -> None:
    """Make the database aside and put it in its place: nobody ever meets a half-made one."""
    log = path.with_name(path.name + "-wal")
    if log.exists():  # SQLite would write what is in it into the new database
        raise CorruptStoreError(path, f"the file is gone, but {log.name} with its newest records is there")
    draft = path.with_name(path.name + ".new")
    for leftover in ("", "-journal", "-wal", "-shm"):  # of a process that died in the middle of this
        draft.with_name(draft.name + leftover).unlink(missing_ok=True)
    descriptor = create_private_file(draft)  # SQLite gives the files it makes beside it the same mode
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            for statement in ("PRAGMA synchronous = OFF", *FILE_PRAGMAS, *TABLES, SET_VERSION):
                connection.execute(statement)
            connection.execute("PRAGMA journal_mode = WAL")
        os.fsync(descriptor)
    except sqlite3.Error as error:
        raise sqlite_failure(path, error) from error
    finally:
        os.close(descriptor)
    reach("created")
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


def _verify(path: Path, connection: sqlite3.Connection) -> int:
    """Refuse a database that is not ours, of a later version, or damaged, and leave it as it is; return its version."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise StoreError(
            f"state store {path} is a database of another application (application_id {application_id}); "
            "name another path"
        )
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not 1 <= version <= FORMAT_VERSION:
        raise StoreVersionError(path, version, FORMAT_VERSION)
    if path.stat().st_size <= CHECKED_BYTES:
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise CorruptStoreError(path, verdict)
    if version == FORMAT_VERSION:
        tables = {statement for (statement,) in connection.execute(SELECT_TABLES)}
        if tables != set(TABLES):
            raise CorruptStoreError(path, "its tables are not as they were made")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(
            f"state store {path} is on a file system without shared memory, which SQLite needs to let several "
            "processes write; name a path on a local disk"
        )
    found: int = version
    return found


def holder(path: Path) -> str:
    """Say which processes hold locks on the database."""
    inodes = set()
    for file in (path, path.with_name(path.name + "-shm")):
        with suppress(OSError):
            inodes.add(file.stat().st_ino)
    pids = set()
    with suppress(OSError, ValueError):  # only Linux says so
        for line in Path("/proc/locks").read_text().splitlines():
            # 1: POSIX  ADVISORY  WRITE 4711 08:01:1234567 120 120
            _, _, _, kind, pid, file_id, *_ = line.replace("->", "").split()
            if kind == "WRITE" and int(file_id.rpartition(":")[2]) in inodes and int(pid) != os.getpid():
                pids.add(int(pid))
    return " and ".join(f"pid {pid}" for pid in sorted(pids)) or "another process"


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether SQLite says that others are using the database."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
