"""Open the state store for reading, without creating one where nothing is recorded yet."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from localflow.masking import MASK, dotted
from localflow.project import Project
from localflow.record_buffer import RecordBuffer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from localflow.interfaces import StateStore


class NothingRecorded(RecordBuffer):
    """Stands for a state store that does not exist yet."""

    def __init__(self, path: Path) -> None:
        super().__init__([])
        self._path = path

    @property
    def location(self) -> str:
        """Where the store will be."""
        return str(self._path)


@contextmanager
def recorded(project: Project | None = None) -> Iterator[StateStore]:
    """Open the state store of the settings for the block; an empty stand-in where there is none yet."""
    project = project or Project.load()
    path = _path(project)
    store = NothingRecorded(path) if path is not None and _is_missing(path) else project.open_store()
    try:
        yield store
    finally:
        store.close()


def _path(project: Project) -> Path | None:
    """Return where the state store keeps its files, None for one that has no option `path`."""
    key = dotted("stores", project.settings.store, "path")
    for shown in project.show():
        if shown.key == key and isinstance(shown.value, str) and shown.value != MASK:
            return project.root / shown.value
    return None


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:  # such as a file where a directory should be: whoever opens the store words it
        return False
    return False
