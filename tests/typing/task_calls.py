"""Calls of tasks: what they give, which arguments fit, and which do not.

Nothing here is run. Type checkers read it, and every `type: ignore` stands for an error that each of them must find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_type

from localflow import State, Task, TaskFuture, allow_failure, quote, task, unmapped


@task
def add(x: int, y: int = 1) -> int:
    """Return a sum."""
    return x + y


@task
def scale(x: int, *, factor: int) -> int:
    """Take one argument by its name only."""
    return x * factor


@task
def total(numbers: list[int]) -> int:
    """Add up a list."""
    return sum(numbers)


@task
def largest(numbers: Sequence[int]) -> int:
    """Take any sequence."""
    return max(numbers)


@task
def merge(parts: Mapping[str, int], name: str | None = None) -> dict[str, int]:
    """Take a mapping."""
    return {**parts, str(name): 0}


@task
def count(*items: int) -> int:
    """Take any number of arguments."""
    return len(items)


@task
def greet() -> str:
    """Take none."""
    return "hello"


def a_call_gives_a_future_of_the_value() -> None:
    """Calling and submitting are the same."""
    assert_type(add(1), TaskFuture[int])
    assert_type(add(1, y=2), TaskFuture[int])
    assert_type(add.submit(1, 2), TaskFuture[int])
    assert_type(greet(), TaskFuture[str])
    assert_type(merge({}), TaskFuture[dict[str, int]])
    assert_type(count(1, 2, 3), TaskFuture[int])


def the_plain_function_keeps_its_signature() -> None:
    """`fn` is what was decorated."""
    assert_type(add.fn(1), int)
    add.fn("one")  # type: ignore
    add.fn(1, z=2)  # type: ignore


def wrong_arguments_are_refused() -> None:
    """Without a future among them, too many, too few, and of the wrong type."""
    add("one")  # type: ignore
    add(1, "two")  # type: ignore
    add(1, y="two")  # type: ignore
    add(x="one")  # type: ignore
    add()  # type: ignore
    add(y=2)  # type: ignore
    add(1, 2, 3)  # type: ignore
    add(1, 2, z=3)  # type: ignore
    add.submit("one")  # type: ignore
    add.submit(1, z=3)  # type: ignore
    scale(1)  # type: ignore
    scale(1, 2)  # type: ignore
    total(["one"])  # type: ignore
    total("one")  # type: ignore
    merge({"a": "one"})  # type: ignore
    count(1, "two")  # type: ignore
    greet(1)  # type: ignore


def a_future_stands_for_its_value() -> None:
    """By position, by name and beside values."""
    one = add(1)

    assert_type(add(one), TaskFuture[int])
    assert_type(add(add(1, 1), 3), TaskFuture[int])
    assert_type(add(1, one), TaskFuture[int])
    assert_type(add(x=one, y=3), TaskFuture[int])
    assert_type(add(1, y=one), TaskFuture[int])
    assert_type(add(one, y=one), TaskFuture[int])
    assert_type(add.submit(one, one), TaskFuture[int])
    assert_type(scale(one, factor=one), TaskFuture[int])
    assert_type(count(1, one, 2), TaskFuture[int])
    assert_type(merge({}, greet()), TaskFuture[dict[str, int]])


def containers_of_futures_stand_for_containers_of_values() -> None:
    """Written out, made by a comprehension, in a variable, or of a map."""
    parts = [add(number) for number in range(3)]

    total([add(1), add(2)])
    total([add(1), 2])
    total([add(number) for number in range(3)])
    total(numbers=[add(1), add(2)])
    total(parts)
    total(add.map([1, 2]))
    largest(parts)
    largest((add(1), add(2)))
    merge({"a": add(1), "b": 2})
    merge({name: add(1) for name in "ab"}, greet())
    named = {"a": add(1)}
    merge(named)


def wrong_arguments_beside_futures_are_refused() -> None:
    """A future in one place excuses nothing in another."""
    one = add(1)

    add(one, "two")  # type: ignore
    add("one", one)  # type: ignore
    add("one", y=one)  # type: ignore
    add(one, y="two")  # type: ignore
    add(one, one, one)  # type: ignore
    add(one, z=one)  # type: ignore
    add(y=one)  # type: ignore
    scale(one)  # type: ignore
    scale(one, one)  # type: ignore
    scale(one, factor="two")  # type: ignore
    count(one, "two")  # type: ignore
    merge({"a": one}, 2)  # type: ignore


def states_stand_for_their_data(state: State) -> None:
    """As one of the first two positional arguments."""
    assert_type(add(state), TaskFuture[int])
    add(1, state)
    add(state, y=add(1))
    add(state, "two")  # type: ignore


def markers_stand_for_what_they_hold() -> None:
    """Whatever they say about it."""
    one = add(1)

    add(allow_failure(one), y=allow_failure(one))
    add(quote(1), y=unmapped(2))
    total(quote([1, 2]))
    add(quote(1), "two")  # type: ignore


def calls_wait_for_futures_and_states(state: State) -> None:
    """One, several, in any nesting, besides any arguments."""
    one = add(1)

    assert_type(add(1, 2, wait_for=one), TaskFuture[int])
    assert_type(add.submit(1, wait_for=[one]), TaskFuture[int])
    add(one, y=2, wait_for=[one, greet(), state])
    add(x=1, y=one, wait_for=(one, [greet()]))
    add(1, wait_for={"a": one, "b": [state]})
    add(1, wait_for={one, greet()})
    add(1, wait_for=add.map([1, 2]))
    add(1, wait_for=[add.map([1, 2]), one])
    add(1, wait_for=None)
    scale(1, factor=2, wait_for=one)
    greet(wait_for=one)
    count(1, 2, 3, wait_for=one)


def wrong_arguments_of_waiting_calls_are_refused() -> None:
    """As far as checkers look: the first two positional ones."""
    one = add(1)

    add("one", wait_for=one)  # type: ignore
    add(1, "two", wait_for=one)  # type: ignore
    add(one, "two", wait_for=one)  # type: ignore
    greet(1, wait_for=one)  # type: ignore
    add(1, wait_for=3)  # type: ignore
    add(1, wait_for="one")  # type: ignore
    add(1, wait_for=[3])  # type: ignore
    add(1, wait_fr=one)  # type: ignore


def a_task_is_a_function() -> None:
    """It may be passed on as one, or as what it is."""

    def apply(function: Callable[[int], Any], to: Task[[int], int]) -> None:
        function(1)
        to(1)

    apply(add, count)
    list(map(add, [1, 2]))
    apply(greet, count)  # type: ignore
    apply(add, greet)  # type: ignore
