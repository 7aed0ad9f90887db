"""The threads between one `start` of the executor and its `shutdown`.

Calls wait in one queue. A thread that has finished a call adds the outcome to `finished`. If its next call waits
already, it wakes the watch, which reports, and goes on; threads that have nothing else to do report themselves, one at
a time. So outcomes are reported at once when there is little to do, and in batches when there is much: for the watch
gets the interpreter's lock when the threads wait for something, or have had it for a while.

A thread whose call is past its timeout is *given up*: it is struck off the list, so that another may start in its
place, and ends when the call does. Async calls go to the crew's event loops.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextvars import Context
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from localflow.builtin.thread.watch import Watch, no_thread
from localflow.calls import failed_state
from localflow.interfaces import Outcome
from localflow.states import Cancelled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from localflow.builtin.thread.loops import Loops
    from localflow.interfaces import Call, Report

_log = logging.getLogger("localflow.thread")

_SHORT_CALL = 0.001
_LOOKAHEAD = 64
_JOIN_DEADLINE = 1.0


class Crew:
    """Runs calls and reports their outcomes until it is dismissed."""

    def __init__(self, size: int, report: Report) -> None:
        self.lookahead = 0
        """How many calls it wants in hand beside those that run."""
        self._size = size
        self._report = report
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._names = map("localflow-thread-{}".format, count())
        self._idle = 0
        """Threads that wait for a call, less the calls queued for them; guarded by `_lock`."""
        self._queued: set[int] = set()
        """Ids of calls that have not begun: who takes one out, to run the call or to drop it, is the only one."""
        self._busy: set[threading.Thread] = set()
        """Threads inside a call."""
        self._finished: deque[Outcome] = deque()
        self._reporter = threading.Lock()
        self._watch = Watch(self._report_all)
        self._loops: Loops | None = None
        self._dismissed = False
        self._has_warned = False
        self._mean_seconds = _SHORT_CALL

    def take(self, calls: Sequence[Call]) -> None:
        """Queue calls, and start threads for them as long as there may be more."""
        for call in calls:
            if call.is_async:
                calls = self._without_async(calls)
                break
        with self._lock:
            if self._dismissed:
                return
            self._queued.update([call.id for call in calls])
            self._idle -= len(calls)
            starting = self._hire()
            for call in calls:
                self._queue.put(call)
        self._start(starting)

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Have those of these calls reported as CANCELLED that have not begun, or that are async and heed it."""
        dropped = [call_id for call_id in call_ids if self._claim(call_id)]
        with self._lock:
            loops = self._loops
        state = Cancelled("the task was cancelled before it began")
        self._watch.tell([Outcome(call_id, state) for call_id in dropped])
        if loops is not None:
            loops.cancel(call_ids)

    def dismiss(self) -> None:
        """Give up what is queued, and end every thread that is not in a call."""
        with self._lock:
            self._dismissed = True
            threads = list(self._threads)
        for _ in self._drained():
            pass
        for _ in threads:
            self._queue.put(None)
        deadline = time.monotonic() + _JOIN_DEADLINE
        self._watch.close(deadline)
        if self._loops is not None:
            self._loops.dismiss(deadline)
        for thread in threads:
            if thread is not threading.current_thread() and thread not in self._busy:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _without_async(self, calls: Sequence[Call]) -> list[Call]:
        """Have the async calls run in the loop, and return the others."""
        with self._lock:
            if self._loops is None and not self._dismissed:
                from localflow.builtin.thread.loops import Loops  # imports asyncio

                self._loops = Loops(self._watch)
            loops = self._loops
        if loops is not None:
            loops.take([call for call in calls if call.is_async])
        return [call for call in calls if not call.is_async]

    def _hire(self) -> list[threading.Thread]:
        """Return new threads, to be started, for calls that no thread waits for; `_lock` is held."""
        missing = min(-self._idle, self._size - len(self._threads))
        starting = [
            threading.Thread(target=self._work, name=next(self._names), daemon=True) for _ in range(max(0, missing))
        ]
        self._threads.extend(starting)
        self._idle += len(starting)
        return starting

    def _start(self, threads: Sequence[threading.Thread]) -> None:
        """Start new threads, or as many as the system allows; without any thread the calls in the queue crash."""
        for position, thread in enumerate(threads):
            try:
                thread.start()
            except RuntimeError as error:
                self._do_without(threads[position:], error)
                return

    def _do_without(self, missing: Sequence[threading.Thread], error: RuntimeError) -> None:
        """Strike threads off the list that could not be started, which is tried again with the next calls."""
        with self._lock:
            self._threads = [thread for thread in self._threads if thread not in missing]
            self._idle -= len(missing)
            left = len(self._threads)
            lost = [] if left else [call for call in self._drained() if call is not None]
            self._idle += len(lost)
            warns, self._has_warned = not self._has_warned, True
        if left:
            if warns:
                _log.warning("%d of %d threads are at work, more cannot be started: %s", left, self._size, error)
            return
        self._give([Outcome(call.id, no_thread(error)) for call in lost if self._claim(call.id)])

    def _drained(self) -> Iterable[Call | None]:
        while True:
            try:
                yield self._queue.get_nowait()
            except Empty:
                return

    def _work(self) -> None:
        thread = threading.current_thread()
        name = thread.name
        while (call := self._queue.get()) is not None:
            outcome = None
            if self._claim(call.id):
                self._busy.add(thread)
                outcome = self._run(call, thread, name)
                if outcome is None:  # this thread has been replaced
                    return
                self._busy.discard(thread)
            with self._lock:
                if outcome is not None:
                    self._finished.append(outcome)
                self._idle += 1
                has_next, is_first = self._idle <= 0, len(self._finished) == 1
            del call, outcome  # while the thread waits for its next call, it must not keep this one's values alive
            if not has_next:
                self._report_finished()
            elif is_first:  # later ones find that somebody has been woken
                self._watch.wake()

    def _claim(self, call_id: int) -> bool:
        """Return whether a call has not begun and is the caller's from now on."""
        try:
            self._queued.remove(call_id)
        except KeyError:
            return False
        return True

    def _run(self, call: Call, thread: threading.Thread, name: str) -> Outcome | None:
        """Run a call; None if it was given up meanwhile, and this thread with it."""
        began = time.perf_counter()
        watched = None
        try:
            # In an empty context: nothing that a task sets is seen by the next one in the same thread.
            if call.timeout_seconds is None:
                outcome = Context().run(call.run, name)
            else:
                watched = self._watch.begin(call, name, partial(self._give_up, thread, call.timeout_seconds))
                outcome = Context().run(call.run, name, log=watched.say)
        except BaseException as error:  # such as sys.exit() in the __reduce__ of a result
            outcome = Outcome(call.id, failed_state(error))
        if watched is not None:
            ended = self._watch.end(watched, outcome)
            if ended is None:
                return None
            outcome = ended
        self._learn(time.perf_counter() - began)
        return outcome

    def _give_up(self, thread: threading.Thread, seconds: float) -> None:
        """Let another thread take the place of one whose call is past its timeout of so many seconds."""
        self._learn(seconds)
        with self._lock:
            self._threads.remove(thread)
            self._busy.discard(thread)
            starting = [] if self._dismissed else self._hire()
        self._start(starting)

    def _learn(self, seconds: float) -> None:
        self._mean_seconds += (seconds - self._mean_seconds) / 16
        self.lookahead = _LOOKAHEAD if self._mean_seconds < _SHORT_CALL else 0

    def _report_finished(self) -> None:
        # Looked at again after each release: an outcome that came too late for the reporter is reported by its thread.
        while self._finished and self._reporter.acquire(blocking=False):
            try:
                self._give([self._finished.popleft() for _ in range(len(self._finished))])
            finally:
                self._reporter.release()

    def _report_all(self, outcomes: list[Outcome]) -> None:
        """Report outcomes together with what has finished."""
        self._finished.extend(outcomes)
        self._report_finished()

    def _give(self, outcomes: list[Outcome]) -> None:
        """Report outcomes, in any thread."""
        try:
            if outcomes and not self._dismissed:
                self._report(outcomes)
        except Exception:  # a thread that dies here would be missed by the calls that are queued
            _log.exception("outcomes of %d call(s) could not be reported", len(outcomes))
