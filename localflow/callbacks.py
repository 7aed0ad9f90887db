"""Runs the user's callbacks, hooks and conditions in a thread of their own.

These may take long, wait for futures or call tasks. In a thread that brings outcomes they would hold up the very
outcomes they wait for.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from localflow.interrupts import STOPS, NappingCondition
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextvars import Context

_log = logging.getLogger("localflow.callbacks")

_JOIN_DEADLINE = 1.0


class Callback(NamedTuple):
    """A function of the user's that is to be called."""

    described: str
    """What it is, for the log: `a done callback of task run 'add-0'`."""
    context: Context
    function: Callable[..., object]
    args: tuple[Any, ...]


class CallbackRunner:
    """Runs callbacks one after the other, in the order they were added; the thread starts with the first."""

    def __init__(self, name: str = "localflow-callbacks") -> None:
        self._name = name
        self._changed = NappingCondition()
        self._pending: deque[Callback] = deque()
        self._open = 0
        """Callbacks that have not returned."""
        self._thread: threading.Thread | None = None
        self._closed = False
        self._here = threading.local()

    def call(self, described: str, function: Callable[..., object], *args: Any) -> None:
        """Run a callback here and now; one that is called by a callback comes after it."""
        waiting: deque[tuple[str, Callable[..., object], tuple[Any, ...]]] | None
        waiting = getattr(self._here, "waiting", None)
        if waiting is not None:  # a loop, for chains of callbacks may be long
            waiting.append((described, function, args))
            return
        waiting = self._here.waiting = deque([(described, function, args)])
        try:
            while waiting:
                described, function, args = waiting.popleft()
                try:
                    function(*args)
                except STOPS:
                    raise
                except BaseException:  # sys.exit() in a callback does not end the program
                    _log.exception("%s failed", described)
        finally:
            del self._here.waiting

    def add(self, callbacks: Iterable[Callback]) -> None:
        """Queue callbacks."""
        with self._changed:
            if self._closed:
                return
            before = len(self._pending)
            self._pending.extend(callbacks)
            self._open += len(self._pending) - before
            if self._thread is None:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                thread.start()
                self._thread = thread
            self._changed.notify_all()

    def wait_idle(self, timeout: float | None = None) -> None:
        """Wait until every callback has returned; inside a callback, which may call a flow, wait for nothing."""
        if threading.current_thread() is self._thread:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._open or self._closed, timeout)

    def is_idle(self) -> bool:
        """Return whether `wait_idle` would return at once."""
        return not self._open or self._closed or threading.current_thread() is self._thread

    def close(self) -> None:
        """Drop what has not begun and end the thread, unless a callback holds it."""
        with self._changed:
            self._closed = True
            self._pending.clear()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_DEADLINE)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closed)
                if self._closed:
                    return
                callback = self._pending.popleft()
            try:
                callback.context.run(callback.function, *callback.args)
            except BaseException:  # sys.exit() in a callback ends neither the thread nor the program
                _log.exception("%s failed", callback.described)
            del callback
            with self._changed:
                self._open -= 1
                self._changed.notify_all()
