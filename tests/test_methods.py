"""What may be a task besides a function: methods, static and class methods, partials, callable objects."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

import pytest

from localflow import flow, task
from localflow.testing import harness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow.testing.harness import Harness


@pytest.fixture(params=["sequential", "thread", "process"])
def runs(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """Run flows on each executor."""
    with harness(request.param) as runs:
        yield runs


class Scale:
    """A thing with methods that are tasks."""

    factor = 2

    def __init__(self, offset: int) -> None:
        self.offset = offset

    @task
    def apply(self, n: int) -> int:
        """Scale and shift."""
        return self.factor * n + self.offset

    @task(name="shifted")
    async def shift(self, n: int) -> int:
        """Shift."""
        return n + self.offset

    @task
    @staticmethod
    def plain(n: int) -> int:
        """Scale without anything."""
        return 10 * n

    @task(retries=1)
    @classmethod
    def by_class(cls, n: int) -> int:
        """Scale by the class's factor."""
        return cls.factor * n

    @staticmethod
    @task
    def outer(n: int) -> int:
        """A task in a static method."""
        return 100 * n

    @task
    @classmethod
    def terse(cls, n: int) -> int:  # noqa: D102 - without a docstring
        return cls.factor - n


class Triple(Scale):
    """Another factor."""

    factor = 3


class Adder:
    """A callable object."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, m: int) -> int:
        """Add."""
        return self.n + m


def run(body: Any) -> Any:
    """Run `body` as a flow and return its result."""
    return flow(name="main")(body)().result()


def test_a_method_gets_its_object(runs: Harness) -> None:
    """On an instance, also through submit and map."""
    scale = Scale(5)

    assert run(lambda: [scale.apply(1), scale.apply.submit(2), *scale.apply.map([3, 4])]) == [7, 9, 11, 13]
    assert runs.history("apply-3")[-1] == "Completed"


def test_an_async_method_gets_its_object(runs: Harness) -> None:
    """Under the name it was given."""
    assert run(lambda: Scale(5).shift(1)) == 6
    assert runs.history("shifted-0")[-1] == "Completed"


def test_a_static_method_gets_nothing_more(runs: Harness) -> None:
    """From the class and from an instance, with the decorators in either order."""
    assert run(lambda: [Scale.plain(1), Scale(5).plain(2), Scale.outer(1), Scale(5).outer(2)]) == [10, 20, 100, 200]


def test_a_class_method_gets_the_class(runs: Harness) -> None:
    """That of a subclass, too; its options stay."""
    assert run(lambda: [Scale.by_class(1), Triple.by_class(1), Triple(5).by_class(2)]) == [2, 3, 6]
    assert Triple.by_class.retry.retries == 1


def test_a_class_method_needs_no_docstring(runs: Harness) -> None:
    """Its description is empty then."""
    assert run(lambda: [Scale.terse(1), Triple(5).terse(1)]) == [1, 2]
    assert Scale.terse.description == ""


def test_a_partial_is_named_after_its_function(runs: Harness) -> None:
    """What it presets is preset."""
    double = task(functools.partial(operator.mul, 2))

    assert run(lambda: double(4)) == 8
    assert runs.history("mul-0")[-1] == "Completed"


def test_a_callable_object_is_named_after_its_class(runs: Harness) -> None:
    """It is called like a function."""
    assert run(lambda: task(Adder(3))(4)) == 7
    assert runs.history("Adder-0")[-1] == "Completed"


def test_a_builtin_function_may_be_a_task(runs: Harness) -> None:
    """Functions written in C, too."""
    assert run(lambda: task(len)([1, 2, 3])) == 3


def test_outside_a_flow_they_are_plain_calls() -> None:
    """Methods stay methods."""
    assert Scale(5).apply(1) == 7  # type: ignore[comparison-overlap]
    assert Triple.by_class(2) == 6  # type: ignore[comparison-overlap]
    assert Scale.plain(2) == 20  # type: ignore[comparison-overlap]
