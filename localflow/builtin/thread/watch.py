"""The watch over a crew: gives up calls that are past their timeout, and reports for those who must not wait.

One thread, started when it is first needed, sleeps until the next deadline. A call that has one is *watched* from its
begin to its end, and who ends it, its thread or the watch, is settled by `end`: the other's outcome is dropped.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from typing import TYPE_CHECKING

from localflow.calls import timed_out_outcome
from localflow.records import Execution
from localflow.states import WORKER_LOST, Cause, State, StateType
from localflow.usage import peak_rss_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.interfaces import Call, LogLine, Outcome

_log = logging.getLogger("localflow.thread")


def no_thread(error: RuntimeError) -> State:
    """Return the CRASHED state of a call for which there is no thread, and none can be started."""
    message = f"cannot start a thread for the task: {error}"
    return State(StateType.CRASHED, WORKER_LOST, message, cause=Cause("worker", message=message))


class Watched:
    """A call that has begun and has a deadline; what it says after its end is dropped."""

    __slots__ = ("_began", "_call", "_give_up", "_lines", "_started_at", "_worker", "deadline", "is_over")

    def __init__(self, call: Call, worker: str, give_up: Callable[[], None], grace: float) -> None:
        assert call.timeout_seconds is not None
        self.is_over = False
        self._call = call
        self._worker = worker
        self._give_up = give_up
        self._lines: list[LogLine] = []
        self._started_at, self._began = time.time(), time.monotonic()
        self.deadline = self._began + call.timeout_seconds + grace

    def say(self, line: LogLine) -> None:
        """Take what the call says."""
        if not self.is_over:
            (self._call.log or self._lines.append)(line)

    def completed(self, outcome: Outcome) -> Outcome:
        """Return the outcome with what the call has said."""
        return outcome._replace(lines=tuple(self._lines)) if self._lines else outcome

    def given_up(self) -> Outcome:
        """Give the call up and return its outcome."""
        try:
            self._give_up()
        except Exception:  # such as a thread that cannot be started; the call is answered all the same
            _log.exception("what task run '%s' has kept could not be replaced", self._call.task_run.name)
        ended_at = self._started_at + (time.monotonic() - self._began)
        execution = Execution(self._worker, os.getpid(), self._started_at, ended_at, peak_rss_bytes=peak_rss_bytes())
        return timed_out_outcome(self._call, execution, tuple(self._lines))


class Watch:
    """Calls with a deadline, and outcomes that somebody else is to report."""

    def __init__(self, report: Callable[[list[Outcome]], None]) -> None:
        self._report = report
        self._changed = threading.Condition()
        self._watched: set[Watched] = set()
        self._told: list[Outcome] = []
        self._is_awaited = False
        """Whether `report` is to be called in any case."""
        self._wakes_at = math.inf
        self._thread: threading.Thread | None = None
        self._closed = False

    def begin(self, call: Call, worker: str, give_up: Callable[[], None], grace: float = 0.0) -> Watched:
        """Watch a call that begins now.

        Args:
            call: has a timeout.
            worker: the name of the worker that runs it.
            give_up: called when the call is past its deadline, before that is reported.
            grace: seconds by which the deadline is later than the timeout.
        """
        watched = Watched(call, worker, give_up, grace)
        with self._changed:
            self._start()
            self._watched.add(watched)
            if watched.deadline < self._wakes_at:
                self._changed.notify()
        return watched

    def end(self, watched: Watched, outcome: Outcome) -> Outcome | None:
        """End a call and return the outcome to report; None if it was given up before, and that is its end."""
        with self._changed:
            if watched.is_over:
                return None
            watched.is_over = True
            self._watched.discard(watched)
        return watched.completed(outcome)

    def tell(self, outcomes: list[Outcome]) -> None:
        """Report outcomes for a thread that has no time to do so."""
        if not outcomes:
            return
        with self._changed:
            if self._start():
                self._told.extend(outcomes)
                self._changed.notify()
                return
        self._report(outcomes)

    def wake(self) -> None:
        """Have `report` called soon, for there are outcomes that only it knows of."""
        with self._changed:
            if self._start():
                self._is_awaited = True
                self._changed.notify()
                return
        self._report([])

    def close(self, deadline: float) -> None:
        """Give up nothing more, and wait for the thread to end until a moment of the monotonic clock."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self) -> bool:
        """Return whether the thread is there, or is not needed any more."""
        if self._thread is None and not self._closed:
            thread = threading.Thread(target=self._work, name="localflow-watch", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                _log.warning("timeouts are not watched for now, for no thread can be started: %s", error)
                return False
            self._thread = thread
        return True

    def _work(self) -> None:
        while True:
            with self._changed:
                late = self._wait()
                if self._closed:
                    return
                told, self._told, self._is_awaited = self._told, [], False
            outcomes = [*told, *(watched.given_up() for watched in late)]
            del told, late
            self._report(outcomes)
            del outcomes  # it must not keep values alive while it sleeps

    def _wait(self) -> list[Watched]:
        """Return the calls that are past their deadline, as soon as there are any or something else is to be done."""
        while True:
            now = time.monotonic()
            late = [watched for watched in self._watched if watched.deadline <= now]
            if late or self._told or self._is_awaited or self._closed:
                break
            self._wakes_at = min((watched.deadline for watched in self._watched), default=math.inf)
            self._changed.wait(min(self._wakes_at - now, threading.TIMEOUT_MAX))
        for watched in late:
            watched.is_over = True
            self._watched.discard(watched)
        self._wakes_at = -math.inf
        return late
