"""Cancelling: single runs, whole flows from outside, and timeouts of flows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from localflow import ProcessExecutor, State, StateType, TaskFuture, ThreadExecutor, flow, task
from localflow.errors import RunCancelledError, RunTimedOutError, UpstreamFailedError
from localflow.testing import harness

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE = 15.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something to come true."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@task
def hold(name: str = "held") -> None:
    """Say that it has begun, then stay."""
    Path(name).touch()
    time.sleep(60)


@task
def until_told(name: str = "go") -> str:
    """Wait for a file."""
    wait_until(Path(name).exists)
    return "told"


@task
def after(value: object) -> object:
    """Come after something."""
    return value


# -- one task run ----------------------------------------------------------------------------------------------------


def test_a_running_task_of_a_worker_process_is_stopped() -> None:
    """The run ends CANCELLED long before its code would have, and what waits for it never starts."""

    @flow(executor=ProcessExecutor(workers=1))
    def main() -> list[State]:
        future = hold()
        blocked = after(future)
        wait_until(Path("held").exists)
        assert future.cancel()
        future.wait()
        with pytest.raises(RunCancelledError):
            future.result()
        with pytest.raises(UpstreamFailedError):
            blocked.result()
        return [future.state, blocked.state]

    began = time.monotonic()
    with harness(None) as runs:
        state = main()
        assert runs.history("hold-0") == ["Pending", "Running", "Cancelled"]
    assert time.monotonic() - began < DEADLINE
    assert state.message == "1/2 states cancelled."


@pytest.mark.parametrize("executor", [ThreadExecutor(workers=1), ProcessExecutor(workers=1)], ids=["thread", "process"])
def test_a_task_that_has_not_begun_never_does(executor: Any) -> None:
    """A run that waits for a worker, and one that waits for an upstream, end CANCELLED at once."""

    @flow(executor=executor)
    def main() -> None:
        first = until_told()
        waiting = [hold("never") for _ in range(3)]
        downstream = after(first)
        assert all(future.cancel() for future in [*waiting, downstream])
        assert [future.wait(DEADLINE).name for future in [*waiting, downstream]] == ["Cancelled"] * 4  # type: ignore[union-attr]
        assert not first.done()
        Path("go").touch()

    with harness(None):
        state = main()
    assert state.message == "4/5 states cancelled."
    assert not Path("never").exists()


def test_a_plain_task_in_a_thread_cannot_be_stopped() -> None:
    """`cancel()` says so, and the run ends as it ends."""

    @flow(executor=ThreadExecutor(workers=1))
    def main() -> Any:
        future = until_told()
        wait_until(lambda: future.state.is_running())
        assert not future.cancel()
        Path("go").touch()
        return future

    with harness(None):
        assert main().result() == "told"


def test_a_run_that_awaits_its_retry_is_cancelled() -> None:
    """It is not tried again."""

    @task(retries=3, retry_delay_seconds=60)
    def flaky() -> None:
        raise ValueError

    @flow(executor="thread")
    def main() -> list[State]:
        future = flaky()
        wait_until(lambda: future.state.is_scheduled())
        assert future.cancel()
        return [future.state]

    with harness(None) as runs:
        main()
        assert runs.history("flaky-0") == ["Pending", "Running", "AwaitingRetry", "Cancelled"]


def test_a_cancelled_run_is_not_tried_again() -> None:
    """Also if it has retries left, whatever they are for."""

    @flow(executor=ProcessExecutor(workers=1))
    def main() -> None:
        future = hold.with_options(retries=5, retry_on_crash=True)()
        wait_until(Path("held").exists)
        assert future.cancel()

    with harness(None) as runs:
        main()
        assert runs.history("hold-0") == ["Pending", "Running", "Cancelled"]


@pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
def test_a_done_run_cannot_be_cancelled(executor: str) -> None:
    """`cancel()` is False and changes nothing, for a blocked run too."""

    @task
    def fail() -> None:
        raise ValueError

    @flow
    def main() -> list[bool]:
        futures: list[TaskFuture[Any]] = [after(1), fail()]
        futures.append(after(futures[1]))
        for future in futures:
            future.wait()
        return [future.cancel() for future in futures]

    with harness(executor):
        assert main().result() == [False, False, False]


# -- a flow ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
def test_a_flow_ends_at_its_timeout(executor: str) -> None:
    """Its tasks end CANCELLED, its state is TimedOut, and its body ends although it sleeps."""
    began = time.monotonic()

    @flow(timeout_seconds=0.5)
    def main() -> None:
        until_told()
        time.sleep(60)

    with harness(executor) as runs:
        state = main()
        history = runs.history("until_told-0")
    Path("go").touch()

    assert time.monotonic() - began < DEADLINE
    assert (state.type, state.name) == (StateType.FAILED, "TimedOut")
    assert state.message == "Flow run exceeded timeout of 0.5 second(s)"
    assert history[-1] in ("Cancelled", "Interrupted")
    with pytest.raises(RunTimedOutError):
        state.result()


def test_a_flow_in_another_thread_ends_at_its_timeout_when_it_waits() -> None:
    """Where no signal reaches, waiting for a run and calling a task end the body."""
    states: list[State] = []

    @flow(timeout_seconds=0.3, executor=ProcessExecutor(workers=1))
    def main() -> None:
        hold().wait()
        after(1)
        states.append(State(StateType.FAILED, "the body went on"))

    def work() -> None:
        with harness(None):
            states.append(main())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(DEADLINE)

    assert [state.name for state in states] == ["TimedOut"]


def test_a_quick_flow_does_not_feel_its_timeout() -> None:
    """Nothing of it is left for the next flow either."""
    with harness():
        assert flow(name="main", timeout_seconds=0.2)(lambda: 1)().result() == 1
        time.sleep(0.3)  # past the deadline of a flow run that has ended
        assert flow(name="next")(lambda: 2)().result() == 2


def test_the_timeout_of_a_subflow_ends_only_the_subflow() -> None:
    """The parent gets its state and goes on."""

    @flow(timeout_seconds=0.3)
    def child() -> None:
        time.sleep(60)

    @flow
    def main() -> list[Any]:
        return [child().name, after(1).result()]

    with harness():
        assert main().result() == ["TimedOut", 1]


def test_the_timeout_of_a_flow_ends_its_subflows() -> None:
    """They are CANCELLED, whatever they are doing."""

    @flow
    def child() -> None:
        time.sleep(60)

    @flow(timeout_seconds=0.3)
    def main() -> None:
        child()

    with harness() as runs:
        assert main().name == "TimedOut"
        assert {summary.flow_run.flow: summary.change.name for summary in runs.flow_runs() if summary.change} == {
            "main": "TimedOut",
            "child": "Cancelled",
        }


def test_a_stopped_flow_in_a_thread_calls_no_more_subflows() -> None:
    """Its next call of a flow ends the body, as its next call of a task does."""
    ran: list[int] = []
    states: list[State] = []
    child = flow(name="child")(lambda n: ran.append(n))

    @flow(timeout_seconds=0.2)
    def main() -> None:
        time.sleep(0.4)
        for n in range(5):
            child(n)

    def work() -> None:
        with harness():
            states.append(main())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(DEADLINE)

    assert states[0].name == "TimedOut"
    assert ran == []


def test_ctrl_c_in_a_hook_leaves_the_final_state_alone() -> None:
    """A run ends once."""
    Path("script.py").write_text(
        "import os, signal, time\n"
        "from localflow import flow\n"
        "def interrupt(*args):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(5)\n"
        "@flow(on_completion=interrupt)\n"
        "def main(): pass\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=30)
    command = [sys.executable, "-m", "localflow", "show", "@last", "--json"]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=30).stdout)

    assert "KeyboardInterrupt" in ended.stderr
    assert [state["name"] for state in shown["history"]] == ["Pending", "Running", "Completed"]


def test_ctrl_c_in_a_flow_inside_a_task_stops_everything() -> None:
    """The flow in the task, the task and the flow around it are CANCELLED, and the program ends."""
    Path("script.py").write_text(
        "import os, signal, time\n"
        "from localflow import flow, task\n"
        "@task\n"
        "def step(n):\n"
        "    if n == 20: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return n\n"
        "@flow\n"
        "def inner():\n"
        "    for n in range(100000): step(n)\n"
        "@task\n"
        "def outer(): inner()\n"
        "@flow\n"
        "def main(): outer()\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=30)
    command = [sys.executable, "-m", "localflow", "runs", "--json"]
    runs = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=30).stdout)

    assert ended.returncode == -signal.SIGINT
    assert [run["state"]["name"] for run in runs] == ["Interrupted", "Interrupted"]


SCRIPT = """
import sys, time
from pathlib import Path
from localflow import flow, task

@task
def hold():
    Path("held").touch()
    time.sleep(60)

@flow(flow_run_name="the-run", on_cancellation=lambda *args: Path("hook").touch())
def main():
    hold()
    time.sleep(60)
"""


@pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
@pytest.mark.parametrize("store", ["sqlite", "json"])
def test_a_run_is_cancelled_from_another_terminal(executor: str, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`localflow cancel` ends it: its states are CANCELLED, hooks are called, the program ends with 130."""
    monkeypatch.setenv("LOCALFLOW_STORE", store)
    Path("script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "localflow"]
    process = subprocess.Popen(
        [*command, "run", "script.py", "--executor", executor],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: Path("held").exists() or process.poll() is not None)
        cancelled = subprocess.run([*command, "cancel", "the-run"], capture_output=True, text=True, timeout=30)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()

    assert cancelled.returncode == 0, cancelled.stderr
    assert process.returncode == 130, errors
    shown = subprocess.run([*command, "show", "@last", "--json"], capture_output=True, text=True, timeout=30).stdout
    assert shown.count('"CANCELLED"') >= 2
    assert '"RUNNING"' not in shown.split('"history"')[0]
    assert Path("hook").exists()
    assert not list(Path(".localflow/control").iterdir())
