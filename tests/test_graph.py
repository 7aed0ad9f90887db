"""The graph of task runs: what is ready, what is blocked and by whom, at any size and shape."""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localflow.graph import COMPLETED, FAILED, LOST, RunGraph

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = 10_000


@pytest.fixture
def low_recursion_limit() -> Iterator[None]:
    """Leave room for the test machinery and little else, so that any recursion over a chain shows."""
    usual = sys.getrecursionlimit()
    depth = 0
    frame = sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    sys.setrecursionlimit(depth + 60)
    yield
    sys.setrecursionlimit(usual)


def taken(graph: RunGraph) -> list[int]:
    """Take out what is ready."""
    nodes = list(graph.ready)
    graph.ready.clear()
    return nodes


def taken_blocked(graph: RunGraph) -> list[tuple[int, int]]:
    """Take out what is blocked."""
    pairs = list(graph.blocked)
    graph.blocked.clear()
    return pairs


def test_a_node_without_upstreams_is_ready_at_once() -> None:
    """A node that waits for nothing may start."""
    graph = RunGraph()

    node = graph.add()

    assert taken(graph) == [node]
    assert not graph.blocked


def test_nodes_are_numbered_in_order() -> None:
    """Nodes that run and nodes that never will share one numbering."""
    graph = RunGraph()

    assert [graph.add(), graph.add_ended(FAILED), graph.add(), graph.add([0])] == [0, 1, 2, 3]


def test_independent_nodes_are_ready_in_call_order() -> None:
    """The oldest call comes first."""
    graph = RunGraph()

    nodes = [graph.add() for _ in range(5)]

    assert taken(graph) == nodes


def test_a_node_waits_until_all_upstreams_have_completed() -> None:
    """One open upstream is enough to hold a node back."""
    graph = RunGraph()
    first, second = graph.add(), graph.add()
    node = graph.add([first, second])
    taken(graph)

    graph.end(first, COMPLETED)
    before = taken(graph)
    graph.end(second, COMPLETED)

    assert before == []
    assert taken(graph) == [node]


def test_the_same_upstream_twice_counts_once() -> None:
    """A future passed as argument and in wait_for is one dependency."""
    graph = RunGraph()
    upstream = graph.add()
    node = graph.add([upstream, upstream, upstream])
    taken(graph)

    graph.end(upstream, COMPLETED)

    assert taken(graph) == [node]


def test_completed_upstreams_do_not_hold_back() -> None:
    """A call made after its upstreams completed is ready at once."""
    graph = RunGraph()
    upstream = graph.add()
    taken(graph)
    graph.end(upstream, COMPLETED)

    node = graph.add([upstream])

    assert taken(graph) == [node]


def test_an_upstream_that_failed_before_the_call_blocks() -> None:
    """A call made after its upstream failed is blocked at once, and says by whom."""
    graph = RunGraph()
    upstream = graph.add()
    taken(graph)
    graph.end(upstream, FAILED)

    node = graph.add([upstream])

    assert taken(graph) == []
    assert taken_blocked(graph) == [(node, upstream)]


def test_a_node_is_blocked_only_when_all_upstreams_have_ended() -> None:
    """A failed upstream decides once the others have ended, so the culprit does not depend on timing."""
    graph = RunGraph()
    slow, failing = graph.add(), graph.add()
    node = graph.add([slow, failing])
    taken(graph)

    graph.end(failing, FAILED)
    early = taken_blocked(graph)
    graph.end(slow, COMPLETED)

    assert early == []
    assert taken_blocked(graph) == [(node, failing)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_culprit_is_the_first_in_the_order_given(order: tuple[int, int]) -> None:
    """Of several failed upstreams the first one named is the culprit, whichever failed first."""
    graph = RunGraph()
    upstreams = [graph.add(), graph.add()]
    node = graph.add(upstreams)
    taken(graph)

    for position in order:
        graph.end(upstreams[position], FAILED)

    assert taken_blocked(graph) == [(node, upstreams[0])]


def test_a_node_added_as_ended_blocks_its_downstreams() -> None:
    """A run that never starts counts as not completed."""
    graph = RunGraph()
    ended = graph.add_ended(FAILED)

    node = graph.add([ended])

    assert taken_blocked(graph) == [(node, ended)]


def test_blocking_chains_with_the_nearest_culprit() -> None:
    """Each blocked node names its own upstream, not the root of the failure."""
    graph = RunGraph()
    root = graph.add()
    middle = graph.add([root])
    end = graph.add([middle])
    taken(graph)

    graph.end(root, FAILED)

    assert taken_blocked(graph) == [(middle, root), (end, middle)]


def test_one_failure_leaves_the_other_branch_alone() -> None:
    """Only what depends on the failure is blocked."""
    graph = RunGraph()
    good, bad = graph.add(), graph.add()
    after_good, after_bad = graph.add([good]), graph.add([bad])
    taken(graph)

    graph.end(bad, FAILED)
    graph.end(good, COMPLETED)

    assert taken(graph) == [after_good]
    assert taken_blocked(graph) == [(after_bad, bad)]


def test_a_diamond_is_ready_once() -> None:
    """A node reached over two paths becomes ready a single time."""
    graph = RunGraph()
    top = graph.add()
    left, right = graph.add([top]), graph.add([top])
    bottom = graph.add([left, right])
    taken(graph)

    graph.end(top, COMPLETED)
    sides = taken(graph)
    graph.end(left, COMPLETED)
    graph.end(right, COMPLETED)

    assert sides == [left, right]
    assert taken(graph) == [bottom]


def test_a_tolerated_upstream_may_fail() -> None:
    """A node that tolerates an upstream starts after its failure, and after its being blocked."""
    graph = RunGraph()
    failing = graph.add()
    blocked = graph.add([failing])
    after_failing, after_blocked = graph.add([failing], {failing}), graph.add([blocked], {blocked})
    taken(graph)

    graph.end(failing, FAILED)

    assert taken_blocked(graph) == [(blocked, failing)]
    assert taken(graph) == [after_failing, after_blocked]


def test_a_lost_upstream_blocks_who_tolerates_failures() -> None:
    """Crashed and cancelled upstreams are not tolerated."""
    graph = RunGraph()
    upstream = graph.add()
    node = graph.add([upstream], {upstream})

    graph.end(upstream, LOST)

    assert taken_blocked(graph) == [(node, upstream)]


def test_a_node_that_still_waits_may_end() -> None:
    """A node that is cancelled while it waits blocks what waits for it, and is not heard of again."""
    graph = RunGraph()
    upstream = graph.add()
    cancelled = graph.add([upstream])
    after = graph.add([cancelled])
    taken(graph)

    graph.end(cancelled, LOST)
    graph.end(upstream, COMPLETED)

    assert taken_blocked(graph) == [(after, cancelled)]
    assert taken(graph) == []


@pytest.mark.usefixtures("low_recursion_limit")
def test_a_long_chain_completes_without_recursion() -> None:
    """A chain far longer than the recursion limit runs to its end."""
    graph = RunGraph()
    nodes = [graph.add()]
    for _ in range(LONG):
        nodes.append(graph.add([nodes[-1]]))

    for node in nodes:
        assert taken(graph) == [node]
        graph.end(node, COMPLETED)

    assert not graph.ready
    assert not graph.blocked


@pytest.mark.usefixtures("low_recursion_limit")
def test_a_failure_blocks_a_long_chain_without_recursion() -> None:
    """A failed root blocks ten thousand nodes in one go, each by its neighbour."""
    graph = RunGraph()
    nodes = [graph.add()]
    for _ in range(LONG):
        nodes.append(graph.add([nodes[-1]]))
    taken(graph)

    graph.end(nodes[0], FAILED)

    assert taken_blocked(graph) == list(zip(nodes[1:], nodes, strict=False))


@pytest.mark.usefixtures("low_recursion_limit")
@pytest.mark.parametrize("completed", [True, False])
def test_a_wide_fan_out_and_fan_in(completed: bool) -> None:
    """Ten thousand nodes between one source and one sink."""
    graph = RunGraph()
    source = graph.add()
    middle = [graph.add([source]) for _ in range(LONG)]
    sink = graph.add(middle)
    taken(graph)

    graph.end(source, COMPLETED if completed else LOST)
    ready = taken(graph)
    for node in ready:
        graph.end(node, COMPLETED)

    if completed:
        assert ready == middle
        assert taken(graph) == [sink]
    else:
        assert taken_blocked(graph) == [*((node, source) for node in middle), (sink, middle[0])]


def test_the_graph_has_no_threads_and_no_clock() -> None:
    """The graph is pure: it knows neither threads nor time nor files."""
    import localflow.graph as module

    assert not {"threading", "time", "logging", "os"} & set(vars(module))


class NaiveGraph:
    """The same rules, worked out again from nothing each time."""

    def __init__(self) -> None:
        self.upstreams: list[list[int]] = []
        self.tolerated: list[set[int]] = []
        self.endings: dict[int, int] = {}
        self.shown: set[int] = set()

    def settle(self) -> tuple[list[int], list[tuple[int, int]]]:
        """Return what has newly become ready, and what has newly become blocked with its culprit."""
        ready, blocked = [], []
        changed = True
        while changed:
            changed = False
            for node, upstreams in enumerate(self.upstreams):
                if node in self.shown or not all(upstream in self.endings for upstream in upstreams):
                    continue
                self.shown.add(node)
                changed = True
                culprit = next((upstream for upstream in upstreams if self.blocks(upstream, node)), None)
                if culprit is None:
                    ready.append(node)
                else:
                    blocked.append((node, culprit))
                    self.endings[node] = FAILED
        return sorted(ready), sorted(blocked)

    def blocks(self, upstream: int, node: int) -> bool:
        """Return whether the end of `upstream` keeps `node` from starting."""
        ending = self.endings[upstream]
        return ending == LOST or (ending == FAILED and upstream not in self.tolerated[node])


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 60), density=st.floats(0, 1))
def test_it_agrees_with_a_naive_reference(seed: int, steps: int, density: float) -> None:
    """Any mixture of calls and endings gives what the rules, worked out from nothing, give."""
    chance = random.Random(seed)
    graph, naive = RunGraph(), NaiveGraph()
    running: list[int] = []
    waiting: list[int] = []

    for _ in range(steps):
        if running and chance.random() < 0.5:
            node = running.pop(chance.randrange(len(running)))
            ending = chance.choices([COMPLETED, FAILED, LOST], [6, 2, 1])[0]
            graph.end(node, ending)
            naive.endings[node] = ending
        elif waiting and chance.random() < 0.1:
            node = waiting.pop(chance.randrange(len(waiting)))
            graph.end(node, LOST)  # cancelled while it waited
            naive.endings[node] = LOST
            naive.shown.add(node)
        elif chance.random() < 0.05:
            node = graph.add_ended(FAILED)
            naive.upstreams.append([])
            naive.tolerated.append(set())
            naive.shown.add(node)
            naive.endings[node] = FAILED
        else:
            known = range(len(naive.upstreams))
            upstreams = [node for node in known if chance.random() < density / (1 + len(known) / 4)]
            chance.shuffle(upstreams)
            tolerated = {node for node in upstreams if chance.random() < 0.3}
            node = graph.add(upstreams, tolerated)
            assert node == len(naive.upstreams)
            naive.upstreams.append(upstreams)
            naive.tolerated.append(tolerated)
        ready, blocked = naive.settle()

        assert sorted(graph.ready) == ready
        assert sorted(taken_blocked(graph)) == blocked
        running.extend(taken(graph))
        waiting = [node for node in range(len(naive.upstreams)) if node not in naive.shown]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 60), density=st.floats(0, 1))
def test_a_gate_stands_for_all_that_it_waits_for(seed: int, steps: int, density: float) -> None:
    """Who waits for it is ready, blocked and as deep as if it waited for each of them."""
    chance = random.Random(seed)
    plain, gated = RunGraph(), RunGraph()
    numbers: list[int] = []  # in the graph with gates, of each node of the other
    gates: dict[tuple[int, ...], int] = {}
    running: list[int] = []

    for _ in range(steps):
        if running and chance.random() < 0.5:
            node = running.pop(chance.randrange(len(running)))
            ending = chance.choices([COMPLETED, FAILED, LOST], [6, 2, 1])[0]
            plain.end(node, ending)
            gated.end(numbers[node], ending)
        else:
            upstreams = tuple(node for node in range(len(numbers)) if chance.random() < density / 2)
            if gates and chance.random() < 0.5:
                upstreams = chance.choice([*gates])
            node = plain.add(upstreams)
            if upstreams and upstreams not in gates:
                gates[upstreams] = gated.add_gate([numbers[upstream] for upstream in upstreams])
            numbers.append(gated.add([gates[upstreams]] if upstreams else []))
            assert gated.depth(numbers[node]) == plain.depth(node)
        ready, blocked = taken(plain), taken_blocked(plain)

        assert sorted(taken(gated)) == sorted(numbers[node] for node in ready)
        assert sorted(taken_blocked(gated)) == sorted((numbers[node], numbers[culprit]) for node, culprit in blocked)
        running.extend(ready)
