"""What `task` and `flow` make of functions of all kinds, and which options they take.

Nothing here is run. Type checkers read it, and every `type: ignore` stands for an error that each of them must find.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Coroutine, Generator, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO, assert_type

from localflow import (
    INPUTS,
    RUN_ID,
    ProcessExecutor,
    State,
    Task,
    TaskFuture,
    ThreadExecutor,
    exponential_backoff,
    flow,
    task,
)


@task
def add(x: int, y: int = 1) -> int:
    """Return a sum."""
    return x + y


@task(retries=2)
async def fetch(x: int) -> str:
    """Be async."""
    return str(x)


@task
def numbers(n: int) -> Iterator[int]:
    """Be a generator."""
    yield n


@task(name="letters")
def letters(n: int) -> Generator[str, None, int]:
    """Be a generator that says so."""
    yield str(n)
    return n


@task
async def ticks(n: int) -> AsyncIterator[int]:
    """Be an async generator."""
    yield n


@task
def lines(path: str) -> Iterable[str]:
    """Return something to iterate over."""
    return [path]


@task
def opened(path: Path) -> TextIO:
    """Return an iterator that is more than that."""
    return path.open()


@task
def later(x: int) -> TaskFuture[int]:
    """Return a future."""
    return add(x)


@task
def ended(x: int) -> State:
    """Return a state."""
    return add(x).get_state()


async def async_tasks_give_what_awaiting_gives() -> None:
    """Their functions stay async."""
    assert_type(fetch(1), TaskFuture[str])
    assert_type(await fetch(1), str)
    assert_type(await fetch.fn(1), str)
    assert_type(fetch.map([1, 2]).result(), list[str])
    fetch(add(1), wait_for=add(1))
    fetch("one")  # type: ignore
    fetch(1, z=2)  # type: ignore


def generator_tasks_give_lists() -> None:
    """Of what they yield; their functions stay generators."""
    assert_type(numbers(1), TaskFuture[list[int]])
    assert_type(numbers.fn(1), Iterator[int])
    assert_type(letters(1), TaskFuture[list[str]])
    assert_type(ticks(1), TaskFuture[list[int]])
    assert_type(ticks.fn(1), AsyncIterator[int])
    numbers("one")  # type: ignore


def what_is_no_generator_arrives_as_it_is() -> None:
    """Whatever else can be done with it."""
    assert_type(lines("a"), TaskFuture[Iterable[str]])
    assert_type(opened(Path()), TaskFuture[TextIO])
    assert_type(later(1), TaskFuture[TaskFuture[int]])
    assert_type(ended(1), TaskFuture[State])


class Desk:
    """Methods as tasks and flows."""

    @task
    def sell(self, amount: int) -> str:
        """Be a method."""
        return str(amount)

    @task(retries=2)
    async def order(self, amount: int) -> str:
        """Be an async one."""
        return str(amount)

    @task
    @staticmethod
    def price(amount: int) -> float:
        """Be a static one."""
        return amount * 0.5

    @task
    @classmethod
    def open(cls, amount: int) -> str:
        """Be one of the class."""
        return f"{cls} {amount}"

    @flow
    def day(self, amount: int) -> str:
        """Be a flow."""
        return str(amount)


async def methods_are_bound(desk: Desk) -> None:
    """The first parameter is filled in."""
    assert_type(desk.sell(1), TaskFuture[str])
    assert_type(desk.sell(add(1)), TaskFuture[str])
    assert_type(desk.sell(amount=1, wait_for=add(1)), TaskFuture[str])
    assert_type(desk.sell.fn(1), str)
    assert_type(desk.sell.map([1, 2]).result(), list[str])
    assert_type(Desk.sell(desk, 1), TaskFuture[str])
    assert_type(await desk.order(1), str)
    assert_type(desk.price(1), TaskFuture[float])
    assert_type(Desk.price(1), TaskFuture[float])
    assert_type(desk.open(1), TaskFuture[str])
    assert_type(Desk.open(1), TaskFuture[str])
    assert_type(desk.day(1), State)
    desk.sell("one")  # type: ignore
    desk.sell()  # type: ignore
    desk.sell(1, 2)  # type: ignore
    desk.order("one")  # type: ignore
    desk.price("one")  # type: ignore
    Desk.open("one")  # type: ignore
    desk.day("one")  # type: ignore


class Doubler:
    """A callable object."""

    def __call__(self, x: int) -> int:
        """Double it."""
        return 2 * x


def callables_of_any_kind_are_tasks() -> None:
    """Also without a `def`."""
    doubled = task(Doubler())
    increased = task(functools.partial(add.fn, 1))

    assert_type(doubled(1), TaskFuture[int])
    assert_type(increased(2), TaskFuture[int])
    assert_type(task(len)([1]), TaskFuture[int])
    doubled("one")  # type: ignore
    task(3)  # type: ignore


def options_are_checked() -> None:
    """Their names and their values."""

    def decide(task: Any, run: Any, state: State) -> bool:
        return state.is_failed()

    def plain(x: int) -> int:
        return x

    configured = task(
        name="n",
        description="d",
        tags=["a", "b"],
        version="1",
        executor="process",
        retries=3,
        retry_delay_seconds=[1, 2.5],
        retry_jitter_factor=0.5,
        retry_condition_fn=decide,
        retry_on_crash=True,
        timeout_seconds=1.5,
        cache_policy=INPUTS + RUN_ID,
        cache_key_fn=lambda context, parameters: str(parameters["x"]),
        cache_expiration=timedelta(hours=1),
        refresh_cache=False,
        priority=1,
        persist_result=True,
        task_run_name="add {x}",
        log_prints=True,
        on_completion=decide,
        on_failure=[decide],
    )(plain)
    assert_type(configured(1), TaskFuture[int])
    task(retry_delay_seconds=exponential_backoff(2), executor=ThreadExecutor())(plain)
    task(retry_delay_seconds=2, cache_expiration=60)(plain)
    flow(executor=ProcessExecutor(workers=3), retries=1, flow_run_name=lambda: "n", validate_parameters=False)(plain)

    task(retries="three")  # type: ignore
    task(retry=3)  # type: ignore
    task(tags=3)  # type: ignore
    task(executor=3)  # type: ignore
    task(on_failure="decide")  # type: ignore
    task(flow_run_name="n")  # type: ignore
    flow(retries="three")  # type: ignore
    flow(tags=["a"])  # type: ignore
    flow(timeout_seconds="1s")  # type: ignore


def changed_copies_keep_the_signature() -> None:
    """The options of `with_options` are those of the decorator."""
    other = add.with_options(name="other", retries=2)

    assert_type(other(1), TaskFuture[int])
    assert_type(fetch.with_options(name="other")(1), TaskFuture[str])
    other("one")  # type: ignore
    add.with_options(retry=2)  # type: ignore
    add.with_options(retries="two")  # type: ignore


def annotations_name_tasks_by_what_they_take_and_give() -> None:
    """Of whatever kind their functions are."""

    def run(some: Task[..., str]) -> TaskFuture[str]:
        return some(1)

    run(fetch)
    run(add)  # type: ignore


def coroutines_are_not_data(work: Coroutine[Any, Any, int]) -> None:
    """A task of a function that returns a coroutine gives what it gives in the end."""

    def begin(x: int) -> Coroutine[Any, Any, int]:
        return work

    assert_type(task(begin)(1), TaskFuture[int])
