"""Tasks on Ray that die, hang or are cancelled: nobody else is harmed, and nothing is run again in secret."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from localflow_ray.executor import RayExecutor

from localflow import flow, task
from localflow.interfaces import StateType
from localflow.testing import harness
from localflow.testing.running import CallRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.testing.harness import Harness

pytestmark = pytest.mark.usefixtures("ray_there")


@pytest.fixture
def runner() -> Iterator[CallRunner]:
    """Drive an executor of two workers."""
    with CallRunner(RayExecutor(workers=2)) as runner:
        yield runner


@pytest.fixture
def runs() -> Iterator[Harness]:
    """Run flows on Ray, with states in memory."""
    with harness(RayExecutor(workers=2)) as runs:
        yield runs


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def note(path: str, text: object) -> None:
    """Add a line to a file."""
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


def hold_the_interpreter(begun: str) -> None:
    """Stay in C code that does not release the interpreter's lock."""
    note(begun, os.getpid())
    ctypes.PyDLL(None).sleep(60)


def refuse_to_end(begun: str) -> None:
    """Go on, whatever is raised."""
    note(begun, os.getpid())
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            time.sleep(0.01)
        except BaseException:
            continue


def start_child(begun: str) -> None:
    """Start a process, and wait for it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    note(begun, child.pid)
    child.wait()


def tidy_up(begun: str, tidied: str) -> None:
    """Wait, and note the end."""
    note(begun, os.getpid())
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        note(tidied, "tidied")


# -- crashes ---------------------------------------------------------------------------------------------------------


def test_a_crash_is_told_and_nothing_is_run_again(runner: CallRunner, tmp_path: Path) -> None:
    """A task that kills its process has run once, its state names the run and its worker."""
    log = tmp_path / "log"

    def die(log: str) -> None:
        note(log, "began")
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)

    [outcome] = runner.run(runner.call(die, str(log)))

    assert (outcome.state.type, outcome.state.name) == (StateType.CRASHED, "WorkerLost")
    assert outcome.execution is not None
    assert outcome.state.message.startswith(f"worker {outcome.execution.pid} was lost after ")
    assert outcome.state.message.endswith("while running 'die-1' (attempt 1/1)")
    assert log.read_text() == "began\n"


def test_what_a_crashed_task_has_said_is_kept(runner: CallRunner) -> None:
    """Lines from before the crash are there."""

    def say_and_die() -> None:
        print("the last words")
        time.sleep(0.2)
        os._exit(3)

    call = runner.call(say_and_die)
    runner.run(call)

    assert [line.message for line in runner.lines[call.id]] == ["the last words"]


def test_retry_on_crash(runs: Harness, tmp_path: Path) -> None:
    """With `retry_on_crash` localflow tries again, each attempt on record; without it there is one."""
    first, second = str(tmp_path / "first"), str(tmp_path / "second")

    def die_once(log: str) -> str:
        note(log, "began")
        if Path(log).read_text().count("began") == 1:
            os._exit(1)
        return "done"

    @flow
    def main() -> Any:
        again = task(die_once, name="again", retries=2, retry_on_crash=True)(first)
        once = task(die_once, name="once", retries=2)(second)
        return again, once

    main()

    assert runs.history("again-0") == ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"]
    assert runs.history("once-0") == ["Pending", "Running", "WorkerLost"]
    assert Path(second).read_text() == "began\n"


# -- timeouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hang", [hold_the_interpreter, refuse_to_end])
def test_what_never_returns_is_killed_at_its_timeout(
    runner: CallRunner, tmp_path: Path, hang: Callable[[str], None]
) -> None:
    """At the deadline the process is gone, whatever it was doing."""
    begun = tmp_path / "begun"

    [outcome] = runner.run(runner.call(hang, str(begun))._replace(timeout_seconds=0.5))

    assert outcome.state.name == "TimedOut"
    eventually(lambda: not psutil.pid_exists(int(begun.read_text())))
    [following] = runner.run(runner.call(max, 1, 2))
    assert following.state.result() == 2


def test_what_a_task_has_started_is_killed_with_it(runner: CallRunner, tmp_path: Path) -> None:
    """Processes that the task has started do not outlive its timeout."""
    begun = tmp_path / "begun"

    [outcome] = runner.run(runner.call(start_child, str(begun))._replace(timeout_seconds=1.0))

    assert outcome.state.name == "TimedOut"
    eventually(lambda: not psutil.pid_exists(int(begun.read_text())))


# -- cancelling ------------------------------------------------------------------------------------------------------


def test_a_cancelled_task_may_tidy_up(runner: CallRunner, tmp_path: Path) -> None:
    """It gets a KeyboardInterrupt, so `finally` blocks run, and its worker goes on."""
    begun, tidied = tmp_path / "begun", tmp_path / "tidied"
    call = runner.call(tidy_up, str(begun), str(tidied))

    runner.submit(call)
    eventually(begun.exists)
    runner.executor.cancel([call.id])
    [outcome] = runner.wait_for([call])

    assert outcome.state.type is StateType.CANCELLED
    assert outcome.state.message == "the task was cancelled while it was running"
    assert tidied.read_text() == "tidied\n"
    assert psutil.pid_exists(int(begun.read_text()))


@pytest.mark.parametrize(
    ("hang", "timeout"), [(hold_the_interpreter, None), (hold_the_interpreter, 50.0), (refuse_to_end, None)]
)
def test_who_does_not_heed_a_cancellation_is_killed(
    runner: CallRunner, tmp_path: Path, hang: Callable[[str], None], timeout: float | None
) -> None:
    """Five seconds later its process is gone, also if it is in C code that keeps the interpreter's lock."""
    begun = tmp_path / "begun"
    call = runner.call(hang, str(begun))._replace(timeout_seconds=timeout)

    runner.submit(call)
    eventually(begun.exists)
    runner.executor.cancel([call.id])
    [outcome] = runner.wait_for([call])

    assert outcome.state.type is StateType.CANCELLED
    eventually(lambda: not psutil.pid_exists(int(begun.read_text())))


def test_calls_that_wait_in_ray_are_cancelled(tmp_path: Path) -> None:
    """Without a limit of its own the executor leaves the queue to Ray, and a call in it never begins."""
    begun, log = tmp_path / "begun", tmp_path / "log"
    with CallRunner(RayExecutor()) as runner:
        blocking = [runner.call(tidy_up, str(begun), str(tmp_path / "tidied")) for _ in range(2)]
        waiting = runner.call(note, str(log), "began")

        runner.executor.submit([*blocking, waiting])
        eventually(lambda: begun.exists() and begun.read_text().count("\n") == 2)
        runner.executor.cancel([waiting.id])
        [outcome] = runner.wait_for([waiting])
        runner.executor.cancel([call.id for call in blocking])
        outcomes = runner.wait_for(blocking)

    assert outcome.state.type is StateType.CANCELLED
    assert outcome.execution is None
    assert {outcome.state.type for outcome in outcomes} == {StateType.CANCELLED}
    assert not log.exists()
