"""What the calls of the executor contract do. Workers import this module, so it imports little."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from localflow.context import TaskContext, current_run
from localflow.records import LogLine
from localflow.states import Completed, Failed, State, StateType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

#: What `leave_variable` leaves.
variable: ContextVar[str] = ContextVar("variable", default="untouched")


class Boom(Exception):
    """An exception like any other."""


class Bang(BaseException):
    """One that `except Exception` lets pass."""


class TwoArguments(Exception):
    """Pickles, but does not come back: `__init__` wants more than `args` has."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class Locked:
    """Cannot be pickled."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("it holds a lock")


def identity(value: object = None, **others: object) -> Any:
    """Return the argument."""
    return others or value


async def identity_later(value: object = None, seconds: float = 0.0) -> object:
    """Return the argument after a while in which the loop is free."""
    await _sleep(seconds)
    return value


def count_up(count: int) -> Iterator[int]:
    """Yield the numbers below `count`."""
    yield from range(count)


async def count_up_later(count: int) -> AsyncIterator[int]:
    """Yield the numbers below `count`, the loop being free in between."""
    for number in range(count):
        await _sleep(0.0)
        yield number


def total(*values: int, start: int = 0) -> int:
    """Return the sum."""
    return sum(values, start)


def type_name(value: object) -> str:
    """Return the name of the argument's type."""
    return type(value).__name__


def fail(error: BaseException) -> NoReturn:
    """Raise the argument."""
    raise error


async def fail_later(error: BaseException) -> NoReturn:
    """Raise the argument after a while."""
    await _sleep(0.0)
    raise error


def fail_with_cause() -> NoReturn:
    """Raise with a cause."""
    try:
        raise KeyError("the cause")
    except KeyError as error:
        raise Boom("the effect") from error


def two_arguments() -> NoReturn:
    """Raise an exception that pickle cannot rebuild."""
    raise TwoArguments("this", "that")


def call_exit(code: object) -> NoReturn:
    """Call `sys.exit`."""
    sys.exit(code)  # type: ignore[arg-type]


def returned_state(kind: str) -> State:
    """Return a state."""
    return Failed(message="as told") if kind == "failed" else Completed(data=[1, 2], message="as told")


def make_locked() -> Locked:
    """Return what cannot be pickled."""
    return Locked()


def context_facts() -> tuple[str, str, int, int, tuple[str, ...], str, str]:
    """Return what a task can know of itself."""
    context = current_run()
    assert isinstance(context, TaskContext)
    run = context.task_run
    return run.name, run.task, run.number, context.attempt, run.tags, run.flow_run.id, run.flow_run.name


async def context_facts_later() -> tuple[str, str, int, int, tuple[str, ...], str, str]:
    """Return what a task can know of itself, after a while."""
    await _sleep(0.0)
    return context_facts()


def record_something() -> None:
    """Record a state change of this run, as a flow that is called in a task does for its own."""
    from localflow.records import StateChange

    context = current_run()
    assert isinstance(context, TaskContext)
    context.records.append(StateChange(context.task_run, 1, StateType.RUNNING, "Running", "", 12.5))


def leave_variable() -> str:
    """Return a context variable as it was, and set it."""
    before = variable.get()
    variable.set("touched")
    return before


async def leave_variable_later() -> str:
    """Return a context variable as it was, and set it while others run."""
    before = leave_variable()
    await _sleep(0.001)
    return before


def say(text: str, count: int = 1) -> None:
    """Say so many lines."""
    for number in range(count):
        _say_line(text, number)


async def say_later(text: str, count: int = 1) -> None:
    """Say so many lines, the loop being free in between."""
    for number in range(count):
        _say_line(text, number)
        await _sleep(0.0)


def say_and_fail(text: str) -> NoReturn:
    """Say a line, then raise."""
    _say_line(text, 0)
    raise Boom(text)


def say_around(text: str, path: str, seconds: float) -> None:
    """Say a line, wait for a file, and say another one."""
    _say_line(text, 0)
    wait_for_file(path, seconds)
    _say_line(text, 1)


def note(path: str, text: str, seconds: float = 0.0) -> str:
    """Append a line to a file, in one write, then take a while."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)
    time.sleep(seconds)
    return text


def pid(seconds: float = 0.0) -> int:
    """Take a while, and return the pid."""
    time.sleep(seconds)
    return os.getpid()


def wait_for_file(path: str, seconds: float = 30.0) -> bool:
    """Return whether the file has appeared in that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if Path(path).exists():
            return True
        time.sleep(0.005)
    return False


async def block_loop(path: str, seconds: float = 30.0) -> bool:
    """Return whether the file has appeared in that time; meanwhile no other coroutine gets a turn."""
    return wait_for_file(path, seconds)


async def ignore_cancel(path: str, seconds: float = 30.0) -> bool:
    """Return whether the file has appeared in that time; being cancelled changes nothing."""
    import asyncio

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            continue
        if Path(path).exists():
            return True
    return False


def begin_and_wait(begun: str, release: str, seconds: float = 30.0) -> bool:
    """Note that the call has begun, then wait for a file."""
    note(begun, "begun")
    return wait_for_file(release, seconds)


async def begin_and_wait_later(begun: str, release: str, seconds: float = 30.0) -> bool:
    """Note that the call has begun, then wait for a file, the loop being free."""
    note(begun, "begun")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not Path(release).exists():
        await _sleep(0.005)
    return Path(release).exists()


def hold_lock(path: str, release: str, seconds: float = 30.0) -> bool:
    """Hold the lock of a file while waiting for another one."""
    import fcntl

    with Path(path).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return wait_for_file(release, seconds)


def meet(path: str, name: str, count: int) -> bool:
    """Return whether so many calls with different names have met, that is, were running at the same time."""
    note(path, name)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if len(set(Path(path).read_text().split())) >= count:
            return True
        time.sleep(0.005)
    return False


def end_process(status: int) -> NoReturn:
    """End the process at once."""
    os._exit(status)


def kill_process(signum: int = signal.SIGKILL) -> None:
    """Send a signal to this process."""
    os.kill(os.getpid(), signum)
    time.sleep(30)


def read_null() -> None:
    """Read memory at address 0."""
    ctypes.string_at(0)


def _say_line(text: str, number: int) -> None:
    context = current_run()
    assert context is not None
    context.log(LogLine(time.time(), 20, "contract", f"{text}, line {number}"))


async def _sleep(seconds: float) -> None:
    import asyncio  # workers import this module, most of them for tasks that are not async

    await asyncio.sleep(seconds)
