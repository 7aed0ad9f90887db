"""How often Python's cyclic garbage collector looks while a flow runs."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest

from localflow import flow, task
from localflow.garbage import YOUNG_OBJECTS
from localflow.testing import harness

if TYPE_CHECKING:
    from collections.abc import Iterator

BEFORE = (700, 10, 10)


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    """Have every test begin with the usual thresholds, and leave those that were there."""
    kept = gc.get_threshold()
    gc.set_threshold(*BEFORE)
    yield
    gc.set_threshold(*kept)


@flow(executor="process")
def looked_at() -> list[int]:
    """Return the thresholds in the body of a flow."""
    return [*gc.get_threshold()]


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.own = self


def test_a_flow_run_on_processes_has_it_look_rarely() -> None:
    """And afterwards it looks as often as before."""
    with harness(executor=None):
        during = looked_at().result()

    assert during == [YOUNG_OBJECTS, *BEFORE[1:]]
    assert gc.get_threshold() == BEFORE


@pytest.mark.parametrize("executor", ["sequential", "thread"])
def test_where_tasks_run_here_it_looks_as_often_as_ever(executor: str) -> None:
    """A few objects of theirs may hold a lot of memory."""
    alive: weakref.WeakSet[Cycle] = weakref.WeakSet()
    most = 0

    @task
    def leave_a_cycle() -> None:
        nonlocal most
        alive.add(Cycle())
        most = max(most, len(alive))

    @flow(executor=executor)
    def leave_many() -> None:
        for _ in range(2_000):
            leave_a_cycle()

    with harness(executor=None):
        assert leave_many().is_completed()

    assert most < 1_000


def test_one_task_that_runs_here_is_enough_for_that() -> None:
    """From its first call on."""

    @task(executor="thread")
    def here() -> None:
        pass

    @flow(executor="process")
    def mixed() -> list[tuple[int, int, int]]:
        before = gc.get_threshold()
        here().wait()
        return [before, gc.get_threshold()]

    with harness(executor=None):
        before, after = mixed().result()

    assert before[0] == YOUNG_OBJECTS
    assert after == BEFORE


@pytest.mark.parametrize("threshold", [0, 10 * YOUNG_OBJECTS])
def test_who_has_it_off_or_rarer_keeps_that(threshold: int) -> None:
    """A program that has thought about this knows better."""
    gc.set_threshold(threshold)

    with harness(executor=None):
        during = looked_at().result()

    assert during[0] == threshold


def test_what_a_flow_sets_stays() -> None:
    """A body that sets the thresholds has set them for the program."""

    @flow(executor="process")
    def sets() -> None:
        gc.set_threshold(1234)

    with harness(executor=None):
        sets()

    assert gc.get_threshold()[0] == 1234
