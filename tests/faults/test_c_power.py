"""C7: the power goes. What the JSON store has made safe by then is put together again at every step, and opened."""

from __future__ import annotations

import base64
import json
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from localflow.builtin.json_files import JsonStateStore

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.conftest import Place

    Events: TypeAlias = "list[list[Any]]"

# A disk that keeps no more than it must: of a file what it held at its last fsync, of a folder the names it had then.
PROGRAM = """
import base64, json, os, stat, sys
from pathlib import Path
from localflow.builtin.json_files import JsonStateStore
from localflow.interfaces import CacheEntry, Payload
from localflow.testing.store_records import *

events = []
sync = os.fsync

def fsync(descriptor):
    sync(descriptor)
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        inodes = {name: os.stat(name, dir_fd=descriptor, follow_symlinks=False) for name in os.listdir(descriptor)}
        names = {name: [each.st_ino, stat.S_ISDIR(each.st_mode)] for name, each in inodes.items()}
        events.append(["folder", status.st_ino, names])
    else:
        content = os.pread(descriptor, status.st_size, 0)
        events.append(["file", status.st_ino, base64.b64encode(content).decode()])

os.fsync = fsync
store = JsonStateStore(Path("state/runs"), durability=sys.argv[1])
for run in range(2):
    flow_run = make_flow_run(id=f"run-{run}")
    store.append([flow_run, make_running(flow_run)])
    events.append(["told", 0, [flow_run.id, 0]])
    for number in range(1, 5):
        task_run = make_task_run(flow_run, number)
        result = Payload("pickle", bytes([number]) * (100_000 if number % 2 else 10))
        completed = make_completed(task_run, 1, result=result, cache=CacheEntry(f"{run}-{number}"))
        store.append([task_run, completed, make_log_entry(task_run, str(number))])
        events.append(["told", 0, [flow_run.id, number]])
    if run == 0:
        store.append([make_completed(flow_run)])
store.close()
print(json.dumps([os.stat(".").st_ino, events]))
"""


class Disk:
    """What is safe on the disk: by inode, the content of files and the names in folders."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, tuple[int, bool]]] = {}

    def keep(self, kind: str, inode: int, content: Any) -> None:
        """Make something safe."""
        if kind == "file":
            self._files[inode] = base64.b64decode(content)
        else:
            self._folders[inode] = content

    def write(self, folder: Path, inode: int | None = None) -> None:
        """Write what is safe into a folder."""
        folder.mkdir(mode=0o700)
        for name, (each, is_folder) in self._folders.get(inode or self._root, {}).items():
            if is_folder:
                self.write(folder / name, each)
            else:
                (folder / name).touch(mode=0o600)
                (folder / name).write_bytes(self._files.get(each, b""))


def first_loss(folder: Path, root: int, events: Events) -> str | None:
    """Cut the power after each event; return what was told before and is not there afterwards, None if all is."""
    folder.mkdir()
    disk = Disk(root)
    told: list[tuple[str, int]] = []
    for step, (kind, inode, content) in enumerate(events):
        if kind == "told":
            told.append(content)
        else:
            disk.keep(kind, inode, content)
        after = folder / str(step)
        disk.write(after)
        with closing(JsonStateStore(after / "state" / "runs")) as store:
            for id, number in told:
                lost = f"{id}-{number} after event {step}"
                if not list(store.read(id)):
                    return lost
                if number:
                    result = store.load_result(id, number)
                    if result is None or result.data[0] != number or len(list(store.read_logs(id))) < number:
                        return lost
            if problems := store.check():
                return f"{problems} after event {step}"
            if len(store.list_flow_runs(unfinished=True)) < sum(not each.ended_at for each in store.list_flow_runs()):
                return f"an unfinished flow run is not found after event {step}"
    return None


@pytest.fixture
def record(place: Place) -> Any:
    """Run the program with a durability and return what it has made safe, in its order."""

    def record(durability: str) -> tuple[int, Events]:
        (place.folder / "writer.py").write_text(PROGRAM)
        done = place.run("writer.py", durability)
        assert done.returncode == 0, done.stderr
        root, events = json.loads(done.stdout)
        return root, events

    return record


def test_fault_C7_json_store_survives_a_power_loss(place: Place, record: Any) -> None:
    """With durability `full` nothing is lost that was told, wherever the power goes, and the store opens as it is."""
    root, events = record("full")

    assert first_loss(place.folder / "after", root, events) is None


def test_fault_C7_the_recorder_notices_what_is_not_safe(place: Place, record: Any) -> None:
    """The check can fail: it does for durability `process`, which promises nothing of the kind."""
    root, events = record("process")

    assert first_loss(place.folder / "after", root, events) is not None
