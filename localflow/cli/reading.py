"""Open the state store for reading, without creating one where nothing is recorded yet."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from localflow.control import control_path, is_listening
from localflow.housekeeping import store_path
from localflow.liveness import mark_lost
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
def recorded(project: Project | None = None, name: str | None = None) -> Iterator[StateStore]:
    """Open the state store of the settings, or the one of a name, for the block; a stand-in where there is none yet.

    Runs in it whose engine is gone are marked as lost.
    """
    project = project or Project.load()
    path = store_path(project, name)
    store = NothingRecorded(path) if path is not None and _is_missing(path) else project.open_store(name)
    try:
        note_lost(project, store)
        yield store
    finally:
        store.close()


def note_lost(project: Project, store: StateStore) -> None:
    """Mark the flow runs whose engine is gone, remove what those have left, and tell the notifiers."""
    lost = mark_lost(store)
    if lost:
        for flow_run in {change.run.flow_run.id: change.run.flow_run for change in lost}.values():
            with suppress(OSError):  # it is not ours to remove
                is_listening(control_path(project.state_directory, flow_run.id))
        notifications = project.make_notifications()
        notifications.publish(lost)
        notifications.close()


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:  # such as a file where a directory should be: whoever opens the store words it
        return False
    return False
