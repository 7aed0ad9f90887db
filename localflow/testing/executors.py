"""The contract of an executor, as a test class.

    class TestPigeonExecutor(ExecutorContract):
        @pytest.fixture
        def executor(self):
            return PigeonExecutor(workers=2)

The fixture gives an executor that is not started; it has at least two workers if it has any. Each test belongs to a
capability (see `localflow/capabilities.py`): what an executor declares, by `isolates_crashes` and the like or by having
a method of its own, is tested, and what it does not declare is skipped.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

import psutil
import pytest

from localflow.interfaces import Executor, StateType
from localflow.states import TIMED_OUT, WORKER_LOST
from localflow.testing import workloads
from localflow.testing.executor_choices import ChoiceContract, eventually
from localflow.testing.promises import belongs_to
from localflow.testing.running import CallRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localflow.interfaces import Call, Outcome

CHAIN = 1500
MANY = 500
INNOCENT = 20
TIMEOUT = 0.3
MESSAGE = "Task run exceeded timeout of 0.3 second(s)"
LATE = 1.0
"""How much later than its timeout a call may be answered, in seconds."""


@belongs_to("calls")
class ExecutorContract(ChoiceContract):
    """What every executor must do; a plugin's test subclasses it and gives the fixture `executor`."""

    #: The same as the executor's own attribute, for tests of one that does not have it.
    gives_up_late_calls: ClassVar[bool] = False

    # -- many calls --------------------------------------------------------------------------------------------------

    def test_every_call_is_answered_once(self, runner: CallRunner) -> None:
        """Many calls at once get one outcome each."""
        calls = [runner.call(workloads.identity, number) for number in range(MANY)]

        outcomes = runner.run(*calls)

        assert [outcome.state.result() for outcome in outcomes] == list(range(MANY))
        assert sorted(outcome.call_id for outcome in runner.outcomes) == sorted(call.id for call in calls)

    def test_more_calls_than_it_wants_are_taken(self, executor: Executor) -> None:
        """Capacity is a wish: a batch larger than that is run as well."""
        with CallRunner(executor) as runner:
            calls = [runner.call(workloads.identity, number) for number in range(MANY)]

            executor.submit(calls)
            outcomes = runner.wait_for(calls)

        assert [outcome.state.result() for outcome in outcomes] == list(range(MANY))

    @belongs_to("lifecycle")
    def test_prepared_executor_runs_calls(self, executor: Executor) -> None:
        """What was begun before the start serves the calls that come after it."""
        executor.prepare()

        with CallRunner(executor) as runner:
            [outcome] = runner.run(runner.call(workloads.identity, 1))

        assert outcome.state.result() == 1

    @belongs_to("lifecycle")
    def test_prepared_executor_is_shut_down_before_it_starts(self, executor: Executor) -> None:
        """A flow that comes to nothing before its executor starts leaves it as it was."""
        executor.prepare()

        executor.shutdown()

        with CallRunner(executor) as runner:
            [outcome] = runner.run(runner.call(workloads.identity, 1))
        assert outcome.state.result() == 1

    def test_batches_come_from_several_threads(self, runner: CallRunner) -> None:
        """Threads that submit at the same time do not get in each other's way."""
        batches = [[runner.call(workloads.identity, number) for number in range(50)] for _ in range(8)]

        threads = [threading.Thread(target=runner.submit, args=batch) for batch in batches]
        for thread in threads:
            thread.start()
        outcomes = [runner.wait_for(batch) for batch in batches]
        for thread in threads:
            thread.join()

        assert [[outcome.state.result() for outcome in batch] for batch in outcomes] == [list(range(50))] * 8
        assert len(runner.outcomes) == 8 * 50

    def test_calls_are_submitted_from_inside_a_report(self, runner: CallRunner, executor: Executor) -> None:
        """A long chain, each call submitted by the report of the one before, comes to its end."""
        if executor.runs_in_caller:
            pytest.skip("its calls are submitted by who makes them")

        def follow(outcome: Outcome) -> list[Call]:
            value = outcome.state.result()
            return [runner.call(workloads.identity, value + 1)] if value < CHAIN else []

        runner.on_outcome = follow
        runner.submit(runner.call(workloads.identity, 1))
        runner.wait_until(lambda: len(runner.outcomes) == CHAIN)

        assert runner.outcomes[-1].state.result() == CHAIN

    def test_capacity_is_none_or_at_least_one(self, executor: Executor) -> None:
        """Capacity is never so small that nothing would be handed over, before, during and after the work."""
        seen = [executor.capacity]

        with CallRunner(executor) as runner:
            runner.on_outcome = lambda outcome: seen.append(executor.capacity) or ()  # type: ignore[func-returns-value]
            runner.run(*(runner.call(workloads.identity, number) for number in range(MANY)))
        seen.append(executor.capacity)

        assert all(capacity is None or capacity >= 1 for capacity in seen)

    @belongs_to("async_capacity")
    def test_async_calls_share_a_worker(self, runner: CallRunner, executor: Executor) -> None:
        """Async calls that are wanted beside the others run all at the same time."""
        count = min(100, executor.async_capacity or 0)

        runner.run(*(runner.call(workloads.identity_later, number, 0.2) for number in range(count)))

        executions = [outcome.execution for outcome in runner.outcomes]
        last_begin = max(execution.started_at or 0.0 for execution in executions if execution is not None)
        first_end = min(execution.ended_at or 0.0 for execution in executions if execution is not None)
        assert last_begin < first_end

    # -- timeouts ----------------------------------------------------------------------------------------------------

    @belongs_to("timeouts")
    @pytest.mark.parametrize(
        "task", [workloads.wait_for_file, workloads.block_loop, workloads.ignore_cancel], ids=lambda task: task.__name__
    )
    def test_a_call_past_its_timeout_is_timed_out(
        self, runner: CallRunner, executor: Executor, tmp_path: Path, task: Callable[..., Any]
    ) -> None:
        """It is FAILED, named TimedOut, at the deadline if the executor can stop it or give it up."""
        release = tmp_path / "release"
        runner.run(runner.call(workloads.identity, 1))
        call = runner.call(task, str(release), 30.0 if self._is_prompt(executor) else 2 * TIMEOUT)
        began_at = time.monotonic()

        [outcome] = runner.run(call._replace(timeout_seconds=TIMEOUT))
        elapsed = time.monotonic() - began_at
        release.touch()

        state = outcome.state
        assert (state.type, state.name, state.message) == (StateType.FAILED, TIMED_OUT, MESSAGE)
        assert isinstance(state.exception(), TimeoutError)
        assert outcome.execution is not None
        assert TIMEOUT <= elapsed < 2 * TIMEOUT + LATE

    @belongs_to("timeouts")
    def test_an_async_call_past_its_timeout_is_cancelled(self, runner: CallRunner) -> None:
        """On every executor an async call that awaits ends at its deadline."""
        runner.run(runner.call(workloads.identity_later, 1))
        began_at = time.monotonic()

        [outcome] = runner.run(runner.call(workloads.identity_later, 1, 30.0)._replace(timeout_seconds=TIMEOUT))
        elapsed = time.monotonic() - began_at

        assert (outcome.state.name, outcome.state.message) == (TIMED_OUT, MESSAGE)
        assert TIMEOUT <= elapsed < TIMEOUT + LATE

    @belongs_to("timeouts")
    def test_a_call_within_its_timeout_is_none_the_wiser(self, runner: CallRunner) -> None:
        """A timeout that is not reached changes nothing."""
        calls = [runner.call(workloads.pid, 0.01), runner.call(workloads.identity_later, 1, 0.01)]

        outcomes = runner.run(*(call._replace(timeout_seconds=20.0) for call in calls))

        assert [outcome.state.type for outcome in outcomes] == [StateType.COMPLETED] * 2

    @belongs_to("timeouts")
    def test_waiting_does_not_count(self, runner: CallRunner, executor: Executor, tmp_path: Path) -> None:
        """The clock of a call starts when it begins, not when it is queued behind others."""
        if executor.runs_in_caller:
            pytest.skip("its calls do not wait")
        release = tmp_path / "release"
        blocking = [runner.call(workloads.wait_for_file, str(release)) for _ in range(executor.capacity or 16)]
        waiting = [runner.call(workloads.identity, n)._replace(timeout_seconds=TIMEOUT) for n in range(4)]

        executor.submit([*blocking, *waiting])
        time.sleep(2 * TIMEOUT)
        release.touch()
        outcomes = runner.wait_for(waiting)

        assert [outcome.state.name for outcome in outcomes] == ["Completed"] * 4

    @belongs_to("timeouts")
    def test_a_timed_out_call_disturbs_nobody(self, runner: CallRunner, executor: Executor, tmp_path: Path) -> None:
        """Others run exactly once beside it and after it, and as many at a time as before."""
        release, log, crowd = tmp_path / "release", tmp_path / "log", tmp_path / "crowd"
        seconds = 30.0 if self._is_prompt(executor) else 2 * TIMEOUT
        late = [runner.call(workloads.wait_for_file, str(release), seconds) for _ in range(2)]
        late = [call._replace(timeout_seconds=TIMEOUT) for call in late]
        innocent = [runner.call(workloads.note, str(log), str(n), 0.002) for n in range(INNOCENT)]

        outcomes = runner.run(*late, *innocent)
        meeting = [] if executor.runs_in_caller else [runner.call(workloads.meet, str(crowd), n, 2) for n in "ab"]
        met = runner.run(*meeting)
        release.touch()
        runner.run(runner.call(workloads.identity, 1))

        assert [outcome.state.name for outcome in outcomes] == [TIMED_OUT] * 2 + ["Completed"] * INNOCENT
        assert sorted(log.read_text().split(), key=int) == [str(number) for number in range(INNOCENT)]
        assert all(outcome.state.result() for outcome in met)
        assert len(runner.outcomes) == len({outcome.call_id for outcome in runner.outcomes})

    @belongs_to("timeouts")
    def test_what_a_timed_out_call_has_said_comes_back(
        self, runner: CallRunner, executor: Executor, tmp_path: Path
    ) -> None:
        """Lines from before the deadline are kept."""
        seconds = 30.0 if self._is_prompt(executor) else 2 * TIMEOUT
        call = runner.call(workloads.say_around, "in time", str(tmp_path / "release"), seconds)

        [outcome] = runner.run(call._replace(timeout_seconds=TIMEOUT))
        said = [line.message for line in runner.lines[call.id]]
        (tmp_path / "release").touch()

        assert outcome.state.name == TIMED_OUT
        assert said[0] == "in time, line 0"

    # -- cancelling --------------------------------------------------------------------------------------------------

    @belongs_to("cancel")
    def test_a_waiting_call_that_is_cancelled_never_begins(
        self, runner: CallRunner, executor: Executor, tmp_path: Path
    ) -> None:
        """It is answered as CANCELLED, and the calls around it run as ever."""
        if executor.runs_in_caller:
            pytest.skip("nobody can cancel while the caller's thread is in a call")
        release, log = tmp_path / "release", tmp_path / "log"
        blocking = [runner.call(workloads.wait_for_file, str(release)) for _ in range(executor.capacity or 16)]
        waiting = [runner.call(workloads.note, str(log), str(number)) for number in range(3)]

        executor.submit([*blocking, *waiting])
        executor.cancel([waiting[1].id])
        release.touch()
        outcomes = runner.wait_for([*blocking, *waiting])

        types = [outcome.state.type for outcome in outcomes[-3:]]
        assert types == [StateType.COMPLETED, StateType.CANCELLED, StateType.COMPLETED]
        assert {outcome.state.type for outcome in outcomes[:-3]} == {StateType.COMPLETED}
        assert sorted(log.read_text().split()) == ["0", "2"]

    @belongs_to("cancel")
    @pytest.mark.parametrize("task", [workloads.begin_and_wait, workloads.begin_and_wait_later], ids=["sync", "async"])
    def test_a_running_call_that_is_cancelled(
        self, runner: CallRunner, executor: Executor, tmp_path: Path, task: Callable[..., Any]
    ) -> None:
        """It ends CANCELLED if it can be stopped, and goes on if not; in both cases it is answered once."""
        if executor.runs_in_caller:
            pytest.skip("nobody can cancel while the caller's thread is in a call")
        begun, release = tmp_path / "begun", tmp_path / "release"
        call = runner.call(task, str(begun), str(release))
        can_stop = executor.kills_on_timeout or (call.is_async and executor.async_capacity is not None)

        runner.submit(call)
        eventually(begun.exists)
        executor.cancel([call.id])
        if not can_stop:
            release.touch()
        [outcome] = runner.wait_for([call])
        following = runner.run(runner.call(workloads.identity, 1), runner.call(workloads.identity_later, 2))

        assert outcome.state.type is (StateType.CANCELLED if can_stop else StateType.COMPLETED)
        assert [outcome.state.result() for outcome in following] == [1, 2]
        assert len(runner.outcomes) == 3

    def test_cancelling_what_has_ended_is_harmless(self, runner: CallRunner, executor: Executor) -> None:
        """Calls that have been answered, or were never submitted, are passed over."""
        ended, never = runner.call(workloads.identity, 1), runner.call(workloads.identity, 2)
        runner.run(ended)

        executor.cancel([ended.id, never.id])
        [outcome] = runner.run(runner.call(workloads.identity, 3))

        assert outcome.state.result() == 3
        assert len(runner.outcomes) == 2

    # -- start and shutdown ------------------------------------------------------------------------------------------

    @belongs_to("lifecycle")
    def test_shutdown_leaves_nothing_behind(self, executor: Executor) -> None:
        """After shutdown there are no more threads and processes than before the start."""
        threads, processes = set(threading.enumerate()), set(psutil.Process().children(recursive=True))

        with CallRunner(executor) as runner:
            runner.run(*(runner.call(workloads.identity, number) for number in range(20)))

        eventually(lambda: set(threading.enumerate()) <= threads)
        eventually(lambda: set(psutil.Process().children(recursive=True)) <= processes)

    @belongs_to("lifecycle")
    def test_it_starts_again_after_shutdown(self, executor: Executor) -> None:
        """An executor can be used several times."""
        values = []
        for number in range(3):
            with CallRunner(executor) as runner:
                [outcome] = runner.run(runner.call(workloads.identity, number))
            values.append(outcome.state.result())

        assert values == [0, 1, 2]

    @belongs_to("lifecycle")
    def test_shutdown_needs_no_start(self, executor: Executor) -> None:
        """Shutting down twice, or what was never started, is harmless."""
        executor.shutdown()
        with CallRunner(executor) as runner:
            runner.run(runner.call(workloads.identity, 1))
        executor.shutdown()

    @belongs_to("lifecycle")
    def test_shutdown_does_not_wait_for_running_calls(self, executor: Executor, tmp_path: Path) -> None:
        """Calls still in hand are given up: shutdown returns, and nothing is reported afterwards."""
        if executor.runs_in_caller:
            pytest.skip("no call is in hand when the caller can shut down")
        begun, release = tmp_path / "begun", tmp_path / "release"

        def linger(begun: str, release: str) -> bool:
            workloads.note(begun, "begun")
            return workloads.wait_for_file(release)

        with CallRunner(executor) as runner:
            runner.submit(runner.call(linger, str(begun), str(release)))
            eventually(begun.exists)
            began_at = time.monotonic()
        elapsed = time.monotonic() - began_at
        release.touch()

        assert elapsed < 5
        assert runner.outcomes == []

    # -- crashes -----------------------------------------------------------------------------------------------------

    @belongs_to("isolates_crashes")
    @pytest.mark.parametrize(
        ("crash", "args"),
        [
            (workloads.end_process, (0,)),
            (workloads.end_process, (7,)),
            (workloads.kill_process, (signal.SIGKILL,)),
            (workloads.kill_process, (signal.SIGTERM,)),
            (workloads.read_null, ()),
        ],
        ids=["exit 0", "exit 7", "SIGKILL", "SIGTERM", "SIGSEGV"],
    )
    def test_a_crash_is_its_own_tasks_alone(
        self, runner: CallRunner, executor: Executor, tmp_path: Path, crash: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        """A task that kills its process is CRASHED; all others run exactly once and are COMPLETED."""
        log = tmp_path / "log"
        innocent = [runner.call(workloads.note, str(log), str(n), 0.002) for n in range(INNOCENT)]
        fatal = runner.call(crash, *args)

        outcomes = runner.run(*innocent[: INNOCENT // 2], fatal, *innocent[INNOCENT // 2 :])

        crashed = outcomes.pop(INNOCENT // 2)
        assert (crashed.state.type, crashed.state.name) == (StateType.CRASHED, WORKER_LOST)
        assert fatal.task_run.name in crashed.state.message
        assert {outcome.state.type for outcome in outcomes} == {StateType.COMPLETED}
        assert sorted(log.read_text().split(), key=int) == [str(number) for number in range(INNOCENT)]
        assert len(runner.outcomes) == INNOCENT + 1

    def _is_prompt(self, executor: Executor) -> bool:
        return executor.kills_on_timeout or executor.gives_up_late_calls or self.gives_up_late_calls
