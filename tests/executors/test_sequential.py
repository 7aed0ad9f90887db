"""What the sequential executor does beyond the contract: it runs calls in the caller's thread."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.sequential import SequentialExecutor
from localflow.interrupts import Terminated
from localflow.states import INTERRUPTED, StateType
from localflow.testing import workloads
from localflow.testing.running import CallRunner
from tests.executors.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localflow.interfaces import Call


def submitted(runner: CallRunner, calls: Sequence[Call]) -> BaseException | None:
    """Submit calls and return what stopped that."""
    try:
        runner.executor.submit(calls)
    except KeyboardInterrupt as error:
        return error
    return None


def submitted_in_a_loop(runner: CallRunner, calls: Sequence[Call]) -> BaseException | None:
    """Submit calls from inside a running loop and return what stopped that."""

    async def body() -> BaseException | None:
        return submitted(runner, calls)

    handler = signal.signal(signal.SIGINT, raise_interrupt)  # asyncio.run would take the default one for itself
    try:
        return asyncio.run(body())
    finally:
        signal.signal(signal.SIGINT, handler)


def raise_interrupt(signum: int, frame: object) -> None:
    """Interrupt as Ctrl-C does while a flow runs."""
    raise KeyboardInterrupt


@contextmanager
def interrupted_once(begun: threading.Event) -> Iterator[None]:
    """Send this process one SIGINT as soon as `begun` is set."""

    def interrupt() -> None:
        if begun.wait(10):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    yield
    thread.join()


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


# -- async calls -------------------------------------------------------------------------------------------------------


async def where() -> tuple[int, int]:
    """Return the thread and the loop that this runs in."""
    await asyncio.sleep(0)
    return threading.get_ident(), id(asyncio.get_running_loop())


def test_an_async_call_runs_in_the_callers_thread() -> None:
    """It has a loop of its own, and has ended when `submit` returns."""
    with CallRunner(SequentialExecutor()) as runner:
        runner.submit(runner.call(where))

        [outcome] = runner.outcomes

    assert outcome.state.result()[0] == threading.get_ident()


def test_an_async_call_works_inside_a_running_loop() -> None:
    """A caller that is itself in a loop gets the value all the same, from a thread of the call's own."""

    async def body() -> tuple[tuple[int, int], int]:
        with CallRunner(SequentialExecutor()) as runner:
            [outcome] = runner.run(runner.call(where))
        return outcome.state.result(), id(asyncio.get_running_loop())

    (thread, loop), outer_loop = asyncio.run(body())

    assert thread != threading.get_ident()
    assert loop != outer_loop


@pytest.mark.parametrize("inside_a_loop", [False, True], ids=["in the caller's thread", "in a thread of its own"])
def test_an_async_call_sees_the_callers_context_variables(inside_a_loop: bool) -> None:
    """In its loop and in its thread as anywhere, and what it sets ends with it."""

    def run() -> tuple[object, str]:
        workloads.variable.set("the caller's")
        with CallRunner(SequentialExecutor()) as runner:
            [outcome] = runner.run(runner.call(workloads.leave_variable_later))
        return outcome.state.result(), workloads.variable.get()

    async def run_inside() -> tuple[object, str]:
        return run()

    token = workloads.variable.set("before")
    seen = asyncio.run(run_inside()) if inside_a_loop else run()
    workloads.variable.reset(token)

    assert seen == ("the caller's", "the caller's")


@pytest.mark.parametrize("inside_a_loop", [False, True], ids=["in the caller's thread", "in a thread of its own"])
def test_ctrl_c_stops_an_async_call(inside_a_loop: bool) -> None:
    """The coroutine gets to its `finally`, every open call is CANCELLED, and the caller sees the KeyboardInterrupt."""
    begun, tidied = threading.Event(), threading.Event()

    async def wait() -> None:
        try:
            for turn in range(3000):  # a signal that comes just before a thread falls asleep is seen when it wakes up
                await asyncio.sleep(0.01)
                if turn == 5:
                    begun.set()
        finally:
            tidied.set()

    with CallRunner(SequentialExecutor()) as runner:
        calls = [runner.call(wait), runner.call(workloads.identity, 2)]
        began_at = time.monotonic()
        with interrupted_once(begun):
            stop = submitted_in_a_loop(runner, calls) if inside_a_loop else submitted(runner, calls)
        elapsed = time.monotonic() - began_at
        outcomes = runner.wait_for(calls)

    eventually(tidied.is_set)
    assert isinstance(stop, KeyboardInterrupt)
    assert elapsed < 10
    assert [(outcome.state.type, outcome.state.name) for outcome in outcomes] == [
        (StateType.CANCELLED, INTERRUPTED)
    ] * 2


# -- timeouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_a_timeout_is_noticed_when_the_call_has_ended(fails: bool) -> None:
    """Code in the caller's thread cannot be stopped: it ends by itself, and is late whatever it gives."""

    def work() -> str:
        time.sleep(0.05)
        if fails:
            raise ValueError("late as well")
        ended.append(True)
        return "too late"

    ended: list[bool] = []
    with CallRunner(SequentialExecutor()) as runner:
        [outcome] = runner.run(runner.call(work)._replace(timeout_seconds=0.01))

    assert (outcome.state.type, outcome.state.name) == (StateType.FAILED, "TimedOut")
    assert ended == ([] if fails else [True])


def test_ctrl_c_counts_after_a_timeout_too() -> None:
    """Who interrupts a call that is past its timeout stops the flow, and does not merely end that call."""

    def linger() -> None:
        time.sleep(0.05)
        raise KeyboardInterrupt

    with CallRunner(SequentialExecutor()) as runner:
        call = runner.call(linger)._replace(timeout_seconds=0.01)
        with pytest.raises(KeyboardInterrupt):
            runner.executor.submit([call])

        [outcome] = runner.wait_for([call])

    assert (outcome.state.type, outcome.state.name) == (StateType.CANCELLED, INTERRUPTED)
