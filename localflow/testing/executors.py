"""The contract of an executor, as a test class.

    class TestPigeonExecutor(ExecutorContract):
        @pytest.fixture
        def executor(self):
            return PigeonExecutor(workers=2)

The fixture gives an executor that is not started; it has at least two workers if it has any. What an executor declares
(`shares_memory`, `isolates_crashes`, `runs_in_caller`) decides which promises are tested.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from localflow.interfaces import Packed, StateChange, StateType
from localflow.payloads import pack, unpack
from localflow.states import WORKER_LOST
from localflow.testing import workloads
from localflow.testing.running import CallRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from localflow.interfaces import Call, Executor, Outcome

CHAIN = 1500
MANY = 500
INNOCENT = 20
DEADLINE = 10.0


class ExecutorContract:
    """What every executor must do; a plugin's test subclasses it and gives the fixture `executor`."""

    @pytest.fixture
    def executor(self) -> Executor:
        """Return an executor that is not started."""
        raise NotImplementedError("give the fixture `executor`: an executor that is not started")

    @pytest.fixture
    def runner(self, executor: Executor) -> Iterator[CallRunner]:
        """Drive the executor, started, for one test."""
        with CallRunner(executor) as runner:
            yield runner

    # -- calls -------------------------------------------------------------------------------------------------------

    def test_a_call_ends_with_its_value(self, runner: CallRunner) -> None:
        """A call is COMPLETED with what the function returned, and has the value packed for the store."""
        [outcome] = runner.run(runner.call(workloads.total, 1, 2, start=4))

        assert outcome.state.type is StateType.COMPLETED
        assert outcome.state.result() == 7
        assert outcome.result is not None
        assert unpack(outcome.result) == 7

    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            2**80,
            -0.5,
            "caf\u00e9 \udcff",
            b"\x00\xff",
            [1, [2.5, None]],
            {"a": {"b": []}},
            (1, {2}),
            {1: 2},
        ],
        ids=repr,
    )
    def test_values_come_and_go_unchanged(self, runner: CallRunner, value: Any) -> None:
        """Values of every plain kind arrive as arguments and come back as results, type and all."""
        [outcome] = runner.run(runner.call(workloads.identity, value))

        assert outcome.state.result() == value
        assert type(outcome.state.result()) is type(value)

    def test_keyword_arguments_arrive(self, runner: CallRunner) -> None:
        """Keyword arguments arrive under their names."""
        [outcome] = runner.run(runner.call(workloads.identity, a=1, b=[2]))

        assert outcome.state.result() == {"a": 1, "b": [2]}

    def test_packed_arguments_arrive_unpacked(self, runner: CallRunner) -> None:
        """Data that is still packed arrives as the value, alone, among others and inside containers."""
        packed = [Packed(pack(value)) for value in (1, (2, 3), {"deep": {4}})]

        outcomes = runner.run(
            runner.call(workloads.identity, packed[0]),
            runner.call(workloads.identity, packed[1]),
            runner.call(workloads.identity, [packed[0], {"in": packed[2]}]),
            runner.call(workloads.identity, first=packed[1], second="plain"),
        )

        values = [outcome.state.result() for outcome in outcomes]
        assert values == [1, (2, 3), [1, {"in": {"deep": {4}}}], {"first": (2, 3), "second": "plain"}]

    def test_a_closure_can_be_called(self, runner: CallRunner) -> None:
        """A function made in place, with what it has caught, is run like any other."""
        factor = 3

        def multiply(value: int) -> int:
            return value * factor

        [outcome] = runner.run(runner.call(multiply, 5))

        assert outcome.state.result() == 15

    def test_arguments_are_shared_or_copied_as_declared(self, runner: CallRunner, executor: Executor) -> None:
        """With shared memory a call sees the very object it is given, otherwise a copy."""
        given: list[int] = []

        def change(values: list[int]) -> list[int]:
            values.append(1)
            return values

        [outcome] = runner.run(runner.call(change, given))

        assert outcome.state.result() == [1]
        assert given == ([1] if executor.shares_memory else [])

    def test_it_is_told_where_and_when_a_call_ran(self, runner: CallRunner) -> None:
        """The outcome says which worker ran the call, from when to when."""
        before = time.time()

        [outcome] = runner.run(runner.call(workloads.pid, 0.01))

        execution = outcome.execution
        assert execution is not None
        assert execution.worker
        assert execution.pid == outcome.state.result()
        assert execution.started_at is not None
        assert execution.ended_at is not None
        assert before <= execution.started_at + 0.001 <= execution.ended_at <= time.time()

    # -- failures ----------------------------------------------------------------------------------------------------

    def test_an_exception_is_a_failed_outcome(self, runner: CallRunner) -> None:
        """An exception ends the call FAILED, is told in words, and is raised by `result()`."""
        [outcome] = runner.run(runner.call(workloads.fail, workloads.Boom("by intent")))

        state = outcome.state
        assert state.type is StateType.FAILED
        assert state.message == "Task run encountered an exception: Boom: by intent"
        assert state.cause is not None
        assert (state.cause.exception_type, state.cause.message) == ("Boom", "by intent")
        assert "workloads.py" in state.cause.traceback_text
        with pytest.raises(workloads.Boom, match="by intent"):
            state.result()

    @pytest.mark.parametrize("code", [0, 3, "text", None])
    def test_sys_exit_is_a_failed_outcome(self, runner: CallRunner, code: object) -> None:
        """`sys.exit` of a task is that task's failure, and the next call runs as ever."""
        exiting, following = runner.run(runner.call(workloads.call_exit, code), runner.call(workloads.identity, 1))

        assert exiting.state.type is StateType.FAILED
        assert exiting.state.cause is not None
        assert exiting.state.cause.exception_type == "SystemExit"
        assert isinstance(exiting.state.exception(), Exception)
        assert following.state.result() == 1

    @pytest.mark.parametrize("error", [GeneratorExit("gone"), workloads.Bang("bang")], ids=repr)
    def test_no_exception_escapes(self, runner: CallRunner, error: BaseException) -> None:
        """What `except Exception` lets pass is a failed outcome too."""
        failing, following = runner.run(runner.call(workloads.fail, error), runner.call(workloads.identity, 1))

        assert failing.state.type is StateType.FAILED
        assert failing.state.cause is not None
        assert failing.state.cause.exception_type == type(error).__name__
        assert following.state.result() == 1

    def test_a_keyboard_interrupt_fails_where_it_cannot_be_one(self, runner: CallRunner, executor: Executor) -> None:
        """A task that raises KeyboardInterrupt elsewhere than in the caller's thread has failed."""
        if executor.runs_in_caller:
            pytest.skip("in the caller's thread it cannot be told from Ctrl-C")

        [outcome] = runner.run(runner.call(workloads.fail, KeyboardInterrupt()))

        assert outcome.state.type is StateType.FAILED

    def test_an_exception_that_pickle_cannot_rebuild_is_told(self, runner: CallRunner) -> None:
        """Such an exception is told in words, and harms nobody."""
        failing, following = runner.run(runner.call(workloads.two_arguments), runner.call(workloads.identity, 1))

        assert failing.state.message == "Task run encountered an exception: TwoArguments: this and that"
        assert "this and that" in str(failing.state.exception())
        assert following.state.result() == 1

    def test_a_result_that_cannot_be_pickled(self, runner: CallRunner, executor: Executor) -> None:
        """It is given as it is where memory is shared; elsewhere the call has failed, and the message says why."""
        [outcome] = runner.run(runner.call(workloads.make_locked))

        if executor.shares_memory:
            assert isinstance(outcome.state.result(), workloads.Locked)
            assert outcome.result is None
        else:
            assert outcome.state.type is StateType.FAILED
            assert "localflow.testing.workloads.Locked" in outcome.state.message

    def test_a_returned_state_is_passed_on(self, runner: CallRunner) -> None:
        """A state that a task returns is its state, message and data included."""
        failed, completed = runner.run(
            runner.call(workloads.returned_state, "failed"), runner.call(workloads.returned_state, "completed")
        )

        assert (failed.state.type, failed.state.message) == (StateType.FAILED, "as told")
        assert (completed.state.type, completed.state.message) == (StateType.COMPLETED, "as told")
        assert completed.state.result() == [1, 2]

    # -- context -----------------------------------------------------------------------------------------------------

    def test_a_call_knows_its_run(self, runner: CallRunner) -> None:
        """Inside a call the context tells the task run, its flow run and the attempt."""
        call = runner.call(workloads.context_facts)._replace(attempt=3)

        [outcome] = runner.run(call)

        run = call.task_run
        expected = (run.name, "context_facts", run.number, 3, ("contract",), runner.flow_run.id, "brave-otter")
        assert tuple(outcome.state.result()) == expected

    def test_records_made_in_a_call_travel_with_its_outcome(self, runner: CallRunner) -> None:
        """What a call appends to its context's records is in the outcome."""
        call = runner.call(workloads.record_something)

        [outcome] = runner.run(call)

        [change] = outcome.records
        assert isinstance(change, StateChange)
        assert (change.run.id, change.type, change.timestamp) == (call.task_run.id, StateType.RUNNING, 12.5)

    def test_context_variables_do_not_leak(self, runner: CallRunner) -> None:
        """A context variable that one call sets is as it was for all others."""
        outcomes = runner.run(*(runner.call(workloads.leave_variable) for _ in range(100)))

        assert {outcome.state.result() for outcome in outcomes} == {"untouched"}

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

    # -- start and shutdown ------------------------------------------------------------------------------------------

    def test_shutdown_leaves_nothing_behind(self, executor: Executor) -> None:
        """After shutdown there are no more threads and processes than before the start."""
        threads, processes = set(threading.enumerate()), set(psutil.Process().children(recursive=True))

        with CallRunner(executor) as runner:
            runner.run(*(runner.call(workloads.identity, number) for number in range(20)))

        _eventually(lambda: set(threading.enumerate()) <= threads)
        _eventually(lambda: set(psutil.Process().children(recursive=True)) <= processes)

    def test_it_starts_again_after_shutdown(self, executor: Executor) -> None:
        """An executor can be used several times."""
        values = []
        for number in range(3):
            with CallRunner(executor) as runner:
                [outcome] = runner.run(runner.call(workloads.identity, number))
            values.append(outcome.state.result())

        assert values == [0, 1, 2]

    def test_shutdown_needs_no_start(self, executor: Executor) -> None:
        """Shutting down twice, or what was never started, is harmless."""
        executor.shutdown()
        with CallRunner(executor) as runner:
            runner.run(runner.call(workloads.identity, 1))
        executor.shutdown()

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
            _eventually(begun.exists)
            began_at = time.monotonic()
        elapsed = time.monotonic() - began_at
        release.touch()

        assert elapsed < 5
        assert runner.outcomes == []

    # -- crashes -----------------------------------------------------------------------------------------------------

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
        if not executor.isolates_crashes:
            pytest.skip("it does not isolate crashes")
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


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)
