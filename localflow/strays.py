"""Processes that have outlived their engine, known by a mark in their environment.

The supervisor of an engine's workers ends them with it, and they end with their supervisor. What is found here comes of
both being killed at once while a worker was stopped, or in C code that the kernel waits for; or it was started by a
task, and left running on purpose or by the same accident. Who knows? So only workers are killed, with what is below
them; of all others the user is told.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from localflow.typed import NamedTuple

if TYPE_CHECKING:
    import psutil

#: The variable that workers, and all they start, have in their environment: pid and birth of their engine.
VARIABLE = "LOCALFLOW_ENGINE"

_OWN_CODE = "localflow.builtin.process.supervisor"  # in the command line of supervisors and so of workers, their forks
_DEADLINE = 5.0


class Stray(NamedTuple):
    """A process whose engine is gone."""

    pid: int
    created_at: float
    engine: int
    """The pid that its engine had."""
    is_worker: bool
    """Whether it is a worker or the supervisor of workers; else a task has started it."""
    name: str


def engine_mark() -> str:
    """Return the mark of this process, for the environment of its workers."""
    pid = os.getpid()
    return f"{pid}:{birth_of(pid)}"


def find_strays() -> list[Stray]:
    """Return the processes of this user whose engine is gone."""
    import psutil

    strays = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            stray = _look_at(process)
            if stray is not None:
                strays.append(stray)
    return strays


def kill_stray(stray: Stray) -> bool:
    """Kill a worker with all that is below it; return whether it was still that very process, and is dead now."""
    import psutil

    with suppress(psutil.Error, OSError):
        process = psutil.Process(stray.pid)
        if not stray.is_worker or _look_at(process) != stray:
            return False
        process.suspend()  # so that it starts nothing more
        below = process.children(recursive=True)
        for each in [process, *below]:
            with suppress(psutil.Error):
                each.kill()  # this very process, never another one that has got its pid
        deadline = time.monotonic() + _DEADLINE
        while process.is_running() and not _has_ended(process):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True
    return False


def _look_at(process: psutil.Process) -> Stray | None:
    """Return a process as a stray, if it is one."""
    if process.pid == os.getpid() or process.uids().effective != os.geteuid() or _is_elsewhere(process.pid):
        return None
    pid, _, birth = process.environ().get(VARIABLE, "").partition(":")
    if not pid.isdecimal() or not birth or birth_of(int(pid)) == birth or _has_ended(process):
        return None
    is_worker = any(_OWN_CODE in word for word in process.cmdline())
    return Stray(process.pid, process.create_time(), int(pid), is_worker, process.name())


def _has_ended(process: psutil.Process) -> bool:
    import psutil

    return process.status() == psutil.STATUS_ZOMBIE


def _is_elsewhere(pid: int) -> bool:
    """Return whether a process is in another container, where the pid of its engine means another process."""
    if sys.platform != "linux":
        return False
    return os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path


def birth_of(pid: int) -> str:
    """Return what tells the process with this pid from all that had it before; empty if none lives."""
    try:
        if sys.platform == "linux":  # ticks since the boot, which no change of the clock touches
            with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - Path would be imported for this alone
                state, *fields = file.read().rpartition(b")")[2].split()
                return "" if state in (b"Z", b"X") else fields[18].decode()
        import psutil

        return str(psutil.Process(pid).create_time())
    except Exception:  # there is no such process, or nobody may look at it
        return ""
