"""Things to be done later, all in one thread that sleeps until the next of them is due.

Moments are on the monotonic clock: what the user does to the clock of the machine changes nothing.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("localflow.alarms")

_LONGEST_WAIT = 86_400.0  # seconds; the system refuses to wait for ages


class Alarms:
    """Calls functions when their time has come; the thread starts with the first and ends with `close`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def set(self, seconds: float, action: Callable[[], object]) -> bool:
        """Call `action` in so many seconds, in the thread of the alarms; it should be quick.

        Return False if that will not be, because no thread can be started.
        """
        with self._changed:
            if self._closed:
                return True
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), action))
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="localflow-alarms", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    _log.warning("nothing can be done later, such as flow timeouts, for now: %s", error)
                    self._due.clear()
                    return False
                self._thread = thread
            elif self._due[0][2] is action:  # earlier than what the thread sleeps for
                self._changed.notify()
        return True

    def close(self) -> None:
        """Forget what is not due yet, and end the thread."""
        with self._changed:
            self._closed = True
            self._due.clear()
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        while (action := self._next()) is not None:
            try:
                action()
            except Exception:
                _log.exception("an alarm failed")
            del action

    def _next(self) -> Callable[[], object] | None:
        """Wait for the next action that is due; None at the end."""
        with self._changed:
            while not self._closed:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(None if wait is None else min(wait, _LONGEST_WAIT))
        return None
