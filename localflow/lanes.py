"""Lanes: the executors at work for an engine, each with its queue of ready runs."""

from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING

from localflow.errors import ExecutorError, PluginError
from localflow.garbage import RareCollection
from localflow.instances import release
from localflow.interrupts import STOPS
from localflow.payloads import type_name
from localflow.ready import ReadyQueue
from localflow.states import type_and_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.interfaces import Executor, Report
    from localflow.large_values import Folder
    from localflow.live import LiveRun

_log = logging.getLogger("localflow.lanes")


class Lane:
    """An executor at work for an engine, and the runs that are ready for it.

    Runs of async functions wait in a queue of their own where the executor takes them beside its other calls. Runs
    whose tags are limited wait in a third one until a worker is free for them: only then do they ask for a permit,
    which others would miss while they wait here.
    """

    __slots__ = (
        "_discreet", "_takes_async", "async_in_hand", "async_ready", "executor", "in_hand", "limited", "name", "plenty",
        "ready",
    )  # fmt: skip

    def __init__(self, name: str, executor: Executor, discreet: Callable[[str], str] = str) -> None:
        self._discreet = discreet
        self.name = name
        self.executor = executor
        self.ready = ReadyQueue()
        self.in_hand = 0
        self.async_ready = ReadyQueue()
        self.async_in_hand = 0
        self.limited = ReadyQueue()
        self._takes_async = executor.async_capacity is not None
        self.plenty = math.inf
        """With how many runs in hand nobody is idle before the next outcome comes."""

    def start(self, report: Report) -> None:
        """Start the executor; one that cannot is a mistake in it or in its options."""
        try:
            self.executor.start(report)
        except STOPS:
            raise
        except BaseException as error:
            told, text = type_and_text(error), self.worded(error)
            cause = error if told == text else None  # which would tell after all what is masked
            raise PluginError(f"executor {self.described()} cannot start: {text}") from cause

    def worded(self, error: BaseException) -> str:
        """Return what went wrong in the executor, without its secrets."""
        return self._discreet(type_and_text(error))

    def described(self) -> str:
        """Return the executor's name and class, for messages."""
        return f"'{self.name}' ({type_name(self.executor)})"

    def can_stop(self, run: LiveRun) -> bool:
        """Return whether a run that is at work here can be stopped."""
        return self.executor.kills_on_timeout or (self._takes_async and run.task.is_async)

    def queue(self, run: LiveRun) -> None:
        """Add a run that is ready; one that has a permit goes first."""
        ready = self.async_ready if self._takes_async and run.task.is_async else self.ready
        if run.permit is None:
            ready.append(run)
        else:
            ready.appendleft(run)

    def take_limited(self) -> list[LiveRun]:
        """Take out the limited runs for which there is a free worker, as far as that can be told."""
        capacity = self._capacity()
        return self.limited.take(self.limited.size if capacity is None else capacity - self.in_hand)

    def take(self) -> list[LiveRun]:
        """Take out the runs that the executor wants now; they are in hand from here on."""
        taken: list[LiveRun] = []
        if self.ready.size:
            capacity = self._capacity()
            if capacity is None:
                taken = self.ready.take(self.ready.size)
            elif self.in_hand < self.plenty:  # or they would go one by one
                taken = self.ready.take(capacity - self.in_hand)
            self.in_hand += len(taken)
        if self.async_ready.size:
            beside = self.async_ready.take((self.executor.async_capacity or 0) - self.async_in_hand)
            self.async_in_hand += len(beside)
            taken += beside
        return taken

    def _capacity(self) -> int | None:
        try:
            capacity, plenty = self.executor.capacity, self.executor.plenty
        except STOPS:
            raise
        except BaseException as error:
            text = self.worded(error)
            raise ExecutorError(f"executor {self.described()} does not tell its capacity: {text}") from error
        self.plenty = math.inf if capacity is None else max(capacity if plenty is None else min(plenty, capacity), 1)
        return capacity

    def cancel(self, run: LiveRun) -> None:
        """Ask the executor to stop a call."""
        try:
            self.executor.cancel([run.node])
        except STOPS:
            raise
        except BaseException as error:
            _log.error("executor %s failed to cancel a call: %s", self.described(), self.worded(error))

    def give_back(self, run: LiveRun) -> None:
        """Note that a run is no longer in hand."""
        if self._takes_async and run.task.is_async:
            self.async_in_hand -= 1
        else:
            self.in_hand -= 1


class Lanes:
    """The lanes of an engine; an executor starts at its first use."""

    def __init__(
        self,
        make_executor: Callable[[str | Executor], Executor],
        report: Report,
        folder: Folder,
        discreet: Callable[[str], str] = str,
    ) -> None:
        self._folder = folder
        self._discreet = discreet
        self._make_executor = make_executor
        self._report = report
        self._lanes: dict[object, Lane] = {}
        self._lock = threading.Lock()
        self._warned: set[tuple[str, str]] = set()
        self._rare_collection = RareCollection()

    def __iter__(self) -> Iterator[Lane]:
        return iter([*self._lanes.values()])

    def get(self, executor: str | Executor) -> Lane:
        """Return the lane of an executor named or given by a flow or task; raises PluginError if it cannot start."""
        key = executor if isinstance(executor, str) else id(executor)
        with self._lock:
            lane = self._lanes.get(key)
            if lane is None:
                lane = Lane(executor_name(executor), self._make_executor(executor), self._discreet)
                lane.executor.folder = self._folder
                lane.start(self._report)
                self._lanes[key] = lane
                if any(each.executor.shares_memory for each in self._lanes.values()):
                    self._rare_collection.end()
                else:
                    self._rare_collection.begin()
        return lane

    def warn_of_timeout(self, task: str, lane: Lane) -> None:
        """Say once that an executor cannot stop the code of a task that is too slow."""
        if (task, lane.name) not in self._warned:
            self._warned.add((task, lane.name))
            gives_up = lane.executor.gives_up_late_calls
            _log.warning(
                "task '%s' has a timeout, but executor '%s' cannot stop its code: %s; the process executor stops it",
                task,
                lane.name,
                "it is told TimedOut and goes on" if gives_up else "it is TimedOut only when it returns",
            )

    def close(self) -> None:
        """Shut the executors down."""
        with self._lock:
            lanes, self._lanes = list(self._lanes.values()), {}
            self._rare_collection.end()
        for lane in lanes:
            try:
                lane.executor.shutdown()
            except STOPS:
                raise
            except BaseException as error:
                _log.error("executor %s failed to shut down: %s", lane.described(), lane.worded(error))
            release(lane.executor)


def executor_name(executor: str | Executor) -> str:
    """Return how an executor is recorded: its configured name, or the class of an instance given in code."""
    return executor if isinstance(executor, str) else type(executor).__name__
