"""Hooks of tasks and flows: which, when, with what, and what their mistakes change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from localflow import Cancelled, flow, task
from localflow.testing import harness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow import State
    from localflow.testing.harness import Harness

HOOKS = ["on_running", "on_completion", "on_failure", "on_crashed", "on_cancellation"]


@pytest.fixture(params=["sequential", "thread", "process"])
def runs(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """Run flows on each executor."""
    with harness(request.param) as runs:
        yield runs


class Watcher:
    """Collects what hooks are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str, str]] = []
        self.options: dict[str, Any] = {name: self.hook(name) for name in HOOKS}

    def hook(self, name: str) -> Any:
        """Return a hook that notes what it is told under a name."""

        def told(obj: Any, run: Any, state: State) -> None:
            self.told.append((name, obj.name, run.name, state.name))

        return told


@pytest.fixture
def watcher() -> Watcher:
    """Return hooks for every state."""
    return Watcher()


def test_a_completed_task_calls_its_hooks(runs: Harness, watcher: Watcher) -> None:
    """Running, then completion, each once, with the task, its run and the state."""
    work = task(name="work", **watcher.options)(lambda: 1)

    flow(name="main")(lambda: [work(), None])()

    assert watcher.told == [
        ("on_running", "work", "work-0", "Running"),
        ("on_completion", "work", "work-0", "Completed"),
    ]


def test_a_failed_task_calls_on_failure_once_after_its_retries(runs: Harness, watcher: Watcher) -> None:
    """Attempts that are followed by another one are not failures yet."""

    @task(retries=1, **watcher.options)
    def work() -> None:
        raise ValueError

    flow(name="main")(lambda: work())()

    assert [(name, state) for name, _, _, state in watcher.told] == [
        ("on_running", "Running"),
        ("on_running", "Retrying"),
        ("on_failure", "Failed"),
    ]


def test_a_blocked_task_calls_no_hooks(runs: Harness, watcher: Watcher) -> None:
    """NotReady is not a final state."""

    @task
    def fail() -> None:
        raise ValueError

    after = task(name="after", **watcher.options)(lambda upstream: upstream)

    flow(name="main")(lambda: after(fail()))()

    assert watcher.told == []


def test_a_crashed_task_calls_on_crashed(watcher: Watcher) -> None:
    """The engine calls the hooks, so the death of the worker does not keep them from being called."""
    work = task(name="work", **watcher.options)(lambda: os.kill(os.getpid(), signal.SIGKILL))

    with harness("process"):
        flow(name="main")(lambda: work())()

    assert [(name, state) for name, _, _, state in watcher.told] == [
        ("on_running", "Running"),
        ("on_crashed", "WorkerLost"),
    ]


def test_a_returned_state_decides_about_the_hook(runs: Harness, watcher: Watcher) -> None:
    """A task that returns a CANCELLED state is cancelled."""
    work = task(name="work", **watcher.options)(lambda: Cancelled("no need"))

    flow(name="main")(lambda: work())()

    assert watcher.told[-1] == ("on_cancellation", "work", "work-0", "Cancelled")


def test_hooks_are_called_in_the_order_they_are_given(runs: Harness) -> None:
    """Several hooks for one state."""
    order: list[int] = []
    hooks = [lambda *args, n=n: order.append(n) for n in range(3)]

    flow(name="main")(lambda: task(name="work", on_completion=hooks)(lambda: 1)())()

    assert order == [0, 1, 2]


@pytest.mark.parametrize("mistake", [ValueError("oh no"), SystemExit(3)], ids=repr)
def test_a_mistake_in_a_hook_is_logged_and_changes_nothing(
    runs: Harness, mistake: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """The other hooks are called, the task's state stays what it was, the log names hook and run."""
    called: list[str] = []

    def broken(*args: Any) -> None:
        raise mistake

    work = task(name="work", on_completion=[broken, lambda *args: called.append("second")])(lambda: 7)
    state = flow(name="main", on_completion=broken)(lambda: work())()

    assert state.result() == 7
    assert called == ["second"]
    assert "hook 'on_completion' of task run 'work-0' failed" in caplog.text
    assert "hook 'on_completion' of flow run" in caplog.text


def test_the_state_is_stored_when_its_hook_is_called(runs: Harness) -> None:
    """A hook sees in the store what it is told of."""
    seen: list[str] = []

    def look(obj: Any, run: Any, state: Any) -> None:
        seen.append(runs.history(run.name)[-1])

    flow(name="main")(lambda: task(name="work", on_completion=look)(lambda: 1)())()

    assert seen == ["Completed"]


def test_the_flow_waits_for_the_hooks_of_its_tasks(runs: Harness, watcher: Watcher) -> None:
    """When the flow call returns, every hook has been called."""
    work = task(name="work", **watcher.options)(lambda n: n)

    flow(name="main")(lambda: work.map(range(20)))()

    assert len([hook for hook, *_ in watcher.told if hook == "on_completion"]) == 20


@pytest.mark.parametrize(("fails", "last"), [(False, "on_completion"), (True, "on_failure")])
def test_a_flow_calls_its_hooks(watcher: Watcher, fails: bool, last: str) -> None:
    """Running when its body begins, then the hook for the state it ends in."""

    @flow(name="main", **watcher.options)
    def main() -> None:
        watcher.told.append(("body", "", "", ""))
        if fails:
            raise ValueError

    with harness():
        main()

    assert [name for name, *_ in watcher.told] == ["on_running", "body", last]


def test_a_flow_hook_gets_the_flow_and_its_run() -> None:
    """The run has id, name, tags and attempt."""
    got: list[Any] = []
    main = flow(name="main", flow_run_name="brave run", on_completion=lambda *args: got.extend(args))(lambda: 1)

    with harness() as runs:
        state = main()
        run = runs.read().run

    assert got[0] is main
    assert (got[1].id, got[1].name, got[1].attempt) == (run.id, "brave run", 1)
    assert got[2] is state


def test_an_interrupted_run_calls_on_cancellation() -> None:
    """Ctrl-C cancels task and flow, whose hooks are called before the program ends."""
    Path("script.py").write_text(
        "import os, signal, sys, threading, time\n"
        "from localflow import flow, task\n"
        "def told(obj, run, state): print(obj.name, state.name, flush=True)\n"
        "@task(on_cancellation=told)\n"
        "def work(): time.sleep(60)\n"
        "@task(on_running=lambda *args: os.kill(os.getpid(), signal.SIGINT))\n"
        "def trigger(): time.sleep(60)\n"
        "@flow(executor=sys.argv[1], on_cancellation=told)\n"
        "def main():\n"
        "    work()\n"
        "    trigger()\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "script.py", "process"], capture_output=True, text=True, timeout=30)

    assert ended.stdout.split("\n")[:2] == ["work Interrupted", "main Interrupted"]


@pytest.mark.parametrize("hooks", [5, "notify", [5]])
def test_what_cannot_be_called_is_refused_at_decoration(hooks: Any) -> None:
    """The message names the option."""
    with pytest.raises(TypeError, match="@task 'work': on_failure takes a function"):
        task(name="work", on_failure=hooks)(lambda: 1)


def test_an_async_hook_is_refused_at_decoration() -> None:
    """Nobody would await it."""

    async def notify(*args: Any) -> None: ...

    with pytest.raises(TypeError, match="@task 'work': on_failure takes plain functions"):
        task(name="work", on_failure=notify)(lambda: 1)


@pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
def test_a_task_that_its_flow_stops_calls_on_cancellation(executor: str, watcher: Watcher) -> None:
    """The timeout of the flow cancels its tasks, whose hooks are called."""

    @task(**watcher.options)
    def slow() -> None:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            time.sleep(0.01)

    with harness(executor):
        flow(name="main", timeout_seconds=0.3)(lambda: slow().wait())()

    assert [name for name, *_ in watcher.told] == ["on_running", "on_cancellation"]
