"""What cannot travel between engine and workers: it hurts its own task only, and the message says what it is."""

from __future__ import annotations

import itertools
import os
import socket
import sqlite3
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from localflow.builtin.process import ProcessExecutor
from localflow.errors import TaskFailedError, UnpicklableError
from localflow.states import StateType
from localflow.testing import workloads
from localflow.testing.running import CallRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localflow.interfaces import Outcome


class Trap:
    """Does something when it is pickled, or when it is unpickled, in this process or in another one."""

    def __init__(self, when: str, act: Callable[[], object], only_outside: int | None = None) -> None:
        self.when, self.act, self.only_outside = when, act, only_outside

    def __reduce__(self) -> tuple[Any, ...]:
        if self.when == "pickle":
            spring(self.act, self.only_outside)
        return spring, (self.act, self.only_outside)


def spring(act: Callable[[], object], only_outside: int | None) -> str:
    """Act, unless this is the process of that pid."""
    if os.getpid() != only_outside:
        act()
    return "unpickled"


def raise_error() -> NoReturn:
    """Raise."""
    raise ValueError("sprung")


def raise_base_exception() -> NoReturn:
    """Raise what `except Exception` lets pass."""
    raise workloads.Bang("sprung")


def interrupt() -> NoReturn:
    """Raise KeyboardInterrupt."""
    raise KeyboardInterrupt


def exit_gently() -> NoReturn:
    """Call sys.exit."""
    sys.exit(0)


def exit_at_once() -> NoReturn:
    """End the process."""
    os._exit(0)


RAISING = [raise_error, raise_base_exception, interrupt, exit_gently]
FATAL = [exit_at_once, workloads.read_null, workloads.kill_process]


def run_beside_others(runner: CallRunner, function: Callable[..., Any], *args: Any) -> Outcome:
    """Run a call among innocent ones, which must not be affected, and return its outcome."""
    innocent = [runner.call(workloads.identity, number) for number in range(10)]
    first, *rest = runner.run(*innocent[:5], call := runner.call(function, *args), *innocent[5:])
    outcomes = [first, *rest]
    assert [outcome.state.result() for outcome in outcomes if outcome.call_id != call.id] == list(range(10))
    return next(outcome for outcome in outcomes if outcome.call_id == call.id)


# -- what is said ----------------------------------------------------------------------------------------------------


def test_an_argument_that_cannot_be_sent_is_named(runner: CallRunner) -> None:
    """The message names task, parameter and type, and gives a hint."""

    def add_project(connection: sqlite3.Connection, name: str) -> None: ...

    connection = sqlite3.connect(":memory:")
    [outcome] = runner.run(runner.call(add_project, connection, name="orion"))
    connection.close()

    message = "Task 'add_project': argument 'connection' (sqlite3.Connection) cannot be sent to a worker process; "
    assert outcome.state.type is StateType.FAILED
    assert outcome.state.message.startswith(message + "open it inside the task")
    assert outcome.state.cause is not None
    assert outcome.state.cause.exception_type == "UnpicklableError"
    with pytest.raises(UnpicklableError, match="argument 'connection'"):
        outcome.state.result()


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((1, threading.Lock()), {}, "'second' (_thread.lock)"),
        ((1, 2, 3, [threading.Lock()]), {}, "'more[1]' (list)"),
        ((1, 2), {"extra": threading.Lock()}, "'extra' (_thread.lock)"),
        ((1, 2), {"third": {"deep": (x for x in ())}}, "'third' (dict)"),
    ],
    ids=["positional", "variable", "keyword", "inside"],
)
def test_every_kind_of_parameter_is_named(
    runner: CallRunner, args: tuple[Any, ...], kwargs: dict[str, Any], named: str
) -> None:
    """The parameter at fault is found, however the argument was passed."""

    def take(first: int, second: int, *more: int, third: object = None, **others: object) -> None: ...

    [outcome] = runner.run(runner.call(take, *args, **kwargs))

    assert f"argument {named} cannot be sent to a worker process" in outcome.state.message


def test_what_a_function_uses_is_named(runner: CallRunner) -> None:
    """A variable of the function that cannot travel is named with its type."""
    lock = threading.Lock()

    def locked() -> None:
        with lock:
            pass

    outcomes = runner.run(runner.call(locked), runner.call(locked))

    for outcome in outcomes:
        assert outcome.state.type is StateType.FAILED
        assert outcome.state.message.startswith(
            "Task 'locked': variable 'lock' (_thread.lock), which its function uses"
        )


@pytest.mark.parametrize(
    "make", [threading.Lock, socket.socket, lambda: (x for x in ())], ids=["lock", "socket", "generator"]
)
def test_a_result_that_cannot_be_sent_is_named(runner: CallRunner, make: Callable[[], object]) -> None:
    """The task has succeeded, and the message says so, with the type of its result."""

    def make_it() -> object:
        return make()

    outcome = run_beside_others(runner, make_it)

    assert outcome.state.type is StateType.FAILED
    assert outcome.state.message.startswith("Task 'make_it' succeeded but its result (")
    assert ") cannot be sent from a worker process; " in outcome.state.message
    with pytest.raises(UnpicklableError):
        outcome.state.result()


def test_a_result_that_is_nested_too_deeply_is_told(runner: CallRunner) -> None:
    """A value that pickle cannot follow fails its task, no more."""

    def nest() -> list[Any]:
        value: list[Any] = []
        for _ in range(100_000):
            value = [value]
        return value

    outcome = run_beside_others(runner, nest)

    assert outcome.state.type is StateType.FAILED
    assert "its result (list) cannot be sent" in outcome.state.message


class UnimportableError(Exception):
    """Wants a module where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return __import__, self.args


def test_a_module_that_workers_lack_is_named(runner: CallRunner) -> None:
    """What a worker cannot import is named, with the first place it was looked for in."""
    [outcome] = runner.run(runner.call(workloads.fail, UnimportableError("vanished")))

    assert outcome.state.type is StateType.FAILED
    assert f"worker cannot import 'vanished' (sys.path[0]={sys.path[0]!r})" in outcome.state.message


# -- values that act -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", RAISING)
def test_an_argument_that_raises_while_it_is_pickled(runner: CallRunner, act: Callable[[], object]) -> None:
    """Pickling happens in the engine, which no code of a value can stop."""
    reporting = runner.call(workloads.identity, 0)
    calls = [runner.call(workloads.identity, Trap("pickle", act))]
    runner.on_outcome = lambda outcome: calls if outcome.call_id == reporting.id else ()  # from the pool's thread

    runner.submit(reporting)
    [outcome] = runner.wait_for(calls)

    assert outcome.state.type is StateType.FAILED
    assert "argument 'value' (" in outcome.state.message


@pytest.mark.parametrize("act", RAISING)
def test_an_argument_that_raises_while_it_is_unpickled(runner: CallRunner, act: Callable[[], object]) -> None:
    """Unpickling happens in the worker, inside the call."""
    outcome = run_beside_others(runner, workloads.identity, Trap("unpickle", act, os.getpid()))

    assert outcome.state.type is StateType.FAILED


@pytest.mark.parametrize("act", FATAL)
def test_an_argument_that_kills_where_it_is_unpickled(runner: CallRunner, act: Callable[[], object]) -> None:
    """An argument that ends the worker ends its own call only."""
    outcome = run_beside_others(runner, workloads.identity, Trap("unpickle", act, os.getpid()))

    assert outcome.state.type is StateType.CRASHED


@pytest.mark.parametrize("act", RAISING)
def test_a_result_that_raises_while_it_is_pickled(runner: CallRunner, act: Callable[[], object]) -> None:
    """The task has succeeded, its result cannot travel, whatever is raised."""
    outcome = run_beside_others(runner, lambda: Trap("pickle", act))

    assert outcome.state.type is StateType.FAILED
    assert "succeeded but its result (" in outcome.state.message


@pytest.mark.parametrize("act", FATAL)
def test_a_result_that_kills_while_it_is_pickled(runner: CallRunner, act: Callable[[], object]) -> None:
    """A result that ends the worker ends its own call only."""
    outcome = run_beside_others(runner, lambda: Trap("pickle", act))

    assert outcome.state.type is StateType.CRASHED


@pytest.mark.parametrize("act", [*RAISING, *FATAL])
def test_a_result_is_not_unpickled_until_somebody_asks(runner: CallRunner, act: Callable[[], object]) -> None:
    """What a result does when it is unpickled does not concern the engine; passed on, it concerns that task."""
    outcome = run_beside_others(runner, lambda: Trap("unpickle", act, 0))
    passed_on = run_beside_others(runner, workloads.identity, outcome.state.packed_data)

    assert outcome.state.type is StateType.COMPLETED
    assert passed_on.state.type is (StateType.CRASHED if act in FATAL else StateType.FAILED)


# -- exceptions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [*RAISING, *FATAL])
@pytest.mark.parametrize("when", ["pickle", "unpickle"])
def test_an_exception_that_acts_concerns_its_task_only(
    runner: CallRunner, when: str, act: Callable[[], object]
) -> None:
    """An exception whose state acts when it is pickled or unpickled is told in words, or crashes its worker."""
    engine = os.getpid()

    def fail() -> NoReturn:
        raise workloads.Boom("it happened", Trap(when, act, engine))

    outcome = run_beside_others(runner, fail)

    if act in FATAL:
        assert outcome.state.type is StateType.CRASHED
    else:
        assert outcome.state.type is StateType.FAILED
        error = outcome.state.exception()
        assert isinstance(error, TaskFailedError)
        assert error.original_type == "Boom"
        assert "it happened" in str(error)


def test_an_exception_that_cannot_be_rebuilt_is_told_with_its_traceback(runner: CallRunner) -> None:
    """`result()` raises TaskFailedError with type, message and traceback of the original."""
    [outcome] = runner.run(runner.call(workloads.two_arguments))

    with pytest.raises(TaskFailedError) as caught:
        outcome.state.result()

    assert caught.value.original_type == "TwoArguments"
    assert caught.value.message == "this and that"
    assert "in two_arguments" in caught.value.traceback_text


def test_an_exception_of_a_local_class_is_caught_as_itself(runner: CallRunner) -> None:
    """A class that exists only here comes back as that very class."""

    class LocalError(Exception):
        pass

    def fail() -> NoReturn:
        raise LocalError("mine")

    [outcome] = runner.run(runner.call(fail))

    with pytest.raises(LocalError, match="mine"):
        outcome.state.result()


def test_causes_come_back_with_an_exception(runner: CallRunner) -> None:
    """The explicit cause of an exception is there again, and both are in the traceback."""
    [outcome] = runner.run(runner.call(workloads.fail_with_cause))

    error = outcome.state.exception()
    assert isinstance(error, workloads.Boom)
    assert isinstance(error.__cause__, KeyError)
    assert outcome.state.cause is not None
    assert "KeyError: 'the cause'" in outcome.state.cause.traceback_text


def causes(error: BaseException) -> list[str]:
    """Return the texts of an exception and of its causes."""
    texts = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        texts.append(str(error))
    return texts


def linked(links: Sequence[BaseException]) -> BaseException:
    """Return the first of the exceptions, each with the next one as its cause."""
    for error, cause in itertools.pairwise(links):
        error.__cause__ = cause
    return links[0]


@pytest.mark.parametrize(("depth", "kept"), [(3, 3), (16, 16), (20, 16)])
def test_chains_of_causes_come_back(runner: CallRunner, depth: int, kept: int) -> None:
    """Causes of causes are there again, sixteen exceptions in all."""

    def fail() -> NoReturn:
        raise linked([workloads.Boom(f"number {number}") for number in range(depth)])

    [outcome] = runner.run(runner.call(fail))

    error = outcome.state.exception()
    assert isinstance(error, workloads.Boom)
    assert causes(error) == [f"number {number}" for number in range(kept)]
    assert error.__suppress_context__


@pytest.mark.parametrize("fails_when", ["pickled", "rebuilt"])
def test_a_cause_that_cannot_travel_costs_only_what_follows(runner: CallRunner, fails_when: str) -> None:
    """The exception comes back with the causes up to the one that pickle cannot bring back."""

    def fail() -> NoReturn:
        middle = workloads.Boom(threading.Lock()) if fails_when == "pickled" else workloads.TwoArguments("this", "that")
        raise linked([workloads.Boom("effect"), KeyError("cause"), middle, ValueError("root")])

    [outcome] = runner.run(runner.call(fail))

    error = outcome.state.exception()
    assert isinstance(error, workloads.Boom)
    assert causes(error) == ["effect", "'cause'"]
    assert outcome.state.cause is not None
    assert "ValueError: root" in outcome.state.cause.traceback_text


def test_groups_and_notes_come_back(runner: CallRunner) -> None:
    """A group of exceptions comes back with its members, as the cause of another one too, and notes stay."""

    def fail() -> NoReturn:
        noted = workloads.Boom("noted")
        noted.add_note("remember")
        raise workloads.Boom("effect") from ExceptionGroup("several", [noted, ExceptionGroup("deep", [ValueError(3)])])

    [outcome] = runner.run(runner.call(fail))

    error = outcome.state.exception()
    assert isinstance(error, workloads.Boom)
    group = error.__cause__
    assert isinstance(group, ExceptionGroup)
    noted, deep = group.exceptions
    assert isinstance(noted, workloads.Boom)
    assert noted.__notes__ == ["remember"]
    assert isinstance(deep, ExceptionGroup)
    assert repr(deep.exceptions) == "(ValueError(3),)"


def test_endless_texts_are_shortened(runner: CallRunner) -> None:
    """What is told of a failure, and of a start that failed, stays below a megabyte; begin and end are kept."""

    def fail() -> NoReturn:
        raise ValueError("a" * 5_000_000 + " the end")

    [outcome] = runner.run(runner.call(fail))
    with CallRunner(ProcessExecutor(workers=1, initializer=fail)) as other:
        [unstarted] = other.run(other.call(workloads.identity, 1))

    for state in (outcome.state, unstarted.state):
        assert state.cause is not None
        assert 200_000 < len(state.cause.traceback_text) < 300_000
        assert state.cause.traceback_text.startswith("Traceback")
        assert state.cause.traceback_text.endswith("the end\n")


def test_causes_in_a_circle_come_to_an_end(runner: CallRunner) -> None:
    """Exceptions that are each other's cause do not hang anybody."""

    def fail() -> NoReturn:
        one, other = workloads.Boom("one"), workloads.Boom("other")
        one.__cause__, other.__cause__ = other, one
        raise one

    [outcome] = runner.run(runner.call(fail))

    assert isinstance(outcome.state.exception(), workloads.Boom)


def test_the_traceback_begins_with_the_users_code(runner: CallRunner) -> None:
    """Frames of localflow that lead to the task are not shown."""

    def fail() -> NoReturn:
        raise workloads.Boom("x")

    [outcome] = runner.run(runner.call(fail))

    assert outcome.state.cause is not None
    first_frame = outcome.state.cause.traceback_text.splitlines()[1]
    assert "test_process_pickling.py" in first_frame
    assert first_frame.endswith("in fail")
