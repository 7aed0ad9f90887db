"""Damaged stores are mended: what is sound is saved, nothing else is made up, and all is first copied aside."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from localflow.builtin.json_files import JsonStateStore
from localflow.builtin.sqlite import SqliteStateStore
from localflow.builtin.storage.database_pages import open_pages
from localflow.builtin.storage.repair import Account
from localflow.builtin.storage.salvage import Salvage
from localflow.errors import CorruptStoreError, StoreError
from localflow.interfaces import CacheEntry, FlowRun, LogEntry, Payload, StateChange, StateType, TaskRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.interfaces import Record, StateStore

DATABASE = Path("data/runs.db")
JOURNALS = Path("data/runs")
PAGE = 2048
TASKS = 40
RUNS = ("first", "second")


def fill(store: StateStore) -> None:
    """Record two flow runs with tasks, results small and large, a cache and logs."""
    for name in RUNS:
        run = FlowRun(name, f"{name}-run", "main", 1.5, name, parameters={"n": 1}, arguments=Payload("json", b"[1]"))
        store.append([run, StateChange(run, 1, StateType.RUNNING, "Running", "", 2.5)])
        for number in range(1, TASKS + 1):
            task = TaskRun(run, number, f"work-{number}", "work", number - 1, 2.5)
            store.append([task, StateChange(task, 1, StateType.RUNNING, "Running", "", 3.5)])
            size = {7: 100_000, 8: 5_000}.get(number, 10)
            result = Payload("json", b"7" * size)
            ended = StateChange(
                task, 2, StateType.COMPLETED, "Completed", "fine " * 8, 4.5, "Running", result=result,
                cache=CacheEntry(f"{name}-{number}"),
            )  # fmt: skip
            store.append([ended, LogEntry(task, 1, 3.75, 20, "stdout", f"line {number}")])
        store.append([StateChange(run, 2, StateType.COMPLETED, "Completed", "", 5.5, "Running")])


def contents(store: StateStore) -> set[Any]:
    """Return everything in a store as plain values that can be compared."""
    found: set[Any] = set()
    for summary in store.list_flow_runs():
        run = summary.flow_run
        for record in store.read(run.id):
            found.add(plain(record))
            if not isinstance(record, StateChange):
                found.add((record.id, store.load_result(run.id, record.number)))
        found |= {plain(entry) for _, entry in store.read_logs(run.id)}
    return found


def plain(record: Record) -> tuple[Any, ...]:
    """Return a record by what must not change; state changes may be numbered anew where some are lost."""
    if isinstance(record, StateChange):
        return record.run.id, record.type, record.name, record.message, record.timestamp, record.attempt
    if isinstance(record, LogEntry):
        return record.run.id, record.message
    if isinstance(record, TaskRun):
        return record.id, record.name, record.ordinal
    return record.id, record.name, str(record.parameters), record.arguments


def read(open_store: Callable[[], StateStore]) -> set[Any]:
    """Return what a store holds, which must be sound."""
    with closing(open_store()) as store:
        assert store.check() == []
        return contents(store)


def database() -> SqliteStateStore:
    """Open the SQLite store."""
    return SqliteStateStore(DATABASE)


def journals() -> JsonStateStore:
    """Open the JSON store."""
    return JsonStateStore(JOURNALS)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both stores, full and sound."""
    folder = tmp_path_factory.mktemp("filled")
    for store in (SqliteStateStore(folder / DATABASE), JsonStateStore(folder / JOURNALS)):
        with closing(store):
            fill(store)
    return folder


@pytest.fixture(autouse=True)
def stores(filled: Path, own_folder: Path) -> None:
    """Have both stores in the test's folder."""
    shutil.copytree(filled / "data", "data")


@pytest.fixture
def whole() -> Iterator[set[Any]]:
    """What the stores hold as long as nothing is damaged."""
    return read(database)


def asides(path: Path) -> list[Path]:
    """Return what was set aside."""
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


# -- sqlite --


def damage(change: Callable[[bytearray], object]) -> bytes:
    """Change the bytes of the database; return what they are now."""
    data = bytearray(DATABASE.read_bytes())
    change(data)
    DATABASE.write_bytes(data)
    return bytes(data)


def zero(page: int) -> Callable[[bytearray], object]:
    """Fill a page with zeros."""
    return lambda data: data.__setitem__(slice((page - 1) * PAGE, page * PAGE), bytes(PAGE))


def test_sound_stores_are_left_alone() -> None:
    """Nothing is copied, nothing is written."""
    before = DATABASE.read_bytes()

    assert SqliteStateStore.repair(DATABASE) == []
    assert JsonStateStore.repair(JOURNALS) == []
    assert DATABASE.read_bytes() == before
    assert asides(DATABASE) == []


@pytest.mark.parametrize("length", [16, 100, PAGE], ids=["magic", "header", "first page"])
def test_garbage_in_front_of_a_database_costs_nothing(length: int, whole: set[Any]) -> None:
    """What SQLite cannot even open still has all its rows."""
    damage(lambda data: data.__setitem__(slice(0, length), b"G" * length))
    with pytest.raises(StoreError):
        database()

    done = SqliteStateStore.repair(DATABASE)

    assert read(database) == whole
    assert done[-1] == "lost nothing that is known of"


def test_what_is_damaged_is_copied_aside_first() -> None:
    """The copy is the file as it was, for its owner alone, and is named."""
    damaged = damage(zero(12))

    done = SqliteStateStore.repair(DATABASE)

    (aside,) = asides(DATABASE)
    assert aside.read_bytes() == damaged
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert str(aside) in done[0]
    assert sorted(path.name for path in DATABASE.parent.iterdir() if path not in (DATABASE, aside, JOURNALS)) == [
        ".gitignore"
    ]


@pytest.mark.parametrize("page", range(2, 40, 3))
def test_zeroed_page_costs_what_was_in_it_only(page: int, whole: set[Any]) -> None:
    """Whatever the page was: nothing is made up, and the rest is there unless it was the flow runs' own page."""
    damage(zero(page))

    SqliteStateStore.repair(DATABASE)

    saved = read(database)
    made_up = {each for each in saved - whole if each[-1] is not None}  # a result that is lost is None
    assert made_up == set()
    assert len(saved) > len(whole) * 0.7 or not saved


def test_truncated_database_keeps_what_is_in_front(whole: set[Any]) -> None:
    """What stood in the pages that are left is saved."""
    damage(lambda data: data.__delitem__(slice(len(data) * 9 // 10, None)))

    done = SqliteStateStore.repair(DATABASE)

    saved = read(database)
    assert {each for each in saved - whole if each[-1] is not None} == set()
    assert len(saved) > 20
    assert "lost at least" in done[-1]


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bytes_never_make_a_wrong_answer(seed: int, whole: set[Any]) -> None:
    """Rows that are not as they were written are lost; all others are what they were."""
    chance = random.Random(seed)

    def flip(data: bytearray) -> None:
        for _ in range(20):
            data[chance.randrange(100, len(data))] ^= 1 << chance.randrange(8)

    damage(flip)
    SqliteStateStore.repair(DATABASE)

    assert {each for each in read(database) - whole if each[-1] is not None} == set()


def test_empty_database_becomes_an_empty_store() -> None:
    """There is nothing to save, and that is told."""
    DATABASE.write_bytes(b"")

    done = SqliteStateStore.repair(DATABASE)

    assert done[1] == "saved nothing"
    assert read(database) == set()


def test_store_of_an_older_format_is_left_as_it_is() -> None:
    """Its rows have no checksums, so nothing could be said of what is saved."""
    damaged = damage(lambda data: (data.__setitem__(slice(60, 64), bytes([0, 0, 0, 1])), zero(23)(data)))

    with pytest.raises(StoreError, match=r"format version 1, .* move it aside"):
        SqliteStateStore.repair(DATABASE)

    assert DATABASE.read_bytes() == damaged
    assert not DATABASE.with_name("runs.db.repair").exists()


def test_what_stands_in_the_log_only_is_saved() -> None:
    """The write-ahead log of a killed process holds the newest records."""
    with closing(database()) as store:
        store.append([FlowRun("third", "third", "main", 1.0, "third")])
        copied = [Path(shutil.copy(f"{DATABASE}{part}", f"data/killed.db{part}")) for part in ("", "-wal")]

    with open_pages(copied[0]) as pages:
        saved = [records[0].flow_run.id for records in Salvage(pages, Account()).runs()]
    copied[1].unlink()
    with open_pages(copied[0]) as pages:
        saved_without = [records[0].flow_run.id for records in Salvage(pages, Account()).runs()]

    assert saved == [*RUNS, "third"]
    assert saved_without == [*RUNS]


def test_what_was_not_committed_is_not_saved() -> None:
    """A transaction may be in the log by half."""
    with closing(sqlite3.connect(DATABASE, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("DELETE FROM flow_runs WHERE id = 'first'")
        for number in range(10_000, 10_200):
            row = (number, 1, 1, b"x" * 5_000)
            connection.execute("INSERT INTO large_results VALUES (?, ?, ?, ?)", row)
        copied = [Path(shutil.copy(f"{DATABASE}{part}", f"data/killed.db{part}")) for part in ("", "-wal")]
        connection.execute("ROLLBACK")

    with open_pages(copied[0]) as pages:
        saved = [records[0].flow_run.id for records in Salvage(pages, Account()).runs()]

    assert copied[1].stat().st_size > 100_000
    assert saved == [*RUNS]


def test_removed_runs_do_not_come_back() -> None:
    """Pages that are free still hold rows; those count no more."""
    with closing(database()) as store:
        store.remove(["first"])
    damage(lambda data: data.__setitem__(slice(0, 16), b"G" * 16))

    SqliteStateStore.repair(DATABASE)

    with closing(database()) as store:
        assert [summary.flow_run.id for summary in store.list_flow_runs()] == ["second"]


def test_subflow_runs_go_with_the_run_they_are_part_of() -> None:
    """A run whose caller is lost can neither be resumed nor removed, so it is not saved."""
    DATABASE.unlink()
    with closing(database()) as store:
        top = FlowRun("top", "top", "main", 1.5, "top")
        child = FlowRun("child", "child", "sub", 1.5, "top", parent_id="top")
        store.append([top, child])
    row = DATABASE.read_bytes().index(b"toptopmain")
    damage(lambda data: data.__setitem__(slice(row, row + 3), b"xxx"))

    done = SqliteStateStore.repair(DATABASE)

    assert done[1:] == ["saved nothing", "lost at least 2 flow runs"]


@pytest.mark.parametrize("make", [database, journals])
def test_store_with_an_engine_at_work_is_not_touched(make: Callable[[], StateStore]) -> None:
    """While any run of the store is claimed there is no repair."""
    with closing(make()) as store:
        claim = store.claim("second")
        assert claim is not None
        repair = {
            database: lambda: SqliteStateStore.repair(DATABASE),
            journals: lambda: JsonStateStore.repair(JOURNALS),
        }
        with pytest.raises(StoreError, match="while an engine is at work on flow run second"):
            repair[make]()
        claim.release()


# -- json --


def journal(run: str = "first", name: str = "journal.jsonl") -> Path:
    """Return the journal of a flow run, or its log."""
    return JOURNALS / run / name


def spoil(path: Path, line: int) -> None:
    """Change a byte in the middle of a line, counted from 1."""
    lines = path.read_bytes().split(b"\n")
    content = bytearray(lines[line - 1])
    content[len(content) // 2] ^= 1
    lines[line - 1] = bytes(content)
    path.write_bytes(b"\n".join(lines))


def test_lines_before_and_behind_a_damaged_one_are_saved(whole: set[Any]) -> None:
    """Each line proves itself; the others of the run, and all other runs, are there."""
    damaged = len(journal().read_bytes().splitlines()) // 2
    spoil(journal(), damaged)
    before = journal().read_bytes()

    done = JsonStateStore.repair(JOURNALS)

    saved = read(journals)
    (aside,) = asides(JOURNALS / "first")
    assert (aside / "journal.jsonl").read_bytes() == before
    assert len(whole - saved) in (2, 3, 4)  # what the line said, and what depended on it
    assert {each for each in saved - whole if each[-1] is not None} == set()
    assert "lost at least 1 line" in done[-1]


def test_run_whose_first_line_is_lost_is_set_aside() -> None:
    """Without the record of the flow run there is nothing to put the others to."""
    spoil(journal(), 1)

    done = JsonStateStore.repair(JOURNALS)

    with closing(journals()) as store:
        assert [summary.flow_run.id for summary in store.list_flow_runs()] == ["second"]
        assert store.check() == []
    assert done[1] == "saved nothing"
    assert "1 flow run" in done[2]


def test_damaged_log_line_costs_what_it_says(whole: set[Any]) -> None:
    """The journal is as it was, and the log lacks one line."""
    spoil(journal(name="logs.jsonl"), 7)

    JsonStateStore.repair(JOURNALS)

    assert whole - read(journals) == {("first-7", "line 7")}


def test_damaged_result_is_none_afterwards(whole: set[Any]) -> None:
    """The run is there without it, so that `resume` computes it again."""
    file = next((JOURNALS / "first/results").iterdir())
    file.write_bytes(b"8" + file.read_bytes()[1:])

    JsonStateStore.repair(JOURNALS)

    (lost,) = whole - read(journals)
    assert isinstance(lost[-1], Payload)


def test_mark_of_the_store_is_written_anew(whole: set[Any]) -> None:
    """The file that says what the folder is can be told from the folder."""
    (JOURNALS / "store.json").write_text("{")
    with pytest.raises(CorruptStoreError):
        journals()

    JsonStateStore.repair(JOURNALS)

    assert read(journals) == whole
    assert asides(JOURNALS / "store.json")[0].read_text() == "{"


def test_repaired_run_takes_more_records() -> None:
    """A repaired store is a store like any other."""
    spoil(journal(), 5)
    JsonStateStore.repair(JOURNALS)

    with closing(journals()) as store:
        run = next(each.flow_run for each in store.list_flow_runs() if each.flow_run.id == "first")
        store.append([TaskRun(run, 99, "late", "late", 0, 9.0)])

        assert any(isinstance(record, TaskRun) and record.number == 99 for record in store.read("first"))


# -- deaths in the middle --


def die_repairing(store: str, arrival: int) -> int:
    """Repair in a process that is killed at the n-th step; return how it ended."""
    source = f"from tests.stores.test_repair import *\n{store}"
    ended = subprocess.run(
        [sys.executable, "-c", source],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "LOCALFLOW_FAILPOINT": f"in-repair:{arrival}",
        },
        timeout=40,
    )
    return ended.returncode


@pytest.mark.parametrize("arrival", [1, 2, 3, 4])
@pytest.mark.parametrize("is_openable", [True, False], ids=["opens", "does not open"])
def test_database_survives_a_death_in_its_repair(arrival: int, is_openable: bool, whole: set[Any]) -> None:
    """Afterwards it is as damaged as before, or mended; the next repair ends well either way."""
    damage(zero(23) if is_openable else lambda data: data.__setitem__(slice(0, 100), b"G" * 100))

    assert die_repairing("SqliteStateStore.repair(DATABASE)", arrival) == -signal.SIGKILL
    with pytest.raises(CorruptStoreError):
        database()
    assert asides(DATABASE)

    SqliteStateStore.repair(DATABASE)

    saved = read(database)
    assert {each for each in saved - whole if each[-1] is not None} == set()
    assert is_openable or saved == whole
    assert [path.name for path in DATABASE.parent.glob("runs.db.repair*")] == []


@pytest.mark.parametrize("arrival", [1, 2, 3])
def test_journals_survive_a_death_in_their_repair(arrival: int, whole: set[Any]) -> None:
    """The run is there as it was, or mended, or for the moment not at all; never by half."""
    spoil(journal(name="logs.jsonl"), 7)

    assert die_repairing("JsonStateStore.repair(JOURNALS)", arrival) == -signal.SIGKILL
    with closing(journals()) as store:
        runs = {summary.flow_run.id for summary in store.list_flow_runs()}
        assert runs == ({"second"} if arrival == 3 else set(RUNS))

    JsonStateStore.repair(JOURNALS)

    assert whole - read(journals) == {("first-7", "line 7")}
    assert len(asides(JOURNALS / "first")) == 1
    assert not (JOURNALS / ".repair").exists()
