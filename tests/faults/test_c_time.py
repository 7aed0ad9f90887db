"""C7 to C9: power that fails, clocks that jump, and machines that sleep."""

from __future__ import annotations

import re
import signal
import sqlite3
import time
from contextlib import closing, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import pytest

from localflow.builtin.sqlite import SqliteStateStore
from localflow.records import FlowRun
from tests.faults.conftest import eventually, own_processes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.conftest import Place

NORMAL, FULL = 1, 2  # what SQLite answers to PRAGMA synchronous

HOUR = 3_600


@pytest.mark.parametrize(("durability", "synchronous"), [("process", NORMAL), ("full", FULL)])
def test_fault_C7_full_durability_syncs_every_commit(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, durability: Literal["process", "full"], synchronous: int
) -> None:
    """With `full` SQLite syncs its log at each commit, with `process` at checkpoints; both keep a write-ahead log."""
    made: list[sqlite3.Connection] = []
    writers: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def watched(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        made.append(connection)
        connection.set_trace_callback(
            lambda sql: writers.append(connection) if "INSERT INTO flow_runs" in sql else None
        )
        return connection

    monkeypatch.setattr(sqlite3, "connect", watched)
    with closing(SqliteStateStore(own_folder / "state.db", durability)) as store:
        store.append([FlowRun("abc", "brave-otter", "main", time.time(), "abc")])
        answers = {
            (*writer.execute("PRAGMA synchronous").fetchone(), *writer.execute("PRAGMA journal_mode").fetchone())
            for writer in writers
        }
        for connection in made:
            with suppress(sqlite3.ProgrammingError):  # it is closed
                connection.set_trace_callback(None)

    assert answers == {(synchronous, "wal")}


#: A clock on the wall that can be set; Python's own monotonic one goes on as it did.
CLOCK = """
real, jump = time.time, [0]
time.time = lambda: real() + jump[0]

def set_clock(hours):
    jump[0] = hours * 3600
"""


@pytest.mark.parametrize(("executor", "store"), [("sequential", "json"), ("thread", "sqlite")], indirect=["store"])
def test_fault_C8_a_clock_that_is_set_back_changes_no_duration(place: Place, store: str, executor: str) -> None:
    """Task runs took as long as they took, retries come when they should, and `show` says that the clock changed."""
    place.write(
        CLOCK
        + """
@task
def long():
    set_clock(-1)
    time.sleep(0.2)

@task(retries=1, retry_delay_seconds=0.2)
def again(x):
    note("again", time.monotonic())
    if jump[0] == -1 * 3600:
        set_clock(-2)
        raise OSError("once more")

@flow
def main():
    again(long())
"""
    )

    done = place.localflow("run", "flows.py", "--executor", executor)

    assert done.returncode == 0, done.stderr
    assert re.search(r"is Completed after \d", done.stderr)
    first, second = (float(line.split()[1]) for line in place.notes)
    assert 0.2 <= second - first < 10
    long, again = place.task_runs()
    assert 0.2 <= seconds(long) < 10
    assert [moment["name"] for moment in again["history"]] == [
        "Pending", "Running", "AwaitingRetry", "Retrying", "Completed",
    ]  # fmt: skip
    shown = place.localflow("show", "@last").stdout
    assert "clock changed" in shown
    assert "clock changed" in place.localflow("runs").stdout
    assert not re.search(r"-\d+(\.\d+)?(us|ms|s|m|h)\b", shown)


def test_fault_C8_a_clock_that_is_set_forward_times_nothing_out(place: Place) -> None:
    """A timeout is measured by a clock that nobody sets; so is the duration of the task run."""
    place.write(
        CLOCK
        + """
@task(timeout_seconds=30)
def work():
    set_clock(1)
    time.sleep(0.1)

@flow(timeout_seconds=60)
def main():
    work()
"""
    )

    done = place.localflow("run", "flows.py", "--executor", "thread")

    assert done.returncode == 0, done.stderr
    [work] = place.task_runs()
    assert 0.1 <= seconds(work) < 10


def test_fault_C8_a_clock_that_is_set_in_a_worker_changes_no_duration(place: Place) -> None:
    """What a worker process measures does not depend on the clock on its wall."""
    place.write(
        CLOCK
        + """
@task
def work():
    import time
    real = time.time
    time.time = lambda: real() - 3600
    time.sleep(0.1)

@flow(executor="process")
def main():
    work()
"""
    )

    done = place.localflow("run", "flows.py", "-j", "1")

    assert done.returncode == 0, done.stderr
    [work] = place.task_runs()
    assert 0.1 <= seconds(work) < 10


def test_fault_C8_runs_are_in_order_whatever_the_clock_says(place: Place) -> None:
    """The last run is the one recorded last, not the one with the latest time; times are recorded in UTC.

    So it is in the store `sqlite`; `json` has a folder for each run and no order between them but that of their times.
    """
    source = CLOCK + "set_clock(int(sys.argv[1]))\n@flow(flow_run_name=sys.argv[1])\ndef main(): pass\nmain()\n"
    for hours in ("0", "-2", "-1"):
        done = place.run(place.write(source), hours, TZ="Asia/Kolkata")
        assert done.returncode == 0, done.stderr

    runs = place.read("runs", TZ="Asia/Kolkata")

    assert [run["name"] for run in runs] == ["-1", "-2", "0"]
    assert place.read("show", "@last")["name"] == "-1"
    began = datetime.fromisoformat(runs[-1]["started_at"])
    assert began.utcoffset() is not None
    assert abs(began.timestamp() - time.time()) < HOUR / 2


def test_fault_C8_a_resumed_run_knows_its_calls_by_their_order(place: Place, store: str) -> None:
    """A clock that was set back between two calls does not have one taken for the other: nothing runs again."""
    place.write(
        CLOCK
        + """
@task
def work(number):
    note("work", number)

@flow
def part(number):
    work(number)

@flow
def main():
    for number in range(3):
        set_clock(-number)
        part(number)
    if not os.path.exists("go"):
        raise OSError("not yet")
"""
    )
    failed = place.localflow("run", "flows.py:main")
    (place.folder / "go").touch()

    done = place.localflow("resume", "@last-failed")

    assert (failed.returncode, done.returncode) == (1, 0), done.stderr
    assert place.counts == {"work 0": 1, "work 1": 1, "work 2": 1}


@pytest.mark.parametrize("stopped", ["all", "workers"])
def test_fault_C9_a_machine_that_sleeps_fails_nothing(place: Place, stopped: str) -> None:
    """After a standstill of all processes everything goes on where it was: silence alone is never a failure.

    In a true suspend the monotonic clock of Linux stands still, so no timeout can come of it however long it is. Here
    that clock goes on, so what is promised is that timeouts longer than the standstill do not fire.
    """
    place.write("""
@task(timeout_seconds=60)
def work(number):
    note("begin", number)
    if number < 2:
        until(lambda: os.path.exists("go"), 60)
    return number

@task(retries=1, retry_delay_seconds=0.5)
def again():
    note("again")
    if not os.path.exists("go"):
        raise OSError("not yet")

@flow(executor="process", timeout_seconds=90)
def main():
    again.submit()
    work.map(range(10))
""")
    program = place.start("-m", "localflow", "run", "flows.py", "-j", "2")
    eventually(lambda: {"begin 0", "begin 1"} <= set(place.notes))
    processes = [each for each in own_processes() if stopped == "all" or each.pid != program.pid]

    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        (place.folder / "go").touch()
        time.sleep(2)  # the fault itself: longer than any pause between signs of life
        [run] = place.read("runs")
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
    done = program.wait()

    assert run["state"]["name"] == "Running"  # who looks at it meanwhile does not take it for dead
    assert done.returncode == 0, done.stderr
    assert set(place.states().values()) == {("COMPLETED", "Completed")}
    counts = place.counts
    assert counts.pop("again") <= 2
    assert counts == {f"begin {number}": 1 for number in range(10)}


def seconds(run: dict[str, Any]) -> float:
    """Return how long a run took, by what `show --json` says."""
    started, ended = (datetime.fromisoformat(run[key]) for key in ("started_at", "ended_at"))
    return (ended - started).total_seconds()
