"""`harness()`: flows under test, with states in memory and nothing on disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from localflow import ThreadExecutor, flow, get_run_logger, task
from localflow.errors import RunNotFoundError
from localflow.testing import harness


@task
def place() -> tuple[int, str]:
    """Say in which process and thread it runs."""
    import threading

    return os.getpid(), threading.current_thread().name


@task(retries=1)
def flaky(seen: list[int]) -> int:
    """Fail at first."""
    seen.append(1)
    if len(seen) == 1:
        raise ValueError
    get_run_logger().info("at last")
    return len(seen)


@pytest.mark.parametrize("executor", ["process", "thread", ThreadExecutor(workers=2)], ids=["process", "thread", "own"])
def test_every_flow_runs_in_sequence_whatever_it_names(executor: object) -> None:
    """In the test's own thread, so that patches and fixtures of the test hold."""
    main = flow(name="main", executor=executor)(lambda: place())  # type: ignore[arg-type]

    with harness():
        assert main().result() == (os.getpid(), "MainThread")


def test_another_executor_may_be_asked_for() -> None:
    """By name, or None for what flows and tasks name themselves."""
    with harness("process"):
        assert flow(name="main")(lambda: place())().result()[0] != os.getpid()
    with harness(None):
        named = flow(name="main", executor="thread")(lambda: place())
        assert named().result()[1] != "MainThread"


def test_it_tells_what_happened() -> None:
    """States of the run and of its task runs, and what they have said."""
    seen: list[int] = []
    with harness() as runs:
        state = flow(name="main")(lambda: flaky(seen))()

        assert state.result() == 2
        assert runs.history() == ["Pending", "Running", "Completed"]
        assert runs.history("flaky-0") == ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"]
        assert runs.task_run("flaky-0").attempt == 2
        assert [entry.message for entry in runs.logs("flaky-0")] == ["at last"]
        assert [summary.flow_run.flow for summary in runs.flow_runs()] == ["main"]


def test_runs_are_found_by_name() -> None:
    """As on the command line."""
    with harness() as runs:
        flow(name="first", flow_run_name="one")(lambda: 1)()
        flow(name="second")(lambda: 1)()

        assert runs.read("one").run.flow == "first"
        assert runs.read().run.flow == "second"
        with pytest.raises(RunNotFoundError):
            runs.history("nothing-0")


def test_it_may_be_asked_after_the_block() -> None:
    """What the flows have left stays readable."""
    with harness() as runs:
        flow(name="main")(lambda: place())()

    assert runs.history("place-0") == ["Pending", "Running", "Completed"]


def test_nothing_is_written_to_disk() -> None:
    """No state directory, no files."""
    with harness():
        flow(name="main")(lambda: place())()

    assert list(Path().iterdir()) == []


def test_nothing_is_left_for_the_next_test() -> None:
    """Each block has a store of its own, and after it flows run as ever."""
    with harness():
        flow(name="main")(lambda: 1)()
    with harness() as runs:
        assert runs.flow_runs() == []
    flow(name="main")(lambda: 1)()

    assert Path(".localflow").exists()


def test_executors_of_the_settings_may_be_named() -> None:
    """A flow that names a table of localflow.toml can be tested."""
    Path("localflow.toml").write_text('store = "json"\n[executors.big]\ntype = "process"\nworkers = 1\n')

    with harness():
        assert flow(name="main", executor="big")(lambda: place())().result()[0] == os.getpid()
    assert not Path(".localflow").exists()


def test_notifiers_of_the_settings_are_not_told() -> None:
    """A test sends nobody a message."""
    command = f'["{sys.executable}", "-c", "import pathlib; pathlib.Path(\'told\').touch()"]'
    Path("localflow.toml").write_text(f'[notifiers.ops]\ntype = "command"\ncommand = {command}\n')

    @flow
    def main() -> None:
        raise ValueError

    with harness():
        main()
    assert not Path("told").exists()
