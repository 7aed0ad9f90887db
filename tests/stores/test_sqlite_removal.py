"""Removing runs from the SQLite store: killed in the middle, beside engines at work, and the space it gives back."""

from __future__ import annotations

import signal
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.sqlite import SqliteStateStore
from localflow.failpoints import VARIABLE
from localflow.interfaces import CacheEntry, Payload
from localflow.testing.store_records import make_completed, make_flow_run, make_log_entry, make_running, make_task_run

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

REMOVE = """
store = open_store()
store.remove(["gone"])
"""
LARGE = Payload("pickle", bytes(10_000))


def record_tree(store: SqliteStateStore, id: str, tasks: int = 50) -> None:
    """Record a flow run with tasks, large and small results, a cache entry and log entries, and a subflow run of it."""
    top = make_flow_run(id=id)
    child = make_flow_run(id=f"{id}-child", root_id=id, parent_id=id)
    for run in (top, child):
        store.append([run, make_running(run)])
        for number in range(1, tasks + 1):
            task = make_task_run(run, number)
            result = LARGE if number % 2 else Payload("json", b"[1]")
            cache = CacheEntry(f"key of {id}")
            store.append([task, make_log_entry(task, "said"), make_completed(task, 1, result=result, cache=cache)])
        store.append([make_completed(run, 2, result=LARGE)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Say where a store is with one tree to remove and one to keep."""
    path = tmp_path / "state" / "localflow.db"
    with closing(SqliteStateStore(path)) as store:
        record_tree(store, "gone", 150)
        record_tree(store, "kept")
    return path


def rows(path: Path, table: str) -> int:
    """Count the rows of a table."""
    statements = {
        "flow_runs": "SELECT count(*) FROM flow_runs",
        "progress": "SELECT count(*) FROM progress",
        "task_runs": "SELECT count(*) FROM task_runs",
        "state_changes": "SELECT count(*) FROM state_changes",
        "large_results": "SELECT count(*) FROM large_results",
        "cache_entries": "SELECT count(*) FROM cache_entries",
        "log_entries": "SELECT count(*) FROM log_entries",
        "removed_runs": "SELECT count(*) FROM removed_runs",
    }
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute(statements[table]).fetchone()
        return int(count)


def assert_is_removed(path: Path) -> None:
    """Assert that nothing of the one tree is left in any table, and everything of the other is there."""
    counts = {
        **{"flow_runs": 2, "progress": 2, "task_runs": 100, "state_changes": 104, "large_results": 52},
        **{"cache_entries": 100, "log_entries": 100, "removed_runs": 0},
    }
    assert {table: rows(path, table) for table in counts} == counts
    with closing(SqliteStateStore(path)) as store:
        assert store.check() == []


def test_nothing_of_a_removed_tree_is_left(path: Path) -> None:
    """A tree of runs goes from every table, with its results and its log, and the file gets smaller."""
    size = path.stat().st_size

    with closing(SqliteStateStore(path)) as store:
        store.remove(["gone"])
        assert path.stat().st_size < size * 0.6
        assert path.with_name("localflow.db-wal").stat().st_size == 0

    assert_is_removed(path)


def test_removal_of_results_gives_their_space_back(path: Path) -> None:
    """Results are most of a store; without them the file is small, and the history is as it was."""
    size = path.stat().st_size

    with closing(SqliteStateStore(path)) as store:
        history = list(store.read("gone"))
        store.remove(["gone"], results_only=True)
        assert list(store.read("gone")) == history
        assert store.check() == []

    assert path.stat().st_size < size * 0.8
    assert rows(path, "large_results") == 52


@pytest.mark.parametrize("arrival", [1, 2, 3])
def test_removal_that_was_killed_is_seen_as_whole(
    path: Path,
    start: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
    arrival: int,
) -> None:
    """A process killed while it removes leaves the tree there or not; the next removal clears away what is left."""
    monkeypatch.setenv(VARIABLE, f"in-remove:{arrival}")
    died = start(REMOVE, "sqlite", path)
    assert died.wait() == -signal.SIGKILL

    with closing(SqliteStateStore(path)) as store:
        ids = [each.flow_run.id for each in store.list_flow_runs()]
        assert ids == ["kept-child", "kept"] if arrival > 1 else ["kept-child", "kept", "gone-child", "gone"]
        assert store.check() == []
        assert (store.find_cached("key of gone", 0.0) is None) == (arrival > 1)
        store.remove(["gone"] if arrival == 1 else [])

    assert_is_removed(path)


def test_engines_go_on_while_runs_are_removed(path: Path) -> None:
    """Appends of others succeed while a large tree is removed, and so do reads."""
    with closing(SqliteStateStore(path)) as store, closing(SqliteStateStore(path)) as other:
        run = make_flow_run(id="at-work")
        other.append([run, make_running(run)])
        removal = threading.Thread(target=store.remove, args=(["gone"],))
        removal.start()
        number = 0
        while removal.is_alive() or number < 20:
            number += 1
            task = make_task_run(run, number)
            other.append([task, make_completed(task, 1, result=LARGE)])
            assert other.load_result(run.id, number) == LARGE
        removal.join()

        assert len(list(other.read("at-work"))) == 2 + 2 * number
        assert other.check() == []


def test_keys_of_removed_runs_are_not_given_again(path: Path) -> None:
    """Records of a run that was removed meanwhile do not become another run's."""
    with closing(SqliteStateStore(path)) as store, closing(SqliteStateStore(path)) as other:
        last = make_flow_run(id="last")
        other.append([last])
        store.remove(["last"])
        new = make_flow_run(id="new")
        store.append([new])

        other.append([make_running(last)])  # which it knows from before

        assert list(store.read("new")) == [new]
