"""The stubs for plugin authors, and the door they come through."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import localflow
from localflow import testing
from localflow.interfaces import Call, Outcome, Output, StateType, TaskRun
from localflow.testing import ManualExecutor, RecordingNotifier, make_change


def make_call(number: int = 1) -> Call:
    """Return a call that doubles 21."""
    run = make_change(task_run="double-0").run
    assert isinstance(run, TaskRun)
    return Call(number, run, 1, lambda x: x * 2, (21,), {})


@pytest.fixture
def outcomes() -> list[Outcome]:
    """Return the list that outcomes are reported to."""
    return []


@pytest.fixture
def executor(outcomes: list[Outcome]) -> ManualExecutor:
    """Return a started executor."""
    executor = ManualExecutor()
    executor.start(outcomes.extend)
    return executor


def test_manual_executor_only_keeps_calls(executor: ManualExecutor, outcomes: list[Outcome]) -> None:
    """Nothing happens to a call until the test says so."""
    executor.submit([make_call(1), make_call(2)])

    assert [call.id for call in executor.calls] == [1, 2]
    assert outcomes == []


def test_manual_executor_runs_a_call(executor: ManualExecutor, outcomes: list[Outcome]) -> None:
    """`run` calls the task's function and reports what came of it."""
    executor.submit([make_call()])

    executor.run(1)

    (outcome,) = outcomes
    assert outcome.call_id == 1
    assert outcome.state.result() == 42
    assert executor.calls == []


def test_manual_executor_completes_a_call(executor: ManualExecutor, outcomes: list[Outcome]) -> None:
    """`complete` reports a value, as the store keeps it too, without calling the function."""
    executor.submit([make_call()])

    executor.complete(1, "made up")

    (outcome,) = outcomes
    assert outcome.state.result() == "made up"
    assert outcome.result is not None


def test_manual_executor_fails_a_call(executor: ManualExecutor, outcomes: list[Outcome]) -> None:
    """`fail` reports an exception as if the task had raised it."""
    executor.submit([make_call()])

    executor.fail(1, ValueError("boom"))

    (outcome,) = outcomes
    assert outcome.state.message == "Task run encountered an exception: ValueError: boom"


def test_manual_executor_crashes_a_call(executor: ManualExecutor, outcomes: list[Outcome]) -> None:
    """`crash` reports a worker that died."""
    executor.submit([make_call()])

    executor.crash(1)

    (outcome,) = outcomes
    assert (outcome.state.type, outcome.state.name) == (StateType.CRASHED, "WorkerLost")


def test_manual_executor_times_a_call_out(executor: ManualExecutor, outcomes: list[Outcome]) -> None:
    """`time_out` reports what an executor reports of a call at its deadline."""
    executor.submit([make_call()._replace(timeout_seconds=2)])

    executor.time_out(1)

    (outcome,) = outcomes
    assert (outcome.state.name, outcome.state.message) == ("TimedOut", "Task run exceeded timeout of 2.0 second(s)")
    assert executor.calls == []


def test_manual_executor_remembers_what_is_to_be_cancelled(executor: ManualExecutor, outcomes: list[Outcome]) -> None:
    """`cancel` changes nothing by itself; `stop` ends the call as CANCELLED."""
    executor.submit([make_call(1), make_call(2)])

    executor.cancel([2])
    asked = executor.wait_for_cancelled(1)
    before = list(outcomes)
    executor.stop(2)

    (outcome,) = outcomes
    assert (asked, before) == ([2], [])
    assert (outcome.call_id, outcome.state.type) == (2, StateType.CANCELLED)
    assert [call.id for call in executor.calls] == [1]


def test_manual_executor_says_when_nothing_is_cancelled(executor: ManualExecutor) -> None:
    """Waiting for requests to cancel ends with the number of those that came."""
    with pytest.raises(TimeoutError, match=r"0 calls to cancel after 0\.01 seconds, not 1"):
        executor.wait_for_cancelled(1, timeout=0.01)


def test_manual_executor_tells_what_a_call_says(executor: ManualExecutor, outcomes: list[Outcome | Output]) -> None:
    """`say` reports lines of a call that stays in hand."""
    executor.submit([make_call()])

    executor.say(1, "half way", "nearly there")

    (output,) = outcomes
    assert [(line.message, line.level, line.source) for line in output.lines] == [
        ("half way", 20, "stdout"),
        ("nearly there", 20, "stdout"),
    ]
    assert [call.id for call in executor.calls] == [1]
    with pytest.raises(LookupError, match="no call 2 in hand"):
        executor.say(2, "who?")


def test_manual_executor_ends_a_call_once(executor: ManualExecutor) -> None:
    """Each call is answered by exactly one outcome."""
    executor.submit([make_call()])
    executor.complete(1)

    with pytest.raises(LookupError, match="no call 1 in hand"):
        executor.complete(1)


def test_manual_executor_forgets_calls_at_shutdown(executor: ManualExecutor) -> None:
    """After shutdown it holds nothing and can be started again."""
    executor.submit([make_call()])

    executor.shutdown()

    assert executor.calls == []
    assert not executor.is_started


def test_manual_executor_says_when_calls_do_not_come(executor: ManualExecutor) -> None:
    """Waiting for calls ends with the number of those that came."""
    executor.submit([make_call()])

    with pytest.raises(TimeoutError, match=r"1 calls in hand after 0\.01 seconds, not 2"):
        executor.wait_for_calls(2, timeout=0.01)


def test_recording_notifier_remembers_and_raises() -> None:
    """The change is remembered although telling it failed."""
    notifier = RecordingNotifier(error=OSError("down"))
    change = make_change()

    with pytest.raises(OSError, match="down"):
        notifier.notify(change)

    assert notifier.wait_for_changes(1) == [change]


@pytest.mark.parametrize("name", testing.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    """What `localflow.testing` lists is there."""
    assert getattr(testing, name).__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as in any module."""
    with pytest.raises(AttributeError, match="has no attribute 'NotifierContrat'"):
        _ = testing.NotifierContrat


def test_stubs_do_not_need_pytest() -> None:
    """A program that uses the stubs runs where pytest is not installed."""
    code = "import sys; sys.modules['pytest'] = None; from localflow.testing import ManualExecutor, make_change"

    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_failing_contract_is_explained(tmp_path: Path) -> None:
    """Pytest shows the values in a contract's failing assertion, as it does for assertions in test files."""
    test = """
        import pytest
        from localflow.testing import NotifierContract, RecordingNotifier

        class TestSilentNotifier(NotifierContract):
            @pytest.fixture
            def notifier(self):
                return RecordingNotifier()

            @pytest.fixture
            def delivered(self):
                return lambda: ["something else"]
    """
    lines = (line.removeprefix(" " * 8) for line in test.splitlines())
    (tmp_path / "test_silent.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "task_runs", str(tmp_path)]

    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "assert 'add_project-1' in 'something else'" in done.stdout


def environment() -> dict[str, str]:
    """Return an environment in which a new interpreter finds localflow."""
    return {**os.environ, "PYTHONPATH": str(Path(localflow.__file__).parents[1])}
