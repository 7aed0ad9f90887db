"""What a test leaves behind: threads, open files, and processes, those included that have lost their parents."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The variable in the environment by which processes are known that a block of code has started.
MARK = "TEST_PROCESS_MARK"
DEADLINE = 5.0


class LeakError(AssertionError):
    """Something was left behind; the message lists it."""


class Held(NamedTuple):
    """What this process has at some instant."""

    threads: frozenset[threading.Thread]
    files: dict[int, str]
    """What each open descriptor leads to; empty where that cannot be found out."""

    @classmethod
    def now(cls) -> Held:
        """Look at the threads and descriptors of this process."""
        return cls(frozenset(threading.enumerate()), open_files())


@contextmanager
def no_leaks(timeout: float = DEADLINE) -> Iterator[None]:
    """Fail a block that leaves threads, descriptors or processes behind.

    Processes are known by a variable that they inherit, so that orphans are found, too; while one such block is inside
    another, or beside it in another thread, they are taken for the inner one's. What is in the middle of going gets
    some time for it.

    Args:
        timeout: how long to wait for what is going, in seconds.

    Raises:
        LeakError: something is left; it names each thread, descriptor and process.
    """
    mark, before = uuid.uuid4().hex, Held.now()
    outer = os.environ.get(MARK)
    os.environ[MARK] = mark
    try:
        yield
    finally:
        if outer is None:
            os.environ.pop(MARK, None)
        else:
            os.environ[MARK] = outer
    deadline = time.monotonic() + timeout
    while left := leftovers(mark, before):
        if time.monotonic() > deadline:
            raise LeakError(f"left behind: {'; '.join(left)}")
        gc.collect()
        time.sleep(0.01)


def leftovers(mark: str, before: Held) -> list[str]:
    """Describe what is there that was not before: threads, descriptors, processes that carry the mark."""
    now = Held.now()
    threads = [f"thread {thread.name}" for thread in now.threads - before.threads if thread.is_alive()]
    files = [
        f"descriptor {number} of {target}"
        for number, target in now.files.items()
        if before.files.get(number) != target and "hypothesis" not in target  # it keeps what it has found
    ]
    return [*threads, *files, *(f"process {process.pid}" for process in marked_processes(mark))]


def open_files() -> dict[int, str]:
    """Return this process's descriptors and what they lead to; nothing where /proc does not tell."""
    found = {}
    if sys.platform == "linux":
        for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the listing's own descriptor is gone afterwards
            with suppress(OSError):
                found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")  # noqa: PTH115 - targets need not be paths
    return found


def marked_processes(mark: str) -> list[psutil.Process]:
    """Return the other living processes that were started with this mark in their environment."""
    return [process for process in _candidates(f"{MARK}={mark}".encode()) if _is_alive(process)]


def kill_marked(mark: str) -> None:
    """Kill all processes that carry a mark, also those that they start meanwhile."""
    while processes := marked_processes(mark):
        for process in processes:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=1)


def _candidates(wanted: bytes) -> Iterator[psutil.Process]:
    if sys.platform == "linux":  # all of them in a few milliseconds
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError, psutil.Error):
                    if wanted in (entry / "environ").read_bytes().split(b"\0"):
                        yield psutil.Process(int(entry.name))
        return
    name, _, value = wanted.decode().partition("=")
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                yield process


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
