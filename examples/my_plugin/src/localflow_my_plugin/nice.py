"""The executor `nice`: runs calls in threads that leave the cores to whatever else wants them."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import TYPE_CHECKING, Annotated

from localflow.interfaces import AtLeast, Call, Executor, Report

if TYPE_CHECKING:
    from collections.abc import Sequence


class NiceExecutor(Executor):
    """Runs calls in threads of low priority.

    Only Linux knows priorities of single threads; elsewhere the threads are ordinary ones.
    """

    def __init__(self, workers: Annotated[int, AtLeast(1)] = 2, niceness: Annotated[int, AtLeast(0)] = 10) -> None:
        """Keep the options.

        Args:
            workers: how many threads.
            niceness: how far they step back: 0 not at all, 19 until nobody else wants the core.
        """
        self._workers = workers
        self._niceness = niceness
        self._pool: ThreadPoolExecutor | None = None
        self._report: Report | None = None

    def start(self, report: Report) -> None:
        """Make the pool; its threads start with the first calls."""
        self._report = report
        self._pool = ThreadPoolExecutor(self._workers, "nice", initializer=self._step_back)

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
        # The name of the worker is recorded: `localflow show` prints it beside the task run.
        worker = f"{threading.current_thread().name} (niceness {self._niceness})"
        outcome = Context().run(call.run, worker)  # a context of its own: what a task sets there ends with it
        if pool is self._pool and self._report is not None:
            self._report([outcome])

    def _step_back(self) -> None:
        if sys.platform == "linux":
            os.nice(self._niceness)  # of this thread alone
