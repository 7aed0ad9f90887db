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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import psutil


class Family:
    """The processes of one worker; made, it is stopped."""

    def __init__(self, leader: int) -> None:
        """Find the family of the worker with this pid, and stop it."""
        self._leader = leader
        self._members: dict[int, psutil.Process] = {}
        with _ignoring_the_dead():
            os.killpg(leader, signal.SIGSTOP)
        self._find()

    def _find(self) -> None:
        import psutil  # only now: the import takes longer than all the rest

        while True:
            found = [pid for pid in _relatives(self._leader, self._members) if pid not in self._members]
            if not found:
                return
            for pid in found:
                with contextlib.suppress(psutil.Error):
                    self._members[pid] = psutil.Process(pid)
                    self._members[pid].suspend()

    def end(self) -> None:
        """Ask everybody to end, by SIGTERM."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill everybody, those included whom the others have started since they were stopped."""
        with _ignoring_the_dead():
            os.killpg(self._leader, signal.SIGSTOP)
        self._find()
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


def _relatives(leader: int, members: Iterable[int]) -> list[int]:
    """Return the pids in the session of `leader` and those below it, or below one of `members`."""
    import psutil

    family = {leader, *members}
    others: dict[int, int] = {}
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(pid) == leader:
                family.add(pid)
            else:
                others[pid] = psutil.Process(pid).ppid()
    while below := [pid for pid, parent in others.items() if parent in family]:
        family.update(below)
        for pid in below:
            del others[pid]
    return sorted(family)


def _ignoring_the_dead() -> contextlib.suppress:
    return contextlib.suppress(ProcessLookupError, PermissionError)
