"""`get_run_context()`: which run the calling code belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from localflow import flow, get_run_context, tags, task
from localflow.errors import NoRunError
from localflow.testing import harness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow.testing.harness import Harness


@pytest.fixture(params=["sequential", "thread", "process"])
def runs(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """Run flows on each executor."""
    with harness(request.param) as runs:
        yield runs


@task(tags=["cpu"])
def describe(n: int = 0) -> tuple[Any, ...]:
    """Return what the task sees of its runs."""
    context = get_run_context()
    assert context.task_run is not None
    return tuple(context.flow_run), tuple(context.task_run)


def test_a_task_sees_its_run_and_its_flow_run(runs: Harness) -> None:
    """Ids, names, tags and attempts, in worker processes too."""

    @flow(flow_run_name="brave")
    def main(day: str) -> Any:
        with tags("night"):
            return describe()

    with tags("batch"):
        flow_run, task_run = main("monday").result()

    record = runs.read()
    assert flow_run[:5] == (record.run.id, "brave", "main", ("batch",), 1)
    assert dict(flow_run[5]) == {"day": "monday"}
    assert task_run == (record.task_runs[0].run.id, "describe-0", "describe", ("batch", "cpu", "night"), 1, None)


def test_a_mapped_task_sees_its_place(runs: Harness) -> None:
    """`map_index` is the place of the item."""
    found = flow(name="main")(lambda: describe.map([5, 6]))().result()

    assert [task_run[-1] for _, task_run in found] == [0, 1]


def test_the_body_of_a_flow_has_no_task_run() -> None:
    """Only the flow run."""

    @flow
    def main() -> Any:
        context = get_run_context()
        return context.flow_run.name, context.task_run

    with harness() as runs:
        assert main().result() == (runs.read().run.name, None)


def test_a_flow_knows_its_attempt() -> None:
    """Retries count."""
    attempts: list[int] = []

    @flow(retries=1)
    def main() -> None:
        attempts.append(get_run_context().flow_run.attempt)
        if len(attempts) == 1:
            raise ValueError

    with harness():
        main()
    assert attempts == [1, 2]


def test_outside_a_run_there_is_no_context() -> None:
    """The message says where to ask."""
    with pytest.raises(NoRunError, match=r"get_run_context\(\) was called where no flow is running"):
        get_run_context()
