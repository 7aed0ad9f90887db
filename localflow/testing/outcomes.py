"""The part of an executor's contract that is about single calls: what they are given and how they end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from localflow.interfaces import Packed, StateChange, StateType
from localflow.payloads import pack, unpack
from localflow.testing import workloads
from localflow.testing.promises import belongs_to, capability_of, skip_unless_promised
from localflow.testing.running import CallRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.interfaces import Executor

TALKERS = 8
LINES = 50


@belongs_to("calls")
class OutcomeContract:
    """What every executor must do with a call; part of `ExecutorContract`."""

    @pytest.fixture
    def executor(self) -> Executor:
        """Return an executor that is not started."""
        raise NotImplementedError("give the fixture `executor`: an executor that is not started")

    @pytest.fixture(autouse=True)
    def only_what_is_promised(self, request: pytest.FixtureRequest) -> None:
        """Skip the tests of what the executor does not promise."""
        if capability_of(request.function):
            skip_unless_promised(request.getfixturevalue("executor"), request.function)

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

    @belongs_to("failures")
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

    @belongs_to("failures")
    @pytest.mark.parametrize("code", [0, 3, "text", None])
    def test_sys_exit_is_a_failed_outcome(self, runner: CallRunner, code: object) -> None:
        """`sys.exit` of a task is that task's failure, and the next call runs as ever."""
        exiting, following = runner.run(runner.call(workloads.call_exit, code), runner.call(workloads.identity, 1))

        assert exiting.state.type is StateType.FAILED
        assert exiting.state.cause is not None
        assert exiting.state.cause.exception_type == "SystemExit"
        assert isinstance(exiting.state.exception(), Exception)
        assert following.state.result() == 1

    @belongs_to("failures")
    @pytest.mark.parametrize("error", [GeneratorExit("gone"), workloads.Bang("bang")], ids=repr)
    def test_no_exception_escapes(self, runner: CallRunner, error: BaseException) -> None:
        """What `except Exception` lets pass is a failed outcome too."""
        failing, following = runner.run(runner.call(workloads.fail, error), runner.call(workloads.identity, 1))

        assert failing.state.type is StateType.FAILED
        assert failing.state.cause is not None
        assert failing.state.cause.exception_type == type(error).__name__
        assert following.state.result() == 1

    @belongs_to("failures")
    def test_a_keyboard_interrupt_fails_where_it_cannot_be_one(self, runner: CallRunner, executor: Executor) -> None:
        """A task that raises KeyboardInterrupt elsewhere than in the caller's thread has failed."""
        if executor.runs_in_caller:
            pytest.skip("in the caller's thread it cannot be told from Ctrl-C")

        [outcome] = runner.run(runner.call(workloads.fail, KeyboardInterrupt()))

        assert outcome.state.type is StateType.FAILED

    @belongs_to("failures")
    def test_an_exception_that_pickle_cannot_rebuild_is_told(self, runner: CallRunner) -> None:
        """Such an exception is told in words, and harms nobody."""
        failing, following = runner.run(runner.call(workloads.two_arguments), runner.call(workloads.identity, 1))

        assert failing.state.message == "Task run encountered an exception: TwoArguments: this and that"
        assert "this and that" in str(failing.state.exception())
        assert following.state.result() == 1

    @belongs_to("failures")
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

    @belongs_to("context")
    @pytest.mark.parametrize("task", [workloads.context_facts, workloads.context_facts_later], ids=["sync", "async"])
    def test_a_call_knows_its_run(self, runner: CallRunner, task: Callable[[], object]) -> None:
        """Inside a call the context tells the task run, its flow run and the attempt."""
        call = runner.call(task)._replace(attempt=3)

        [outcome] = runner.run(call)

        run = call.task_run
        expected = (run.name, task.__name__, run.number, 3, ("contract",), runner.flow_run.id, "brave-otter")
        assert tuple(outcome.state.result()) == expected

    @belongs_to("context")
    def test_records_made_in_a_call_travel_with_its_outcome(self, runner: CallRunner) -> None:
        """What a call appends to its context's records is in the outcome."""
        call = runner.call(workloads.record_something)

        [outcome] = runner.run(call)

        [change] = outcome.records
        assert isinstance(change, StateChange)
        assert (change.run.id, change.type, change.timestamp) == (call.task_run.id, StateType.RUNNING, 12.5)

    @belongs_to("context")
    def test_context_variables_do_not_leak(self, runner: CallRunner) -> None:
        """A context variable that one call sets is as it was for all others, async ones too."""
        tasks = [workloads.leave_variable, workloads.leave_variable_later]

        outcomes = runner.run(*(runner.call(task) for task in tasks for _ in range(50)))

        assert {outcome.state.result() for outcome in outcomes} == {"untouched"}

    # -- kinds of functions ------------------------------------------------------------------------------------------

    @belongs_to("async")
    def test_an_async_function_gives_its_value(self, runner: CallRunner) -> None:
        """The call of an async function is COMPLETED with what its coroutine returned."""
        outcomes = runner.run(*(runner.call(workloads.identity_later, number, 0.01) for number in range(20)))

        assert [outcome.state.result() for outcome in outcomes] == list(range(20))
        assert outcomes[0].execution is not None
        assert outcomes[0].execution.worker

    @belongs_to("async")
    def test_an_async_function_that_raises_has_failed(self, runner: CallRunner) -> None:
        """Whatever a coroutine raises is a failed outcome, and the next one runs as ever."""
        outcomes = runner.run(
            runner.call(workloads.fail_later, workloads.Boom("by intent")),
            runner.call(workloads.fail_later, SystemExit(3)),
            runner.call(workloads.identity_later, 1),
        )

        assert [outcome.state.type for outcome in outcomes[:2]] == [StateType.FAILED] * 2
        assert outcomes[0].state.message == "Task run encountered an exception: Boom: by intent"
        assert outcomes[2].state.result() == 1

    @belongs_to("async")
    @pytest.mark.parametrize("task", [workloads.count_up, workloads.count_up_later], ids=["sync", "async"])
    def test_a_generator_gives_the_list_of_what_it_yields(self, runner: CallRunner, task: Callable[..., Any]) -> None:
        """Generators and async generators are drained where they run."""
        [outcome] = runner.run(runner.call(task, 4))

        assert outcome.state.result() == [0, 1, 2, 3]
        assert outcome.result is not None

    # -- output ------------------------------------------------------------------------------------------------------

    @belongs_to("output")
    @pytest.mark.parametrize("task", [workloads.say, workloads.say_later], ids=["sync", "async"])
    def test_what_calls_say_comes_back_under_each(self, runner: CallRunner, task: Callable[..., Any]) -> None:
        """Lines of calls that run at the same time are neither lost nor mixed, and come in order."""
        calls = [runner.call(task, f"call {number}", LINES) for number in range(TALKERS)]

        runner.run(*calls)

        for number, call in enumerate(calls):
            assert [line.message for line in runner.lines[call.id]] == [
                f"call {number}, line {n}" for n in range(LINES)
            ]
            assert {(line.level, line.source) for line in runner.lines[call.id]} == {(20, "contract")}

    @belongs_to("output")
    def test_what_a_failing_call_has_said_comes_back(self, runner: CallRunner) -> None:
        """A call that fails takes nothing along that it has said before."""
        call = runner.call(workloads.say_and_fail, "the last word")

        [outcome] = runner.run(call)

        assert outcome.state.type is StateType.FAILED
        assert [line.message for line in runner.lines[call.id]] == ["the last word, line 0"]
