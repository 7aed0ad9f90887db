"""The SQLite store: what it refuses to open, and how it shares its file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.sqlite import SqliteStateStore
from localflow.builtin.storage import database
from localflow.errors import CorruptStoreError, StoreError, StoreVersionError
from localflow.testing.store_records import make_completed, make_flow_run, make_running, make_task_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Say where a store is that holds a few hundred records."""
    path = tmp_path / "state" / "localflow.db"
    with closing(SqliteStateStore(path)) as store:
        flow_run = make_flow_run()
        tasks = [make_task_run(flow_run, number) for number in range(1, 201)]
        store.append([flow_run, *tasks, *map(make_running, tasks), *map(make_completed, tasks)])
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Say where a database of another application is."""
    path = tmp_path / "example.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE projects (id INTEGER PRIMARY KEY, name TEXT)")
        connection.commit()
    path.chmod(0o600)
    return path


def assert_refused(path: Path, error: type[StoreError], match: str) -> None:
    """Assert that the store is refused and not one byte of its file changed, nor a file added."""
    content, names = path.read_bytes(), sorted(path.parent.iterdir())

    with pytest.raises(error, match=match) as raised:
        SqliteStateStore(path)

    assert str(path) in str(raised.value)
    assert path.read_bytes() == content
    assert sorted(path.parent.iterdir()) == names


def test_database_of_another_application_is_refused(foreign: Path) -> None:
    """The user's own database, named by mistake, is left alone."""
    assert_refused(foreign, StoreError, "another application.*name another path")


def test_newer_format_is_refused(path: Path) -> None:
    """A store of a later localflow is named as such and left alone."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 7")

    assert_refused(path, StoreVersionError, "format version 7, this localflow reads version 3")


def test_file_that_is_no_database_is_refused(path: Path) -> None:
    """A file of something else is named as damaged and left alone."""
    path.write_bytes(b"name,price\n" * 500)

    assert_refused(path, CorruptStoreError, "not a database")


@pytest.mark.parametrize("size", [0, 1, 511])
def test_short_file_is_refused(path: Path, size: int) -> None:
    """A file that was emptied is not taken for a new store."""
    path.write_bytes(path.read_bytes()[:size])

    assert_refused(path, CorruptStoreError, f"has {size} bytes")


def test_truncated_database_is_refused(path: Path) -> None:
    """A file that lost its end is damaged."""
    path.write_bytes(path.read_bytes()[:-4096])

    assert_refused(path, CorruptStoreError, "nothing was changed")


def test_zeroed_page_is_noticed(path: Path) -> None:
    """A page of zeros in the middle is found before anything is read from it."""
    content = path.read_bytes()
    path.write_bytes(content[:40960] + bytes(2048) + content[43008:])

    assert_refused(path, CorruptStoreError, "nothing was changed")


def test_damaged_schema_is_noticed(path: Path) -> None:
    """A schema of which SQLite cannot even say what is wrong with it is damage like any other."""
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE large_results", b"CREATE TA\xc2LE large_results"))

    assert_refused(path, CorruptStoreError, "nothing was changed")


def test_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    """A directory is no store."""
    with pytest.raises(StoreError, match="is not a file"):
        SqliteStateStore(tmp_path)


def test_path_may_have_any_characters(tmp_path: Path) -> None:
    """A path that looks like a URL with options is a path."""
    path = tmp_path / "50% ?mode=memory#x" / "a b.db"
    flow_run = make_flow_run()
    with closing(SqliteStateStore(path)) as store:
        store.append([flow_run])

    with closing(SqliteStateStore(path)) as store:
        assert list(store.read(flow_run.id)) == [flow_run]
    assert path.is_file()


def test_draft_of_a_dead_maker_is_no_hindrance(tmp_path: Path) -> None:
    """What a process left that was killed while making the store is cleared away."""
    path = tmp_path / "localflow.db"
    for name in ("localflow.db.new", "localflow.db.new-wal", "localflow.db.new-journal"):
        (tmp_path / name).write_bytes(b"half")

    SqliteStateStore(path).close()

    assert [place.name for place in tmp_path.iterdir()] == ["localflow.db"]


def test_closing_leaves_one_file(path: Path) -> None:
    """The last one to close leaves nothing but the database, complete."""
    assert sorted(place.name for place in path.parent.iterdir()) == [".gitignore", "localflow.db"]


def test_removed_file_does_not_come_back(path: Path) -> None:
    """Reading a store whose file was removed is an error and makes no new one."""
    with closing(SqliteStateStore(path)) as store:
        path.unlink()

        with pytest.raises(StoreError, match="cannot be opened"):
            list(store.read("some-run"))
        assert not path.exists()


def test_record_is_added_once(path: Path) -> None:
    """A second record in the place of another is refused and changes nothing."""
    flow_run = make_flow_run()
    with closing(SqliteStateStore(path)) as store:
        store.append([flow_run, make_running(flow_run)])

        with pytest.raises(StoreError, match="already"):
            store.append([make_running(flow_run, 2), make_running(flow_run, message="other")])

        assert list(store.read(flow_run.id)) == [flow_run, make_running(flow_run)]


def test_reader_does_not_keep_the_writer_waiting(path: Path) -> None:
    """A reader that stops in the middle sees its instant to the end; others write meanwhile."""
    with closing(SqliteStateStore(path)) as store:
        (summary,) = store.list_flow_runs()
        flow_run = summary.flow_run
        before = len(list(store.read(flow_run.id)))
        reading = store.read(flow_run.id)
        next(reading)

        store.append([make_running(flow_run, sequence) for sequence in range(1, 100)])

        assert 1 + len(list(reading)) == before
        assert len(list(store.read(flow_run.id))) == before + 99


@pytest.mark.parametrize("busy_seconds", [30.0, 0.05])
def test_writer_waits_for_another_writer(path: Path, monkeypatch: pytest.MonkeyPatch, busy_seconds: float) -> None:
    """A lock held by somebody else delays an append and does not fail it, even if SQLite has given up waiting."""
    monkeypatch.setattr(database, "BUSY_SECONDS", busy_seconds)
    flow_run = make_flow_run()
    with closing(SqliteStateStore(path)) as store, closing(sqlite3.connect(path, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, other.rollback)
        release.start()

        store.append([flow_run])
        release.join()

        assert list(store.read(flow_run.id)) == [flow_run]


def test_lock_that_is_never_released_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some patience a store locked for good is an error that says so."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 0.2)
    flow_run = make_flow_run()
    with closing(SqliteStateStore(path)) as store, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process"):
            store.append([flow_run])
        other.rollback()

        store.append([flow_run])

        assert list(store.read(flow_run.id)) == [flow_run]


def test_runs_that_end_meanwhile_are_no_damage(path: Path) -> None:
    """Whoever lists runs while others begin and end them sees each as it was at one instant."""
    with closing(SqliteStateStore(path)) as store, closing(SqliteStateStore(path)) as other:
        runs = [make_flow_run() for _ in range(20)]
        store.append([record for run in runs for record in (run, make_running(run))])
        resumed = [
            change
            for sequence in range(2, 40, 2)
            for run in runs
            for change in (make_completed(run, sequence), make_running(run, sequence + 1))
        ]
        ending = threading.Thread(target=lambda: [store.append([change]) for change in resumed])
        ending.start()
        while ending.is_alive():
            assert len(other.list_flow_runs(20)) == 20
        ending.join()

        assert {run.id for run in runs} <= {each.flow_run.id for each in other.list_flow_runs(unfinished=True)}


def test_unfinished_runs_are_found_without_a_look_at_the_others(path: Path) -> None:
    """One unfinished run among thousands is found at once."""
    with closing(SqliteStateStore(path)) as store:
        ended = [make_flow_run() for _ in range(5000)]
        store.append([record for run in ended for record in (run, make_completed(run, 1))])
        run = make_flow_run()
        store.append([run])
        store.list_flow_runs(1)

        begun = time.process_time()
        for _ in range(20):
            assert run in [summary.flow_run for summary in store.list_flow_runs(unfinished=True)]

        assert time.process_time() - begun < 20 * 0.01


def test_long_wait_for_another_writer_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits for long says so, and which process it waits for."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    holding = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print(flush=True)
input()
"""
    with (
        closing(SqliteStateStore(path)) as store,
        subprocess.Popen(
            [sys.executable, "-c", holding, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder,
    ):
        assert holder.stdout is not None
        holder.stdout.readline()
        threading.Timer(0.6, holder.kill).start()

        store.append([make_flow_run()])

    (message,) = caplog.messages
    assert f"by pid {holder.pid}; waiting" in message
