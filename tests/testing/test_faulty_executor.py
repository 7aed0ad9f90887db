"""The executor that fails on purpose: without faults it is the one that it wraps, with them it breaks its contract."""

from __future__ import annotations

import threading
import time

import pytest

from localflow import flow, task
from localflow.builtin.process import ProcessExecutor
from localflow.builtin.sequential import SequentialExecutor
from localflow.builtin.thread import ThreadExecutor
from localflow.capabilities import chosen_by
from localflow.testing import (
    ExecutorContract,
    Fails,
    Fault,
    FaultyExecutor,
    Late,
    Loses,
    Repeats,
    Slow,
    harness,
    workloads,
)
from localflow.testing.running import CallRunner


class TestWithoutFaults(ExecutorContract):
    """It promises what the executor promises that it wraps, and hands everything on."""

    @pytest.fixture
    def executor(self) -> FaultyExecutor:
        """Wrap threads."""
        return FaultyExecutor(ThreadExecutor(workers=4))


def test_it_promises_what_it_wraps() -> None:
    """Every declaration is that of the executor inside."""
    for executor in (SequentialExecutor(), ThreadExecutor(), ProcessExecutor(workers=2)):
        faulty = FaultyExecutor(executor)

        assert chosen_by(faulty) == chosen_by(executor)


def test_a_lost_outcome_is_never_reported() -> None:
    """The call ran, and nobody hears of it."""
    executor = FaultyExecutor(ThreadExecutor(workers=2), outcome=Loses(after=1, times=1))
    ran = threading.Event()

    with CallRunner(executor) as runner:
        first, lost, last = (runner.call(function) for function in (list, ran.set, list))
        runner.run(first)
        executor.submit([lost])
        assert ran.wait(10)
        runner.run(last)

    assert answered(runner) == [first.id, last.id]


def test_a_repeated_outcome_is_reported_twice() -> None:
    """One outcome comes again."""
    executor = FaultyExecutor(SequentialExecutor(), outcome=Repeats(every=2))

    with CallRunner(executor) as runner:
        executor.submit([runner.call(workloads.identity, number) for number in range(4)])

        assert answered(runner) == [1, 2, 2, 3, 4, 4]


def test_a_late_outcome_is_overtaken() -> None:
    """It comes after that of a call that was submitted later."""
    executor = FaultyExecutor(SequentialExecutor(), outcome=Late(0.1, times=1))

    with CallRunner(executor) as runner:
        calls = [runner.call(workloads.identity, number) for number in range(2)]
        executor.submit(calls)
        runner.wait_for(calls)

        assert answered(runner) == [2, 1]


def test_what_is_late_at_the_shutdown_is_not_reported() -> None:
    """After the shutdown nothing comes, and no thread is left to wait for it."""
    executor = FaultyExecutor(SequentialExecutor(), outcome=Late(60.0))
    began_at = time.monotonic()

    with CallRunner(executor) as runner:
        executor.submit([runner.call(workloads.identity, 1)])

    assert runner.outcomes == []
    assert time.monotonic() - began_at < 30


def test_start_submit_and_shutdown_may_fail() -> None:
    """What the engine asks of the executor fails with the error of the fault."""
    broken = FaultyExecutor(SequentialExecutor(), start=Fails(OSError("no workers")))
    with pytest.raises(OSError, match="no workers"):
        broken.start(lambda reported: None)

    with CallRunner(FaultyExecutor(SequentialExecutor(), submit=Fails(OSError("gone"), after=1))) as runner:
        runner.run(runner.call(workloads.identity, 1))
        with pytest.raises(OSError, match="gone"):
            runner.run(runner.call(workloads.identity, 2))


@task
def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number


@flow
def doubles() -> int:
    """Add some numbers up."""
    return sum(future.result() for future in [double(number) for number in range(20)])


@pytest.mark.parametrize("fault", [Repeats(), Late(0.02, every=3), Slow(0.005)], ids=lambda fault: type(fault).__name__)
def test_a_flow_fares_well_with_outcomes_that_come_twice_or_late(fault: Fault) -> None:
    """Each task run is recorded as completed once, whatever its executor makes of it."""
    with harness(FaultyExecutor(ThreadExecutor(workers=2), outcome=fault)) as runs:
        state = doubles()

        assert state.result() == 380
        histories = [runs.history(f"double-{number}") for number in range(20)]
        assert histories == [["Pending", "Running", "Completed"]] * 20
        assert fault.strikes > 0


def answered(runner: CallRunner) -> list[int]:
    """Return the ids of the calls whose outcomes were reported, in order."""
    return [outcome.call_id for outcome in runner.outcomes]
