"""Payloads in the JSON store: small ones in the lines of a journal, large ones in files that the lines name."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

from localflow.builtin.storage.directory import make_private_directory, sync_directory, write_private_file
from localflow.builtin.storage.entries import payload_entry, payload_of
from localflow.builtin.storage.failures import os_failure
from localflow.errors import CorruptStoreError, StoreError
from localflow.failpoints import reach
from localflow.interfaces import Payload

if TYPE_CHECKING:
    from pathlib import Path

    from localflow.builtin.storage.entries import Entry

SMALL_BYTES = 1 << 16  # up to this size a payload stands in the journal

_FOLDER = "results"
_FILE = re.compile(rf"{_FOLDER}/[a-z0-9-]{{1,120}}")


class ResultFiles:
    """The files of one flow run and of all subflows below it; whoever changes them holds the journal's lock."""

    def __init__(self, path: Path, *, power_safe: bool) -> None:
        """Keep them in a folder below `path`, which is made when it is needed."""
        self._path = path
        self._power_safe = power_safe

    def keep(self, name: str, payload: Payload, files: list[Path]) -> Entry:
        """Return the entry for a payload; a large one is first written to a file, which `files` gets to know."""
        if len(payload.data) <= SMALL_BYTES:
            return payload_entry(payload)
        file = f"{_FOLDER}/{name}"
        if not _FILE.fullmatch(file):
            raise StoreError(f"'{name}' cannot name a file; ids of runs are made of lower-case letters, digits and -")
        path = self._path / file
        try:
            if not path.parent.exists():
                make_private_directory(path.parent)
                if self._power_safe:
                    sync_directory(self._path)
            files.append(path)
            write_private_file(path, payload.data, sync=self._power_safe)
        except OSError as error:
            raise os_failure(path, error) from error
        reach("result-written")
        return {"format": payload.format, "file": file, "crc": f"{zlib.crc32(payload.data):08x}"}

    def load(self, entry: Entry) -> Payload:
        """Return the payload of an entry; raises CorruptStoreError for a file that is not as it was written."""
        if "file" not in entry:
            return payload_of(entry)
        if not _FILE.fullmatch(entry["file"]):
            raise ValueError(f"{entry['file']!r} is no name of a result's file")
        path = self._path / entry["file"]
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CorruptStoreError(path, "the file is missing") from None
        except OSError as error:
            raise os_failure(path, error) from error
        if f"{zlib.crc32(data):08x}" != entry["crc"]:
            raise CorruptStoreError(path, "the file is not as it was written")
        return Payload(entry["format"], data)

    def keep_only(self, files: set[str]) -> None:
        """Remove the files that no entry names: of writers that died before the line, and of removed results."""
        try:
            for path in [*(self._path / _FOLDER).iterdir()]:
                if f"{_FOLDER}/{path.name}" not in files:
                    path.unlink(missing_ok=True)
        except FileNotFoundError:  # there has never been one
            return
        except OSError as error:
            raise os_failure(self._path / _FOLDER, error) from error


def file_named_in(entry: Entry) -> str | None:
    """Return the file that the entry of a record names, if it names one."""
    payload = entry.get("result") or entry.get("arguments")
    return payload.get("file") if isinstance(payload, dict) else None
