"""Calls of flows: what they give, which arguments fit, and which do not.

Nothing here is run. Type checkers read it, and every `type: ignore` stands for an error that each of them must find.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, assert_type

from localflow import Flow, State, TaskFuture, flow, get_run_context, get_run_logger, tags, task


@task
def add(x: int, y: int = 1) -> int:
    """Return a sum."""
    return x + y


@flow
def report(n: int, title: str = "") -> int:
    """Return a value."""
    return n + len(title)


@flow(name="Later", retries=1)
async def later(n: int) -> int:
    """Be async."""
    return n


@flow
def delegate(n: int) -> TaskFuture[int]:
    """Return a future."""
    return add(n)


@flow
def delegate_all(n: int) -> list[TaskFuture[int]]:
    """Return futures."""
    return [add(n)]


@flow
def pass_on(n: int) -> State:
    """Return a state."""
    return report(n)


@flow
def nothing() -> None:
    """Return nothing."""


def a_call_gives_the_final_state() -> None:
    """Whatever the function returns."""
    assert_type(report(1), State)
    assert_type(report(1, title="a"), State)
    assert_type(delegate(1), State)
    assert_type(delegate_all(1), State)
    assert_type(pass_on(1), State)
    assert_type(nothing(), State)
    assert_type(report(1).is_completed(), bool)
    assert_type(report.fn(1), int)


async def a_call_of_an_async_flow_is_awaited() -> None:
    """It gives the final state then."""
    assert_type(await later(1), State)
    unawaited: Coroutine[Any, Any, State] = later(1)
    assert_type(await unawaited, State)
    assert_type(await later.fn(1), int)
    later(1).is_completed()  # type: ignore
    await later("one")  # type: ignore
    await later(1, z=2)  # type: ignore
    later.with_options(retries="two")  # type: ignore


def wrong_arguments_are_refused() -> None:
    """As of any function."""
    report("one")  # type: ignore
    report(1, 2)  # type: ignore
    report(1, title=2)  # type: ignore
    report()  # type: ignore
    report(1, "a", 3)  # type: ignore
    report(1, titel="a")  # type: ignore
    nothing(1)  # type: ignore
    report.fn("one")  # type: ignore
    report(1).result_of()  # type: ignore


async def futures_and_states_stand_for_their_data() -> None:
    """In flows called by flows."""
    one = add(1)

    assert_type(report(one), State)
    assert_type(report(n=one, title="a"), State)
    assert_type(report(pass_on(1)), State)
    assert_type(report(1, wait_for=[one, pass_on(1)]), State)
    assert_type(report(one, title="a", wait_for=one), State)
    assert_type(await later(one, wait_for=one), State)
    report(one, title=2)  # type: ignore
    report("one", wait_for=one)  # type: ignore
    report(1, wait_for=3)  # type: ignore


def changed_copies_keep_the_signature() -> None:
    """The options of `with_options` are those of the decorator."""
    other = report.with_options(name="other", retries=2)

    assert_type(other(1), State)
    other("one")  # type: ignore
    report.with_options(retry=2)  # type: ignore
    report.with_options(tags=["a"])  # type: ignore


def annotations_name_flows() -> None:
    """By what they take."""

    def run(some: Flow[..., Any]) -> State:
        return some()

    run(report)
    run(nothing)
    run(add)  # type: ignore


def a_run_knows_itself() -> None:
    """In the code of flows and tasks."""
    context = get_run_context()

    assert_type(context.flow_run.name, str)
    assert_type(context.flow_run.attempt, int)
    assert_type(context.flow_run.tags, tuple[str, ...])
    if context.task_run is not None:
        assert_type(context.task_run.id, str)
    get_run_logger().info("%s", "hello")
    with tags("a", "b") as names:
        assert_type(names, tuple[str, ...])
    print(context.run)  # type: ignore
    get_run_logger().inform("hello")  # type: ignore
    tags(1)  # type: ignore
