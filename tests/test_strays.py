"""Processes that have outlived their engine are found by their mark, and only workers are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from localflow.strays import VARIABLE, Stray, engine_mark, find_strays, kill_stray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GONE = "1:1"  # process 1 was born at another tick
WORKER = "import time  # localflow.builtin.process.supervisor\ntime.sleep(60)"
OTHER = "import time\ntime.sleep(60)"


@pytest.fixture
def start() -> Iterator[Callable[[str, str], int]]:
    """Start Python with a code and a mark; return its pid once it is at work."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(code: str, mark: str) -> int:
        process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, VARIABLE: mark})
        begun.append(process)
        return process.pid

    yield start
    for process in begun:
        process.kill()
        process.wait()


def stray(pid: int) -> Stray | None:
    """Return the process as a stray, if it is found."""
    return next((each for each in find_strays() if each.pid == pid), None)


def test_process_of_a_living_engine_is_no_stray(start: Callable[[str, str], int]) -> None:
    """As long as the engine lives, with the birth that the mark says, its processes are its own affair."""
    assert stray(start(WORKER, engine_mark())) is None


def test_process_of_another_that_had_the_pid_is_a_stray(start: Callable[[str, str], int]) -> None:
    """A living process with the engine's pid is not the engine if it was born at another time."""
    pid = start(WORKER, f"{os.getpid()}:17")

    found = stray(pid)

    assert found is not None
    assert (found.engine, found.is_worker) == (os.getpid(), True)


def test_process_of_an_engine_that_nobody_has_buried_is_a_stray(start: Callable[[str, str], int]) -> None:
    """A zombie is no engine any more."""
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    birth = Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()[19]
    pid = start(WORKER, f"{engine.pid}:{birth}")
    before = stray(pid)
    engine.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while psutil.Process(engine.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.005)

    found = stray(pid)
    engine.wait()

    assert before is None
    assert found is not None


@pytest.mark.parametrize("mark", ["", "x", "1:", "1", ":1"])
def test_process_with_a_mark_that_says_nothing_is_let_be(start: Callable[[str, str], int], mark: str) -> None:
    """Only what surely was ours is looked at."""
    assert stray(start(WORKER, mark)) is None


def test_stray_worker_is_killed_with_what_is_below_it(start: Callable[[str, str], int]) -> None:
    """Nothing of it is left, also if it was stopped."""
    pid = start(f"import subprocess, sys\nsubprocess.Popen(['sleep', '60'])\n{WORKER}", GONE)
    process = psutil.Process(pid)
    deadline = time.monotonic() + 10
    while not (below := process.children()) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.suspend()
    found = stray(pid)

    assert found is not None
    assert kill_stray(found)
    assert [each.pid for each in psutil.wait_procs(below, timeout=5)[1]] == []


def test_what_a_task_has_started_is_not_killed(start: Callable[[str, str], int]) -> None:
    """It may have been left running on purpose."""
    pid = start(OTHER, GONE)
    found = stray(pid)

    assert found is not None
    assert not found.is_worker
    assert not kill_stray(found)
    assert psutil.Process(pid).is_running()


def test_another_process_with_the_pid_is_not_killed(start: Callable[[str, str], int]) -> None:
    """Pid, time of birth and mark are looked at once more."""
    pid = start(WORKER, GONE)
    found = stray(pid)

    assert found is not None
    assert not kill_stray(found._replace(created_at=found.created_at - 1))
    assert not kill_stray(found._replace(engine=17))
    assert psutil.Process(pid).is_running()


def test_workers_bear_the_mark_of_their_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found in the environment of a task is that of the process that runs the flow."""
    monkeypatch.setenv("LOCALFLOW_STORE", "memory")
    from localflow import flow, task

    @task
    def mark() -> str:
        return os.environ[VARIABLE]

    @flow(executor="process")
    def main() -> str:
        return mark().result()

    assert main().result() == engine_mark()
