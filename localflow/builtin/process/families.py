"""A worker with all the processes that its tasks have started: found, told to end, killed.

A process belongs to the family of a worker if it is in the worker's session, or below the worker in the tree of
processes, in whatever session. What has left the session and has also lost its parent, as daemons do on purpose, is
nobody's any more: it is left to the end of the supervisor.

A family is stopped before it is counted, so that nobody in it starts another process meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_SEARCH_SECONDS = 0.5
_PAUSE_SECONDS = 0.0005


class Family:
    """The processes of one worker; made, it is stopped."""

    def __init__(self, leader: int) -> None:
        """Find the family of the worker with this pid, and stop it."""
        self._leader = leader
        self._members: dict[int, psutil.Process] = {}
        self._is_stopped = False
        self._stop()

    def _stop(self) -> None:
        with _ignoring_the_dead():
            os.killpg(self._leader, signal.SIGSTOP)
        self._find()
        self._is_stopped = True

    def _find(self) -> None:
        """Stop everybody there is, until nobody new turns up; not for long, as somebody may be quicker."""
        import psutil  # only now: the import takes longer than all the rest

        deadline = time.monotonic() + _SEARCH_SECONDS
        strangers = {os.getpid()}
        while time.monotonic() < deadline:
            at_rest = self._is_at_rest()  # before, as a signal may take its time
            found = self._newcomers(strangers)
            for pid in found:
                with contextlib.suppress(psutil.Error):
                    self._members[pid] = psutil.Process(pid)
                    self._members[pid].suspend()
            if not found and at_rest:
                return
            time.sleep(_PAUSE_SECONDS)

    def _is_at_rest(self) -> bool:
        """Return whether all members have stopped, or ended."""
        import psutil

        for process in self._members.values():
            with contextlib.suppress(psutil.Error):
                if process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE):
                    return False
        return True

    def _newcomers(self, strangers: set[int]) -> list[int]:
        """Return pids of relatives that are no members yet; add to `strangers`, who are not looked at, all others."""
        import psutil

        family = {self._leader, *self._members}
        parents: dict[int, int] = {}
        for pid in psutil.pids():
            if pid not in strangers and pid not in self._members:
                with contextlib.suppress(psutil.Error, OSError):
                    parents[pid] = self._leader if os.getsid(pid) == self._leader else _parent(pid)
        found: list[int] = []
        while below := [pid for pid, parent in parents.items() if parent in family]:
            found += below
            family.update(below)
            for pid in below:
                del parents[pid]
        strangers.update(parents)
        return found

    def end(self) -> None:
        """Ask everybody to end, by SIGTERM."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        self._is_stopped = False

    def kill(self) -> None:
        """Kill everybody, those included whom the others have started since they were stopped."""
        if not self._is_stopped:
            self._stop()
        with _ignoring_the_dead():
            os.killpg(self._leader, signal.SIGKILL)
        self._signal(signal.SIGKILL)

    def is_alive(self) -> bool:
        """Return whether anybody of those found so far is alive."""
        import psutil

        for process in self._members.values():
            with contextlib.suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    return True
        return False

    def _signal(self, signum: signal.Signals) -> None:
        import psutil

        for process in self._members.values():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signum)  # to this very process: never to another one with its pid


def _parent(pid: int) -> int:
    if sys.platform != "linux":
        import psutil

        return psutil.Process(pid).ppid()
    # There may be thousands of processes, and psutil reads three files for each.
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - Path would be imported for this alone
        return int(file.read().rpartition(b")")[2].split()[1])


def _ignoring_the_dead() -> contextlib.suppress:
    return contextlib.suppress(ProcessLookupError, PermissionError)
