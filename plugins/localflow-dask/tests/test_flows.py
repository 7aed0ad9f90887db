"""Flows on a Dask cluster of their own are as on other executors."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
from localflow_dask import DaskExecutor
from waiting_for import eventually

from localflow import StateType, flow, get_run_logger, task
from localflow.errors import ConfigError
from localflow.project import Project

LOCALFLOW = str(Path(sys.executable).with_name("localflow"))


def dask(**options: Any) -> DaskExecutor:
    """Return an executor of two workers."""
    return DaskExecutor(workers=2, **options)


@task
def create_tables(file: str) -> None:
    """Create the table of the tutorial."""
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE projects (name TEXT NOT NULL CHECK (length(name) >= 4))")


@task
def add_project(file: str, name: str) -> None:
    """Add a project to it."""
    with sqlite3.connect(file, timeout=30) as connection:
        connection.execute("INSERT INTO projects (name) VALUES (?)", [name])


@task
def combine(own: int, *others: int) -> int:
    """Put numbers together so that their order matters."""
    for other in others:
        own = (own * 31 + other) % 1_000_003
    return own


@task
def make(size: int) -> Any:
    """Make an array."""
    return numpy.arange(size, dtype="int64")


@task
def total(array: Any, factor: int = 1) -> int:
    """Add up an array."""
    return int(array.sum()) * factor


def test_the_tutorial(tmp_path: Path) -> None:
    """One bad row among good ones fails alone."""
    file = str(tmp_path / "projects.db")

    @flow(executor=dask())
    def main(names: list[str]) -> None:
        table = create_tables(file)
        for name in names:
            add_project(file, name, wait_for=[table])

    state = main(["orion", "", "critically-important"])

    assert (state.type, state.message) == (StateType.FAILED, "1/4 states failed.")
    with sqlite3.connect(file) as connection:
        assert sorted(connection.execute("SELECT name FROM projects")) == [("critically-important",), ("orion",)]


def test_a_random_graph_gives_what_plain_code_gives() -> None:
    """Whatever depends on what, each task gets the results that it asks for, in their order."""
    chance = random.Random(7)
    plan = [(n, chance.sample(range(n), min(n, chance.randrange(4)))) for n in range(80)]

    @flow(executor=dask())
    def main() -> object:
        futures: list[Any] = []
        for own, upstreams in plan:
            futures.append(combine(own, *(futures[each] for each in upstreams)))
        return futures

    expected: list[int] = []
    for own, upstreams in plan:
        expected.append(combine.fn(own, *(expected[each] for each in upstreams)))
    assert main().result() == expected


@pytest.mark.parametrize("store", ["sqlite", "memory"])
def test_mapped_arrays(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large results pass from task to task, by files where the store has a place for them, else over the cluster."""
    monkeypatch.setenv("LOCALFLOW_STORE", store)

    @flow(executor=dask())
    def main() -> object:
        arrays = make.map([300_000, 400_000, 500_000])
        return total.map(arrays, factor=[1, 2, 3])

    expected = [sum(range(300_000)), 2 * sum(range(400_000)), 3 * sum(range(500_000))]
    assert main().result() == expected
    files = [path.stat().st_size for path in Path(".localflow").glob("*-values/*/*")]
    assert sorted(size // 100_000 for size in files) == ([24, 32, 40] if store == "sqlite" else [])


def test_a_large_array_as_an_argument() -> None:
    """An array of the flow's own arrives, whole, and dask's warning of large graphs is no error of anybody."""
    array = numpy.ones(2_000_000)

    @flow(executor=dask())
    def main() -> object:
        return total.map([array, array])

    assert main().result() == [2_000_000, 2_000_000]


def test_a_large_array_as_an_argument_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a place for files the same is true."""
    monkeypatch.setenv("LOCALFLOW_STORE", "memory")
    array = numpy.ones(2_000_000)

    @flow(executor=dask())
    def main() -> object:
        return total(array)

    assert main().result() == 2_000_000


def test_failures_come_with_their_traceback_and_block_what_depends() -> None:
    """An exception arrives as on other executors."""

    @task
    def fail(value: int) -> int:
        raise KeyError(f"no {value}")

    @flow(executor=dask())
    def main() -> object:
        failed = fail(3)
        return failed, combine(failed)

    state = main()
    failed, blocked = state.result(raise_on_failure=False)

    assert failed.message == "Task run encountered an exception: KeyError: 'no 3'"
    assert 'raise KeyError(f"no {value}")' in failed.cause.traceback_text
    assert blocked.name == "NotReady"
    with pytest.raises(KeyError, match="no 3"):
        state.result()


def test_prints_and_log_records_are_recorded(tmp_path: Path) -> None:
    """What tasks say is under each of them."""

    @task(log_prints=True)
    def talk(name: str) -> None:
        get_run_logger().info("hello %s", name)
        print("I am", name)

    @flow(executor=dask())
    def main() -> None:
        talk.map(["ann", "bob"])

    assert main().is_completed()
    for name in ("ann", "bob"):
        said = subprocess.run([LOCALFLOW, "logs", "@last"], capture_output=True, text=True).stdout
        assert said.count(f"hello {name}") == 1
        assert said.count(f"I am {name}") == 1


@pytest.mark.parametrize(
    "end", [lambda: os._exit(3), lambda: os.kill(os.getpid(), signal.SIGKILL)], ids=["exit", "kill"]
)
def test_a_crash_is_tried_again_only_if_the_task_says_so(tmp_path: Path, end: Any) -> None:
    """A worker that dies takes its call along: CRASHED, run once; with `retry_on_crash` a second attempt."""
    log = tmp_path / "log"

    @task
    def crash(name: str) -> None:
        with log.open("a") as file:
            file.write(f"{name}\n")
        if log.read_text().count(name) < 2:
            end()

    @flow(executor=dask())
    def main() -> object:
        once = crash("once")
        twice = crash.with_options(retries=1, retry_on_crash=True)("twice")
        return once, twice, combine.map(list(range(10)))

    once, twice, others = main().result(raise_on_failure=False)

    assert (once.type, once.name) == (StateType.CRASHED, "WorkerLost")
    assert "crash-0" in once.message
    assert twice.is_completed()
    assert all(state.is_completed() for state in others)
    assert sorted(log.read_text().split()) == ["once", "twice", "twice"]


def test_a_task_past_its_timeout_is_killed_in_c_code() -> None:
    """Also one that keeps the interpreter's lock; its worker is replaced."""

    @task(timeout_seconds=1.0)
    def hold() -> int:
        import ctypes

        return ctypes.PyDLL(None).sleep(60)

    @flow(executor=dask())
    def main() -> object:
        held = hold()
        return held, [combine(n, wait_for=[]) for n in range(8)]

    began = time.monotonic()
    held, others = main().result(raise_on_failure=False)

    assert (held.name, held.message) == ("TimedOut", "Task run exceeded timeout of 1.0 second(s)")
    assert all(state.is_completed() for state in others)
    assert time.monotonic() - began < 40


def test_more_threads_in_a_worker_cannot_be_stopped(caplog: pytest.LogCaptureFixture) -> None:
    """They are at work at the same time, and a timeout is warned of."""

    @task(timeout_seconds=20)
    def thread() -> tuple[int, int]:
        time.sleep(0.5)
        return os.getpid(), threading.get_ident()

    @flow(executor=DaskExecutor(workers=1, threads_per_worker=2))
    def main() -> object:
        return thread(), thread()

    seen = main().result()

    assert len({pid for pid, _ in seen}) == 1
    assert len({ident for _, ident in seen}) == 2
    assert "cannot stop its code" in caplog.text


def test_options_reach_the_workers() -> None:
    """`env` is in the environment of workers, where libraries do not take all cores either, and not in ours."""

    @task
    def look() -> tuple[str, str]:
        return os.environ["COLOUR"], os.environ["OMP_NUM_THREADS"]

    @flow(executor=dask(env={"COLOUR": "blue"}))
    def main() -> object:
        return look()

    before = dict(os.environ)
    colour, threads = main().result()

    assert colour == "blue"
    assert int(threads) >= 1
    assert dict(os.environ) == before


def test_a_memory_limit_ends_a_worker(tmp_path: Path) -> None:
    """A task that grows beyond it is CRASHED, and the others run."""

    @task
    def grow() -> int:
        held = []
        while True:
            held.append(b"x" * 20_000_000)
            time.sleep(0.02)

    @flow(executor=dask(memory_limit="400 MB"))
    def main() -> object:
        return grow(), combine(1)

    grown, other = main().result(raise_on_failure=False)

    assert (grown.type, grown.name) == (StateType.CRASHED, "WorkerLost")
    assert other.is_completed()


def test_a_script_without_a_guard(tmp_path: Path) -> None:
    """Workers never import the main module, and its functions and classes travel."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + "print(main())\n")

    ended = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=60)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("begins") == 1
    assert "Pair(3, 4)" in ended.stdout
    assert "Completed" in ended.stdout
    assert "distributed" not in ended.stderr


def test_a_table_and_the_command_line(tmp_path: Path) -> None:
    """The executor is chosen by its name, with -j for the number of workers."""
    (tmp_path / "localflow.toml").write_text('[executors.dask]\nenv = { COLOUR = "red" }\n')
    (tmp_path / "script.py").write_text(SCRIPT)

    ended = subprocess.run(
        [LOCALFLOW, "run", "script.py", "--executor", "dask", "-j", "1"], capture_output=True, text=True, timeout=60
    )

    assert ended.returncode == 0, ended.stderr
    assert "Pair(3, 4)" in ended.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('address = "tcp://127.0.0.1:1"\nworkers = 2', "leave out workers"),
        ('memory_limit = "much"', "memory_limit"),
        ("workers = 0", "workers must be an integer >= 1"),
        ("worker = 2", "did you mean 'workers'"),
    ],
)
def test_mistakes_in_a_table(tmp_path: Path, options: str, message: str) -> None:
    """They are told before anything runs."""
    (tmp_path / "localflow.toml").write_text(f"[executors.dask]\n{options}\n")

    with pytest.raises(ConfigError, match=message):
        Project.load().make_executor("dask")


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """The run ends in good order, with exit code 130 and no process left; what ran is CANCELLED."""
    (tmp_path / "script.py").write_text(WAITING)
    process = subprocess.Popen(
        [LOCALFLOW, "run", "script.py", "--executor", "dask", "-j", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    eventually(lambda: (tmp_path / "begun").exists(), seconds=40)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it as well

    _, errors = process.communicate(timeout=40)

    assert process.returncode == 130, errors
    assert "distributed" not in errors
    shown = subprocess.run([LOCALFLOW, "show", "@last"], capture_output=True, text=True).stdout
    assert "Cancelled" in shown or "Interrupted" in shown
    assert "WorkerLost" not in shown


def test_workers_end_with_the_engine(tmp_path: Path) -> None:
    """After `kill -9` of the engine its workers are gone soon."""
    (tmp_path / "script.py").write_text(WAITING)
    process = subprocess.Popen(
        [LOCALFLOW, "run", "script.py", "--executor", "dask", "-j", "2"], stderr=subprocess.DEVNULL
    )
    eventually(lambda: (tmp_path / "begun").exists(), seconds=40)
    workers = psutil.Process(process.pid).children(recursive=True)

    process.kill()
    process.wait()

    assert workers
    eventually(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))


def test_cancelling_a_running_task_ends_its_worker() -> None:
    """`future.cancel()` stops what runs, and others go on in a worker that is replaced."""
    begun = Path("begun").absolute()

    @task
    def wait() -> None:
        begun.touch()
        time.sleep(60)

    @flow(executor=DaskExecutor(workers=1))
    def main() -> object:
        waiting = wait()
        eventually(begun.exists, seconds=30)
        waiting.cancel()
        return waiting, combine(1)

    cancelled, other = main().result(raise_on_failure=False)

    assert cancelled.type is StateType.CANCELLED
    assert other.is_completed()


SCRIPT = """
print("begins")
from localflow import flow, task

class Pair:
    def __init__(self, one, other):
        self.one, self.other = one, other
    def __repr__(self):
        return f"Pair({self.one}, {self.other})"

@task
def make(one, other):
    return Pair(one, other)

@task
def tell(pair):
    return repr(pair)

@flow(executor="dask")
def main():
    print(tell(make(3, 4)).result())
"""

WAITING = """
import time
from pathlib import Path
from localflow import flow, task

@task
def wait(path):
    path.touch()
    time.sleep(100)

@flow
def main():
    wait(Path("begun").absolute())
"""
