"""The executor `myname`: runs calls in a pool of threads."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Annotated

from localflow import Cancelled
from localflow.interfaces import AtLeast, Call, Executor, Outcome, Report

if TYPE_CHECKING:
    from collections.abc import Sequence


class MynameExecutor(Executor):
    """Runs calls in threads, so a running call cannot be stopped: what an executor can do more, it declares here."""

    def __init__(self, workers: Annotated[int, AtLeast(1)] = 4) -> None:
        """Keep the options; threads begin with `start`.

        Args:
            workers: how many threads.
        """
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._report: Report | None = None
        self._waiting: dict[int, Future[None]] = {}

    @property
    def capacity(self) -> int:
        """One call for each thread and one more each, so that no thread is idle until the next hand-over."""
        return 2 * self._workers

    def start(self, report: Report) -> None:
        """Make the pool; its threads start with the first calls."""
        self._report = report
        self._pool = ThreadPoolExecutor(self._workers, "myname")

    def submit(self, calls: Sequence[Call]) -> None:
        """Hand the calls to the pool."""
        assert self._pool is not None, "submit before start"
        for call in calls:
            future = self._waiting[call.id] = self._pool.submit(self._run, call, self._pool)
            future.add_done_callback(partial(_forget, self._waiting, call.id))

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Give up those of the calls that have not begun."""
        for id in call_ids:
            future = self._waiting.get(id)
            if future is not None and future.cancel() and self._report is not None:
                self._report([Outcome(id, Cancelled())])

    def shutdown(self) -> None:
        """Give up the calls in hand: those that wait are dropped, of those that run nothing is reported any more."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
            self._waiting = {}

    def _run(self, call: Call, pool: ThreadPoolExecutor) -> None:
        # In a context of its own what a task sets ends with it. The name is that of the worker in `localflow show`.
        outcome = Context().run(call.run, threading.current_thread().name)
        if pool is self._pool and self._report is not None:
            self._report([outcome])


def _forget(waiting: dict[int, Future[None]], call_id: int, _: Future[None]) -> None:
    waiting.pop(call_id, None)
