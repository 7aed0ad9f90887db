"""Blocks of the SQLite store: what an engine has recorded of task runs, many records in one value."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow.builtin.sqlite import SqliteStateStore
from localflow.builtin.storage import blocks
from localflow.errors import CorruptStoreError, StoreError
from localflow.interfaces import CacheEntry, Payload, StateChange, TaskRun
from localflow.standings import standings_of
from localflow.testing.store_records import (
    changes_of,
    make_completed,
    make_flow_run,
    make_log_entry,
    make_running,
    make_task_run,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from localflow.interfaces import Record

FLOW_RUN = make_flow_run(id="a-run")
SHORT = Payload("json", b"1")
LONG = Payload("pickle", bytes(5_000))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Say where the store is."""
    return tmp_path / "state" / "localflow.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStateStore]:
    """Open the store, with a flow run in it."""
    with closing(SqliteStateStore(path)) as store:
        store.append([FLOW_RUN, make_running(FLOW_RUN)])
        yield store


@contextmanager
def claimed(store: SqliteStateStore) -> Iterator[None]:
    """Hold the claim on the flow run for the block, as an engine at work does."""
    claim = store.claim(FLOW_RUN.id)
    assert claim is not None
    try:
        yield
    finally:
        claim.release()


def lives(*numbers: int, result: Payload = SHORT) -> list[Record]:
    """Return all records of some task runs."""
    runs = [make_task_run(FLOW_RUN, number) for number in numbers]
    ends = [make_completed(run, 2, result=result) for run in runs]
    return [*runs, *[make_running(run) for run in runs], *ends]


def counts(path: Path) -> tuple[int, int, int]:
    """Return how many blocks, rows of task runs and rows of their state changes there are."""
    with closing(sqlite3.connect(path)) as connection:
        return tuple(
            connection.execute(statement).fetchone()[0]
            for statement in (
                "SELECT count(*) FROM blocks",
                "SELECT count(*) FROM task_runs",
                "SELECT count(*) FROM state_changes WHERE number > 0",
            )
        )  # type: ignore[return-value]


def seen(store: SqliteStateStore) -> list[Record]:
    """Return the records of the task runs, without results."""
    return [record for record in store.read(FLOW_RUN.id) if not _is_of_flow(record)]


def _is_of_flow(record: Record) -> bool:
    return (record.run if isinstance(record, StateChange) else record).number == 0


def without_results(records: list[Record]) -> list[Record]:
    """Return records as they are read back."""
    return [record._replace(result=None) if isinstance(record, StateChange) else record for record in records]


def test_many_commits_of_an_engine_become_one_block(store: SqliteStateStore, path: Path) -> None:
    """And every reader finds the same in it as in rows."""
    with claimed(store):
        for number in range(1, 50):
            store.append(lives(number))

    assert counts(path) == (1, 0, 0)
    assert store.check() == []
    assert seen(store)[:49] == [make_task_run(FLOW_RUN, number) for number in range(1, 50)]
    assert [change.name for change in changes_of(seen(store))] == ["Running", "Completed"] * 49
    assert store.load_result(FLOW_RUN.id, 7) == SHORT
    assert store.read_standings(FLOW_RUN.id) == standings_of(store.read(FLOW_RUN.id))
    assert [record.number for record in store.read_chosen(FLOW_RUN.id, called="load-7") if isinstance(record, TaskRun)]


@pytest.mark.parametrize("called", ["clean", "clean \udc00\n", "load", "no such"])
def test_task_runs_are_found_by_what_they_are_called(store: SqliteStateStore, called: str) -> None:
    """By their own name as by that of the task, whatever is in it."""
    runs = [make_task_run(FLOW_RUN, number) for number in (1, 2, 3)]
    runs[1] = runs[1]._replace(name="clean \udc00\n", task="clean")
    with claimed(store):
        store.append(runs)

    found = [record for record in store.read_chosen(FLOW_RUN.id, called=called) if isinstance(record, TaskRun)]

    assert found == [run for run in runs if called in (run.name, run.task)]


def test_what_others_must_find_by_itself_becomes_rows(store: SqliteStateStore, path: Path) -> None:
    """Long results, cached ones and log lines; the rest of the same commits is packed."""
    run = make_task_run(FLOW_RUN, 1)
    cached = make_completed(make_task_run(FLOW_RUN, 2), 1, result=SHORT, cache=CacheEntry("a key"))
    with claimed(store):
        store.append([run, make_running(run), make_log_entry(run, "said"), make_task_run(FLOW_RUN, 2)])
        store.append([make_completed(run, 2, result=LONG), cached])

    assert counts(path) == (1, 0, 2)
    assert store.load_result(FLOW_RUN.id, 1) == LONG
    found = store.find_cached("a key", 0.0)
    assert found is not None
    assert found.result == SHORT
    assert [entry.message for _, entry in store.read_logs(FLOW_RUN.id)] == ["said"]
    assert [change.sequence for change in changes_of(seen(store))] == [1, 2, 1]
    assert store.check() == []


@pytest.mark.parametrize("is_claimed", [True, False])
def test_a_change_that_is_in_a_block_is_refused(store: SqliteStateStore, is_claimed: bool) -> None:
    """Whoever records it again, the engine itself or another process later."""
    with claimed(store):
        store.append(lives(1))
        if is_claimed:
            with pytest.raises(StoreError, match="already"):
                store.append([make_running(make_task_run(FLOW_RUN, 1))])
    if not is_claimed:
        with pytest.raises(StoreError, match="already"):
            store.append([make_running(make_task_run(FLOW_RUN, 1))])

    assert len(changes_of(seen(store))) == 2
    assert store.check() == []


def test_a_later_engine_goes_on_where_a_block_ends(path: Path) -> None:
    """The next attempt of a run follows its changes in the block, and its record takes the place of that there."""
    with closing(SqliteStateStore(path)) as store:
        store.append([FLOW_RUN, make_running(FLOW_RUN)])
        with claimed(store):
            store.append(lives(1, 2))
    again = make_task_run(FLOW_RUN, 2)._replace(version="2")

    with closing(SqliteStateStore(path)) as store:
        with claimed(store):
            store.append([again, make_running(again, 3), make_task_run(FLOW_RUN, 3)])
            store.append([make_completed(again, 4, result=LONG)])

        assert [run.version for run in seen(store) if isinstance(run, TaskRun)] == ["", "2", ""]
        assert [(each.run.number, each.sequence) for each in changes_of(seen(store))] == [
            *((1, 1), (1, 2)),
            *((2, 1), (2, 2), (2, 3), (2, 4)),
        ]
        assert store.load_result(FLOW_RUN.id, 2) == LONG
        assert store.check() == []


def test_results_are_removed_from_blocks(store: SqliteStateStore) -> None:
    """The history stays, and so does what else is in the block."""
    with claimed(store):
        store.append(lives(1, 2))
    history = seen(store)

    store.remove([FLOW_RUN.id], results_only=True)

    assert store.load_result(FLOW_RUN.id, 1) is None
    assert seen(store) == history
    assert store.check() == []


def test_blocks_go_with_their_flow_run(store: SqliteStateStore, path: Path) -> None:
    """Nothing is left of them."""
    with claimed(store):
        store.append(lives(*range(1, 100)))

    store.remove([FLOW_RUN.id])

    assert counts(path) == (0, 0, 0)


def damage(path: Path, statement: str, *values: Any) -> None:
    """Change something in the database behind the store's back."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement, values)
        connection.commit()


@pytest.mark.parametrize("column", ["first", "changes", "content"])
def test_a_damaged_block_is_noticed_and_the_others_saved(
    path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    """Readers refuse it, doctor names it, and a repair keeps what is in the other ones."""
    monkeypatch.setattr(blocks, "_MOST_BYTES", 1)
    with closing(SqliteStateStore(path)) as store:
        store.append([FLOW_RUN, make_running(FLOW_RUN)])
        with claimed(store):
            for number in (1, 2, 3):
                store.append(lives(number))
    wrong = "zeroblob(200)" if column == "content" else "9"
    damage(path, f"UPDATE blocks SET {column} = {wrong} WHERE first = 3")

    with closing(SqliteStateStore(path)) as store:
        with pytest.raises(CorruptStoreError, match="block 3"):
            list(store.read(FLOW_RUN.id))
        assert "block 3 of task runs is not as it was written" in store.check()
    told = SqliteStateStore.repair(path)

    assert any("copied" in line for line in told)
    with closing(SqliteStateStore(path)) as store:
        assert [run.number for run in seen(store) if isinstance(run, TaskRun)] == [1, 2]
        assert store.load_result(FLOW_RUN.id, 2) == SHORT
        assert store.check() == []


def test_a_missing_block_is_noticed(store: SqliteStateStore, path: Path) -> None:
    """Once a flow run has ended it is known how many changes there are."""
    with claimed(store):
        store.append(lives(1))
        store.append([make_completed(FLOW_RUN, 2)])
    damage(path, "DELETE FROM blocks")

    with pytest.raises(CorruptStoreError, match="has 2 state changes where 4 were recorded"):
        list(store.read(FLOW_RUN.id))


@given(data=st.data())
def test_rows_and_blocks_are_read_as_one(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """However the records of task runs are spread over commits, rows and blocks, they are read in their order."""
    count = data.draw(st.integers(1, 12))
    records = lives(*range(1, count + 1))
    batches = data.draw(st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=10))
    order = [record for record in data.draw(st.permutations(records)) if isinstance(record, TaskRun)]
    order += [record for record in records if not isinstance(record, TaskRun)]
    path = tmp_path_factory.mktemp("store") / "state" / "localflow.db"

    with closing(SqliteStateStore(path)) as store:
        store.append([FLOW_RUN, make_running(FLOW_RUN)])
        while order:
            size, is_claimed = batches[len(order) % len(batches)]
            batch, order = order[:size], order[size:]
            if is_claimed:
                with claimed(store):
                    store.append(batch)
            else:
                store.append(batch)

        assert seen(store) == without_results(sorted(records, key=_place))
        assert store.read_standings(FLOW_RUN.id) == standings_of(store.read(FLOW_RUN.id))
        assert [store.load_result(FLOW_RUN.id, number) for number in range(1, count + 1)] == [SHORT] * count
        assert store.check() == []


def _place(record: Record) -> tuple[int, int, int]:
    if isinstance(record, StateChange):
        return (1, record.run.number, record.sequence)
    assert isinstance(record, TaskRun)
    return (0, record.number, 0)
