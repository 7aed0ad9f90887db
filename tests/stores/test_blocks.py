"""Blocks of the SQLite store: what an engine has recorded of task runs, many records in one value."""

from __future__ import annotations

import marshal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localflow.builtin.sqlite import SqliteStateStore
from localflow.builtin.storage import blocks
from localflow.builtin.storage.checksums import block_checksum
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
from tests.stores.conftest import claimed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
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
    with claimed(store, FLOW_RUN.id):
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
    with claimed(store, FLOW_RUN.id):
        store.append(runs)

    found = [record for record in store.read_chosen(FLOW_RUN.id, called=called) if isinstance(record, TaskRun)]

    assert found == [run for run in runs if called in (run.name, run.task)]


def test_what_others_must_find_by_itself_becomes_rows(store: SqliteStateStore, path: Path) -> None:
    """Long results, cached ones and log lines; the rest of the same commits is packed."""
    run = make_task_run(FLOW_RUN, 1)
    cached = make_completed(make_task_run(FLOW_RUN, 2), 1, result=SHORT, cache=CacheEntry("a key"))
    with claimed(store, FLOW_RUN.id):
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
    with claimed(store, FLOW_RUN.id):
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
        with claimed(store, FLOW_RUN.id):
            store.append(lives(1, 2))
    again = make_task_run(FLOW_RUN, 2)._replace(version="2")

    with closing(SqliteStateStore(path)) as store:
        with claimed(store, FLOW_RUN.id):
            store.append([again, make_running(again, 3), make_task_run(FLOW_RUN, 3)])
            store.append([make_completed(again, 4, result=LONG)])

        assert [run.version for run in seen(store) if isinstance(run, TaskRun)] == ["", "2", ""]
        assert [(each.run.number, each.sequence) for each in changes_of(seen(store))] == [
            *((1, 1), (1, 2)),
            *((2, 1), (2, 2), (2, 3), (2, 4)),
        ]
        assert store.load_result(FLOW_RUN.id, 2) == LONG
        assert store.check() == []


def test_what_a_later_engine_goes_on_with_is_packed(store: SqliteStateStore, path: Path) -> None:
    """Where an earlier one has ended is looked up, so its commits need not go into the database one by one."""
    with claimed(store, FLOW_RUN.id):
        store.append(lives(1, 2))
    with claimed(store, FLOW_RUN.id):
        for number in (1, 2):
            store.append([make_running(make_task_run(FLOW_RUN, number), 3)])

    assert counts(path) == (2, 0, 0)
    assert [change.sequence for change in changes_of(seen(store))] == [1, 2, 3] * 2


def test_results_are_removed_from_blocks(store: SqliteStateStore) -> None:
    """The history stays, and so does what else is in the block."""
    with claimed(store, FLOW_RUN.id):
        store.append(lives(1, 2))
    history = seen(store)

    store.remove([FLOW_RUN.id], results_only=True)

    assert store.load_result(FLOW_RUN.id, 1) is None
    assert seen(store) == history
    assert store.check() == []


def test_blocks_go_with_their_flow_run(store: SqliteStateStore, path: Path) -> None:
    """Nothing is left of them."""
    with claimed(store, FLOW_RUN.id):
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
        with claimed(store, FLOW_RUN.id):
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
    with claimed(store, FLOW_RUN.id):
        store.append(lives(1))
        store.append([make_completed(FLOW_RUN, 2)])
    damage(path, "DELETE FROM blocks")

    with pytest.raises(CorruptStoreError, match="has 2 state changes where 4 were recorded"):
        list(store.read(FLOW_RUN.id))


NONSENSE = {
    "nothing": b"",
    "a number": marshal.dumps(5),
    "no pack": marshal.dumps([marshal.dumps(None)]),
    "cut off": marshal.dumps([marshal.dumps(([], []))[:-1]]),
    "empty rows": marshal.dumps([marshal.dumps(([()], [(), ()]))]),
    "short rows": marshal.dumps([marshal.dumps(([(1,)], [(1, 1), (1, 2)]))]),
    "texts": marshal.dumps([marshal.dumps((["abc"], ["abc", "abc"]))]),
    "no state": marshal.dumps([marshal.dumps(([], [(1, 1, "NONE", "", "", 0.0, "", 1)]))]),
    "other numbers": marshal.dumps([marshal.dumps(([], [(7, 1, "RUNNING", "", "", 0.0, "", 1)]))]),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_block_that_makes_no_sense_is_damage(path: Path, what: str) -> None:
    """Even if its checksum fits: for readers, for who records more of the same task run, and for a repair."""
    with closing(SqliteStateStore(path)) as store:
        store.append([FLOW_RUN, make_running(FLOW_RUN)])
        with claimed(store, FLOW_RUN.id):
            store.append(lives(1))
    content = NONSENSE[what]
    with closing(sqlite3.connect(path)) as connection:
        columns = connection.execute("SELECT flow_run, first, last, task_runs, changes FROM blocks").fetchone()
    damage(path, "UPDATE blocks SET content = ?, checksum = ?", content, block_checksum((*columns, content)))

    with closing(SqliteStateStore(path)) as store:
        for look in (
            lambda: list(store.read(FLOW_RUN.id)),
            lambda: list(store.read_chosen(FLOW_RUN.id, [1])),
            lambda: store.load_result(FLOW_RUN.id, 1),
            lambda: store.read_standings(FLOW_RUN.id),
            lambda: store.append([make_running(make_task_run(FLOW_RUN, 1), 3)]),
            lambda: store.remove([FLOW_RUN.id], results_only=True),
        ):
            with pytest.raises(CorruptStoreError, match="block 1"):
                look()
        with claimed(store, FLOW_RUN.id), pytest.raises(CorruptStoreError, match="block 1"):
            store.append([make_running(make_task_run(FLOW_RUN, 1), 3)])
        assert "block 1" in store.check()[0]
    SqliteStateStore.repair(path)

    with closing(SqliteStateStore(path)) as store:
        assert store.check() == seen(store) == []


def test_who_looks_for_a_name_notices_a_damaged_block(store: SqliteStateStore, path: Path) -> None:
    """The name may be what is damaged."""
    with claimed(store, FLOW_RUN.id):
        store.append(lives(1))
    damage(path, "UPDATE blocks SET content = CAST(replace(content, 'load-1', 'lord-1') AS BLOB)")

    with pytest.raises(CorruptStoreError, match="block 1"):
        list(store.read_chosen(FLOW_RUN.id, called="load-1"))


def test_what_ends_far_from_what_it_began_with_becomes_rows(store: SqliteStateStore, path: Path) -> None:
    """Else all blocks would have something of all task runs, and who looks for one would have to read them all."""
    count = 3_000
    runs = [make_task_run(FLOW_RUN, number) for number in range(1, count + 1)]
    with claimed(store, FLOW_RUN.id):
        for start in range(0, count, 1_000):
            store.append([record for run in runs[start : start + 1_000] for record in (run, make_running(run))])
        store.list_flow_runs()  # files
        store.append([make_completed(run, 2, result=SHORT) for run in runs[::20]])
        store.append([make_completed(run, 2, result=SHORT) for run in runs[1:40:20]])

    with closing(sqlite3.connect(path)) as connection:
        (widest,) = connection.execute("SELECT max(last - first) FROM blocks").fetchone()
    _, rows_of_runs, rows_of_changes = counts(path)
    assert widest < 512
    assert (rows_of_runs, rows_of_changes) == (0, count // 20 + 2)
    assert [store.load_result(FLOW_RUN.id, number) for number in (1, 2, 3, 21, 22, 2981)] == [
        *(SHORT, SHORT, None, SHORT, SHORT, SHORT)
    ]
    assert [record for record in seen(store) if isinstance(record, TaskRun)] == runs
    assert store.check() == []


def test_who_is_called_otherwise_by_now_is_not_found_by_an_old_name(store: SqliteStateStore) -> None:
    """A task run in a block that was recorded again."""
    with claimed(store, FLOW_RUN.id):
        store.append(lives(1))
        store.append([make_task_run(FLOW_RUN, 1)._replace(name="other", task="another")])

    assert list(store.read_chosen(FLOW_RUN.id, called="load-1")) == []
    assert len(list(store.read_chosen(FLOW_RUN.id, called="other"))) == 3


def test_texts_given_as_lists_come_back_as_tuples(store: SqliteStateStore) -> None:
    """From blocks as from rows."""
    run = make_task_run(FLOW_RUN, 1)._replace(upstreams=["a"], tags=["b"])  # type: ignore[arg-type]
    with claimed(store, FLOW_RUN.id):
        store.append([run])

    assert seen(store) == [run._replace(upstreams=("a",), tags=("b",))]


RUN = make_task_run(FLOW_RUN, 1)
FAR = make_task_run(FLOW_RUN, 200_000)
ODD_ORDERS: dict[str, list[list[Record]]] = {
    "a change before its task run": [[make_running(RUN)], [RUN]],
    "sequences in another order": [[RUN], *[[make_running(RUN, sequence)] for sequence in (3, 1, 2)]],
    "a number far above": [[FAR, make_running(FAR)], [make_task_run(FLOW_RUN, 99_000)], [RUN], [FAR]],
}


@pytest.mark.parametrize("order", ODD_ORDERS)
@pytest.mark.parametrize("reopened", [False, True])
def test_nothing_is_recorded_twice_whatever_the_order(path: Path, order: str, reopened: bool) -> None:
    """Under a claim, too, a state change that is there is refused and a task run that is there replaced."""
    last = make_running(FAR) if order == "a number far above" else make_running(RUN, 3 if "sequences" in order else 1)
    again = last.run._replace(version="2")
    store = SqliteStateStore(path)
    store.append([FLOW_RUN, make_running(FLOW_RUN)])
    for batch in ODD_ORDERS[order]:
        if reopened:
            store.close()
            store = SqliteStateStore(path)
        with claimed(store, FLOW_RUN.id):
            store.append(batch)
            if order == "a number far above":
                store.append([make_task_run(FLOW_RUN, 120_000)])
    with closing(store), claimed(store, FLOW_RUN.id):
        with pytest.raises(StoreError, match=r"already|nothing of its batch"):
            store.append([last])
        store.append([again])

        assert again in seen(store)
        places = [(change.run.number, change.sequence) for change in changes_of(seen(store))]
        assert len(places) == len(set(places))


def test_a_change_that_came_before_its_task_run_is_known(store: SqliteStateStore) -> None:
    """To a later engine that records the task run, too."""
    store.append([make_running(RUN)])
    with claimed(store, FLOW_RUN.id):
        store.append([RUN])
        with pytest.raises(StoreError):
            store.append([make_running(RUN)])

    assert seen(store) == [RUN, make_running(RUN)]


def test_who_was_stopped_just_after_a_commit_cannot_record_it_again(
    store: SqliteStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing is taken for known until it was looked up."""
    run = make_task_run(FLOW_RUN, 1)
    with claimed(store, FLOW_RUN.id):
        store.append(lives(2))
        write = store._filing.write

        def write_and_stop(records: Sequence[Record]) -> None:
            write(records)
            raise KeyboardInterrupt

        monkeypatch.setattr(store._filing, "write", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            store.append([make_running(FLOW_RUN, 5), run, make_running(run)])
        monkeypatch.undo()

        with pytest.raises(StoreError):
            store.append([make_running(run)])
        store.append([run._replace(version="2")])

    assert [record.version for record in seen(store) if isinstance(record, TaskRun)] == ["2", ""]
    assert len(changes_of(seen(store))) == 3


@settings(deadline=None)
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
                with claimed(store, FLOW_RUN.id):
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
