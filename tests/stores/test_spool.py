"""The spool of the SQLite store: what an engine commits there is seen by all, filed once, and outlives its process."""

from __future__ import annotations

import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from localflow.builtin.sqlite import SqliteStateStore
from localflow.builtin.storage import spool
from localflow.builtin.storage.filing import Filing
from localflow.builtin.storage.spool import SPOOL_BYTES, FoundSpool, Mark, Spool
from localflow.builtin.storage.writing import Writer
from localflow.errors import CorruptStoreError, StoreError
from localflow.interfaces import Payload
from localflow.testing.store_records import (
    changes_of,
    make_completed,
    make_flow_run,
    make_log_entry,
    make_running,
    make_task_run,
)
from tests.faults.conftest import eventually
from tests.stores.conftest import claimed

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path


FLOW_RUN = make_flow_run(id="spooled-run")

#: Commits three task runs to the spool, of which it files the first, and waits to be killed.
ENGINE = """
from localflow.builtin.storage import filing
filing.DELAY_SECONDS = 3600
store = open_store()
flow_run = make_flow_run(id="spooled-run")
claim = store.claim(flow_run.id)
store.append([flow_run])
for number in 1, 2, 3:
    task_run = make_task_run(flow_run, number)
    store.append([task_run, make_running(task_run)])
    store.append([make_completed(task_run), make_log_entry(task_run, f"said {number}")])
    if number == 1:
        list(store.read(flow_run.id))
say("ready")
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Say where the store is."""
    return tmp_path / "state" / "localflow.db"


@pytest.fixture
def engine(path: Path, start: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Start a process that has committed to its spool what is not in the database."""
    process = start(ENGINE, "sqlite", path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


@pytest.fixture
def store(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteStateStore]:
    """Open the store, with a claimed flow run in it; what is in its spool is not filed of itself."""
    monkeypatch.setattr("localflow.builtin.storage.filing.DELAY_SECONDS", 3600.0)
    with closing(SqliteStateStore(path)) as store, claimed(store, FLOW_RUN.id):
        store.append([FLOW_RUN])
        yield store


def spools(path: Path) -> list[Path]:
    """Return the spools beside a database."""
    return sorted(path.with_name(f"{path.name}-spool").iterdir())


def rows(path: Path) -> int:
    """Return how many state changes are in the database itself."""
    with closing(sqlite3.connect(path)) as connection:
        (in_rows,) = connection.execute("SELECT count(*) FROM state_changes").fetchone()
        (in_blocks,) = connection.execute("SELECT coalesce(sum(changes), 0) FROM blocks").fetchone()
        return int(in_rows + in_blocks)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and wait until it is dead."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def assert_all_there(store: SqliteStateStore) -> None:
    """Assert that all that the engine has committed is in the store, each record once."""
    records = list(store.read(FLOW_RUN.id))
    assert [(change.run.number, change.name) for change in changes_of(records)] == [
        (number, name) for number in (1, 2, 3) for name in ("Running", "Completed")
    ]
    assert [entry.message for _, entry in store.read_logs(FLOW_RUN.id)] == ["said 1", "said 2", "said 3"]
    assert store.check() == []


def add_runs(store: SqliteStateStore, numbers: Any) -> None:
    """Append a task run that has begun for each number."""
    for number in numbers:
        task_run = make_task_run(FLOW_RUN, number)
        store.append([task_run, make_running(task_run)])


def test_records_of_a_claimed_run_wait_in_the_spool(store: SqliteStateStore, path: Path) -> None:
    """They are not in the database at first, yet the next reader sees them, and then they are."""
    add_runs(store, [1])

    assert rows(path) == 0
    assert len(changes_of(list(store.read(FLOW_RUN.id)))) == 1
    assert rows(path) == 1


def test_what_is_recorded_without_a_claim_goes_straight_into_the_database(path: Path) -> None:
    """And so a mistake in it is told at once."""
    with closing(SqliteStateStore(path)) as store:
        store.append([FLOW_RUN, make_running(FLOW_RUN)])

        assert rows(path) == 1
        with pytest.raises(StoreError, match="already"):
            store.append([make_running(FLOW_RUN)])


def test_a_large_result_follows_what_is_in_the_spool(store: SqliteStateStore, path: Path) -> None:
    """What is too large for the spool goes into the database, after all that was committed before."""
    add_runs(store, [1])
    result = Payload("pickle", bytes(SPOOL_BYTES))

    store.append([make_completed(make_task_run(FLOW_RUN, 1), result=result)])

    assert rows(path) == 2
    assert store.load_result(FLOW_RUN.id, 1) == result


def test_a_full_spool_begins_anew(store: SqliteStateStore, path: Path) -> None:
    """Many times its size goes through one spool; all is there, and its file has not grown."""
    message = "m" * 1000
    add_runs(store, [1])
    for sequence in range(2, 3000):
        store.append([make_running(make_task_run(FLOW_RUN, 1), sequence, message=message)])

    (file,) = spools(path)
    assert file.stat().st_size == SPOOL_BYTES
    assert [change.sequence for change in changes_of(list(store.read(FLOW_RUN.id)))] == [*range(1, 3000)]


def test_readers_beside_appends_find_all_that_was_committed_before_they_looked(store: SqliteStateStore) -> None:
    """Nothing of it is left out or filed twice while a thread goes on appending."""
    appended = 0

    def append() -> None:
        nonlocal appended
        for number in range(1, 1001):
            add_runs(store, [number])
            appended = number

    with ThreadPoolExecutor(1) as pool:
        appending = pool.submit(append)
        while not appending.done():
            before = appended
            found = [change.run.number for change in changes_of(list(store.read(FLOW_RUN.id)))]
            assert found == [*range(1, len(found) + 1)]
            assert len(found) >= before
        appending.result()
    assert len(changes_of(list(store.read(FLOW_RUN.id)))) == 1000


def test_the_spool_is_filed_soon_and_removed_at_the_end(path: Path) -> None:
    """A thread files what lies there; closing the store files the rest and removes the file."""
    with closing(SqliteStateStore(path)) as store, claimed(store, FLOW_RUN.id):
        store.append([FLOW_RUN])
        add_runs(store, [1])
        eventually(lambda: rows(path) == 1)
        add_runs(store, [2])
        assert len(spools(path)) == 1

    assert spools(path) == []
    assert rows(path) == 2
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM spools").fetchall() == []


def test_the_end_of_a_claim_files_what_was_recorded_under_it(path: Path) -> None:
    """Whoever claims the run next finds everything in the database."""
    with closing(SqliteStateStore(path)) as store:
        claim = store.claim(FLOW_RUN.id)
        assert claim is not None
        store.append([FLOW_RUN])
        add_runs(store, [1])

        claim.release()

        assert rows(path) == 1


def test_other_processes_see_what_a_living_engine_has_committed(engine: subprocess.Popen[str], path: Path) -> None:
    """They file it, and its own process does not file it once more."""
    with closing(SqliteStateStore(path)) as store:
        assert_all_there(store)
    assert len(spools(path)) == 1

    engine.communicate("end\n")  # without closing the store: as if it had died
    with closing(SqliteStateStore(path)) as store:
        assert_all_there(store)
    assert spools(path) == []


def test_what_a_killed_engine_has_committed_is_filed_at_the_next_opening(
    engine: subprocess.Popen[str], path: Path
) -> None:
    """Each record is there once, and no file is left behind."""
    kill(engine)

    with closing(SqliteStateStore(path)) as store:
        assert_all_there(store)

    assert spools(path) == []


@pytest.mark.parametrize("place", ["mark", "size", "checksum", "content"])
def test_a_damaged_spool_is_never_a_wrong_answer(engine: subprocess.Popen[str], path: Path, place: str) -> None:
    """It is refused with its name; a repair puts it aside and leaves what is sound in the database."""
    kill(engine)
    (file,) = spools(path)
    with closing(FoundSpool(file)) as found:
        end = found.mark().end
    at = {"mark": 1, "size": end - 9, "checksum": end - 5, "content": end - 1}[place]
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)

    with pytest.raises(CorruptStoreError, match=file.name):
        SqliteStateStore(path)
    (line,) = SqliteStateStore.repair(path)

    assert "aside" in line
    assert spools(path) == []
    with closing(SqliteStateStore(path)) as store:
        assert store.check() == []
        assert (1, "Completed") in [(each.run.number, each.name) for each in changes_of([*store.read(FLOW_RUN.id)])]


def test_after_a_power_loss_what_fits_is_kept(
    engine: subprocess.Popen[str], path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a torn spool from before the system was started anew what is sound is filed, and the rest told."""
    kill(engine)
    (file,) = spools(path)
    with closing(FoundSpool(file)) as found:
        end = found.mark().end
    content = bytearray(file.read_bytes())
    content[end - 1] ^= 0x10
    file.write_bytes(content)
    monkeypatch.setattr(spool, "_boot", lambda: b"another boot    ")

    with closing(SqliteStateStore(path)) as store:
        states = {change.run.number: change.name for change in changes_of(list(store.read(FLOW_RUN.id)))}
        assert store.check() == []

    assert states == {1: "Completed", 2: "Completed", 3: "Running"}
    assert "power loss" in caplog.text
    assert spools(path) == []


def test_a_spool_that_may_not_be_made_is_done_without(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for it everything goes straight into the database."""

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with closing(SqliteStateStore(path)) as store, claimed(store, FLOW_RUN.id):
        store.append([FLOW_RUN])
        add_runs(store, [1])

        assert rows(path) == 1
        assert spools(path) == []


def test_with_durability_full_there_is_no_spool(path: Path) -> None:
    """What has been copied into memory only would not survive a power loss."""
    with closing(SqliteStateStore(path, durability="full")) as store, claimed(store, FLOW_RUN.id):
        store.append([FLOW_RUN])
        add_runs(store, [1])

        assert rows(path) == 1


def test_a_spool_open_to_others_is_refused(engine: subprocess.Popen[str], path: Path) -> None:
    """Somebody else could have written what is in it."""
    kill(engine)
    (file,) = spools(path)
    file.chmod(0o666)

    with pytest.raises(StoreError, match="others may write"):
        SqliteStateStore(path)


def test_an_entry_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """Until the mark has moved, what is copied behind it does not count."""
    with closing(Spool(tmp_path)) as made:
        made.add(b"first")
        end = made.mark.end
        made.add(b"second")
        with closing(FoundSpool(made.path)) as found:
            assert not found.is_orphaned
            assert found.contents(Mark().end, found.mark().end) == [b"first", b"second"]
            assert found.contents(Mark().end, end) == [b"first"]


def test_log_entries_are_numbered_on_when_they_are_filed(store: SqliteStateStore) -> None:
    """Their positions have no gaps, whichever way they came."""
    task_run = make_task_run(FLOW_RUN, 1)
    store.append([task_run, make_log_entry(task_run, "a")])
    store.append([make_log_entry(task_run, "b"), make_completed(task_run, 1, result=Payload("p", bytes(SPOOL_BYTES)))])
    store.append([make_log_entry(task_run, "c")])

    assert [(place, entry.message) for place, entry in store.read_logs(FLOW_RUN.id)] == [(1, "a"), (2, "b"), (3, "c")]


def test_a_store_that_is_full_for_a_while_loses_no_line_of_a_killed_engine(
    path: Path, start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be filed now stays in the spool for the next opening, log lines included."""
    process = start(ENGINE.replace("if number == 1", "if number == 9"), "sqlite", path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    kill(process)

    def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "insert", full)
        with pytest.raises(StoreError, match="full"):
            SqliteStateStore(path)

    with closing(SqliteStateStore(path)) as store:
        assert_all_there(store)


def test_a_spool_without_its_mark_is_not_taken_for_an_empty_one(engine: subprocess.Popen[str], path: Path) -> None:
    """Its entries are there, so somebody has taken the mark away."""
    kill(engine)
    (file,) = spools(path)
    content = bytearray(file.read_bytes())
    content[:8] = bytes(8)
    file.write_bytes(content)

    with pytest.raises(CorruptStoreError, match=file.name):
        SqliteStateStore(path)


def test_a_stop_as_the_spool_begins_anew_loses_nothing(
    store: SqliteStateStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed after Ctrl-C at that moment is filed like everything else."""
    calls = iter([True])

    def interrupted(spool: Spool) -> None:
        if next(calls, False):
            raise KeyboardInterrupt
        begin_anew(spool)

    begin_anew = Spool.begin_anew
    monkeypatch.setattr(Spool, "begin_anew", interrupted)
    add_runs(store, [1])
    kept = 1
    for sequence in range(2, 3000):
        try:
            store.append([make_running(make_task_run(FLOW_RUN, 1), sequence, message="m" * 1000)])
            kept = sequence
        except KeyboardInterrupt:
            break
    for sequence in range(kept + 1, kept + 4):
        store.append([make_running(make_task_run(FLOW_RUN, 1), sequence)])

    assert [each.sequence for each in changes_of(list(store.read(FLOW_RUN.id)))] == [*range(1, kept + 4)]
    assert len(spools(path)) == 1


def test_a_stop_at_the_end_of_a_claim_lets_the_run_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or nobody could resume it while this process lives."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with closing(SqliteStateStore(path)) as store:
        claim = store.claim(FLOW_RUN.id)
        assert claim is not None
        with monkeypatch.context() as patched:
            patched.setattr(Filing, "end_claim", interrupted)
            with pytest.raises(KeyboardInterrupt):
                claim.release()

        with claimed(store, FLOW_RUN.id):
            pass
