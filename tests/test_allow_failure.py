"""`allow_failure`: runs that start although an upstream did not complete, and what they get."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from localflow import Cancelled, Failed, State, allow_failure, flow, task
from localflow.errors import RunFailedError, UpstreamFailedError
from localflow.testing import harness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow.testing.harness import Harness


@pytest.fixture(params=["sequential", "thread", "process"])
def runs(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """Run flows on each executor."""
    with harness(request.param) as runs:
        yield runs


@task
def fail(text: str = "boom") -> None:
    """Raise."""
    raise ValueError(text)


@task
def give(value: Any) -> Any:
    """Return what was given."""
    return value


@task
def described(value: Any) -> str:
    """Say what was given."""
    return f"{type(value).__name__}: {value}"


def run(body: Any) -> Any:
    """Run `body` as a flow and return what it returned."""
    return flow(name="main")(body)().result(raise_on_failure=False)


def test_a_failed_upstream_comes_as_its_exception(runs: Harness) -> None:
    """The run starts, and gets the exception in the place of the value."""
    assert run(lambda: described(allow_failure(fail()))).data == "ValueError: boom"


def test_a_completed_upstream_comes_as_its_value(runs: Harness) -> None:
    """Allowing failure changes nothing where there is none."""
    assert run(lambda: described(allow_failure(give(3)))).data == "int: 3"


def test_a_blocked_upstream_passes_too(runs: Harness) -> None:
    """A NotReady upstream comes as the UpstreamFailedError that its result would raise."""
    state = run(lambda: described(allow_failure(give(fail()))))

    assert state.data == ("UpstreamFailedError: Upstream task run 'fail-0' did not reach a 'COMPLETED' state.")


def test_it_holds_at_any_depth_inside(runs: Harness) -> None:
    """All futures in an allowed structure may fail."""

    @task
    def kinds(values: dict[str, list[Any]]) -> list[str]:
        return [type(value).__name__ for value in values["all"]]

    assert run(lambda: kinds(allow_failure({"all": [give(1), fail(), 2]}))).data == ["int", "ValueError", "int"]


def test_it_does_not_hold_outside(runs: Harness) -> None:
    """The same failed future as another argument blocks the run."""

    @task
    def both(first: Any, second: Any) -> None: ...

    def body() -> Any:
        failed = fail()
        return both(allow_failure(failed), failed)

    state: State = run(body)
    assert state.name == "NotReady"


def test_it_holds_in_wait_for(runs: Harness) -> None:
    """A run may wait for something that fails."""
    assert run(lambda: give(5, wait_for=[allow_failure(fail())])).data == 5
    assert run(lambda: give(5, wait_for=[fail()])).name == "NotReady"


def test_a_cancelled_upstream_does_not_pass(runs: Harness) -> None:
    """Somebody wanted it to end: what builds on it does not start."""
    cancelled = task(name="cancelled")(lambda: Cancelled("no"))

    assert run(lambda: give(allow_failure(cancelled()))).name == "NotReady"


def test_a_crashed_upstream_does_not_pass() -> None:
    """Nobody knows what it has done."""
    killer = task(name="killer")(lambda: os.kill(os.getpid(), signal.SIGKILL))

    with harness("process"):
        assert run(lambda: give(allow_failure(killer()))).name == "NotReady"


def test_a_state_is_allowed_to_have_failed(runs: Harness) -> None:
    """A final state as an argument counts like its future."""

    def body() -> Any:
        failed = fail()
        failed.wait()
        return described(allow_failure(failed.state))

    assert run(body).data == "ValueError: boom"


def test_a_failure_without_exception_comes_as_what_its_result_would_raise(runs: Harness) -> None:
    """A task that returns `Failed(message=...)`."""
    failed = task(name="failed")(lambda: Failed("out of stock"))

    assert run(lambda: described(allow_failure(failed()))).data == f"{RunFailedError.__name__}: out of stock"


def test_what_comes_after_an_allowed_failure_is_not_blocked(runs: Harness) -> None:
    """The chain goes on from the run that allowed it."""

    def body() -> Any:
        return give(give(described(allow_failure(fail()))))

    assert run(body).data == "ValueError: boom"


def test_the_root_of_a_blocked_upstream_is_told() -> None:
    """The UpstreamFailedError of a blocked upstream leads to the failure at the root of it."""

    @task
    def root(error: BaseException) -> str:
        assert isinstance(error, UpstreamFailedError)
        return repr(error.__cause__)

    with harness():
        assert run(lambda: root(allow_failure(give(fail())))).data == "ValueError('boom')"


def test_outside_a_flow_the_value_is_passed_as_it_is() -> None:
    """A plain call gets what is inside the marker."""
    assert described.fn(3) == described(allow_failure(3)) == "int: 3"  # type: ignore[comparison-overlap]
