"""Which machine a process is on, and how one is killed with all that it has started."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

#: Of how much clocks and their readings may differ, in seconds, before a process is taken for another one.
_TOLERANCE = 2.0


@cache
def machine_mark() -> str:
    """Return what processes have in common that know each other by their pids."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - it is no path
    return " ".join(parts)


def kill_family(pid: int, seen_at: float) -> None:
    """Kill a process that was alive at `seen_at`, in seconds since the epoch, and all that is below it."""
    with suppress(psutil.Error):
        leader = psutil.Process(pid)
        if leader.create_time() > seen_at + _TOLERANCE:
            return  # another process has its pid now
        below = []
        with suppress(psutil.Error):
            leader.suspend()  # so that it starts no others meanwhile
            below = leader.children(recursive=True)
        for process in (leader, *below):
            with suppress(psutil.Error):
                process.kill()
