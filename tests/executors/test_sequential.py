"""What the sequential executor does beyond the contract: it runs calls in the caller's thread."""

from __future__ import annotations

import threading

import pytest

from localflow.builtin.sequential import SequentialExecutor
from localflow.interrupts import Terminated
from localflow.states import INTERRUPTED, StateType
from localflow.testing import workloads
from localflow.testing.running import CallRunner


def test_calls_run_in_the_callers_thread() -> None:
    """A call has ended when `submit` returns, and it ran in the thread that called."""
    with CallRunner(SequentialExecutor()) as runner:
        runner.submit(runner.call(threading.get_ident))

        assert [outcome.state.result() for outcome in runner.outcomes] == [threading.get_ident()]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Terminated(15)], ids=repr)
def test_what_stops_a_flow_goes_on_to_the_caller(stop: BaseException) -> None:
    """Ctrl-C or SIGTERM in a task is reported as an interruption of every open call, then raised again."""
    with CallRunner(SequentialExecutor()) as runner:
        calls = [
            runner.call(workloads.identity, 1),
            runner.call(workloads.fail, stop),
            runner.call(workloads.identity, 2),
        ]

        with pytest.raises(type(stop)):
            runner.executor.submit(calls)

        outcomes = runner.wait_for(calls)

    assert outcomes[0].state.result() == 1
    assert {(outcome.state.type, outcome.state.name) for outcome in outcomes[1:]} == {
        (StateType.CANCELLED, INTERRUPTED)
    }


def test_a_task_sees_the_callers_context_variables() -> None:
    """Context variables of the caller are those of the task, which cannot change them for the caller."""
    token = workloads.variable.set("the caller's")

    with CallRunner(SequentialExecutor()) as runner:
        [outcome] = runner.run(runner.call(workloads.leave_variable))
    after = workloads.variable.get()
    workloads.variable.reset(token)

    assert outcome.state.result() == "the caller's"
    assert after == "the caller's"


def test_submit_before_start_is_refused() -> None:
    """The mistake to submit before the start is told."""
    runner = CallRunner(SequentialExecutor())

    with pytest.raises(RuntimeError, match="not started"):
        runner.executor.submit([runner.call(workloads.identity, 1)])
