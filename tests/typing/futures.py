"""Futures, mapped futures, and the functions that take many of them.

Nothing here is run. Type checkers read it, and every `type: ignore` stands for an error that each of them must find.
"""

from __future__ import annotations

from typing import assert_type

from localflow import State, TaskFuture, as_completed, task, unmapped, wait


@task
def add(x: int, y: int = 1) -> int:
    """Return a sum."""
    return x + y


@task
def greet() -> str:
    """Return a greeting."""
    return "hello"


def a_future_gives_what_the_task_returns(one: TaskFuture[int]) -> None:
    """Or, if asked, the exception instead."""
    assert_type(one.result(), int)
    assert_type(one.result(timeout=2.5), int)
    assert_type(one.result(raise_on_failure=False), int | BaseException)
    assert_type(one.wait(), State)
    assert_type(one.wait(2.5), State | None)
    assert_type(one.wait(timeout=None), State)
    assert_type(one.get_state(), State)
    assert_type(one.state, State)
    assert_type(one.done(), bool)
    assert_type(one.cancel(), bool)
    assert_type(one.name, str)
    one.result("soon")  # type: ignore
    one.wait("soon")  # type: ignore
    one.get_state().is_complete()  # type: ignore


async def a_future_can_be_awaited(one: TaskFuture[int]) -> None:
    """It gives what `result()` gives."""
    assert_type(await one, int)
    assert_type(await add(1), int)


def a_future_is_not_its_value(one: TaskFuture[int]) -> None:
    """What only the value can do needs `result()`."""
    one[0]  # type: ignore
    text: str = one + 1  # type: ignore
    for _ in one:  # type: ignore
        print(text)


def callbacks_get_the_future(one: TaskFuture[int]) -> None:
    """With its type."""

    def tell(future: TaskFuture[int]) -> None:
        print(future.result())

    def refuse(future: str, more: int) -> None:
        print(future, more)

    one.add_done_callback(tell)
    one.add_done_callback(lambda future: print(future.result() + 1))
    one.add_done_callback(refuse)  # type: ignore


def a_future_of_more_accepts_a_future_of_less() -> None:
    """Futures of different types have a common one."""
    futures: list[TaskFuture[int | str]] = [add(1), greet()]

    for future in futures:
        assert_type(future.result(), int | str)


def a_map_gives_a_list_of_futures() -> None:
    """And the list of their values."""
    sums = add.map([1, 2], unmapped(3))

    assert_type(sums.result(), list[int])
    assert_type(sums.result(raise_on_failure=False), list[int | BaseException])
    assert_type(sums.wait(), list[State])
    assert_type(sums.wait(2.5), list[State] | None)
    assert_type(sums.states, list[State])
    assert_type(sums[0], TaskFuture[int])
    assert_type([future.result() for future in sums], list[int])
    assert_type(len(sums), int)
    add.map(range(3), y=2, wait_for=sums)
    add.map(sums, sums)
    add.map((number for number in range(3)), wait_for=[sums, greet()])
    add.map([1], wait_for=3)  # type: ignore


def many_futures_are_waited_for() -> None:
    """All of them, or each when it is done."""
    futures = [add(1), add(2)]
    done, not_done = wait(futures, timeout=1.5)

    assert_type(done, set[TaskFuture[int]])
    assert_type(not_done, set[TaskFuture[int]])
    assert_type([future.result() for future in as_completed(futures, timeout=1.5)], list[int])
    wait(add.map([1, 2]))
    wait(futures, timeout="soon")  # type: ignore
    as_completed(3)  # type: ignore
