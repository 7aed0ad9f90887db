"""Any graph of tasks gives the same states and results on every executor as working it out by hand."""

from __future__ import annotations

import dataclasses
import itertools
import os
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localflow import Completed, Failed, State, StateType, TaskFuture, flow, task
from localflow.errors import UpstreamFailedError

SLOW_START = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
QUICK = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


# -- plans -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Box:
    """A dataclass that may hold a future."""

    content: Any


class Ref(NamedTuple):
    """The place of another task's future in an argument."""

    node: int


class Shape(NamedTuple):
    """A container in an argument."""

    kind: str
    items: tuple[Any, ...]


class Node(NamedTuple):
    """One task call: what it does, what it gets, what it waits for, and where it runs."""

    action: str
    argument: Any
    wait_for: tuple[int, ...]
    wait_shape: str
    executor: str | None


ACTIONS = ["return", "return", "return", "return", "raise", "return Failed", "return Completed", "exit"]


def built(plan: Any, leaf: Any) -> Any:
    """Build an argument from its plan, with `leaf` giving what stands for each reference."""
    if isinstance(plan, Ref):
        return leaf(plan.node)
    if isinstance(plan, Shape):
        items = [built(item, leaf) for item in plan.items]
        match plan.kind:
            case "list":
                return items
            case "tuple":
                return tuple(items)
            case "dict":
                return {f"k{n}": item for n, item in enumerate(items)}
            case _:
                return Box(items)
    return plan


def refs(plan: Any) -> list[int]:
    """Return the nodes an argument refers to, in reading order."""
    if isinstance(plan, Ref):
        return [plan.node]
    if isinstance(plan, Shape):
        return [node for item in plan.items for node in refs(item)]
    return []


def arguments_of(count: int) -> st.SearchStrategy[Any]:
    """Return arguments that refer to any of the first `count` nodes."""
    leaves: st.SearchStrategy[Any] = st.integers(-5, 5)
    if count:
        leaves = st.one_of(st.builds(Ref, st.integers(0, count - 1)), leaves)
    return st.recursive(
        leaves,
        lambda inner: st.builds(
            Shape, st.sampled_from(["list", "tuple", "dict", "box"]), st.lists(inner, max_size=3).map(tuple)
        ),
        max_leaves=4,
    )


@st.composite
def graphs(draw: st.DrawFn, executors: tuple[str | None, ...] = (None,)) -> list[Node]:
    """Return the calls of a flow, each with upstreams among those before it."""
    nodes: list[Node] = []
    for n in range(draw(st.integers(1, 9))):
        waits = draw(st.lists(st.integers(0, n - 1), max_size=3)) if n else []
        nodes.append(
            Node(
                draw(st.sampled_from(ACTIONS)),
                draw(arguments_of(n)),
                tuple(waits),
                draw(st.sampled_from(["list", "tuple", "dict", "nested"])),
                draw(st.sampled_from(executors)),
            )
        )
    return nodes


# -- the reference ---------------------------------------------------------------------------------------------------


class Expected(NamedTuple):
    """What must come of a call."""

    type: StateType
    name: str
    messages: frozenset[str]
    """Any of these: with several upstreams that failed, each of them may be named."""
    value: Any = None
    root: frozenset[str] = frozenset()
    """Texts of the failures that may be at the root of it."""


def act(number: int, action: str, argument: Any) -> Any:
    """Do what a task does."""
    match action:
        case "raise":
            raise ValueError(f"boom {number}")
        case "exit":
            raise SystemExit(number)
        case "return Failed":
            return Failed(f"failed {number}", name="Unlucky")
        case "return Completed":
            return Completed(f"completed {number}", data=("by hand", argument), name="Lucky")
        case _:
            return ("value", number, argument)


def worked_out(nodes: list[Node]) -> list[Expected]:
    """Work out the states of all calls in call order."""
    expected: list[Expected] = []
    for number, node in enumerate(nodes):
        upstreams = [*refs(node.argument), *node.wait_for]
        culprits = [upstream for upstream in upstreams if expected[upstream].type is not StateType.COMPLETED]
        if culprits:
            messages = {
                f"Upstream task run 'node-{culprit}' did not reach a 'COMPLETED' state." for culprit in culprits
            }
            roots = frozenset(itertools.chain.from_iterable(expected[culprit].root for culprit in culprits))
            expected.append(Expected(StateType.PENDING, "NotReady", frozenset(messages), root=roots))
            continue
        argument = built(node.argument, lambda upstream: expected[upstream].value)
        failed = "Task run encountered an exception: "
        match node.action:
            case "raise":
                text = f"boom {number}"
                state = Expected(
                    StateType.FAILED, "Failed", frozenset({f"{failed}ValueError: {text}"}), root=frozenset({text})
                )
            case "exit":
                message = f"{failed}SystemExit: task called sys.exit({number})"
                state = Expected(
                    StateType.FAILED, "Failed", frozenset({message}), root=frozenset({f"SystemExit: {number}"})
                )
            case "return Failed":
                text = f"failed {number}"
                state = Expected(StateType.FAILED, "Unlucky", frozenset({text}), root=frozenset({text}))
            case "return Completed":
                state = Expected(
                    StateType.COMPLETED, "Lucky", frozenset({f"completed {number}"}), ("by hand", argument)
                )
            case _:
                state = Expected(StateType.COMPLETED, "Completed", frozenset({""}), ("value", number, argument))
        expected.append(state)
    return expected


def aggregate_message(expected: list[Expected]) -> str:
    """Work out the message of the flow that returned None."""
    total = len(expected)
    failed = sum(state.type is StateType.FAILED for state in expected)
    return f"{failed}/{total} states failed." if failed else "All states completed."


# -- the flow --------------------------------------------------------------------------------------------------------


@task(name="node")
def run_node(number: int, action: str, argument: Any) -> Any:
    """Do what the plan says."""
    return act(number, action, argument)


ON = {name: run_node.with_options(executor=name) for name in ("sequential", "thread", "process")} | {None: run_node}


def awaited(kind: str, futures: list[TaskFuture[Any]]) -> Any:
    """Put futures into a `wait_for` of this shape."""
    match kind:
        case "tuple":
            return tuple(futures)
        case "dict":
            return dict(enumerate(futures))
        case "nested":
            return [[future] for future in futures] + [{"k": ()}]
        case _:
            return futures


def check(nodes: list[Node], executor: str) -> None:
    """Run a graph as a flow on an executor and compare everything with the reference."""
    futures: list[TaskFuture[Any]] = []

    @flow(executor=executor)
    def graph() -> None:
        for number, node in enumerate(nodes):
            argument = built(node.argument, futures.__getitem__)
            waits = awaited(node.wait_shape, [futures[upstream] for upstream in node.wait_for])
            futures.append(ON[node.executor](number, node.action, argument, wait_for=waits))

    state = graph()

    expected = worked_out(nodes)
    assert [future.name for future in futures] == [f"node-{n}" for n in range(len(nodes))]
    for future, want in zip(futures, expected, strict=True):
        ended = future.wait(0)
        assert ended is not None
        assert (ended.type, ended.name) == (want.type, want.name)
        assert ended.message in want.messages
        if want.type is StateType.COMPLETED:
            assert future.result() == want.value
        else:
            check_failure(future, want)
    assert state.message == aggregate_message(expected)
    assert state.type is (StateType.COMPLETED if state.message == "All states completed." else StateType.FAILED)
    shown = state.result(raise_on_failure=False)
    assert [(s.type, s.name) for s in shown] == [(want.type, want.name) for want in expected]


def check_failure(future: TaskFuture[Any], want: Expected) -> None:
    """Compare what `result()` raises, and its root, with the reference."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is checked below
        future.result()
    error: BaseException | None = caught.value
    if want.type is StateType.PENDING:
        assert isinstance(error, UpstreamFailedError)
        error = error.__cause__
    assert error is not None
    assert str(error).split("\n")[0] in want.root


@pytest.fixture(autouse=True)
def memory_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep nothing on disk, unless a test says otherwise."""
    monkeypatch.setenv("LOCALFLOW_STORE", "memory")
    monkeypatch.setenv("LOCALFLOW_NOTIFIERS__LOG__ON", "[]")


@QUICK
@given(nodes=graphs())
def test_on_the_sequential_executor(nodes: list[Node]) -> None:
    """Run at the call, in the caller's thread."""
    check(nodes, "sequential")


@QUICK
@given(nodes=graphs())
def test_on_threads(nodes: list[Node]) -> None:
    """Run in a pool of threads, in whatever order they come."""
    check(nodes, "thread")


@QUICK
@given(nodes=graphs((None, "sequential", "thread")), executor=st.sampled_from(["sequential", "thread"]))
def test_with_executors_mixed(nodes: list[Node], executor: str) -> None:
    """Tasks that name their own executor exchange data with those that do not."""
    check(nodes, executor)


@SLOW_START
@given(nodes=graphs())
def test_on_worker_processes(nodes: list[Node]) -> None:
    """Run in processes: the same states, names and messages, and equal values."""
    os.environ["LOCALFLOW_EXECUTORS__PROCESS__WORKERS"] = "2"
    try:
        check(nodes, "process")
    finally:
        del os.environ["LOCALFLOW_EXECUTORS__PROCESS__WORKERS"]


@SLOW_START
@given(nodes=graphs((None, "sequential", "thread", "process")))
def test_with_processes_among_the_executors(nodes: list[Node]) -> None:
    """Data cross from processes to threads and back."""
    os.environ["LOCALFLOW_EXECUTORS__PROCESS__WORKERS"] = "2"
    try:
        check(nodes, "thread")
    finally:
        del os.environ["LOCALFLOW_EXECUTORS__PROCESS__WORKERS"]


@pytest.mark.parametrize("store", ["sqlite", "json"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(nodes=graphs((None, "sequential", "thread")))
def test_with_a_store_on_disk(store: str, nodes: list[Node]) -> None:
    """What is recorded on the way changes nothing."""
    os.environ["LOCALFLOW_STORE"] = store
    check(nodes, "thread")


def test_one_large_graph_on_every_executor() -> None:
    """Layers of tasks, each with several upstreams, one of which fails."""
    width, depth = 20, 10
    nodes = []
    for layer, column in itertools.product(range(depth), range(width)):
        action = "raise" if (layer, column) == (3, 7) else "return"
        upstreams = [(layer - 1) * width + (column + k) % width for k in (0, 1)] if layer else []
        argument = Shape("list", tuple(Ref(upstream) for upstream in upstreams[:1]))
        nodes.append(Node(action, argument if layer < 4 else layer, tuple(upstreams), "list", None))

    for executor in ("sequential", "thread", "process"):
        check(nodes, executor)


def test_the_reference_itself() -> None:
    """The reference knows the tutorial's example."""
    nodes = [
        Node("return", 0, (), "list", None),
        Node("raise", Ref(0), (), "list", None),
        Node("return", 1, (1, 0), "list", None),
    ]

    first, second, third = worked_out(nodes)

    assert (first.name, second.name, third.name) == ("Completed", "Failed", "NotReady")
    assert third.messages == {"Upstream task run 'node-1' did not reach a 'COMPLETED' state."}
    assert aggregate_message([first, second, third]) == "1/3 states failed."
    assert isinstance(State(StateType.FAILED), State)
