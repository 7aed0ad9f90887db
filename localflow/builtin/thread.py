"""The thread executor: calls run in a pool of threads of this process.

Calls wait in one queue. A thread that has finished a call adds the outcome to `finished` and tries to become the
reporter: it alone gives everything finished to `report`, while the others, finding it at work, go on with their next
calls. So outcomes are reported at once when there is little to do, and in batches when there is much.

Each `start` makes a new `_Crew`; a thread stuck in a task at shutdown belongs to a crew that nobody listens to.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Annotated

from localflow.builtin.cores import usable_cores
from localflow.calls import failed_state
from localflow.interfaces import AtLeast, Executor, Outcome
from localflow.states import Cancelled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from localflow.interfaces import Call, Report

_log = logging.getLogger("localflow.thread")

_THREADS_PER_CORE = 4
_LEAST_THREADS = 8
_SHORT_CALL = 0.001
_LOOKAHEAD = 64
_JOIN_DEADLINE = 1.0


class ThreadExecutor(Executor):
    """Runs calls in threads of this process; made for tasks that mostly wait."""

    def __init__(self, workers: Annotated[int, AtLeast(1)] | None = None) -> None:
        """Keep options: how many threads there may be, by default 4 for each usable core and at least 8."""
        self.workers = workers or max(_LEAST_THREADS, _THREADS_PER_CORE * usable_cores())
        self._crew: _Crew | None = None

    @property
    def capacity(self) -> int:
        """One call for each thread, and while calls are short some more, so that no thread waits for its next."""
        return self.workers + (self._crew.lookahead if self._crew is not None else 0)

    def start(self, report: Report) -> None:
        """Get ready to run calls and give their outcomes to `report`; threads start when there are calls for them."""
        if self._crew is not None:
            raise RuntimeError("this thread executor is already at work for a flow run; give each flow run its own")
        self._crew = _Crew(self.workers, report)

    def submit(self, calls: Sequence[Call]) -> None:
        """Queue calls for the threads."""
        if self._crew is None:
            raise RuntimeError("the thread executor is not started; call start(report) first")
        self._crew.take(calls)

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Have calls that have not begun reported as CANCELLED; a running one cannot be stopped."""
        if self._crew is not None:
            self._crew.drop(call_ids)

    def shutdown(self) -> None:
        """End the threads; one that is stuck in a task ends when the task does, and its outcome is not reported."""
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.dismiss()


class _Crew:
    """The threads between one `start` and its `shutdown`."""

    def __init__(self, size: int, report: Report) -> None:
        self.lookahead = 0
        self._size = size
        self._report = report
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        """Threads that wait for a call, less the calls queued for them; guarded by `_lock`."""
        self._queued: set[int] = set()
        """Ids of calls that have not begun; guarded by `_lock`, as is the next."""
        self._dropped: set[int] = set()
        """Ids of queued calls that are not to begin any more."""
        self._busy: set[threading.Thread] = set()
        """Threads inside a call."""
        self._finished: deque[Outcome] = deque()
        self._reporter = threading.Lock()
        self._dismissed = False
        self._mean_seconds = _SHORT_CALL

    def take(self, calls: Sequence[Call]) -> None:
        """Queue calls, and start threads for them as long as there may be more."""
        with self._lock:
            if self._dismissed:
                return
            self._queued.update(call.id for call in calls)
            self._idle -= len(calls)
            missing = min(-self._idle, self._size - len(self._threads))
            starting = [
                threading.Thread(target=self._work, name=f"localflow-thread-{len(self._threads) + n}", daemon=True)
                for n in range(missing)
            ]
            self._threads.extend(starting)
            self._idle += len(starting)
        for call in calls:
            self._queue.put(call)
        for thread in starting:
            thread.start()

    def drop(self, call_ids: Sequence[int]) -> None:
        """Have those of these calls that have not begun reported as CANCELLED when their turn comes."""
        with self._lock:
            self._dropped.update(self._queued.intersection(call_ids))

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
        for thread in threads:
            if thread is not threading.current_thread() and thread not in self._busy:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _drained(self) -> Iterable[Call | None]:
        while True:
            try:
                yield self._queue.get_nowait()
            except Empty:
                return

    def _work(self) -> None:
        thread = threading.current_thread()
        while (call := self._queue.get()) is not None:
            self._busy.add(thread)
            self._finished.append(self._run(call, thread.name))
            self._busy.discard(thread)
            del call  # while the thread waits for its next call, it must not keep this one's arguments alive
            with self._lock:
                self._idle += 1
            self._report_finished()

    def _run(self, call: Call, name: str) -> Outcome:
        with self._lock:
            self._queued.discard(call.id)
            if call.id in self._dropped:
                self._dropped.discard(call.id)
                return Outcome(call.id, Cancelled("the task was cancelled before it began"))
        began = time.perf_counter()
        try:
            # In an empty context: nothing that a task sets is seen by the next one in the same thread.
            outcome = Context().run(call.run, name)
        except BaseException as error:  # such as sys.exit() in the __reduce__ of a result
            outcome = Outcome(call.id, failed_state(error))
        self._mean_seconds += (time.perf_counter() - began - self._mean_seconds) / 16
        self.lookahead = _LOOKAHEAD if self._mean_seconds < _SHORT_CALL else 0
        return outcome

    def _report_finished(self) -> None:
        # Looked at again after each release: an outcome that came too late for the reporter is reported by its thread.
        while self._finished and self._reporter.acquire(blocking=False):
            try:
                outcomes = [self._finished.popleft() for _ in range(len(self._finished))]
                if outcomes and not self._dismissed:
                    self._report(outcomes)
            except Exception:  # a thread that dies here would be missed by the calls that are queued
                _log.exception("outcomes of %d call(s) could not be reported", len(outcomes))
            finally:
                self._reporter.release()
