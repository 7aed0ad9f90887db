"""Mends a damaged SQLite store: what is readable of it goes into a new database, which takes its place.

1. The file is copied aside as it is, with its write-ahead log.
2. That copy is read page by page, and what is sound by its checksums goes into a new database beside it.
3. The write-ahead log of the damaged file is folded into it, for otherwise it would apply to the new one.
4. The new one takes its place.

A death before the last step leaves the damaged file, and at most its copies. Where SQLite cannot open the damaged
file, so that its log has to be removed before the new one takes its place, the new one waits under a name that the next
repair looks for.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING, NamedTuple

from localflow.builtin.storage.database import connect
from localflow.builtin.storage.database_pages import open_pages
from localflow.builtin.storage.directory import make_private_directory, sole_maker, sync_directory
from localflow.builtin.storage.failures import os_failure
from localflow.builtin.storage.filing import set_torn_aside
from localflow.builtin.storage.repair import Account, beside, copy_private, refuse_if_claimed, restore, stamp
from localflow.builtin.storage.salvage import Salvage
from localflow.builtin.storage.schema import FORMAT_VERSION
from localflow.errors import CorruptStoreError, StoreError
from localflow.failpoints import reach

if TYPE_CHECKING:
    from pathlib import Path

    from localflow.builtin.sqlite import SqliteStateStore

_PARTS = ("", "-wal", "-shm")


def repair_database(path: Path, store_class: type[SqliteStateStore]) -> list[str]:
    """Mend the database at `path` if it is damaged; return what was done, a line for each thing.

    Raises:
        StoreError: an engine is at work on it, it is of another version, or the disk is full, say.
    """
    try:
        with sole_maker(path.parent):
            return _Repair(path, store_class).run()
    except OSError as error:
        raise os_failure(path, error) from error


class _State(NamedTuple):
    """By what a change of a file is noticed."""

    inode: int
    size: int
    changed_at: int


class _Repair:
    def __init__(self, path: Path, store_class: type[SqliteStateStore]) -> None:
        self._path = path
        self._store_class = store_class
        self._bench = path.with_name(f"{path.name}.repair")  # holds copies only
        self._finished = path.with_name(f"{path.name}.repaired")  # complete, and to take the place of the damaged one

    def run(self) -> list[str]:
        refuse_if_claimed(self._path.parent / "engines")
        return [*set_torn_aside(self._path), *self._mend()]

    def _mend(self) -> list[str]:
        shutil.rmtree(self._bench, ignore_errors=True)  # of a repair that died
        if self._finished.exists() and not self._opens():
            self._put_in_place()
            return [f"finished an earlier repair of {self._path}"]
        self._finished.unlink(missing_ok=True)
        if self._is_sound():
            return []
        before = self._states()
        aside = beside(self._path, stamp())
        for part in _PARTS:
            source = self._path.with_name(self._path.name + part)
            if source.exists():
                copy_private(source, aside.with_name(aside.name + part))
        reach("in-repair")
        make_private_directory(self._bench)
        try:
            account = self._rebuild(aside)
            reach("in-repair")
            refuse_if_claimed(self._path.parent / "engines")
            if self._states() != before:
                raise StoreError(f"state store {self._path} has changed while it was repaired; run again")
            (self._bench / "sound.db").rename(self._finished)
            sync_directory(self._path.parent)
            reach("in-repair")
            self._put_in_place()
        finally:
            shutil.rmtree(self._bench, ignore_errors=True)
        return [f"copied {self._path} as it was to {aside}", *account.lines()]

    def _rebuild(self, aside: Path) -> Account:
        """Make the new database of what the copy holds, and see that it is sound."""
        sound = self._bench / "sound.db"
        account = Account()
        store = self._store_class(sound)
        try:
            with open_pages(aside) as pages:
                if 0 < pages.version < FORMAT_VERSION:
                    raise StoreError(
                        f"state store {self._path} is damaged and of format version {pages.version}, whose rows cannot "
                        "prove that they are sound; it is left as it is, move it aside to start anew"
                    )
                restore(store, Salvage(pages, account).runs(), account)
            wrong = store.check_database()
        finally:
            store.close()
        if wrong:
            raise StoreError(f"what was saved of state store {self._path} is not sound: {wrong[0]}")
        with sound.open("rb") as file:
            os.fsync(file.fileno())
        return account

    def _put_in_place(self) -> None:
        self._fold_log()
        for part in _PARTS[1:]:
            self._path.with_name(self._path.name + part).unlink(missing_ok=True)
        reach("in-repair")
        self._finished.replace(self._path)
        sync_directory(self._path.parent)

    def _fold_log(self) -> None:
        with suppress(sqlite3.Error, StoreError), closing(connect(self._path, 0.0)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _opens(self) -> bool:
        """Return whether SQLite can open the file, so that somebody may have written to it."""
        with suppress(sqlite3.Error, StoreError), closing(connect(self._path, 0.0)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_schema")
            return True
        return False

    def _is_sound(self) -> bool:
        try:
            store = self._store_class(self._path)
        except CorruptStoreError:
            return False
        try:
            return not store.check_database()
        finally:
            store.close()

    def _states(self) -> list[_State | None]:
        return [_state(self._path.with_name(self._path.name + part)) for part in _PARTS[:2]]


def _state(path: Path) -> _State | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return _State(status.st_ino, status.st_size, status.st_mtime_ns) if status.st_size else None
