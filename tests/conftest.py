"""What every test gets: its own folder, a clean environment, and the check that nothing of ours is left behind."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# What is ignored here, as in a shell's background, programs that the tests start would ignore as well.
for _signal, _disposition in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _disposition)

MARK = "TEST_PROCESS_MARK"
LEAK_DEADLINE = 5.0


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in a folder of its own, with none of the user's settings."""
    for name in list(os.environ):
        if name.startswith("LOCALFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_leaks(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves processes, threads or file descriptors behind."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)  # inherited by every process that the test starts, orphans included
    threads_before = set(threading.enumerate())
    files_before = open_files()

    yield

    deadline = time.monotonic() + LEAK_DEADLINE
    while (left := leftovers(mark, threads_before, files_before)) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    if left:
        pytest.fail(f"left behind: {'; '.join(left)}")


def leftovers(mark: str, threads_before: set[threading.Thread], files_before: dict[int, str]) -> list[str]:
    """Describe what a test has left: threads, file descriptors, processes that carry its mark."""
    threads = [f"thread {thread.name}" for thread in set(threading.enumerate()) - threads_before if thread.is_alive()]
    files = [
        f"descriptor {number} of {target}"
        for number, target in open_files().items()
        if files_before.get(number) != target and "hypothesis" not in target
    ]
    return [*threads, *files, *(f"process {process.pid}" for process in marked_processes(mark))]


def open_files() -> dict[int, str]:
    """Return this process's descriptors and what they point to."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the descriptor of the listing itself is gone afterwards
        try:
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")  # noqa: PTH115 - targets need not be paths
        except OSError:
            continue
    return found


def marked_processes(mark: str) -> list[psutil.Process]:
    """Return the living processes that were started by the test with this mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    process = psutil.Process(int(entry.name))
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
            except (OSError, psutil.Error):
                continue
    return found
