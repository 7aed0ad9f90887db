"""The store that fails on purpose: without faults it is the store that it wraps, with them it fails as it says."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from localflow import flow, task
from localflow.builtin.memory import MemoryStateStore
from localflow.builtin.sqlite import SqliteStateStore
from localflow.interfaces import StateStore, StoreError
from localflow.testing import Dies, Fails, FaultyStore, Full, Hangs, Slow, StateStoreContract, harness, make_change
from localflow.testing.store_records import make_flow_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class TestWithoutFaults(StateStoreContract):
    """It hands everything on."""

    @pytest.fixture
    def make_store(self) -> Callable[[], StateStore]:
        """Wrap a new memory store each time."""
        return lambda: FaultyStore(MemoryStateStore())


class TestWithoutFaultsOverFiles(StateStoreContract):
    """It promises what the store promises that it wraps, and hands everything on."""

    @pytest.fixture
    def make_store(self, tmp_path: Path) -> Callable[[], StateStore]:
        """Wrap the same file each time."""
        return lambda: FaultyStore(SqliteStateStore(tmp_path / "state" / "localflow.db"))


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


# -- faults told one by one ------------------------------------------------------------------------------------------


@pytest.fixture
def records() -> MemoryStateStore:
    """Return the store that is wrapped."""
    return MemoryStateStore()


def outcomes(store: StateStore, count: int = 8) -> str:
    """Append flow runs and return a letter for each: s for stored, f for failed."""
    letters = ""
    for _ in range(count):
        try:
            store.append([make_flow_run()])
        except StoreError:
            letters += "f"
        else:
            letters += "s"
    return letters


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({}, "ffffffff"),
        ({"after": 3}, "sssfffff"),
        ({"after": 3, "times": 2}, "sssffsss"),
        ({"every": 3}, "ssfssfss"),
        ({"after": 1, "every": 2, "times": 2}, "ssfsfsss"),
        ({"times": 0}, "ssssssss"),
    ],
    ids=str,
)
def test_a_fault_strikes_when_it_is_told_to(records: MemoryStateStore, when: dict[str, int], expected: str) -> None:
    """The first `after` operations go well, then one in `every` is struck, `times` times."""
    fault = Fails(**when)
    store = FaultyStore(records, append=fault)

    assert outcomes(store) == expected
    assert fault.strikes == store.failures == expected.count("f")
    assert len(records.list_flow_runs()) == expected.count("s")


def test_what_is_done_before_it_fails_is_stored(records: MemoryStateStore) -> None:
    """With `done` the store fails after it has written everything."""
    assert outcomes(FaultyStore(records, append=Fails(done=True))) == "f" * 8

    assert len(records.list_flow_runs()) == 8


def test_any_method_may_fail_with_any_error(records: MemoryStateStore) -> None:
    """A fault belongs to the method of its name alone, and raises the error it is given."""
    store = FaultyStore(records, read=Fails(KeyError("gone")), claim=Fails())
    run = make_flow_run()
    store.append([run])

    with pytest.raises(KeyError, match="gone"):
        store.read(run.id)
    with pytest.raises(StoreError, match="claim of state store memory fails on purpose"):
        store.claim(run.id)
    assert len(store.list_flow_runs()) == 1


def test_a_full_disk_may_be_emptied(records: MemoryStateStore) -> None:
    """It fails as for want of space, until there is some again."""
    full = Full(after=2)
    store = FaultyStore(records, append=full)

    before = outcomes(store, 4)
    with pytest.raises(StoreError, match="No space left on device"):
        store.append([make_flow_run()])
    full.free()

    assert (before, outcomes(store, 4)) == ("ssff", "ssss")


def test_slow_takes_its_time_and_goes_well(records: MemoryStateStore) -> None:
    """The operation is done, later."""
    store = FaultyStore(records, append=Slow(0.05, times=1))

    began_at = time.monotonic()
    outcome = outcomes(store, 1)

    assert outcome == "s"
    assert time.monotonic() - began_at >= 0.05


def test_what_hangs_goes_on_when_the_store_is_closed(records: MemoryStateStore) -> None:
    """Nobody waits for ever in a test that forgets to release it."""
    store = FaultyStore(records, list_flow_runs=Hangs())
    ended: list[object] = []

    def look() -> None:
        with suppress(StoreError):
            ended.append(store.list_flow_runs())

    thread = threading.Thread(target=look)
    thread.start()
    assert ended == []
    store.close()
    thread.join(10)

    assert not thread.is_alive()


@pytest.mark.parametrize("done", [False, True])
def test_the_process_dies_around_an_append(tmp_path: Path, done: bool) -> None:
    """It dies as by `kill -9`, with the records of that append stored or not, as told."""
    path = tmp_path / "state" / "localflow.db"
    program = textwrap.dedent(f"""
        from pathlib import Path
        from localflow.builtin.sqlite import SqliteStateStore
        from localflow.testing import Dies, FaultyStore
        from localflow.testing.store_records import make_flow_run
        store = FaultyStore(SqliteStateStore(Path({str(path)!r})), append=Dies(after=2, done={done}))
        for _ in range(5):
            store.append([make_flow_run()])
    """)

    ended = subprocess.run([sys.executable, "-c", program], timeout=40, check=False)

    with closing(SqliteStateStore(path)) as store:
        assert ended.returncode == -signal.SIGKILL
        assert len(store.list_flow_runs()) == 2 + done


def test_faults_of_what_is_no_method_are_a_mistake(records: MemoryStateStore) -> None:
    """A misspelt method is named with those there are."""
    with pytest.raises(TypeError, match=r"no faults of apend; those that may fail are append, "):
        FaultyStore(records, apend=Dies())


def test_a_flow_goes_on_as_a_store_lets_it() -> None:
    """With a store that fails once a flow is not told as completed; with a slow one it is."""

    @task
    def one() -> int:
        return 1

    @flow
    def main() -> int:
        return one().result()

    with harness(store=FaultyStore(MemoryStateStore(), append=Slow(0.001))):
        assert main().is_completed()
    with harness(store=FaultyStore(MemoryStateStore(), append=Fails(after=1))), pytest.raises(StoreError):
        main()
