"""Runs done callbacks in a thread of their own.

A callback is the user's code: it may take long, wait for other futures or call tasks. In a thread that brings outcomes
it would hold up the very outcomes it waits for.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextvars import Context

    from localflow.futures import TaskFuture

    Callback = tuple[Context, Callable[[TaskFuture[Any]], object]]

_log = logging.getLogger("localflow.callbacks")

_JOIN_DEADLINE = 1.0


class CallbackRunner:
    """Runs callbacks one after the other, in the order their futures were resolved."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pending: deque[tuple[TaskFuture[Any], Callback]] = deque()
        self._open = 0
        """Callbacks that have not returned."""
        self._thread: threading.Thread | None = None
        self._closed = False
        self._here = threading.local()

    def call(self, future: TaskFuture[Any], callback: Callable[[TaskFuture[Any]], object]) -> None:
        """Run a callback of a future that is done already, in this thread; one added by a callback comes after it."""
        waiting: deque[tuple[TaskFuture[Any], Callable[[TaskFuture[Any]], object]]] | None
        waiting = getattr(self._here, "waiting", None)
        if waiting is not None:  # inside a callback: a loop, for chains of callbacks may be long
            waiting.append((future, callback))
            return
        waiting = self._here.waiting = deque([(future, callback)])
        try:
            while waiting:
                future, callback = waiting.popleft()
                try:
                    callback(future)
                except Exception:
                    _log.exception("a done callback of task run '%s' failed", future.name)
        finally:
            del self._here.waiting

    def add(self, future: TaskFuture[Any], callbacks: Sequence[Callback]) -> None:
        """Queue the callbacks of a future that is done; the thread starts with the first ones."""
        with self._changed:
            if self._closed:
                return
            self._pending.extend((future, callback) for callback in callbacks)
            self._open += len(callbacks)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="localflow-callbacks", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait_idle(self) -> None:
        """Wait until every callback has returned; inside a callback, which may call a flow, wait for nothing."""
        if threading.current_thread() is self._thread:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._open or self._closed)

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
                future, (context, callback) = self._pending.popleft()
            try:
                context.run(callback, future)
            except BaseException:  # sys.exit() in a callback ends neither the thread nor the program
                _log.exception("a done callback of task run '%s' failed", future.name)
            del context, callback, future
            with self._changed:
                self._open -= 1
                self._changed.notify_all()
