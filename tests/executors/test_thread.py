"""What the thread executor does beyond the contract."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.cores import usable_cores
from localflow.builtin.thread import ThreadExecutor
from localflow.states import StateType
from localflow.testing import workloads
from localflow.testing.running import CallRunner
from tests.executors.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.interfaces import Outcome


def our_threads() -> list[str]:
    """Return the names of the executor's threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("localflow-thread-")]


def test_there_are_four_threads_for_each_core_and_at_least_eight() -> None:
    """The default fits tasks that mostly wait."""
    assert ThreadExecutor().workers == max(8, 4 * usable_cores())


def test_as_many_calls_as_workers_run_at_once() -> None:
    """Calls that wait for each other meet, if there are workers enough."""
    barrier = threading.Barrier(4, timeout=10)

    with CallRunner(ThreadExecutor(workers=4)) as runner:
        outcomes = runner.run(*(runner.call(barrier.wait) for _ in range(4)))

    assert {outcome.state.type for outcome in outcomes} == {StateType.COMPLETED}


def test_threads_start_on_demand() -> None:
    """A single call after the other needs a single thread."""
    with CallRunner(ThreadExecutor(workers=8)) as runner:
        for number in range(20):
            runner.run(runner.call(workloads.identity, number))
            eventually(lambda: len(our_threads()) <= 2)


def test_short_calls_are_taken_ahead() -> None:
    """While calls are short more of them are wanted than there are threads, and no more when they are long."""
    executor = ThreadExecutor(workers=2)

    with CallRunner(executor) as runner:
        runner.run(*(runner.call(workloads.identity, number) for number in range(200)))
        while_short = executor.capacity
        runner.run(*(runner.call(workloads.pid, 0.02) for _ in range(8)))
        while_long = executor.capacity

    assert while_short > 2
    assert while_long == 2


def test_a_slow_report_gathers_what_is_done_meanwhile() -> None:
    """While one report is under way the other threads go on, and what they finish is reported together."""
    released, batches = threading.Event(), []

    def report(outcomes: Sequence[Outcome]) -> None:
        batches.append(len(outcomes))
        released.wait(10)

    executor = ThreadExecutor(workers=4)
    executor.start(report)
    runner = CallRunner(executor)
    ended = threading.Semaphore(0)
    executor.submit([runner.call(ended.release) for _ in range(20)])
    for _ in range(20):
        assert ended.acquire(timeout=10)
    released.set()
    eventually(lambda: sum(batches) == 20)
    executor.shutdown()

    assert len(batches) < 20


def test_a_report_that_raises_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    """A report that fails is logged, and the next calls run as ever."""
    reported = []

    def report(outcomes: Sequence[Outcome]) -> None:
        reported.extend(outcomes)
        raise OSError("no room")

    executor = ThreadExecutor(workers=1)
    executor.start(report)
    runner = CallRunner(executor)
    for _ in range(3):
        executor.submit([runner.call(workloads.identity, 1)])
    eventually(lambda: len(reported) == 3)
    executor.shutdown()

    assert "could not be reported" in caplog.text


def test_calls_that_have_not_begun_can_be_cancelled() -> None:
    """A queued call ends CANCELLED and never runs; a running one goes on."""
    release, ran = threading.Event(), []

    with CallRunner(ThreadExecutor(workers=1)) as runner:
        running, queued = runner.call(release.wait, 10), runner.call(ran.append, 1)
        runner.executor.submit([running, queued])
        runner.executor.cancel([running.id, queued.id])
        release.set()
        outcomes = runner.wait_for([running, queued])

    assert [outcome.state.type for outcome in outcomes] == [StateType.COMPLETED, StateType.CANCELLED]
    assert ran == []


def test_a_result_that_exits_while_it_is_pickled_harms_nobody() -> None:
    """Whatever the code of a value does when it is packed for the store, the call is answered."""

    class Exiting:
        def __reduce__(self) -> str:
            raise SystemExit(3)

    with CallRunner(ThreadExecutor(workers=1)) as runner:
        odd, plain = runner.run(runner.call(Exiting), runner.call(workloads.identity, 1))

    assert odd.state.is_final()
    assert plain.state.result() == 1


def test_shutdown_abandons_a_thread_that_is_stuck() -> None:
    """Shutdown does not wait for a task that does not end."""
    begun, release = threading.Event(), threading.Event()

    def stuck() -> None:
        begun.set()
        release.wait(30)

    with CallRunner(ThreadExecutor(workers=2)) as runner:
        runner.submit(runner.call(stuck))
        assert begun.wait(10)
        before = time.monotonic()
    elapsed = time.monotonic() - before
    release.set()

    assert elapsed < 2


def test_a_second_start_is_refused() -> None:
    """One executor object serves one flow run at a time, and says so."""
    with CallRunner(ThreadExecutor()) as runner, pytest.raises(RuntimeError, match="give each flow run its own"):
        runner.executor.start(runner.report)
