"""The order in which runs that are ready start."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow import Cancelled, ThreadExecutor, flow, task
from localflow.ready import ReadyQueue
from localflow.testing import harness


def run(priority: int, depth: int, number: int) -> Any:
    """Return what the queue looks at of a run."""
    task, future = SimpleNamespace(priority=priority), SimpleNamespace(_ending=None)
    return SimpleNamespace(task=task, depth=depth, number=number, future=future)


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 3))))
def test_the_order_is_by_priority_then_depth_then_call(ranks: list[tuple[int, int]]) -> None:
    """And nothing is lost."""
    queue = ReadyQueue()
    for number, (priority, depth) in enumerate(ranks):
        queue.append(run(priority, depth, number))
    assert queue.size == len(ranks)

    half = len(ranks) // 2
    taken = [*queue.take(half), *queue.take(len(ranks))]

    expected = sorted(range(len(ranks)), key=lambda number: (-ranks[number][0], -ranks[number][1], number))
    assert [each.number for each in taken] == expected
    assert queue.size == 0


def test_what_is_put_in_front_comes_first() -> None:
    """A run that holds a permit already goes before any priority."""
    queue = ReadyQueue()
    queue.append(run(9, 9, 0))
    queue.appendleft(run(0, 0, 1))

    assert [each.number for each in queue.take(1)] == [1]
    assert [each.number for each in queue.take(2)] == [0]
    assert queue.take(1) == []


def test_what_has_ended_while_it_waited_takes_no_room() -> None:
    """A run that was cancelled is passed over for the next."""
    queue = ReadyQueue()
    for number in range(3):
        queue.append(run(0, 0, number))
    queue.take(1)
    late = run(0, 0, 3)
    late.future._ending = Cancelled()
    queue.appendleft(late)

    assert [each.number for each in queue.take(1)] == [1]
    assert queue.size == 1


def test_a_higher_priority_starts_first() -> None:
    """Of what waits for a worker, and without a say in what is at work already."""
    order: list[str] = []
    go_on = threading.Event()

    @task
    def hold() -> None:
        go_on.wait(10)

    @task
    def note(name: str) -> None:
        order.append(name)

    @flow
    def main() -> None:
        hold()
        note("usual")
        note.with_options(priority=-1)("late")
        note.with_options(priority=1)("urgent")
        go_on.set()

    with harness(ThreadExecutor(workers=1)):
        assert main().is_completed()

    assert order == ["urgent", "usual", "late"]


def test_what_has_more_behind_it_starts_before_what_is_new() -> None:
    """A run that has become ready by the end of another one goes before one that waits for a worker alone."""
    order: list[str] = []
    go_on = threading.Event()

    @task
    def hold() -> None:
        go_on.wait(10)

    @task
    def note(name: str) -> None:
        order.append(name)

    @flow
    def main() -> None:
        held = hold()
        note("new")
        note("next", wait_for=[held])
        go_on.set()

    with harness(ThreadExecutor(workers=1)):
        assert main().is_completed()

    assert order == ["next", "new"]


@pytest.mark.parametrize("priority", ["high", 1.5, True])
def test_a_priority_is_a_whole_number(priority: Any) -> None:
    """Anything else is told at the decoration."""
    with pytest.raises(TypeError, match=r"@task 'note'.* priority takes a whole number, not"):

        @task(priority=priority)
        def note() -> None:
            pass


def test_every_worker_gets_a_call_while_the_flow_does_something_else() -> None:
    """Calls are held back for others only where nobody is idle."""
    workers = 20
    begun = threading.Semaphore(0)
    go_on = threading.Event()

    @task
    def hold() -> None:
        begun.release()
        go_on.wait(10)

    @flow
    def main() -> bool:
        for _ in range(workers):
            hold()
        came = all(begun.acquire(timeout=5) for _ in range(workers))
        go_on.set()
        return came

    with harness(ThreadExecutor(workers=workers)):
        assert main().result()


def test_who_waits_for_a_run_that_needs_no_worker_waits_for_no_worker() -> None:
    """What is blocked is told at once, also while all workers are busy for long."""
    go_on = threading.Event()

    @task
    def fail() -> None:
        raise ValueError("boom")

    @task
    def hold() -> None:
        go_on.wait(10)

    @flow
    def main() -> str:
        failed = fail()
        failed.wait()
        hold()
        hold()
        blocked = hold(wait_for=[failed])
        looked = blocked.done()  # whoever only looks is told, too
        state = blocked.wait(5)
        go_on.set()
        return state.name if looked and state is not None else "nothing"

    with harness(ThreadExecutor(workers=1)):
        assert main().result() == "NotReady"
