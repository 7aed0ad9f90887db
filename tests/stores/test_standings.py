"""What the SQLite store keeps of how the task runs of a large flow run stand."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.sqlite import SqliteStateStore
from localflow.builtin.storage import standing_rows
from localflow.errors import CorruptStoreError
from localflow.testing.store_records import make_completed, make_flow_run, make_running, make_task_run

if TYPE_CHECKING:
    from pathlib import Path

    from localflow.interfaces import FlowRun


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Say where a store is to which few changes are many."""
    monkeypatch.setattr(standing_rows, "FEW_CHANGES", 3)
    return tmp_path / "localflow.db"


def record(store: SqliteStateStore, task_runs: int) -> FlowRun:
    """Record a flow run that has ended, with so many task runs that have completed."""
    flow_run = make_flow_run()
    made = [make_task_run(flow_run, number) for number in range(1, task_runs + 1)]
    store.append([flow_run, make_running(flow_run), *made, *map(make_completed, made), make_completed(flow_run)])
    return flow_run


def kept(path: Path) -> int:
    """Return of how many flow runs something is kept."""
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM standings").fetchone()
        return int(count)


def damage(path: Path, statement: str) -> None:
    """Change a row behind the store's back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(statement).rowcount == 1


def test_only_large_flow_runs_that_have_ended_are_counted_ahead(path: Path) -> None:
    """A small one costs nothing when it ends; one that goes on is forgotten, and so is one that is removed."""
    with closing(SqliteStateStore(path)) as store:
        record(store, 1)
        assert kept(path) == 0

        large = record(store, 2)
        assert kept(path) == 1

        store.append([make_running(large, 3)])
        assert kept(path) == 0

        store.append([make_completed(large, 4)])
        assert kept(path) == 1

        store.append([make_running(make_task_run(large), 3)])
        assert kept(path) == 0

        other = record(store, 2)
        store.remove([other.id])
        assert kept(path) == 0


def test_damage_of_what_is_kept_is_noticed(path: Path) -> None:
    """What is not as it was written is never answered from."""
    with closing(SqliteStateStore(path)) as store:
        flow_run = record(store, 2)
        damage(path, "UPDATE standings SET content = replace(content, 'COMPLETED', 'FAILED')")

        with pytest.raises(CorruptStoreError, match="stand is not as it was written"):
            store.read_standings(flow_run.id)
        assert any("stand is not as it was written" in problem for problem in store.check())


def test_a_check_counts_again(path: Path) -> None:
    """What is kept must be what a count of the rows gives."""
    with closing(SqliteStateStore(path)) as store:
        record(store, 2)
        damage(path, "DELETE FROM state_changes WHERE number = 1")

        assert any("stand was not counted rightly" in problem for problem in store.check())


def test_the_task_run_with_the_highest_number_counts(tmp_path: Path) -> None:
    """It is a row, as what was recorded without a claim."""
    flow_run = make_flow_run()
    run = make_task_run(flow_run, 2**63 - 1)
    with closing(SqliteStateStore(tmp_path / "highest.db")) as store:
        store.append([flow_run, run, make_running(run)])

        [standing] = store.read_standings(flow_run.id)

    assert (standing.name, standing.numbers) == ("Running", (range(2**63 - 1, 2**63),))
