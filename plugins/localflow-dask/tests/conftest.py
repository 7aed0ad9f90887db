"""What every test gets: a folder of its own, none of the user's settings, and the check that nothing is left."""

from __future__ import annotations

import multiprocessing.resource_tracker
import os
import signal
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from waiting_for import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

# What is ignored here, as in a shell's background, programs that the tests start would ignore as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MARK = "TEST_PROCESS_MARK"


@pytest.fixture(scope="session", autouse=True)
def what_dask_starts_once() -> None:
    """Start what dask and multiprocessing keep for the rest of the program, before anybody looks for leaks."""
    multiprocessing.resource_tracker.ensure_running()
    from distributed.utils import offload  # noqa: F401


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in a folder of its own."""
    for name in [*os.environ]:
        if name.startswith("LOCALFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_leaks(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves processes or threads behind."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    threads = set(threading.enumerate())

    yield

    eventually(lambda: not marked(mark), "processes are left behind")
    eventually(lambda: not new_threads(threads), lambda: f"left behind: {new_threads(threads)}")


def new_threads(before: set[threading.Thread]) -> list[str]:
    """Return the names of threads that were not there before; the pools of dask for its own use stay."""
    names = [thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()]
    return [name for name in names if not name.startswith(("Dask-Offload", "Dask-Profile"))]


def marked(mark: str) -> list[int]:
    """Return the pids of living processes that the test with this mark has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                is_marked = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
                if is_marked and psutil.Process(int(entry.name)).status() != psutil.STATUS_ZOMBIE:
                    found.append(int(entry.name))
            except (OSError, psutil.Error):
                continue
    return found
