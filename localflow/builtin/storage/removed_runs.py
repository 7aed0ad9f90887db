"""The removal of flow runs from the JSON store: moved aside first, so that a crash leaves each whole or removed.

What a crash has left aside is removed by the next one to open the store.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from localflow.builtin.storage.directory import make_private_directory, refuse_foreign, sync_directory
from localflow.builtin.storage.failures import os_failure
from localflow.builtin.storage.result_cache import keys_in
from localflow.failpoints import reach

if TYPE_CHECKING:
    from pathlib import Path

    from localflow.builtin.storage.result_cache import ResultCache
    from localflow.builtin.storage.unfinished import UnfinishedTrees


class RemovedRuns:
    """The directories of flow runs whose removal has begun."""

    def __init__(self, directory: Path, cache: ResultCache, unfinished: UnfinishedTrees, *, power_safe: bool) -> None:
        """Keep them in `directory`, which is made when it is needed and is where no flow run is looked for."""
        self._directory = directory
        self._cache = cache
        self._unfinished = unfinished
        self._power_safe = power_safe

    def add(self, path: Path) -> None:
        """Remove the directory of a flow run."""
        aside = self._directory / f"{path.name}.{os.urandom(8).hex()}"
        try:
            make_private_directory(self._directory)
            refuse_foreign(self._directory, self._directory.lstat())
            path.rename(aside)
            if self._power_safe:
                sync_directory(self._directory)
                sync_directory(path.parent)
            reach("in-remove")
            self._remove(aside)
        except OSError as error:
            raise os_failure(path, error) from error

    def finish(self) -> None:
        """Remove what was left aside by processes that died; where that fails, the next one will."""
        with suppress(OSError):
            for aside in [*self._directory.iterdir()]:
                self._remove(aside)

    def _remove(self, aside: Path) -> None:
        root_id = aside.name.partition(".")[0]
        self._unfinished.discard(root_id)
        self._cache.forget(keys_in(aside / "journal.jsonl"), root_id)
        shutil.rmtree(aside, ignore_errors=True)
