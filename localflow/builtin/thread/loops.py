"""The event loops of a crew: all its async calls run in one loop, in a thread of its own.

A call that does not end at its timeout has either blocked its loop or ignored that it was cancelled. Then the loop is
*retired*: the calls that have not begun, and all later ones, begin in a new loop, and the old one ends when the last of
its calls does. This is the one module of the executor that imports asyncio; it is loaded with the first async call.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextvars import Context
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from localflow.builtin.thread.watch import no_thread
from localflow.calls import failed_state
from localflow.interfaces import Outcome
from localflow.states import Cancelled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from localflow.builtin.thread.watch import Watch
    from localflow.interfaces import Call

_log = logging.getLogger("localflow.thread")

_GRACE = 0.25
"""Seconds that a call past its timeout gets to end by itself, and to tell more of it than the watch can."""


class Loops:
    """The loop in which async calls begin, and those that are retired."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._lock = threading.Lock()
        self._waiting: dict[int, Call] = {}
        """Calls that have not begun, by id; guarded by `_lock`, as are the next two."""
        self._threads: list[_LoopThread] = []
        """The last one is in use, the others are retired."""
        self._dismissed = False
        self._names = map("localflow-loop-{}".format, count())

    def take(self, calls: Sequence[Call]) -> None:
        """Have calls begin in the loop."""
        try:
            self._queue(calls)
        except RuntimeError as error:  # told without the lock, which whoever hears of it may need
            self._watch.tell([Outcome(call.id, no_thread(error)) for call in calls])

    def _queue(self, calls: Sequence[Call]) -> None:
        with self._lock:
            if self._dismissed:
                return
            if not self._threads:
                self._threads.append(_LoopThread(next(self._names)))
            self._waiting.update((call.id, call) for call in calls)
            thread = self._threads[-1]
            thread.loop.call_soon_threadsafe(self._spawn, thread, calls)

    def cancel(self, call_ids: Iterable[int]) -> None:
        """Report those that have not begun as CANCELLED, and those that run when they have heeded it."""
        with self._lock:
            if self._dismissed:
                return
            dropped = [call_id for call_id in call_ids if self._waiting.pop(call_id, None) is not None]
            for thread in self._threads:
                for call_id in thread.running.keys() & set(call_ids):
                    thread.loop.call_soon_threadsafe(thread.running[call_id].cancel)
        self._watch.tell([Outcome(call_id, Cancelled("the task was cancelled before it began")) for call_id in dropped])

    def dismiss(self, deadline: float) -> None:
        """Cancel everything, and wait for the loops to end until a moment of the monotonic clock."""
        with self._lock:
            self._dismissed = True
            self._waiting.clear()
            threads = list(self._threads)
            for thread in threads:
                thread.stop()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _spawn(self, thread: _LoopThread, calls: Sequence[Call]) -> None:
        for call in calls:  # in an empty context: nothing that a call sets is seen by the others
            thread.loop.create_task(self._see_through(thread, call), context=Context())

    async def _see_through(self, thread: _LoopThread, call: Call) -> None:
        """Run a call from its begin to its report, unless it was cancelled before or has begun in another loop."""
        with self._lock:
            if self._waiting.get(call.id) is not call:
                return
            del self._waiting[call.id]
            task = asyncio.current_task()
            assert task is not None
            thread.running[call.id] = task
        outcome = await self._run(thread, call)
        with self._lock:
            if thread.running.get(call.id) is task:
                del thread.running[call.id]
            if not thread.running and thread is not self._threads[-1]:
                self._threads.remove(thread)
                thread.stop()
        if outcome is not None:
            self._watch.tell([outcome])

    async def _run(self, thread: _LoopThread, call: Call) -> Outcome | None:
        """Run a call; None if it was given up meanwhile."""
        watched = None
        try:
            if call.timeout_seconds is None:
                return await call.run_async(thread.name)
            watched = self._watch.begin(call, thread.name, partial(self._retire, thread), _GRACE)
            outcome = await call.run_async(thread.name, watched.say)
        except asyncio.CancelledError:
            outcome = Outcome(call.id, Cancelled("the task was cancelled while it was running"))
        except BaseException as error:  # such as sys.exit() in the __reduce__ of a result
            outcome = Outcome(call.id, failed_state(error))
        return outcome if watched is None else self._watch.end(watched, outcome)

    def _retire(self, thread: _LoopThread) -> None:
        with self._lock:
            if self._dismissed or thread is not self._threads[-1]:
                return
            try:
                fresh = _LoopThread(next(self._names))
            except RuntimeError as error:
                lost, self._waiting = list(self._waiting), {}
                self._watch.tell([Outcome(call_id, no_thread(error)) for call_id in lost])
                return
            self._threads.append(fresh)
            fresh.loop.call_soon_threadsafe(self._spawn, fresh, list(self._waiting.values()))


class _LoopThread(threading.Thread):
    """A thread and its event loop; running from the start, or RuntimeError is raised."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.running: dict[int, asyncio.Task[None]] = {}
        """The asyncio tasks of calls that have begun and not ended, by the calls' ids."""
        self.loop = asyncio.new_event_loop()
        self._stopped = False
        try:
            self.start()
        except RuntimeError:
            self.loop.close()
            raise

    def stop(self) -> None:
        """End the loop as soon as it is free: what still runs in it is cancelled, async generators are closed."""
        self._stopped = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    def run(self) -> None:
        """Run the loop until it is stopped."""
        while not self._stopped:
            try:
                self.loop.run_forever()
            except BaseException:  # sys.exit() in an asyncio task that a call has left behind
                _log.exception("an asyncio task in %s wanted to end it; ignored", self.name)
        with asyncio.Runner(loop_factory=lambda: self.loop):
            pass  # its end cancels what is left and closes the loop
