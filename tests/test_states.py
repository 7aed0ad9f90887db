"""States: what they say, what they give, how they add up, and the exact wording of every message."""

from __future__ import annotations

import copy
import enum
import pickle
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow import (
    AwaitingRetry,
    Cancelled,
    Completed,
    Crashed,
    Failed,
    Pending,
    Retrying,
    Running,
    Scheduled,
    State,
    StateType,
)
from localflow.calls import failed_state
from localflow.errors import (
    LocalflowError,
    RunCancelledError,
    RunFailedError,
    TaskFailedError,
    UnfinishedRunError,
    UpstreamFailedError,
    WorkerCrashedError,
)
from localflow.states import (
    Blocked,
    Returned,
    RunRef,
    aggregate,
    exception_message,
    first_failure,
    not_ready,
    upstream_message,
)

TYPES = ["SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLING", "CANCELLED"]

CONSTRUCTORS = [
    (Scheduled, StateType.SCHEDULED, "Scheduled"),
    (Pending, StateType.PENDING, "Pending"),
    (Running, StateType.RUNNING, "Running"),
    (Completed, StateType.COMPLETED, "Completed"),
    (Failed, StateType.FAILED, "Failed"),
    (Crashed, StateType.CRASHED, "Crashed"),
    (Cancelled, StateType.CANCELLED, "Cancelled"),
    (AwaitingRetry, StateType.SCHEDULED, "AwaitingRetry"),
    (Retrying, StateType.RUNNING, "Retrying"),
]


class UnprintableError(Exception):
    """Its str() raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class WrongTextError(Exception):
    """Its str() is no text."""

    def __str__(self) -> str:
        return 42  # type: ignore[return-value]


class NeedsTwoError(Exception):
    """Its constructor takes arguments that its pickle does not keep."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")


# -- what a state is -------------------------------------------------------------------------------------------------


def test_the_types() -> None:
    """Eight types, in a plain Enum."""
    assert [type.name for type in StateType] == TYPES
    assert not isinstance(StateType.FAILED, str)
    assert StateType.__mro__[1] is enum.Enum


@pytest.mark.parametrize(("make", "type", "name"), CONSTRUCTORS)
def test_the_constructors(make: Any, type: StateType, name: str) -> None:
    """Each constructor gives its type and name, and takes message, data and name."""
    plain = make()
    full = make(message="m", data=[1], name="Mine")

    assert (plain.type, plain.name, plain.message, plain.data) == (type, name, "", None)
    assert (full.type, full.name, full.message, full.data) == (type, "Mine", "m", [1])


def test_the_first_argument_of_a_constructor_is_the_message() -> None:
    """`Failed("why")` reads as one says it."""
    assert Failed("why").message == "why"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (Failed("1/4 states failed."), "State(name='Failed', type=StateType.FAILED, message='1/4 states failed.')"),
        (Completed(), "State(name='Completed', type=StateType.COMPLETED)"),
        (Completed(data=1), "State(name='Completed', type=StateType.COMPLETED)"),
        (AwaitingRetry(), "State(name='AwaitingRetry', type=StateType.SCHEDULED)"),
        (Failed("it's", name="TimedOut"), "State(name='TimedOut', type=StateType.FAILED, message=\"it's\")"),
        (Pending("a\nb"), "State(name='Pending', type=StateType.PENDING, message='a\\nb')"),
    ],
)
def test_repr_and_str(state: State, text: str) -> None:
    """Both show name, type and, if there is one, the message."""
    assert repr(state) == text
    assert str(state) == text
    assert f"{state}" == text


@pytest.mark.parametrize("type", list(StateType))
def test_the_questions(type: StateType) -> None:
    """`is_x()` is true for its own type alone."""
    state = State(type)

    answers = {name for name in TYPES if getattr(state, f"is_{name.lower()}")()}

    assert answers == {type.name}
    assert state.is_final() is (type.name in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})


def test_every_state_has_an_id_of_its_own() -> None:
    """Ids are texts, unique, and stay."""
    first, second = Completed(), Completed()

    assert isinstance(first.id, str)
    assert first.id == first.id
    assert first.id != second.id


def test_an_id_survives_pickling() -> None:
    """A state that travels is still the same state."""
    state = Completed(data=1)

    assert pickle.loads(pickle.dumps(state)).id == state.id


def test_the_timestamp_is_an_aware_instant() -> None:
    """A state says when it came about, in UTC."""
    before = datetime.now(UTC)

    timestamp = Completed().timestamp

    assert timestamp.tzinfo is not None
    assert timestamp.utcoffset() == timedelta(0)
    assert before - timedelta(seconds=1) < timestamp < datetime.now(UTC) + timedelta(seconds=1)


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_states_can_be_copied_and_pickled(clone: Any) -> None:
    """A copy has the same type, name, message, data and timestamp."""
    state = Failed("why", data=ValueError("boom"), name="Mine")

    twin = clone(state)

    assert repr(twin) == repr(state)
    assert twin.timestamp == state.timestamp
    assert isinstance(twin.data, ValueError)


def test_a_very_long_chain_of_blocked_runs_can_be_pickled() -> None:
    """What a blocked run carries does not grow with the length of its chain beyond what pickle can bear."""
    state = Failed("root", data=ValueError("boom"))
    for _ in range(10_000):
        state = not_ready(state)

    twin = pickle.loads(pickle.dumps(state))

    with pytest.raises(UpstreamFailedError) as caught:
        twin.result()
    assert isinstance(caught.value.__cause__, ValueError)


# -- result ----------------------------------------------------------------------------------------------------------


def test_the_result_of_a_completed_state_is_its_data() -> None:
    """Data come back as the very object, and also when they look like a failure."""
    data = [1]

    assert Completed(data=data).result() is data
    assert Completed().result() is None
    assert isinstance(Completed(data=ValueError("fine")).result(), ValueError)
    assert Completed(data=1).result(raise_on_failure=False) == 1


def test_the_result_of_a_failed_state_raises_its_very_exception() -> None:
    """The exception is the same object, each time it is asked for."""
    error = ValueError("boom")
    state = Failed(data=error)

    for _ in range(2):
        with pytest.raises(ValueError, match="boom") as caught:
            state.result()
        assert caught.value is error
    assert state.result(raise_on_failure=False) is error


@pytest.mark.parametrize(
    ("state", "kind", "message"),
    [
        (Failed("bad luck"), RunFailedError, "bad luck"),
        (Failed("bad luck", data={"rows": 0}), RunFailedError, "bad luck"),
        (Failed("bad luck", data=ValueError), RunFailedError, "bad luck"),
        (Crashed("gone"), WorkerCrashedError, "gone"),
        (Cancelled("stop"), RunCancelledError, "stop"),
        (Cancelled(), RunCancelledError, "cancelled"),
        (Running(), UnfinishedRunError, "Running"),
        (Pending(), UnfinishedRunError, "Pending"),
        (Scheduled(), UnfinishedRunError, "Scheduled"),
        (AwaitingRetry(), UnfinishedRunError, "AwaitingRetry"),
        (State(StateType.CANCELLING), UnfinishedRunError, "Cancelling"),
    ],
)
def test_a_state_without_an_exception_words_one(state: State, kind: type[LocalflowError], message: str) -> None:
    """A state that has no exception to raise raises one that says what the state says."""
    with pytest.raises(kind, match=message):
        state.result()


def test_a_failed_state_without_a_message_still_raises() -> None:
    """`Failed()` says nothing, its exception does."""
    with pytest.raises(RunFailedError) as caught:
        Failed().result()

    assert str(caught.value)


def test_data_that_are_no_exception_come_back_on_request() -> None:
    """`Failed(data=...)` may carry what the author likes."""
    data = {"rows": 0}

    assert Failed(data=data).result(raise_on_failure=False) is data
    assert isinstance(Failed("m").result(raise_on_failure=False), RunFailedError)


@pytest.mark.parametrize("stop", [SystemExit(0), SystemExit("bye"), KeyboardInterrupt(), GeneratorExit()])
def test_an_exception_that_would_end_the_program_does_not_come_out_as_itself(stop: BaseException) -> None:
    """sys.exit() in a task ends no program that asks for its result."""
    with pytest.raises(TaskFailedError) as caught:
        failed_state(stop).result()

    assert caught.value.original_type == type(stop).__name__


def test_a_blocked_state_raises_with_the_root_failure_as_cause() -> None:
    """However long the chain, the cause is what started it."""
    root = ValueError("boom")
    state = Failed(data=root)
    for _ in range(10 * sys.getrecursionlimit()):
        state = not_ready(state)

    with pytest.raises(UpstreamFailedError) as caught:
        state.result()

    assert caught.value.__cause__ is root
    assert isinstance(state.result(raise_on_failure=False), UpstreamFailedError)
    assert state.data is None


def test_a_state_blocked_by_a_cancelled_one() -> None:
    """The cause says that the root was cancelled."""
    with pytest.raises(UpstreamFailedError) as caught:
        not_ready(Cancelled("stop")).result()

    assert isinstance(caught.value.__cause__, RunCancelledError)


# -- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("boom"), "ValueError: boom"),
        (ValueError(), "ValueError"),
        (KeyError("k"), "KeyError: 'k'"),
        (ValueError("a\nb"), "ValueError: a\nb"),
        (NeedsTwoError(7, "seven"), "NeedsTwoError: 7: seven"),
        (ExceptionGroup("several", [ValueError("boom")]), "ExceptionGroup: several (1 sub-exception)"),
    ],
)
def test_the_message_of_an_exception(error: Exception, text: str) -> None:
    """Type and text of the exception, for tasks and for flows."""
    assert exception_message("Task", error) == f"Task run encountered an exception: {text}"
    assert exception_message("Flow", error) == f"Flow run encountered an exception: {text}"


@pytest.mark.parametrize("error", [UnprintableError(), WrongTextError()])
def test_an_exception_without_a_text_has_a_message_nevertheless(error: Exception) -> None:
    """An exception whose str() fails is reported by its type."""
    state = failed_state(error)

    assert state.message.startswith(f"Task run encountered an exception: {type(error).__name__}: ")
    assert state.cause is not None
    assert type(error).__name__ in state.cause.traceback_text


def test_a_failure_carries_its_cause_as_plain_data() -> None:
    """Type, text and traceback are there without unpickling anything, from the user's first frame on."""

    def fail() -> None:
        raise ValueError("boom")

    try:
        fail()
    except ValueError as error:
        cause = failed_state(error).cause

    assert cause is not None
    assert (cause.kind, cause.exception_type, cause.message) == ("exception", "ValueError", "boom")
    assert "in fail" in cause.traceback_text
    assert cause.traceback_text.endswith("ValueError: boom\n")


def test_the_message_of_a_blocked_run() -> None:
    """It names the upstream and what was expected of it."""
    upstream = Failed()
    upstream.run = RunRef("a-flow-run", 1, "create_tables-0")

    state = not_ready(upstream)

    assert (state.type, state.name) == (StateType.PENDING, "NotReady")
    assert state.message == "Upstream task run 'create_tables-0' did not reach a 'COMPLETED' state."
    assert upstream_message("task run 'a-0'") == "Upstream task run 'a-0' did not reach a 'COMPLETED' state."


# -- the aggregate ---------------------------------------------------------------------------------------------------

NOT_READY = not_ready(Failed())


@pytest.mark.parametrize(
    ("states", "type", "message"),
    [
        ([Completed()], "COMPLETED", "All states completed."),
        ([Completed(), Completed(data=1, name="Cached")], "COMPLETED", "All states completed."),
        ([Completed(), Failed(), Completed(), Completed()], "FAILED", "1/4 states failed."),
        ([Failed(), Crashed()], "FAILED", "2/2 states failed."),
        ([Crashed(), Completed()], "FAILED", "1/2 states failed."),
        ([Failed(), NOT_READY, NOT_READY, Completed()], "FAILED", "1/4 states failed."),
        ([Failed(), Cancelled()], "FAILED", "1/2 states failed."),
        ([Cancelled(), Completed()], "FAILED", "1/2 states cancelled."),
        ([Cancelled(), Cancelled(), NOT_READY], "FAILED", "2/3 states cancelled."),
        ([NOT_READY], "FAILED", "1/1 states are not final."),
        ([NOT_READY, Completed(), Running(), Scheduled()], "FAILED", "3/4 states are not final."),
        ([State(StateType.CANCELLING), Completed()], "FAILED", "1/2 states are not final."),
        ([Failed(name="TimedOut")], "FAILED", "1/1 states failed."),
    ],
)
def test_the_aggregate(states: list[State], type: str, message: str) -> None:
    """COMPLETED only if all are, and the first message that fits."""
    state = aggregate(states, Returned(states, states))

    assert (state.type.name, state.name, state.message) == (type, type.capitalize(), message)


@given(st.lists(st.sampled_from(list(StateType)), min_size=1))
def test_the_aggregate_of_any_states(types: list[StateType]) -> None:
    """The rule in its own words, for any mixture."""
    states = [State(type) for type in types]
    total, count = len(types), types.count
    failed, cancelled = count(StateType.FAILED) + count(StateType.CRASHED), count(StateType.CANCELLED)

    state = aggregate(states, Returned(states, states))

    if count(StateType.COMPLETED) == total:
        assert state.is_completed()
        assert state.message == "All states completed."
    else:
        assert state.is_failed()
        unfinished = total - count(StateType.COMPLETED)
        if failed:
            assert state.message == f"{failed}/{total} states failed."
        elif cancelled:
            assert state.message == f"{cancelled}/{total} states cancelled."
        else:
            assert state.message == f"{unfinished}/{total} states are not final."


def test_the_first_failure_is_a_failure_before_anything_else() -> None:
    """What failed explains more than what was blocked by it."""
    failed = Failed()

    assert first_failure([NOT_READY, Cancelled(), failed, Crashed()]) is failed
    assert first_failure([Completed(), NOT_READY]) is NOT_READY
    assert first_failure([Completed()]) is None


def test_the_result_of_an_aggregate_raises_the_first_failure() -> None:
    """An aggregate that failed raises what its first failed state raises."""
    error = ValueError("boom")
    states = [NOT_READY, Failed(data=error), Failed(data=KeyError())]
    state = aggregate(states, Returned(states, states))

    with pytest.raises(ValueError, match="boom") as caught:
        state.result()

    assert caught.value is error
    assert state.result(raise_on_failure=False) is states


def test_a_blocked_state_shows_its_root() -> None:
    """The chain leads to the state that did not complete by itself."""
    root = Failed()

    assert Blocked(not_ready(not_ready(root))).root() is root
