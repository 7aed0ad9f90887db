"""Calls that are cancelled end in order, then by force; shutdown does not wait for the order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from localflow.builtin.process import ProcessExecutor
from localflow.states import StateType
from localflow.testing import workloads
from localflow.testing.running import CallRunner
from tests.executors.conftest import eventually, is_gone, numbers_in

if TYPE_CHECKING:
    from pathlib import Path

    from localflow.interfaces import Call, Outcome

PROMPT = 1.5


def begun(runner: CallRunner, log: Path, function: Any, *args: Any) -> Call:
    """Submit a call that notes something in `log` when it has begun, and wait for that."""
    call = runner.call(function, str(log), *args)
    runner.submit(call)
    eventually(lambda: log.exists() and log.read_text().endswith("\n"))
    return call


def cancelled(runner: CallRunner, call: Call) -> tuple[Outcome, float]:
    """Cancel a call; return its outcome and how many seconds it took to come."""
    began_at = time.monotonic()
    runner.executor.cancel([call.id])
    [outcome] = runner.wait_for([call])
    return outcome, time.monotonic() - began_at


def test_a_running_call_ends_soon(runner: CallRunner, tmp_path: Path) -> None:
    """A task that does nothing about SIGTERM is CANCELLED at once, and its worker is replaced."""
    log = tmp_path / "pids"

    def sleep(path: str) -> None:
        workloads.note(path, str(os.getpid()), 60)

    outcome, seconds = cancelled(runner, begun(runner, log, sleep))
    following = runner.run(*[runner.call(workloads.pid) for _ in range(4)])

    assert outcome.state.type is StateType.CANCELLED
    assert outcome.state.message == "the task was cancelled while it was running"
    assert seconds < PROMPT
    assert is_gone(numbers_in(log)[0])
    assert all(other.state.result() not in numbers_in(log) for other in following)


def test_a_task_may_tidy_up(runner: CallRunner, tmp_path: Path) -> None:
    """A handler for SIGTERM runs; however the task ends then, it is CANCELLED."""
    log, tidied = tmp_path / "begun", tmp_path / "tidied"

    def tidy_up(path: str, other: str, succeeds: bool) -> int:
        def stop(signum: int, stack: object) -> None:
            raise InterruptedError

        signal.signal(signal.SIGTERM, stop)
        try:
            workloads.note(path, str(os.getpid()), 60)
        except InterruptedError:
            time.sleep(0.3)
            workloads.note(other, "1")
            if not succeeds:
                raise
        return 7

    for count, succeeds in enumerate((False, True), start=1):
        log.unlink(missing_ok=True)
        outcome, seconds = cancelled(runner, begun(runner, log, tidy_up, str(tidied), succeeds))

        assert outcome.state.type is StateType.CANCELLED
        assert outcome.result is None
        assert len(numbers_in(tidied)) == count
        assert 0.3 <= seconds < 0.3 + PROMPT
        eventually(lambda: is_gone(numbers_in(log)[0]))


def test_a_task_that_does_not_end_is_killed_after_the_grace(
    runner: CallRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ignores SIGTERM is killed when the grace is over, children in other sessions included."""
    monkeypatch.setattr("localflow.builtin.process.staff.CANCEL_GRACE", 0.5)
    log = tmp_path / "pids"
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"

    def ignore(path: str, program: str) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        workloads.note(path, f"{child.pid}\n{os.getpid()}", 60)

    outcome, seconds = cancelled(runner, begun(runner, log, ignore, deaf))

    assert outcome.state.type is StateType.CANCELLED
    assert 0.5 <= seconds < 0.5 + PROMPT
    assert all(is_gone(pid) for pid in numbers_in(log))


@pytest.mark.parametrize("new_session", [False, True])
def test_what_a_task_has_started_may_end_in_order(runner: CallRunner, tmp_path: Path, new_session: bool) -> None:
    """A child gets SIGTERM too and time to tidy up, also when its parent is gone at once; the call ends after it."""
    log, tidied = tmp_path / "pids", tmp_path / "tidied"
    tidy = (
        "import os, signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(0.4)\n"
        "    open(sys.argv[1], 'w').write('1\\n')\n"
        "    os._exit(0)\n"
        "signal.signal(15, stop)\n"
        "print(flush=True)\n"
        "time.sleep(60)\n"
    )

    def start_child(path: str, program: str, other: str) -> None:
        child = subprocess.Popen(
            [sys.executable, "-c", program, other], start_new_session=new_session, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        workloads.note(path, str(child.pid), 60)

    outcome, seconds = cancelled(runner, begun(runner, log, start_child, tidy, str(tidied)))

    assert outcome.state.type is StateType.CANCELLED
    assert numbers_in(tidied) == [1]
    assert 0.4 <= seconds < 0.4 + PROMPT
    assert is_gone(numbers_in(log)[0])


def test_a_stopped_worker_ends_too(runner: CallRunner, tmp_path: Path) -> None:
    """A worker that is stopped is continued to end."""

    def stop(path: str) -> None:
        workloads.note(path, str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)

    outcome, seconds = cancelled(runner, begun(runner, tmp_path / "pids", stop))

    assert outcome.state.type is StateType.CANCELLED
    assert seconds < PROMPT


def test_shutdown_during_the_grace_is_immediate(tmp_path: Path) -> None:
    """Cancelling all and then shutting down ends even who ignores SIGTERM, at once."""
    log = tmp_path / "pids"
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"

    def ignore(path: str, program: str) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        workloads.note(path, f"{child.pid}\n{os.getpid()}", 60)

    with CallRunner(ProcessExecutor(workers=2)) as runner:
        call = begun(runner, log, ignore, deaf)
        runner.executor.cancel([call.id])
        time.sleep(0.3)
        began_at = time.monotonic()
    seconds = time.monotonic() - began_at

    assert seconds < PROMPT
    assert runner.outcomes == []
    assert all(is_gone(pid) for pid in numbers_in(log))


def test_shutdown_while_an_orphan_has_its_grace_is_immediate(tmp_path: Path) -> None:
    """The same where the worker itself has ended and only a child of it is left."""
    log = tmp_path / "pids"
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"

    def start_child(path: str, program: str) -> None:
        child = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        workloads.note(path, f"{child.pid}\n{os.getpid()}", 60)

    with CallRunner(ProcessExecutor(workers=2)) as runner:
        call = begun(runner, log, start_child, deaf)
        runner.executor.cancel([call.id])
        eventually(lambda: is_gone(numbers_in(log)[1]))
        assert runner.outcomes == []
        began_at = time.monotonic()
    seconds = time.monotonic() - began_at

    assert seconds < PROMPT
    assert all(is_gone(pid) for pid in numbers_in(log))


def test_each_call_is_answered_once(tmp_path: Path) -> None:
    """Cancelling everything, twice, whatever runs, waits or has just ended, gives one outcome for each call."""
    with CallRunner(ProcessExecutor(workers=2)) as runner:
        runner.run(*[runner.call(workloads.identity, 1) for _ in range(100)])
        calls = [runner.call(workloads.pid, 0.002) for _ in range(300)]
        runner.executor.submit(calls)
        time.sleep(0.05)
        for _ in range(2):
            runner.executor.cancel([call.id for call in calls])
        outcomes = runner.wait_for(calls)
        runner.run(*[runner.call(workloads.identity, 1) for _ in range(100)])

    kinds = {outcome.state.type for outcome in outcomes}
    assert kinds <= {StateType.COMPLETED, StateType.CANCELLED}
    assert len(runner.outcomes) == 500


def test_others_are_not_touched(runner: CallRunner, tmp_path: Path) -> None:
    """What runs in another worker, or was waiting behind the cancelled call, completes."""
    log, release = tmp_path / "pids", tmp_path / "release"
    other = runner.call(workloads.wait_for_file, str(release))
    runner.submit(other)

    def sleep(path: str) -> None:
        workloads.note(path, str(os.getpid()), 60)

    call = begun(runner, log, sleep)
    waiting = [runner.call(workloads.identity, number) for number in range(10)]
    runner.executor.submit(waiting)
    outcome, _ = cancelled(runner, call)
    release.touch()

    assert outcome.state.type is StateType.CANCELLED
    assert [each.state.result() for each in runner.wait_for([other, *waiting])] == [True, *range(10)]
