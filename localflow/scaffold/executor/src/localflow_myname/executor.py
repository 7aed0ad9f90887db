"""The executor `myname`: runs calls in a pool of threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import TYPE_CHECKING, Annotated

from localflow.interfaces import AtLeast, Call, Executor, Report

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
            self._pool.submit(self._run, call, self._pool)

    def shutdown(self) -> None:
        """Give up the calls in hand: those that wait are dropped, of those that run nothing is reported any more."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _run(self, call: Call, pool: ThreadPoolExecutor) -> None:
        # In a context of its own what a task sets ends with it. The name is that of the worker in `localflow show`.
        outcome = Context().run(call.run, threading.current_thread().name)
        if pool is self._pool and self._report is not None:
            self._report([outcome])
