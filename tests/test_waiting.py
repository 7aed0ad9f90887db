"""localflow.wait and as_completed: many futures at once, of one flow run or of several."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from localflow import Completed, TaskFuture, as_completed, flow, task, wait
from localflow.errors import StoreError
from localflow.testing.stubs import ManualExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

BRIEF = 0.05
PATIENCE = 10.0

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def memory_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep nothing on disk."""
    monkeypatch.setenv("LOCALFLOW_STORE", "memory")


class Gates:
    """Holds tasks back until the test lets them go, each by its number."""

    def __init__(self, count: int) -> None:
        self.gates = [threading.Event() for _ in range(count)]

    def open(self, *numbers: int) -> None:
        """Let tasks go on."""
        for number in numbers or range(len(self.gates)):
            self.gates[number].set()


@task
def after(gates: Gates, number: int) -> int:
    """Return the number once its gate is open."""
    assert gates.gates[number].wait(PATIENCE)
    return number


@task
def same(value: Any) -> Any:
    """Return the value."""
    return value


@task
def fail() -> None:
    """Raise."""
    raise ValueError("always")


def in_flow(body: Callable[[], Any], executor: Any = "thread") -> Any:
    """Return what `body` returns in a flow; raise what it raises."""
    kept = []

    @flow(executor=executor)
    def around() -> Completed:
        kept.append(body())
        return Completed()

    around().result()
    return kept[0]


def with_gates(count: int, body: Callable[[Gates], Any]) -> Any:
    """Return what `body` returns in a flow; whatever happens, its tasks end."""
    gates = Gates(count)

    def guarded() -> Any:
        try:
            return body(gates)
        finally:
            gates.open()

    return in_flow(guarded)


def waiters() -> int:
    """Return how many objects there are that wait for futures."""
    gc.collect()
    return sum(type(item).__name__ in ("Event", "_Arrival") for item in gc.get_objects())


# -- wait ------------------------------------------------------------------------------------------------------------


def test_wait_returns_when_all_are_done() -> None:
    """Completed, failed and blocked futures are all done."""

    def body() -> Any:
        futures = [same(1), fail(), same(fail())]
        return futures, wait(futures)

    futures, found = in_flow(body)

    assert found.done == set(futures)
    assert found.not_done == set()
    assert found == (found.done, found.not_done)


def test_wait_returns_what_is_done_in_time() -> None:
    """When the time has passed, what is done and what is not are told apart, whatever their order."""

    def body(gates: Gates) -> Any:
        futures = [after(gates, 0), after(gates, 1), after(gates, 2)]
        gates.open(1)
        futures[1].wait()
        return futures, wait(futures, timeout=BRIEF)

    futures, found = with_gates(3, body)

    assert found.done == {futures[1]}
    assert found.not_done == {futures[0], futures[2]}


@pytest.mark.parametrize("timeout", [0, -1])
def test_wait_without_time_looks_once(timeout: float) -> None:
    """With no time to wait it tells what is so now."""

    def body(gates: Gates) -> Any:
        future = after(gates, 0)
        return wait([future], timeout).not_done == {future}

    assert with_gates(1, body)


def test_wait_takes_any_iterable_with_futures_twice() -> None:
    """A generator, the list of a map, a set: each future counts once."""

    def body() -> Any:
        mapped = same.map([1, 2])
        return [len(wait(futures).done) for futures in (mapped, set(mapped), (f for f in [*mapped, *mapped]), [])]

    assert in_flow(body) == [2, 2, 2, 0]


# -- as_completed ----------------------------------------------------------------------------------------------------


def test_as_completed_gives_futures_in_the_order_of_their_ends() -> None:
    """Whichever ends first comes first, while others are at work."""

    def body(gates: Gates) -> Any:
        futures = after.map(gates, range(3))
        order = []
        gates.open(1)
        for future in as_completed(futures):
            order.append(future.result())
            gates.open({1: 2, 2: 0, 0: 0}[order[-1]])
        return order

    assert with_gates(3, body) == [1, 2, 0]


def test_as_completed_gives_what_is_done_first_and_each_once() -> None:
    """Futures that are done come in the order given; one given twice comes once; failed ones come, too."""

    def body() -> Any:
        first, second = same(1), fail()
        wait([first, second])
        return [first, second], list(as_completed([second, first, second])), list(as_completed([]))

    (first, second), order, none = in_flow(body)

    assert order == [second, first]
    assert none == []


def test_as_completed_raises_when_the_time_has_passed() -> None:
    """What came in time was given, then TimeoutError says how many are missing."""

    def body(gates: Gates) -> Any:
        futures = after.map(gates, range(3))
        gates.open(2)
        futures[2].wait()
        arrivals = as_completed(futures, timeout=BRIEF)
        first = next(arrivals).result()
        with pytest.raises(TimeoutError, match=r"^2 \(of 3\) futures unfinished$"):
            next(arrivals)
        return first

    assert with_gates(3, body) == 2


def test_the_time_counts_from_the_call() -> None:
    """What the caller does with a future uses up the time of the others."""

    def body(gates: Gates) -> Any:
        first, second = same(1), after(gates, 0)
        arrivals = as_completed([first, second], timeout=BRIEF)
        assert next(arrivals) is first
        deadline = time.monotonic() + BRIEF
        while time.monotonic() < deadline:
            pass
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            next(arrivals)
        return time.monotonic() - begun

    assert with_gates(1, body) < BRIEF / 2


def test_many_futures_cost_neither_threads_nor_turns() -> None:
    """Thousands of open futures are waited for without a thread for each, and each comes once."""
    count = 3_000

    def body(gates: Gates) -> Any:
        futures = [after(gates, 0) for _ in range(count)]
        threads = threading.active_count()
        arrivals = as_completed(futures)
        gates.open(0)
        first = next(arrivals)
        threads = max(threads, threading.active_count()) - threads
        return threads, {first, *arrivals} == set(futures)

    threads, are_all_there = with_gates(1, body)
    assert threads <= 1  # which reports for those that have more calls to run
    assert are_all_there


# -- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [[1], ["x"], [[]], [None]])
@pytest.mark.parametrize("function", [wait, as_completed])
def test_only_futures_can_be_waited_for(function: Callable[[Any], Any], given: Any) -> None:
    """Anything else is refused at the call."""
    with pytest.raises(TypeError, match=f"^{function.__name__} takes an iterable of futures, and "):
        function(given)


def test_futures_of_several_flows() -> None:
    """Futures of flows that run at the same time, in threads of their own, may be mixed."""
    gates, made, all_made = Gates(2), {}, threading.Barrier(3)

    @flow(executor="thread")
    def one(number: int) -> Completed:
        made[number] = after(gates, number)
        all_made.wait(PATIENCE)
        return Completed()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        all_made.wait(PATIENCE)
        futures = [made[0], made[1]]
        assert wait(futures, BRIEF).done == set()
        arrivals = as_completed(futures)
        gates.open(1)
        second = next(arrivals)
        gates.open(0)
        assert [second, *arrivals] == [made[1], made[0]]
        assert wait(futures).done == set(futures)
    finally:
        gates.open()
        for thread in threads:
            thread.join()


def test_nothing_is_left_of_a_wait_that_was_given_up() -> None:
    """A wait without success, and an iterator that is not read to its end, leave nothing with the futures."""

    def body(gates: Gates) -> Any:
        futures = after.map(gates, range(4))
        before = waiters()
        wait(futures, timeout=0.01)
        arrivals = as_completed(futures)
        gates.open(0)
        next(arrivals)
        del arrivals
        with suppress(TimeoutError):
            list(as_completed(futures, timeout=0.01))
        futures[1].wait(0.01)
        return waiters() - before

    assert with_gates(4, body) <= 0


def test_waiting_ends_when_the_store_fails() -> None:
    """Nobody waits for an end that can no longer be recorded; the StoreError reaches the waiting thread."""
    from localflow.builtin.memory import MemoryStateStore
    from localflow.interfaces import StateChange
    from localflow.project import Project

    class FullStore(MemoryStateStore):
        def append(self, records: Any) -> None:
            if any(isinstance(record, StateChange) and record.name == "Completed" for record in records):
                raise StoreError("no room")
            super().append(records)

    executor = ManualExecutor()
    caught: list[BaseException] = []

    @flow(executor=executor)
    def around() -> None:
        futures = [same(1), same(2)]

        def watch(function: Callable[[Any], Any]) -> None:
            try:
                list(function(futures))
            except StoreError as error:
                caught.append(error)

        watchers = [threading.Thread(target=watch, args=(function,)) for function in (wait, as_completed)]
        for watcher in watchers:
            watcher.start()
        executor.run(executor.wait_for_calls(1)[0].id)
        for watcher in watchers:
            watcher.join(PATIENCE)

    with pytest.raises(StoreError):
        around.execute(Project.load(), FullStore(), {})

    assert [str(error) for error in caught] == ["no room", "no room"]


@pytest.mark.parametrize("function", [wait, as_completed])
def test_ctrl_c_ends_the_wait(function: Callable[[Any], Any]) -> None:
    """A signal that arrives while the main thread waits ends the waiting at once."""
    gates = Gates(1)
    futures: list[TaskFuture[int]] = []
    begun = threading.Event()

    @flow(executor="thread")
    def other() -> Completed:
        futures.append(after(gates, 0))
        begun.set()
        return Completed()

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(PATIENCE)
    alarm = threading.Timer(BRIEF, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(function(futures))
    finally:
        gates.open()
        thread.join()
        alarm.join()
