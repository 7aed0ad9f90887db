"""What runs have said, on its way into the state store: in order, bounded, and shown if it comes from elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from localflow.echo import show_all
from localflow.loggers import OWN
from localflow.records import LogEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localflow.records import FlowRun, LogLine, TaskRun

#: How much text one attempt of a run may have recorded, in bytes.
ATTEMPT_LIMIT = 10 * 1024 * 1024


class LogBook:
    """Takes lines of runs from any thread and gives them as entries to whoever commits next."""

    def __init__(self, on_waiting: Callable[[], None], limit: int = ATTEMPT_LIMIT) -> None:
        """Begin empty.

        Args:
            on_waiting: called when entries wait and none waited before, so that they are committed soon; it may be
                called in any thread and must return at once.
            limit: how many bytes of text an attempt of a run may have recorded; what is beyond is counted.
        """
        self._on_waiting = on_waiting
        self._limit = limit
        self._lock = threading.RLock()  # a signal handler may write while its thread is in here
        self._waiting: list[LogEntry] = []
        self._counts: dict[tuple[str, int, int], _Count] = {}

    def add(self, run: FlowRun | TaskRun, attempt: int, lines: Sequence[LogLine], echo: bool) -> None:
        """Take what an attempt of a run has said.

        Args:
            run: who said it.
            attempt: in which attempt.
            lines: what, in order.
            echo: whether to show it here, because it was said in another process.
        """
        if not lines:
            return
        key = (run.flow_run.id, run.number, attempt)
        with self._lock:
            count = self._counts.get(key) or self._counts.setdefault(key, _Count())
            entries = [
                LogEntry(run, attempt, line.timestamp, line.level, line.source, line.message)
                for line in lines
                if count.admits(line, self._limit)
            ]
            first = self._keep(entries)
        if first:
            self._on_waiting()
        if echo:
            show_all(run, lines)

    def end(self, run: FlowRun | TaskRun, attempt: int) -> None:
        """Note what was dropped of an attempt that has ended, and forget its count."""
        if not self._counts:
            return
        with self._lock:
            count = self._counts.pop((run.flow_run.id, run.number, attempt), None)
            if count is None or not count.dropped_lines:
                return
            message = f"... truncated {count.dropped_bytes} bytes ({count.dropped_lines} lines)"
            first = self._keep([LogEntry(run, attempt, time.time(), logging.WARNING, OWN, message)])
        if first:
            self._on_waiting()

    def take(self) -> list[LogEntry]:
        """Return the entries that wait; they wait no more."""
        if not self._waiting:
            return []
        with self._lock:
            taken, self._waiting = self._waiting, []
        return taken

    def _keep(self, entries: list[LogEntry]) -> bool:
        """Let entries wait; return whether they are the first that do."""
        first = bool(entries) and not self._waiting
        self._waiting.extend(entries)
        return first


class _Count:
    """How much an attempt has said."""

    __slots__ = ("dropped_bytes", "dropped_lines", "kept_bytes")

    def __init__(self) -> None:
        self.kept_bytes = self.dropped_lines = self.dropped_bytes = 0

    def admits(self, line: LogLine, limit: int) -> bool:
        """Count a line and return whether it is kept; after the first that is not, none is, so that there is no gap."""
        message = line.message
        size = 1 + (len(message) if message.isascii() else len(message.encode(errors="surrogatepass")))
        if self.dropped_lines or self.kept_bytes + size > limit:
            self.dropped_lines += 1
            self.dropped_bytes += size
            return False
        self.kept_bytes += size
        return True
