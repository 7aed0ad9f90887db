"""Run a program under a time limit and leave nothing of it behind, whatever it has started.

Some engines start servers and workers in sessions of their own, which outlive the program when it is stopped. On Linux
this process adopts whatever loses its parent (`adopt_orphans`), so that everything is found below it. Elsewhere a
process is not found if it has a session of its own and whoever started it has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

GRACE = 3.0  # seconds for what a program has started to end after it
_PR_SET_CHILD_SUBREAPER = 36


class Ended(NamedTuple):
    """How a program went."""

    seconds: float
    """From its start to its end."""
    code: int | None
    """None if it was stopped at the limit."""
    output: str
    """What it wrote, to both streams."""
    left_behind: int
    """How many processes had to be killed after it."""


def adopt_orphans() -> None:
    """Become the parent of every descendant whose parent dies; without effect where the system has no such thing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, limit: float | None = None
) -> Ended:
    """Run a command in a folder, in its own process group; return when it and all it has started are gone.

    What it writes goes to the file `output` in the folder. `limit` is in seconds.
    """
    written = folder / "output"
    others = _descendants()
    with written.open("wb") as output:
        began_at = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        code = None
        family: set[psutil.Process] = set()
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also on Ctrl-C
            taken = time.perf_counter() - began_at
            if code is None:
                family = _descendants() - others  # where nobody adopts, they cannot be found once it is killed
                process.kill()
                process.wait()
            left_behind = _clear(family, others)
            _kill_group(process.pid)
    return Ended(taken, code, written.read_text(encoding="utf-8", errors="replace"), left_behind)


def _clear(family: set[psutil.Process], others: set[psutil.Process]) -> int:
    """Give what is left a moment to end, then kill it; return how many did not end by themselves."""
    until = time.monotonic() + GRACE
    while (left := _running(family | _descendants() - others)) and time.monotonic() < until:
        time.sleep(0.02)
    count = len(left)
    while left:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(left), timeout=GRACE)
        left = _running(_descendants() - others)  # one may have started another just before
    return count


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _running(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Return those that have not ended; adopted ones that have are taken off the system's list."""
    running = set()
    for process in processes:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                process.wait(0)
            else:
                running.add(process)
        except psutil.TimeoutExpired:
            running.add(process)  # a zombie whose parent is still there
        except psutil.NoSuchProcess:
            continue
    return running


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
