"""Large results in files of their own: kept under their final names by the record that names them.

A worker has written the file as a draft, in the folder of its tree of flow runs; a record names it by that tree and its
name, so that a store may be moved as a whole.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING
from zlib import crc32

from localflow.builtin.storage.directory import sync_directory
from localflow.builtin.storage.failures import os_failure
from localflow.errors import CorruptStoreError, StoreError
from localflow.failpoints import reach
from localflow.interfaces import Folder, Payload, StateChange
from localflow.large_values import DRAFT, FILE, Reference, make_folder, remove_drafts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from localflow.interfaces import Record

#: The folder for them in the directory of a tree of flow runs in the JSON store.
VALUES = "values"

_NAME = r"([a-z0-9-]{1,64})/([0-9a-f]{32})"
_PIECE = 1 << 20


class ValueFiles:
    """The files of large results of one store."""

    def __init__(self, path_of: Callable[[str], Path], *, power_safe: bool) -> None:
        """Keep the files of a tree of flow runs in the folder that `path_of` gives for the id of its root."""
        self._path_of = path_of
        self._power_safe = power_safe

    def folder(self, root_id: str) -> Folder:
        """Return where the large values of a tree are written."""
        return Folder(self._path_of(root_id), power_safe=self._power_safe)

    def keep(self, records: Sequence[Record]) -> Sequence[Record]:
        """Give the files that records name their final names; return the records as they are to be stored.

        Raises:
            StoreError: a file is not there, or cannot be kept.
        """
        for each in records:
            if type(each) is StateChange and each.result is not None and each.result[0] == FILE:
                break
        else:  # as nearly ever; any() of a generator would take three times as long
            return records
        kept: list[Record] = []
        for record in records:
            if isinstance(record, StateChange) and record.result is not None and record.result.format == FILE:
                record = record._replace(result=self._keep(record.result, record.run.flow_run.root_id))
            kept.append(record)
        return kept

    def found(self, payload: Payload) -> Payload:
        """Return the payload of a record as it is to be handed out: one that names a file with the whole path.

        Raises:
            CorruptStoreError: the file is missing, or not as long as it was.
        """
        if payload.format != FILE:
            return payload
        reference = self._located(payload)
        path = reference.file
        try:
            size = os.stat(path).st_size  # noqa: PTH116
        except FileNotFoundError:
            raise CorruptStoreError(path, "the file is missing") from None
        except OSError as error:
            raise os_failure(self._path_of("").parent, error) from error
        if size != reference.size:
            raise CorruptStoreError(path, "the file is not as it was written")
        return Payload(FILE, reference.data())

    def problems(self, payloads: Iterable[Payload]) -> list[str]:
        """Return a line for each file of a large result that is not as it was written."""
        return [problem for each in payloads if (problem := self.problem(each)) is not None]

    def problem(self, payload: Payload) -> str | None:
        """Return what is wrong with the file of a large result, after a look at all of it."""
        if payload.format != FILE:
            return None
        try:
            reference = Reference.of(self.found(payload).data)
            checksum = 0
            with open(reference.file, "rb") as file:  # noqa: PTH123
                while piece := file.read(_PIECE):
                    checksum = crc32(piece, checksum)
        except (CorruptStoreError, ValueError, OSError) as error:
            return str(error)
        return None if checksum == reference.checksum else f"{reference.file}: the file is not as it was written"

    def sweep(self, root_id: str, results: Callable[[], Iterable[Payload]]) -> None:
        """Remove what an engine that has died has left of a tree: drafts, and files that none of the results names.

        Nobody may be at work on the tree. `results` is asked only if there is anything.
        """
        folder = self._path_of(root_id)
        remove_drafts(folder)
        # Where the records are damaged nobody can tell which file is whose: they stay.
        with suppress(OSError, StoreError, KeyError, TypeError, ValueError):
            files = {path.name: path for path in folder.iterdir()}
            for payload in results():
                if payload.format == FILE:
                    files.pop(os.path.basename(self._located(payload).file), None)  # noqa: PTH119
            for path in files.values():
                path.unlink(missing_ok=True)

    def remove(self, root_id: str) -> None:
        """Remove all files of a tree."""
        import shutil

        shutil.rmtree(self._path_of(root_id), ignore_errors=True)

    def _keep(self, payload: Payload, root_id: str) -> Payload:
        reference = Reference.of(payload.data)
        if re.fullmatch(_NAME, reference.file):  # as it is in a record already, of a store that is being repaired
            return payload
        folder = self._path_of(root_id)
        path = folder / os.path.basename(reference.file)  # noqa: PTH119
        try:
            if str(path) == reference.file:
                with suppress(FileNotFoundError):
                    os.rename(reference.file + DRAFT, path)  # noqa: PTH104
                path.stat()  # it has been kept by an earlier record
            else:
                self._take_over(reference.file, path)
            if self._power_safe:
                sync_directory(folder)
                sync_directory(folder.parent)
        except OSError as error:
            raise os_failure(path, error) from error
        reach("value-kept")
        return Payload(FILE, reference._replace(file=f"{root_id}/{path.name}").data())

    def _take_over(self, file: str, path: Path) -> None:
        """Keep the file of another tree, as of a cached result, for this one as well."""
        make_folder(path.parent)
        for name in (file, file + DRAFT):
            with suppress(FileNotFoundError):
                try:
                    os.link(name, path)
                except FileExistsError:
                    return
                except OSError:  # another file system, or one without links
                    import shutil

                    shutil.copyfile(name, path.with_name(path.name + DRAFT))
                    path.with_name(path.name + DRAFT).rename(path)
                return
        raise FileNotFoundError(2, os.strerror(2), file)

    def _located(self, payload: Payload) -> Reference:
        reference = Reference.of(payload.data)
        found = re.fullmatch(_NAME, reference.file)
        if found is None:
            raise ValueError(f"{reference.file!r} is no name of a large result's file")
        return reference._replace(file=str(self._path_of(found[1]) / found[2]))
