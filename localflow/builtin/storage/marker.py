"""What makes a directory a JSON store: the file store.json, which says of which format it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from localflow.builtin.storage.directory import make_state_directory, sole_maker, write_private_file
from localflow.builtin.storage.encoding import from_json, to_json
from localflow.builtin.storage.failures import no_permission, os_failure
from localflow.errors import CorruptStoreError, StoreError, StoreVersionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: 1: a run is recorded once. 2: a run that is recorded again replaces the one before; `unfinished/`.
FORMAT_VERSION = 2

MARKER = "store.json"
_FORMAT = "localflow state store"


def open_directory(path: Path, migrate: Callable[[], None]) -> None:
    """Make the directory a store, or see that it is one that can be written; one of format 1 is first migrated."""
    make_state_directory(path)
    marker = path / MARKER
    try:
        if not marker.exists():
            with sole_maker(path):
                if not marker.exists():
                    _refuse_strangers(path)
                    write_marker(marker)
        if _version(marker) < FORMAT_VERSION:
            with sole_maker(path):
                if _version(marker) < FORMAT_VERSION:
                    migrate()
                    write_marker(marker)
        with marker.open("r+b"):  # a file system may be read-only whatever the modes of its files say
            pass
    except OSError as error:
        raise os_failure(path, error) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise no_permission(path, "no right to make files in it")


def _refuse_strangers(path: Path) -> None:
    strangers = sorted({place.name for place in path.iterdir()} - {".gitignore", f"{MARKER}.part"})
    if strangers:
        raise StoreError(
            f"{path} is no state store: it holds '{strangers[0]}' but no {MARKER}; "
            "name a directory that is new or empty"
        )


def write_marker(marker: Path) -> None:
    """Say that the directory is a store of the newest format."""
    content = to_json({"format": _FORMAT, "version": FORMAT_VERSION}) + "\n"
    write_private_file(marker, content.encode(), sync=True)


def is_damaged(marker: Path) -> bool:
    """Return whether it is there and is not as it was written; raises StoreError as opening does."""
    try:
        if marker.exists():
            _version(marker)
    except CorruptStoreError:
        return True
    return False


def _version(marker: Path) -> int:
    """Return the version of the format; raises StoreError for one that this localflow cannot read."""
    try:
        content = from_json(marker.read_text())
        format, version = content["format"], content["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptStoreError(marker, "the file is not as it was written") from error
    if format != _FORMAT:
        raise StoreError(f"{marker} belongs to another application; name another path")
    if version not in range(1, FORMAT_VERSION + 1):
        raise StoreVersionError(marker.parent, version, FORMAT_VERSION)
    known: int = version
    return known
