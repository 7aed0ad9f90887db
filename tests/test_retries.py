"""Retries of tasks and flows: how often, when, why not, and what the history says."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow import State, StateType, allow_failure, flow, task
from localflow.errors import WorkerCrashedError
from localflow.retries import RetryPolicy, exponential_backoff, retry_policy
from localflow.states import Crashed, Failed
from localflow.testing import harness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow.testing.harness import Harness

EXECUTORS = ["sequential", "thread", "process"]
RETRIED = ["Pending", "Running", "AwaitingRetry", "Retrying", "AwaitingRetry", "Retrying", "Completed"]


@pytest.fixture(params=EXECUTORS)
def runs(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """Run flows on each executor."""
    with harness(request.param) as runs:
        yield runs


def calls_so_far(name: str) -> int:
    """Count a call, in whatever process it is, and return how many there have been."""
    with Path(name).open("a") as file:
        file.write(".")
    return Path(name).stat().st_size


@task(retries=2)
def third_time_lucky(name: str = "calls") -> int:
    """Fail twice."""
    count = calls_so_far(name)
    if count < 3:
        raise ValueError(f"attempt {count}")
    return count


@task(retries=2)
def never_lucky() -> None:
    """Fail always."""
    raise ValueError(f"attempt {calls_so_far('never')}")


# -- tasks -----------------------------------------------------------------------------------------------------------


def test_a_task_is_tried_again_until_it_completes(runs: Harness) -> None:
    """Each attempt is in the history, and the last one's value is the task's."""

    @flow
    def main() -> Any:
        return third_time_lucky()

    assert main().result() == 3
    assert runs.history("third_time_lucky-0") == RETRIED


def test_the_history_says_why_each_attempt_failed(runs: Harness) -> None:
    """AwaitingRetry carries the attempt's message and number, Retrying the next attempt's number."""
    flow(name="main")(lambda: third_time_lucky())()

    changes = runs.task_run("third_time_lucky-0").changes
    assert [(change.name, change.attempt, change.message) for change in changes] == [
        ("Running", 1, ""),
        ("AwaitingRetry", 1, "Task run encountered an exception: ValueError: attempt 1"),
        ("Retrying", 2, ""),
        ("AwaitingRetry", 2, "Task run encountered an exception: ValueError: attempt 2"),
        ("Retrying", 3, ""),
        ("Completed", 3, ""),
    ]


def test_a_task_fails_when_its_retries_are_used_up(runs: Harness) -> None:
    """The last attempt's exception is the task's, and there are no more attempts."""
    state = flow(name="main")(lambda: never_lucky())()

    assert state.type is StateType.FAILED
    with pytest.raises(ValueError, match="attempt 3"):
        state.result()
    assert runs.history("never_lucky-0")[-2:] == ["Retrying", "Failed"]
    assert Path("never").stat().st_size == 3


def test_what_waits_for_a_task_waits_for_its_last_attempt(runs: Harness) -> None:
    """A dependent starts after the retries, with the value of the attempt that completed."""

    @task
    def double(n: int) -> int:
        return 2 * n

    assert flow(name="main")(lambda: double(third_time_lucky()))().result() == 6


def test_the_attempt_is_known_inside(runs: Harness) -> None:
    """`get_run_context()` tells a task which attempt it is in."""
    from localflow import get_run_context

    @task(retries=1)
    def attempt() -> int:
        info = get_run_context().task_run
        assert info is not None
        if info.attempt == 1:
            raise ValueError
        return info.attempt

    assert flow(name="main")(lambda: attempt())().result() == 2


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_waiting_retry_holds_no_worker(executor: str) -> None:
    """With one worker, another task runs while a retry waits."""
    from localflow import ProcessExecutor, ThreadExecutor

    @task(retries=1, retry_delay_seconds=0.4)
    def flaky() -> float:
        if calls_so_far("flaky") == 1:
            raise ValueError
        return time.monotonic()

    @task
    def other() -> float:
        return time.monotonic()

    one = ThreadExecutor(workers=1) if executor == "thread" else ProcessExecutor(workers=1)
    with harness(None):
        state = flow(name="main", executor=one)(lambda: [flaky(), other()])()

    retried, between = state.result()
    assert between < retried


def test_the_delay_is_kept(runs: Harness) -> None:
    """A retry comes no earlier than it was asked for."""

    @task(retries=2, retry_delay_seconds=[0.05, 0.15])
    def times() -> list[float]:
        with Path("times").open("a") as file:
            file.write(f"{time.monotonic()}\n")
        seen = [float(line) for line in Path("times").read_text().split()]
        if len(seen) < 3:
            raise ValueError
        return seen

    first, second, third = flow(name="main")(lambda: times())().result()
    assert second - first >= 0.05
    assert third - second >= 0.15


def test_a_condition_decides(runs: Harness) -> None:
    """`retry_condition_fn` gets the task, its run and the failed state; what it refuses fails at once."""
    asked = []

    def only_key_errors(asked_task: Any, run: Any, state: State) -> bool:
        asked.append((asked_task.name, run.name, run.attempt, state.name))
        return isinstance(state.result(raise_on_failure=False), KeyError)

    @task(retries=5, retry_condition_fn=only_key_errors)
    def picky() -> None:
        raise (KeyError if calls_so_far("picky") == 1 else ValueError)("x")

    state = flow(name="main")(lambda: picky())()

    assert asked == [("picky", "picky-0", 1, "Failed"), ("picky", "picky-0", 2, "Failed")]
    assert runs.history("picky-0") == ["Pending", "Running", "AwaitingRetry", "Retrying", "Failed"]
    with pytest.raises(ValueError, match="x"):
        state.result()


def test_a_condition_that_raises_is_no_retry(runs: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """A mistake in the condition is logged, and the task fails with its own exception."""

    def broken(*args: Any) -> bool:
        raise RuntimeError("no idea")

    @task(retries=5, retry_condition_fn=broken)
    def hapless() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        flow(name="main")(lambda: hapless())().result()
    assert "no idea" in caplog.text


@pytest.mark.parametrize("on_crash", [False, True])
def test_a_crash_is_retried_only_if_that_is_wanted(on_crash: bool) -> None:
    """A task whose worker dies is CRASHED, and tried again with `retry_on_crash`."""

    @task(retries=1, retry_on_crash=on_crash)
    def killer() -> str:
        if calls_so_far("killer") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    with harness("process") as runs:
        state = flow(name="main")(lambda: killer())()
        history = runs.history("killer-0")

    if on_crash:
        assert state.result() == "survived"
        assert history == ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"]
    else:
        assert history == ["Pending", "Running", "WorkerLost"]
        with pytest.raises(WorkerCrashedError):
            state.result()


def test_a_timeout_is_retried(runs: Harness) -> None:
    """TimedOut is FAILED, so it uses up a retry like any failure."""

    @task(retries=1, timeout_seconds=2)  # a new worker imports this module first
    def slow_at_first() -> str:
        if calls_so_far("slow") == 1:
            time.sleep(3)
        return "quick"

    assert flow(name="main")(lambda: slow_at_first())().result() == "quick"
    message = runs.task_run("slow_at_first-0").changes[1].message
    assert message == "Task run exceeded timeout of 2.0 second(s)"


# -- flows -----------------------------------------------------------------------------------------------------------


def test_a_flow_is_tried_again_with_what_has_completed(runs: Harness) -> None:
    """Completed task runs of the first attempt stand for the same calls of the second; the others run again."""

    @task
    def once() -> int:
        return calls_so_far("once")

    @task
    def second_time_lucky(n: int) -> int:
        if calls_so_far("second") == 1:
            raise ValueError("not yet")
        return n

    @flow(retries=1)
    def main() -> Any:
        return second_time_lucky(once())

    assert main().result() == 1
    assert Path("once").stat().st_size == 1
    assert runs.history() == ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"]
    assert runs.history("once-0") == ["Pending", "Running", "Completed"]
    assert runs.history("second_time_lucky-0") == ["Pending", "Running", "Failed", "Retrying", "Completed"]
    assert [run.run.name for run in runs.read().task_runs] == ["once-0", "second_time_lucky-0"]


def test_a_flow_whose_body_raises_is_tried_again(runs: Harness) -> None:
    """An exception of the body counts as a failed attempt; the delay is kept."""
    began: list[float] = []

    @flow(retries=1, retry_delay_seconds=0.1)
    def main() -> int:
        began.append(time.monotonic())
        if len(began) == 1:
            raise ValueError("first")
        return len(began)

    assert main().result() == 2
    assert began[1] - began[0] >= 0.1
    waiting = runs.read().changes[1]
    assert (waiting.name, waiting.message) == ("AwaitingRetry", "Flow run encountered an exception: ValueError: first")


def test_completed_subflows_are_not_run_again() -> None:
    """A flow's retry takes the state of a subflow that has completed."""
    ran: list[str] = []

    @flow
    def child(name: str) -> str:
        ran.append(name)
        return name

    @flow(retries=1)
    def main() -> Any:
        states = [child("a"), child("b")]
        if len(ran) == 2:
            ran.append("failed")
            raise ValueError
        return states

    with harness():
        assert main().result() == ["a", "b"]
    assert ran == ["a", "b", "failed"]


def test_a_completed_run_stands_for_the_call_with_its_arguments() -> None:
    """It does so wherever in the next attempt that call comes; a call with other arguments is another run."""
    order: list[list[int]] = [[1, 2], [2, 3]]

    @task
    def tenfold(n: int) -> int:
        return 10 * n

    @flow(retries=1)
    def main() -> dict[int, int]:
        values = {n: tenfold(n).result() for n in order.pop(0)}
        if order:
            raise ValueError
        return values

    with harness() as runs:
        assert main().result() == {2: 20, 3: 30}
        for name in ("tenfold-0", "tenfold-1", "tenfold-2"):
            assert runs.history(name) == ["Pending", "Running", "Completed"]


def test_what_built_on_a_failure_runs_again_with_the_value() -> None:
    """A run that was allowed to take a failure is not kept once its upstream has completed."""

    @task
    def told(value: object) -> str:
        return str(value)

    @task
    def fails_once() -> int:
        if calls_so_far("once") == 1:
            raise ValueError("first")
        return 42

    @flow(retries=1)
    def report() -> Any:
        upstream = fails_once()
        return [upstream, told(allow_failure(upstream))]

    with harness():
        assert report().result() == [42, "42"]


def test_arguments_that_cannot_be_compared_count_as_the_same() -> None:
    """A new connection in the second attempt does not make a completed task run again."""

    @task
    def once(connection: sqlite3.Connection) -> int:
        return calls_so_far("connected")

    @flow(retries=1)
    def main() -> Any:
        with closing(sqlite3.connect(":memory:")) as connection:
            value = once(connection).result()
        if calls_so_far("attempts") == 1:
            raise ValueError
        return value

    with harness():
        assert main().result() == 1
    assert Path("connected").stat().st_size == 1


def test_the_timeout_of_an_attempt_ends_with_it() -> None:
    """It does not reach the next attempt, nor the pause before it."""

    @flow(retries=1, retry_delay_seconds=0.5, timeout_seconds=0.3)
    def main() -> str:
        if calls_so_far("attempts") == 1:
            raise ValueError
        return "done"

    with harness():
        assert main().result() == "done"


def test_a_subflow_with_other_arguments_runs_again() -> None:
    """As a task does."""
    order = [["a", "b"], ["b", "a"]]

    @flow
    def child(name: str) -> str:
        return name

    @flow(retries=1)
    def main() -> Any:
        states = [child(name) for name in order.pop(0)]
        if order:
            raise ValueError
        return states

    with harness():
        assert main().result() == ["b", "a"]


def test_a_flow_fails_when_its_retries_are_used_up() -> None:
    """The state of the last attempt is the flow's."""
    with harness() as runs:
        state = flow(name="main", retries=2)(lambda: never_lucky.with_options(retries=0)())()

        assert state.type is StateType.FAILED
        assert state.message == "1/1 states failed."
        assert runs.history().count("Retrying") == 2


# -- the policy ------------------------------------------------------------------------------------------------------


@given(jitter=st.floats(0, 10), seconds=st.floats(0, 1000), seed=st.integers())
def test_jitter_lengthens_the_delay_by_up_to_its_factor(jitter: float, seconds: float, seed: int) -> None:
    """A retry is never earlier than asked for, nor later than the factor allows."""
    random.seed(seed)

    delay = retry_policy("it", 3, seconds, jitter).delay(1)

    assert seconds <= delay <= seconds * (1 + jitter) * (1 + 1e-9)


def test_jitter_spreads_delays() -> None:
    """Delays with jitter differ from one another."""
    policy = retry_policy("it", 3, 10, 0.5)

    assert len({policy.delay(1) for _ in range(20)}) > 1


@pytest.mark.parametrize(
    ("given_delay", "delays"),
    [(None, [0, 0, 0]), (2, [2, 2, 2]), ([1, 5], [1, 5, 5]), (exponential_backoff(3), [3, 6, 12])],
)
def test_delays(given_delay: Any, delays: list[float]) -> None:
    """One delay serves for all retries, the last of a list for the rest, a function makes them of their number."""
    policy = retry_policy("it", 3, given_delay)

    assert [policy.delay(attempt) for attempt in (1, 2, 3)] == delays


def test_an_async_condition_is_refused() -> None:
    """What it returns, a coroutine, would always be true."""

    async def never(*args: Any) -> bool:
        return False

    with pytest.raises(TypeError, match="retry_condition_fn takes a plain function"):
        retry_policy("it", 3, None, None, never)


def test_a_timeout_of_ages_keeps_no_alarm_from_ringing() -> None:
    """A retry comes although the timeout of the flow is longer than the system can wait."""

    @task(retries=1, retry_delay_seconds=0.05)
    def again() -> int:
        count = calls_so_far("again")
        if count == 1:
            raise ValueError
        return count

    with harness():
        assert flow(name="main", timeout_seconds=sys.maxsize)(lambda: again())().result() == 2


def test_completed_states_are_not_retried() -> None:
    """Only FAILED is, and CRASHED where that is wanted."""
    assert not RetryPolicy(3).wants(State(StateType.COMPLETED), 1)
    assert not RetryPolicy(3).wants(Crashed(), 1)
    assert RetryPolicy(3, on_crash=True).wants(Crashed(), 1)
    assert RetryPolicy(3).wants(Failed(), 3)
    assert not RetryPolicy(3).wants(Failed(), 4)


@pytest.mark.parametrize(
    "options",
    [
        {"retries": -1},
        {"retries": True},
        {"retries": "3"},
        {"retries": 1, "retry_delay_seconds": -1},
        {"retries": 1, "retry_delay_seconds": "1"},
        {"retries": 1, "retry_delay_seconds": [1, "2"]},
        {"retries": 1, "retry_delay_seconds": lambda retries: "soon"},
        {"retries": 1, "retry_jitter_factor": -0.5},
        {"retries": 1, "retry_condition_fn": "yes"},
        {"retries": 1, "retry_on_crash": "yes"},
    ],
)
def test_wrong_options_are_refused_at_decoration(options: dict[str, Any]) -> None:
    """The message names the task and the option."""
    with pytest.raises(TypeError, match=rf"@task 'fetch': {list(options)[-1]}"):
        task(name="fetch", **options)(lambda: None)
