"""How often Python's cyclic garbage collector looks while a flow runs."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from localflow import flow
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


@flow
def looked_at() -> list[int]:
    """Return the thresholds in the body of a flow."""
    return [*gc.get_threshold()]


def test_a_flow_run_has_it_look_rarely() -> None:
    """And afterwards it looks as often as before."""
    with harness():
        during = looked_at().result()

    assert during == [YOUNG_OBJECTS, *BEFORE[1:]]
    assert gc.get_threshold() == BEFORE


@pytest.mark.parametrize("threshold", [0, 10 * YOUNG_OBJECTS])
def test_who_has_it_off_or_rarer_keeps_that(threshold: int) -> None:
    """A program that has thought about this knows better."""
    gc.set_threshold(threshold)

    with harness():
        during = looked_at().result()

    assert during[0] == threshold


def test_what_a_flow_sets_stays() -> None:
    """A body that sets the thresholds has set them for the program."""

    @flow
    def sets() -> None:
        gc.set_threshold(1234)

    with harness():
        sets()

    assert gc.get_threshold()[0] == 1234
