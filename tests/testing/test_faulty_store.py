"""The store that fails on purpose: without faults it is the store that it wraps, with them it fails as it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from localflow.builtin.memory import MemoryStateStore
from localflow.interfaces import StateStore, StoreError
from localflow.testing import FaultyStore, StateStoreContract, make_change

if TYPE_CHECKING:
    from collections.abc import Callable


class TestWithoutFaults(StateStoreContract):
    """It hands everything on."""

    @pytest.fixture
    def make_store(self) -> Callable[[], StateStore]:
        """Wrap a new memory store each time."""
        return lambda: FaultyStore(MemoryStateStore())


def appended(**faults: float) -> tuple[list[bool], int]:
    """Append flow runs; return whether each append failed, and how many flow runs are stored."""
    store = FaultyStore(MemoryStateStore(), **faults, seed=7)
    failed = []
    for number in range(200):
        run = make_change(task_run=None).run.flow_run._replace(id=f"{number:020}", root_id=f"{number:020}")
        try:
            store.append([run])
        except StoreError:
            failed.append(True)
        else:
            failed.append(False)
    assert store.failures == sum(failed)
    return failed, len(store.list_flow_runs())


def test_it_fails_before_writing() -> None:
    """What failed is not stored, all else is."""
    failed, stored = appended(rate=0.3)

    assert 30 < sum(failed) < 90
    assert stored == 200 - sum(failed)


def test_it_fails_after_writing() -> None:
    """What failed is stored all the same."""
    failed, stored = appended(execute_and_fail=0.3)

    assert 30 < sum(failed) < 90
    assert stored == 200


def test_a_seed_makes_it_fail_at_the_same_places() -> None:
    """A failure can be looked at again."""
    assert appended(rate=0.1, execute_and_fail=0.1) == appended(rate=0.1, execute_and_fail=0.1)


@pytest.mark.parametrize(("rate", "execute_and_fail"), [(-0.1, 0.0), (0.6, 0.6), (0.0, 1.1)])
def test_rates_are_parts_of_one(rate: float, execute_and_fail: float) -> None:
    """A percentage is a mistake."""
    with pytest.raises(ValueError, match="are parts of 1"):
        FaultyStore(MemoryStateStore(), rate, execute_and_fail=execute_and_fail)
