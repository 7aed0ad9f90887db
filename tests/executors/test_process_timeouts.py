"""A call past its timeout is killed, whatever it is doing, with all that it has started; nobody else is touched."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from localflow.builtin.process import ProcessExecutor
from localflow.context import TaskContext, current_run
from localflow.states import TIMED_OUT, StateType
from localflow.testing import workloads
from localflow.testing.running import CallRunner
from tests.executors.conftest import is_gone, numbers_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localflow.interfaces import Call, Outcome

TIMEOUT = 0.8
LATE = 1.0


def limited(runner: CallRunner, function: Callable[..., Any], *args: Any, seconds: float = TIMEOUT) -> Call:
    """Return a call with a timeout."""
    return runner.call(function, *args)._replace(timeout_seconds=seconds)


def timed_out(runner: CallRunner, function: Callable[..., Any], *args: Any) -> Outcome:
    """Run a call past its timeout in a worker that has imported everything already, and return its outcome."""
    runner.run(*[runner.call(prepare) for _ in range(runner.executor.workers)])  # type: ignore[attr-defined]
    began_at = time.monotonic()
    [outcome] = runner.run(limited(runner, function, *args))
    elapsed = time.monotonic() - began_at
    assert (outcome.state.type, outcome.state.name) == (StateType.FAILED, TIMED_OUT)
    assert outcome.state.message == f"Task run exceeded timeout of {TIMEOUT} second(s)"
    assert TIMEOUT <= elapsed < TIMEOUT + LATE
    return outcome


def prepare() -> None:
    """Have this module imported, and give the other worker time to have its turn."""
    time.sleep(0.1)


def sleep_in_c(path: str) -> None:
    """Hold the interpreter's lock in C code."""
    workloads.note(path, str(os.getpid()))
    ctypes.PyDLL(None).sleep(60)


def ignore_sigterm(path: str) -> None:
    """Do not end on being asked to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    workloads.note(path, str(os.getpid()))
    time.sleep(60)


def stop_oneself(path: str) -> None:
    """Be stopped, as by Ctrl-Z."""
    workloads.note(path, str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


def catch_everything(path: str) -> None:
    """Go on after any exception."""
    workloads.note(path, str(os.getpid()))
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue


@pytest.mark.parametrize("task", [sleep_in_c, ignore_sigterm, stop_oneself, catch_everything])
def test_no_task_outlives_its_timeout(runner: CallRunner, tmp_path: Path, task: Callable[[str], None]) -> None:
    """Neither C code, nor an ignored signal, nor being stopped keeps a task alive; a new worker takes its place."""
    log = tmp_path / "pids"

    outcome = timed_out(runner, task, str(log))
    following = runner.run(*[runner.call(workloads.pid, 0.05) for _ in range(4)])

    [worker] = numbers_in(log)
    assert outcome.execution is not None
    assert outcome.execution.pid == worker
    assert is_gone(worker)
    assert all(other.state.is_completed() and other.state.result() != worker for other in following)


@pytest.mark.parametrize("new_session", [False, True])
@pytest.mark.parametrize("generations", [1, 2])
def test_what_a_task_has_started_is_gone(
    runner: CallRunner, tmp_path: Path, new_session: bool, generations: int
) -> None:
    """Children and their children end with the task, also those in sessions of their own."""
    log = tmp_path / "pids"
    sleep = "import time; time.sleep(60)"
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}]).wait()"

    def start_children(path: str, program: str) -> None:
        for _ in range(3):
            child = subprocess.Popen([sys.executable, "-c", program], start_new_session=new_session)
            workloads.note(path, str(child.pid))
        time.sleep(60)

    timed_out(runner, start_children, str(log), sleep if generations == 1 else start)

    assert len(numbers_in(log)) == 3
    assert all(is_gone(pid) for pid in numbers_in(log))


def test_a_task_that_forks_all_the_time_is_gone(runner: CallRunner, tmp_path: Path) -> None:
    """Also children that start others again and again, each in a session of its own, do not get away."""
    log = tmp_path / "pids"

    def multiply(path: str, generations: int) -> None:
        for _ in range(generations):
            workloads.note(path, str(os.getpid()), 0.02)
            if os.fork():
                break
            os.setsid()
        time.sleep(20)
        os._exit(0)

    timed_out(runner, multiply, str(log), 300)
    pids = numbers_in(log)
    time.sleep(0.1)

    assert len(pids) > 3
    assert numbers_in(log) == pids
    assert all(is_gone(pid) for pid in pids)


def test_the_time_in_the_queue_does_not_count(tmp_path: Path) -> None:
    """The clock starts when a call begins, not when it is submitted."""
    with CallRunner(ProcessExecutor(workers=1)) as runner:
        calls = [limited(runner, workloads.pid, 0.2, seconds=0.6) for _ in range(6)]
        runner.executor.submit(calls)

        outcomes = runner.wait_for(calls)

    assert all(outcome.state.is_completed() for outcome in outcomes)


def test_a_slow_start_of_the_worker_does_not_count() -> None:
    """The clock starts after the initializer."""
    with CallRunner(ProcessExecutor(workers=1, initializer=lambda: time.sleep(0.6))) as runner:
        [outcome] = runner.run(limited(runner, workloads.identity, 1, seconds=0.5))

    assert outcome.state.result() == 1


def test_calls_sent_ahead_run_once_elsewhere(tmp_path: Path) -> None:
    """What was sent to a worker behind a call that is killed runs in another one, exactly once."""
    log = tmp_path / "log"
    with CallRunner(ProcessExecutor(workers=1)) as runner:
        runner.run(*[runner.call(workloads.identity, 1) for _ in range(200)])
        slow = limited(runner, time.sleep, 60)
        others = [runner.call(workloads.note, str(log), str(number)) for number in range(50)]
        runner.executor.submit([*others[:10], slow, *others[10:]])

        [outcome] = runner.wait_for([slow])
        outcomes = runner.wait_for(others)

    assert outcome.state.name == TIMED_OUT
    assert all(other.state.is_completed() for other in outcomes)
    assert sorted(numbers_in(log)) == list(range(50))


def test_only_the_late_call_is_killed(runner: CallRunner, tmp_path: Path) -> None:
    """A call in another worker goes on."""
    release = tmp_path / "release"
    other = runner.call(workloads.wait_for_file, str(release))
    runner.submit(other)

    [outcome] = runner.run(limited(runner, time.sleep, 60))
    release.touch()

    assert outcome.state.name == TIMED_OUT
    assert runner.wait_for([other])[0].state.result() is True


def test_a_call_in_time_keeps_its_worker(runner: CallRunner) -> None:
    """A timeout that is not reached has no effect, not even later."""
    first, second = runner.run(
        limited(runner, workloads.pid, 0.1, seconds=0.3), limited(runner, workloads.pid, 0.1, seconds=0.3)
    )
    time.sleep(0.4)
    again = runner.run(runner.call(workloads.pid, 0.1), runner.call(workloads.pid, 0.1))

    workers = {first.state.result(), second.state.result()}
    assert {outcome.state.result() for outcome in again} == workers


def test_an_async_call_stops_by_itself_and_keeps_its_worker() -> None:
    """A coroutine is cancelled at its deadline, so that its worker need not be killed."""

    async def sleep_long() -> None:
        await asyncio.sleep(60)

    with CallRunner(ProcessExecutor(workers=1)) as runner:
        [before] = runner.run(runner.call(workloads.pid))
        [outcome] = runner.run(limited(runner, sleep_long))
        [after] = runner.run(runner.call(workloads.pid))

    assert outcome.state.name == TIMED_OUT
    assert before.state.result() == after.state.result()


def test_an_async_call_that_does_not_stop_is_killed(runner: CallRunner) -> None:
    """A coroutine that blocks its loop ends a little later, with its worker."""

    async def block() -> None:
        time.sleep(60)

    timed_out(runner, block)


def test_many_timeouts_come_at_their_own_times() -> None:
    """Each call has its own deadline."""
    with CallRunner(ProcessExecutor(workers=4)) as runner:
        runner.run(*[runner.call(workloads.pid, 0.2) for _ in range(4)])
        began_at = time.monotonic()
        times: dict[int, float] = {}
        runner.on_outcome = lambda outcome: times.update({outcome.call_id: time.monotonic() - began_at}) or ()  # type: ignore[func-returns-value]
        calls = [limited(runner, time.sleep, 60, seconds=seconds) for seconds in (0.3, 0.6, 0.9, 1.2)]
        runner.run(*calls)

    for call in calls:
        assert call.timeout_seconds is not None
        assert call.timeout_seconds <= times[call.id] < call.timeout_seconds + LATE


def test_a_call_knows_all_of_its_run(runner: CallRunner) -> None:
    """The task run arrives as it is, with the tags of its flow run, upstreams and its place in a map."""

    def facts() -> tuple[Any, ...]:
        context = current_run()
        assert isinstance(context, TaskContext)
        run = context.task_run
        return (*run[1:], run.flow_run.tags, context.log_prints)

    call = runner.call(facts)
    flow_run = call.task_run.flow_run._replace(tags=("nightly",))
    run = call.task_run._replace(
        flow_run=flow_run, upstreams=(f"{flow_run.id}-7", f"{flow_run.id}-8"), map_number=2, map_index=31
    )

    [outcome] = runner.run(call._replace(task_run=run, log_prints=True))

    assert outcome.state.result() == (*run[1:], ("nightly",), True)


def test_a_generator_is_drained(runner: CallRunner) -> None:
    """A generator function gives the list of what it yields, sync or async."""

    def count() -> Any:
        yield from range(3)

    async def count_later() -> Any:
        for number in range(3):
            yield number

    outcomes = runner.run(runner.call(count), runner.call(count_later))

    assert [outcome.state.result() for outcome in outcomes] == [[0, 1, 2], [0, 1, 2]]


def test_a_failure_tells_what_the_task_was_called_with(runner: CallRunner) -> None:
    """The cause has the arguments by parameter, also those of a coroutine."""

    async def fail_later(number: int, word: str = "none") -> None:
        raise ValueError(number)

    def fail(number: int, word: str = "none") -> None:
        raise ValueError(number)

    for function in (fail, fail_later):
        [outcome] = runner.run(runner.call(function, 3, word="seven"))

        assert outcome.state.cause is not None
        assert outcome.state.cause.arguments == {"number": "3", "word": "'seven'"}


def test_no_time_is_spent_on_waiting_for_a_deadline(runner: CallRunner) -> None:
    """The executor sleeps until the deadline."""
    runner.run(runner.call(workloads.identity, 1))
    before = time.process_time()

    runner.run(limited(runner, time.sleep, 60, seconds=1.5))

    assert time.process_time() - before < 0.05
