"""Wait for many futures at once, of one flow run or of several."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from localflow.futures import TaskFuture
from localflow.interrupts import NAP_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

R = TypeVar("R")


class DoneAndNotDone(NamedTuple, Generic[R]):
    """What `wait` has found."""

    done: set[TaskFuture[R]]
    not_done: set[TaskFuture[R]]


class _Arrival:
    """Puts a future into a queue when it is done."""

    __slots__ = ("_arrived", "_future")

    def __init__(self, future: TaskFuture[Any], arrived: SimpleQueue[TaskFuture[Any]]) -> None:
        self._future = future
        self._arrived = arrived

    def set(self) -> None:
        self._arrived.put(self._future)


def wait(futures: Iterable[TaskFuture[R]], timeout: float | None = None) -> DoneAndNotDone[R]:
    """Wait until all futures are done, or until `timeout` seconds have passed, and return them in two sets.

    Raises:
        TypeError: something else than futures is among them.
        StoreError: a state could not be recorded, so that a future will never be done.
    """
    deadline = _deadline(timeout)
    distinct = _distinct("wait", futures)
    for future in distinct:
        if future.wait(_left(deadline)) is None:
            break
    done = {future for future in distinct if future.done()}
    return DoneAndNotDone(done, set(distinct) - done)


def as_completed(futures: Iterable[TaskFuture[R]], timeout: float | None = None) -> Iterator[TaskFuture[R]]:
    """Return an iterator that gives each future once, as soon as it is done: first those that are, in the order given.

    Args:
        futures: any number of them.
        timeout: seconds from this call on that they may take, all together.

    Raises:
        TypeError: something else than futures is among them.
        TimeoutError: by the iterator, when the time has passed and futures are missing.
        StoreError: by the iterator, if a state could not be recorded, so that a future will never be done.
    """
    return _as_completed(_distinct("as_completed", futures), _deadline(timeout))


def _as_completed(futures: Sequence[TaskFuture[R]], deadline: float | None) -> Iterator[TaskFuture[R]]:
    with _arrivals(futures) as arrived:
        for given in range(len(futures)):
            while (future := _next(arrived, deadline)) is None:
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError(f"{len(futures) - given} (of {len(futures)}) futures unfinished")
            future.wait()  # raises if it has been given up
            yield future


def _next(arrived: SimpleQueue[TaskFuture[R]], deadline: float | None) -> TaskFuture[R] | None:
    """Wait for what arrives next, until the deadline, for a nap at most."""
    left = _left(deadline)
    with suppress(Empty):
        return arrived.get(timeout=NAP_SECONDS if left is None else min(left, NAP_SECONDS))
    return None


@contextmanager
def _arrivals(futures: Sequence[TaskFuture[R]]) -> Iterator[SimpleQueue[TaskFuture[R]]]:
    """Give a queue that every future comes into when it is done or given up."""
    arrived: SimpleQueue[TaskFuture[R]] = SimpleQueue()
    watched: list[tuple[TaskFuture[R], _Arrival]] = []
    try:
        for future in futures:
            waiter = _Arrival(future, arrived)
            watched.append((future, waiter))
            if not future._watch(waiter):
                arrived.put(future)
        for engine in {id(future._engine): future._engine for future in futures}.values():
            engine.flush()
        yield arrived
    finally:
        for future, waiter in watched:
            future._unwatch(waiter)


def _distinct(function: str, futures: Iterable[TaskFuture[R]]) -> list[TaskFuture[R]]:
    given = list(futures)
    for item in given:
        if not isinstance(item, TaskFuture):
            raise TypeError(f"{function} takes an iterable of futures, and {type(item).__name__} {item!r} is none")
    return list(dict.fromkeys(given))


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
