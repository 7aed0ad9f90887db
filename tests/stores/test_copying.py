"""Flow runs that are copied from one state store to another are the same there, or are not there at all."""

from __future__ import annotations

import signal
import subprocess
import sys
import tracemalloc
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from localflow.builtin.json_files import JsonStateStore
from localflow.builtin.memory import MemoryStateStore
from localflow.builtin.sqlite import SqliteStateStore
from localflow.copying import copy_trees
from localflow.errors import StoreError
from localflow.interfaces import CacheEntry, FlowRun, Payload, StateChange, StateType
from localflow.payloads import pack, unpack
from localflow.records import INCOMPLETE
from localflow.testing.faulty_store import FaultyStore
from localflow.testing.store_records import (
    make_completed,
    make_flow_run,
    make_log_entry,
    make_running,
    make_task_run,
)
from tests.stores.test_round_trip import comparable, flow_trees, in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from localflow.copying import CopiedTree
    from localflow.interfaces import Record, StateStore

MANY = 8_400  # state changes, which take several appends


def copy_all(source: StateStore, target: StateStore) -> list[CopiedTree]:
    """Copy every flow run that no other one called, the oldest first."""
    summaries = reversed(source.list_flow_runs())
    return list(copy_trees(source, target, [each for each in summaries if each.flow_run.parent_id is None]))


def contents(store: StateStore, root_id: str | None = None) -> dict[str, Any]:
    """Return all that a store gives of its flow runs, or of one tree of them."""
    return {
        summary.flow_run.id: (
            comparable(summary),
            comparable(in_order(list(store.read(summary.flow_run.id)))),
            comparable(list(store.read_logs(summary.flow_run.id))),
            [store.load_result(summary.flow_run.id, number) for number in range(5)],
        )
        for summary in store.list_flow_runs(root_id=root_id)
    }


def record_large(store: StateStore, id: str = "large") -> FlowRun:
    """Record a completed flow run with a subflow, whose copy takes several appends."""
    root = make_flow_run(id=id, arguments=Payload("json", b"{}"), entry_point="flows.py:main")
    child = make_flow_run(id=f"{id}-child", root_id=id, parent_id=id, created_at=root.created_at + 1)
    tasks = [make_task_run(child, number) for number in range(1, MANY // 2 + 1)]
    store.append([root, make_running(root), child, make_running(child), *tasks])
    store.append([change for task in tasks for change in (make_running(task), make_completed(task))])
    store.append([make_completed(child), make_log_entry(child), make_completed(root)])
    return root


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqliteStateStore]:
    """Open a store in SQLite."""
    with closing(SqliteStateStore(tmp_path / "state" / "localflow.db")) as store:
        yield store


@pytest.fixture
def json_files(tmp_path: Path) -> Iterator[JsonStateStore]:
    """Open a store of JSON files."""
    with closing(JsonStateStore(tmp_path / "state" / "runs")) as store:
        yield store


@pytest.fixture
def memory() -> MemoryStateStore:
    """Open a store in memory."""
    return MemoryStateStore()


@given(batches=flow_trees())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_copies_of_copies_are_the_same(
    sqlite: SqliteStateStore, json_files: JsonStateStore, memory: MemoryStateStore, batches: list[list[Record]]
) -> None:
    """Whatever is recorded is the same after it was copied from SQLite to JSON files and from there to memory."""
    for batch in batches:
        sqlite.append(batch)
    root = batches[0][0]
    assert isinstance(root, FlowRun)
    summaries = [each for each in sqlite.list_flow_runs(root_id=root.id) if each.flow_run.id == root.id]

    copies = [*copy_trees(sqlite, json_files, summaries), *copy_trees(json_files, memory, summaries)]
    again = [*copy_trees(sqlite, json_files, summaries), *copy_trees(sqlite, memory, summaries)]

    assert [each.outcome for each in copies] == ["copied"] * 2
    assert [each.outcome for each in again] == ["present"] * 2
    for store in (json_files, memory):
        assert contents(store, root.id) == contents(sqlite, root.id)
        for change in (record for batch in batches for record in batch if isinstance(record, StateChange)):
            if change.cache is not None and _is_only_one(change.cache.key, batches):
                keys = (change.cache.key, 0.0)
                assert comparable(store.find_cached(*keys)) == comparable(sqlite.find_cached(*keys))


def _is_only_one(key: str, batches: list[list[Record]]) -> bool:
    changes = [each for batch in batches for each in batch if isinstance(each, StateChange) and each.cache]
    return sum(each.cache is not None and each.cache.key == key for each in changes) == 1


@pytest.fixture(params=["sqlite", "json"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], StateStore]]:
    """Give a function that opens the store to copy to."""
    opened: list[StateStore] = []

    def open_target() -> StateStore:
        path = tmp_path / "target" / "store"
        opened.append(SqliteStateStore(path) if request.param == "sqlite" else JsonStateStore(path))
        return opened[-1]

    yield open_target
    for store in opened:
        store.close()


def test_large_run_is_copied_whole(sqlite: SqliteStateStore, target: Callable[[], StateStore]) -> None:
    """A run that takes several appends is the same afterwards, and what was copied is counted."""
    record_large(sqlite)

    (copied,) = copy_all(sqlite, target())

    assert copied.counts == (2, MANY // 2, MANY + 4, 1, MANY // 2 + 2)
    assert contents(target()) == contents(sqlite)
    assert target().check() == []


def test_copy_that_fails_leaves_nothing(sqlite: SqliteStateStore, memory: MemoryStateStore) -> None:
    """If an append fails in the middle, what was written before it is removed, and copying again succeeds."""
    record_large(sqlite)

    class FullStore(FaultyStore):
        """Has room for two appends."""

        appends = 0

        def append(self, records: Any) -> None:
            self.appends += 1
            if self.appends > 2:
                raise StoreError("full")
            memory.append(records)

    with pytest.raises(StoreError, match="full"):
        copy_all(sqlite, FullStore(memory))

    assert memory.list_flow_runs() == []
    assert [each.outcome for each in copy_all(sqlite, memory)] == ["copied"]


KILLED = """
import sys
from localflow.builtin.json_files import JsonStateStore
from localflow.builtin.sqlite import SqliteStateStore
from localflow.copying import copy_trees
source = SqliteStateStore(sys.argv[1])
target = (SqliteStateStore if sys.argv[2] == "sqlite" else JsonStateStore)(sys.argv[3])
print(*copy_trees(source, target, source.list_flow_runs(root_id="large")[-1:]))
"""


@pytest.mark.parametrize("moment", [1, 3])
def test_copy_that_was_killed_shows_what_it_is(
    sqlite: SqliteStateStore,
    target: Callable[[], StateStore],
    monkeypatch: pytest.MonkeyPatch,
    moment: int,
    tmp_path: Path,
) -> None:
    """After kill -9 nobody takes what is there for the run; copying again puts the whole run in its place."""
    root = record_large(sqlite)
    opened = target()
    kind = "sqlite" if isinstance(opened, SqliteStateStore) else "json"
    monkeypatch.setenv("LOCALFLOW_FAILPOINT", f"copied-a-part:{moment}")

    done = subprocess.run(
        [sys.executable, "-c", KILLED, sqlite.location, kind, opened.location], timeout=50, check=False
    )

    assert done.returncode == -signal.SIGKILL
    half = next(each.flow_run for each in opened.list_flow_runs() if each.flow_run.id == root.id)
    assert (half.name, half.arguments, half.tags) == (f"incomplete copy of {root.name}", None, (INCOMPLETE,))
    assert [each.flow_run.id for each in opened.list_flow_runs(unfinished=True)][-1] == root.id
    assert [each.outcome for each in copy_all(opened, MemoryStateStore())] == ["refused"]
    opened.append([make_running(half, 2), make_completed(half, 3, type=StateType.CRASHED, name="EngineLost")])

    assert [each.outcome for each in copy_all(sqlite, opened)] == ["copied"]
    assert contents(opened) == contents(sqlite)
    assert opened.check() == []


def test_run_with_another_history_is_not_touched(sqlite: SqliteStateStore, memory: MemoryStateStore) -> None:
    """A run that has gone on since it was copied, there or here, is refused; others are copied."""
    runs = [make_flow_run(id=f"run-{number}") for number in range(3)]
    for run in runs:
        sqlite.append([run, make_running(run), make_log_entry(run)])
    copy_all(sqlite, memory)
    sqlite.append([make_completed(runs[0])])
    memory.append([make_log_entry(runs[1])])

    outcomes = {each.summary.flow_run.id: each for each in copy_all(sqlite, memory)}

    assert {id: each.outcome for id, each in outcomes.items()} == {
        "run-0": "refused",
        "run-1": "refused",
        "run-2": "present",
    }
    assert outcomes["run-0"].reason.startswith("another history of it is in memory; remove it there")


def test_claimed_run_is_refused(sqlite: SqliteStateStore, memory: MemoryStateStore) -> None:
    """A run that an engine is at work on, in either store, is refused, and claims are released afterwards."""
    run = make_flow_run()
    sqlite.append([run, make_running(run)])
    for store, reason in ((sqlite, "its engine is at work"), (memory, "somebody is at work on it in memory")):
        claim = store.claim(run.id)
        assert claim is not None

        (refused,) = copy_all(sqlite, memory)

        claim.release()
        assert (refused.outcome, refused.reason[: len(reason)]) == ("refused", reason)
    assert [each.outcome for each in copy_all(sqlite, memory)] == ["copied"]
    for store in (sqlite, memory):
        claim = store.claim(run.id)
        assert claim is not None
        claim.release()


def test_results_of_earlier_attempts_are_found_by_their_keys(
    sqlite: SqliteStateStore, target: Callable[[], StateStore]
) -> None:
    """A run that completed several times has its last result, and the cache has those before it as before."""
    run = make_flow_run()
    task = make_task_run(run)
    times = ((1, "old", None), (2, "both", 30.0), (3, "both", 20.0), (4, "new", None))
    sqlite.append([run, task])
    for sequence, key, expires_at in times:
        result = Payload("json", b"%d" % sequence)
        at = 1000.0 + sequence
        sqlite.append([make_completed(task, sequence, timestamp=at, result=result, cache=CacheEntry(key, expires_at))])
    copied = target()

    copy_all(sqlite, copied)

    assert copied.load_result(run.id, 1) == Payload("json", b"4")
    for key in ("old", "both", "new"):
        for now in (0.0, 25.0, 35.0):
            assert copied.find_cached(key, now) == sqlite.find_cached(key, now)


def test_large_values_are_copied(sqlite: SqliteStateStore, target: Callable[[], StateStore], tmp_path: Path) -> None:
    """A result that lies in a file is whole in the other store, also after the first store has gone."""
    run = make_flow_run()
    task = make_task_run(run)
    value = bytes(range(256)) * 4000
    payload = pack(value, sqlite.value_folder(run.id))
    sqlite.append([run, task, make_completed(task, 1, result=payload), make_completed(run, 1, result=None)])
    copied, in_memory = target(), MemoryStateStore()

    copy_all(sqlite, copied)
    copy_all(sqlite, in_memory)
    sqlite.remove([run.id])

    for store in (copied, in_memory):
        result = store.load_result(run.id, 1)
        assert result is not None
        assert unpack(result) == value
    assert copied.check() == []


def test_memory_for_a_large_run_is_bounded(sqlite: SqliteStateStore, tmp_path: Path) -> None:
    """Results of many megabytes pass through in parts."""
    run = make_flow_run()
    sqlite.append([run])
    for number in range(1, 65):
        task = make_task_run(run, number)
        sqlite.append([task, make_completed(task, 1, result=Payload("pickle", bytes(1 << 20)))])
    with closing(SqliteStateStore(tmp_path / "target" / "localflow.db")) as target:
        tracemalloc.start()
        try:
            copy_all(sqlite, target)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert peak < 40 << 20
