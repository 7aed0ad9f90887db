"""SQLite stores of earlier formats: brought to this one as a whole or not at all, with a copy of what was."""

from __future__ import annotations

import logging
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from localflow.builtin.sqlite import SqliteStateStore
from localflow.failpoints import VARIABLE
from localflow.interfaces import Cause, LogEntry, StateChange, TaskRun
from localflow.testing.store_records import make_completed, make_flow_run, make_running, make_task_run

GOLDEN = Path(__file__).parent / "golden"
ROOT = "5f0a7c1e9b2d4a6c8e0f"  # what is in the golden store: a run that failed, a subflow run of it,
CHILD = "6b1c"
ALIVE = "7c2d"  # and one that was not over

OPEN = """
import sys
from localflow.builtin.sqlite import SqliteStateStore
SqliteStateStore(sys.argv[1]).close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Say where a store of version 1 is."""
    path = tmp_path / "state" / "localflow.db"
    path.parent.mkdir(mode=0o700)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((GOLDEN / "sqlite-version-1.sql").read_text())
        connection.execute("PRAGMA journal_mode = WAL")
    path.chmod(0o600)
    return path


def rows_of(path: Path) -> list[str]:
    """Return all that is in a database."""
    with closing(sqlite3.connect(path)) as connection:
        return [*connection.iterdump(), *map(str, connection.execute("PRAGMA user_version"))]


def assert_is_kept(path: Path) -> None:
    """Assert that everything of the golden store is there, in the format of now."""
    with closing(SqliteStateStore(path)) as store:
        assert store.check() == []
        assert [each.flow_run.id for each in store.list_flow_runs()] == [ALIVE, CHILD, ROOT]
        assert [each.flow_run.id for each in store.list_flow_runs(unfinished=True)] == [ALIVE]
        root, *records = store.read(ROOT)
        assert root.parameters == {"source": "projects", "limit": 3, "odd": "caf\udce9"}
        assert (root.tags, root.code, root.inputs) == (("nightly", "two\nlines"), "", "")
        tasks = [record for record in records if isinstance(record, TaskRun)]
        assert [(task.name, task.map_index) for task in tasks] == [("load-0", 0), ("clean-0", 2), ("report-0", 0)]
        changes = [record for record in records if isinstance(record, StateChange)]
        assert [change.name for change in changes] == [
            *("Running", "Failed"),
            *("Running", "Completed", "Running", "Completed", "Running", "Failed"),
        ]
        assert changes[5].execution.peak_rss_bytes == 2**70
        assert changes[7].cause == Cause(
            "exception", "ValueError", "boom", "Traceback ...\nValueError: boom", arguments={"x": "1"}
        )
        assert [len(store.load_result(*run).data) for run in [(ROOT, 1), (ROOT, 2), (CHILD, 0)]] == [7, 3000, 5000]
        assert store.find_cached("key-2", 0.0).task_run_id == f"{ROOT}-2"
        said = [entry for _, entry in store.read_logs(ROOT)]
        assert said == [
            LogEntry(tasks[0], 1, 1700000002.1, 20, "stdout", "hello\x00\udcff"),
            LogEntry(root, 1, 1700000002.2, 30, "etl", "from the flow"),
        ]


def test_store_of_version_1_is_read_and_goes_on(path: Path) -> None:
    """Everything is there that was, and new records find their place among it."""
    assert_is_kept(path)

    with closing(SqliteStateStore(path)) as store:
        run = next(iter(store.read(ALIVE)))
        store.append([make_completed(run, 2), make_flow_run(id="new")])
        assert [each.flow_run.id for each in store.list_flow_runs(unfinished=True)] == ["new"]
        assert store.check() == []


def test_copy_of_what_was_is_kept(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A private copy of the earlier store lies beside the new one, and a warning says so."""
    before = rows_of(path)

    with caplog.at_level(logging.WARNING):
        SqliteStateStore(path).close()

    copy = path.with_name("localflow.db.version-1")
    assert rows_of(copy) == before
    assert oct(stat.S_IMODE(copy.stat().st_mode)) == "0o600"
    assert caplog.messages == [
        f"state store {path} was brought from format version 1 to 3; as it was before it is in {copy}"
    ]
    assert sorted(each.name for each in path.parent.iterdir()) == ["localflow.db", "localflow.db.version-1"]


def test_store_of_version_2_is_read_and_goes_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It differs in having no blocks, and gets them."""
    SqliteStateStore(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE blocks; PRAGMA user_version = 2")
    before = rows_of(path)

    with closing(SqliteStateStore(path)) as store:
        claim = store.claim(ALIVE)
        assert claim is not None
        task_run = make_task_run(next(iter(store.read(ALIVE))), 7)
        store.append([task_run, make_running(task_run)])
        claim.release()
        assert [each.number for each in store.read(ALIVE) if isinstance(each, TaskRun)] == [7]
        assert store.check() == []
    assert rows_of(path.with_name("localflow.db.version-2")) == before
    assert "from format version 2 to 3" in caplog.text
    assert_is_kept(path)


@pytest.mark.parametrize("arrival", [1, 2])
def test_kill_in_the_middle_leaves_the_earlier_store(path: Path, arrival: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed while it migrates has changed nothing, and the next one does it all."""
    before = rows_of(path)
    monkeypatch.setenv(VARIABLE, f"in-migration:{arrival}")

    died = subprocess.run([sys.executable, "-c", OPEN, path], check=False)

    assert died.returncode == -signal.SIGKILL
    assert rows_of(path) == before
    monkeypatch.delenv(VARIABLE)
    assert_is_kept(path)
    assert sorted(each.name for each in path.parent.iterdir()) == ["localflow.db", "localflow.db.version-1"]


def test_processes_that_migrate_at_once_do_it_once(path: Path) -> None:
    """Of several processes that open an earlier store together one migrates it, and all can use it."""
    openers = [subprocess.Popen([sys.executable, "-c", OPEN, path], stderr=subprocess.PIPE, text=True) for _ in "abc"]

    told = [opener.communicate()[1] for opener in openers]

    assert [opener.returncode for opener in openers] == [0, 0, 0], told
    assert "".join(told).count("was brought from format version") == 1
    assert_is_kept(path)
