"""Which trees of flow runs may be unfinished in the JSON store, so that nobody has to read all journals to know.

An empty file stands for each such tree. It is made before the line that makes the tree unfinished and removed after the
one that ends it, both under the journal's lock. So none is missing; one may be left by a writer that died in between,
and so the journal has the last word.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from localflow.builtin.storage.directory import (
    create_private_file,
    make_private_directory,
    refuse_foreign,
    sync_directory,
)
from localflow.builtin.storage.failures import os_failure

if TYPE_CHECKING:
    from pathlib import Path


class UnfinishedTrees:
    """The empty files in one directory, named by the flow runs at the top."""

    def __init__(self, directory: Path, *, power_safe: bool) -> None:
        """Keep the files in `directory`, which is made when it is needed."""
        self._directory = directory
        self._power_safe = power_safe

    def add(self, root_id: str) -> None:
        """Say that a tree may be unfinished."""
        try:
            if not self._directory.exists():
                make_private_directory(self._directory)
                if self._power_safe:
                    sync_directory(self._directory.parent)
            refuse_foreign(self._directory, self._directory.lstat())
            with suppress(FileExistsError):
                os.close(create_private_file(self._directory / root_id))
                if self._power_safe:
                    sync_directory(self._directory)
        except OSError as error:
            raise os_failure(self._directory, error) from error

    def discard(self, root_id: str) -> None:
        """Say that a tree is finished; where that fails, the journal says so."""
        with suppress(OSError):
            (self._directory / root_id).unlink()

    def root_ids(self) -> list[str]:
        """Return the ids of the flow runs at the top of the trees that may be unfinished."""
        try:
            return sorted(place.name for place in self._directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise os_failure(self._directory, error) from error
