"""The graph of a flow run as nodes and edges, from what is recorded of it; how it is drawn is the readers' affair.

The task runs of a `map` call are one node, and so is a subflow, with a diagram of its own inside. A diagram that nobody
could take in is made smaller: task runs of one task become one node, and many calls of one flow another.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from localflow.history import FlowRunHistory, MapGroup, RunHistory, grouped, instant, state_counts
from localflow.records import FlowRun, TaskRun
from localflow.states import StateType

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localflow.history import Json
    from localflow.interfaces import StateStore
    from localflow.records import FlowRunSummary

_TASK_NODES = 200  # of one flow run, before they are grouped by task
_SUBFLOW_NODES = 10  # of one flow in one flow run, before they are one node
_DRAWN_INSIDE = 50  # flow runs
_LISTED_RUNS = 1_000  # of one node, in JSON

#: States from the one a reader looks for to the one he expects.
SEVERITY = (
    StateType.FAILED,
    StateType.CRASHED,
    StateType.CANCELLED,
    StateType.CANCELLING,
    StateType.RUNNING,
    StateType.PENDING,
    StateType.SCHEDULED,
    StateType.COMPLETED,
)


@dataclass
class Node:
    """A task run, several of them, or flow runs that were called."""

    id: str
    kind: Literal["task_run", "map", "task_runs", "flow_run", "flow_runs"]
    label: str
    of: str
    """The task or flow."""
    states: Counter[tuple[StateType, str]]
    run_ids: list[str]
    created_at: float
    """When the first of its runs was called."""
    upstreams: list[Node] = field(default_factory=list)
    called_by: Node | None = None
    """The task run that called a flow; None where the flow run itself did."""
    inside: Diagram | None = None

    @property
    def worst(self) -> StateType:
        """The type of state that matters most among those of its runs."""
        return min((type for type, _ in self.states), key=SEVERITY.index)


@dataclass
class Diagram:
    """What happened in one flow run."""

    history: FlowRunHistory
    nodes: list[Node] = field(default_factory=list)
    """In the order of the calls."""
    is_reduced: bool = False
    """Whether anything is drawn together, or left out, only because there is so much of it."""

    def all_nodes(self) -> Iterator[Node]:
        """Yield its nodes, each followed by those inside it."""
        for node in self.nodes:
            yield node
            if node.inside is not None:
                yield from node.inside.all_nodes()

    def as_json(self) -> Json:
        """Return nodes and edges as `--as json` prints them."""
        run = self.history.run
        nodes = list(self.all_nodes())
        parents = {id(inner): node for node in nodes if node.inside for inner in node.inside.nodes}
        return {
            "flow_run": {
                "id": run.id,
                "name": run.name,
                "flow": run.flow,
                "state": {"type": self.history.state.type.value, "name": self.history.state.name},
                "created_at": instant(run.created_at),
            },
            "nodes": [_node_json(node, parents.get(id(node))) for node in nodes],
            "edges": [
                {"from": upstream.id, "to": node.id, "kind": "data"} for node in nodes for upstream in node.upstreams
            ]
            + [{"from": node.called_by.id, "to": node.id, "kind": "call"} for node in nodes if node.called_by],
            "reduced": self.is_reduced or any(node.inside.is_reduced for node in nodes if node.inside),
        }


def diagram_of(store: StateStore, run: FlowRun, whole: bool = False) -> Diagram:
    """Return the diagram of a flow run and of the flow runs below it.

    Args:
        store: where they are recorded.
        run: the one at the top.
        whole: draw everything apart, however much it is.
    """
    builder = _Builder(store, whole)
    diagram = builder.draw(run)
    builder.connect()
    return diagram


class _Builder:
    """Makes nodes, and their edges once all nodes are there."""

    def __init__(self, store: StateStore, whole: bool) -> None:
        self._store = store
        self._whole = whole
        self._by_run: dict[str, Node] = {}
        self._waiting: list[tuple[Node, Sequence[str]]] = []
        self._count = 0
        self._drawn = 0

    def draw(self, run: FlowRun) -> Diagram:
        self._drawn += 1
        history = FlowRunHistory.read(self._store, run)
        diagram = Diagram(history)
        entries: list[RunHistory | MapGroup | list[RunHistory]] = [*grouped(history.task_runs)]
        if len(entries) > _TASK_NODES and not self._whole:
            entries, diagram.is_reduced = [*_by_task(history.task_runs)], True
        tasks, flows = [self._task_node(entry) for entry in entries], []
        for parent_id, summaries in _calls(history.subflow_runs):
            if len(summaries) > _SUBFLOW_NODES and not self._whole:
                nodes, diagram.is_reduced = [self._flow_node(summaries)], True
            else:
                nodes = [self._flow_node([summary]) for summary in summaries]
            for node in nodes:
                node.called_by = None if parent_id == run.id else self._by_run.get(parent_id)
            flows += nodes
        diagram.nodes = [*heapq.merge(tasks, flows, key=lambda node: node.created_at)]
        # After the nodes: what is inside of them comes later in a drawing, too.
        for node in diagram.nodes:
            if node.kind == "flow_run":
                if self._whole or self._drawn < _DRAWN_INSIDE:
                    called = next(each for each in history.subflow_runs if each.flow_run.id == node.run_ids[0])
                    node.inside = self.draw(called.flow_run)
                else:
                    diagram.is_reduced = True
        return diagram

    def connect(self) -> None:
        """Draw the edges: each once, none from a node to itself."""
        for node, run_ids in self._waiting:
            found = (self._by_run.get(run_id) for run_id in run_ids)
            upstreams = {id(upstream): upstream for upstream in found if upstream is not None and upstream is not node}
            node.upstreams = list(upstreams.values())

    def _task_node(self, entry: RunHistory | MapGroup | list[RunHistory]) -> Node:
        if isinstance(entry, MapGroup):
            return self._node("map", entry.label, entry.members)
        if isinstance(entry, RunHistory):
            return self._node("task_run", entry.run.name, [entry])
        if len(entry) == 1:
            return self._node("task_run", entry[0].run.name, entry)
        return self._node("task_runs", f"{_task(entry[0])} ({len(entry):,} task runs)", entry)

    def _node(self, kind: Literal["task_run", "map", "task_runs"], label: str, members: Sequence[RunHistory]) -> Node:
        run_ids = [member.run.id for member in members]
        node = Node(
            self._next_id(), kind, label, _task(members[0]), state_counts(members), run_ids, members[0].run.created_at
        )
        records = [member.run for member in members if isinstance(member.run, TaskRun)]
        return self._keep(node, [*dict.fromkeys(upstream for record in records for upstream in record.upstreams)])

    def _flow_node(self, summaries: Sequence[FlowRunSummary]) -> Node:
        runs = [summary.flow_run for summary in summaries]
        states = Counter(
            (summary.change.type, summary.change.name) if summary.change else (StateType.PENDING, "Pending")
            for summary in summaries
        )
        flow, is_one = runs[0].flow, len(runs) == 1
        label = f"{runs[0].name} ({flow})" if is_one else f"{flow} ({len(runs):,} flow runs)"
        kind: Literal["flow_run", "flow_runs"] = "flow_run" if is_one else "flow_runs"
        run_ids = [run.id for run in runs]
        return self._keep(Node(self._next_id(), kind, label, flow, states, run_ids, runs[0].created_at), ())

    def _keep(self, node: Node, upstreams: Sequence[str]) -> Node:
        self._by_run.update(dict.fromkeys(node.run_ids, node))
        self._waiting.append((node, upstreams))
        return node

    def _next_id(self) -> str:
        self._count += 1
        return f"n{self._count}"


def _task(history: RunHistory) -> str:
    return history.run.task if isinstance(history.run, TaskRun) else history.run.flow


def _by_task(task_runs: Sequence[RunHistory]) -> list[list[RunHistory]]:
    groups: dict[str, list[RunHistory]] = {}
    for task_run in task_runs:
        groups.setdefault(_task(task_run), []).append(task_run)
    return list(groups.values())


def _calls(subflow_runs: Sequence[FlowRunSummary]) -> list[tuple[str, list[FlowRunSummary]]]:
    """Return flow runs by who called them and by flow, in the order of the first."""
    groups: dict[tuple[str, str], list[FlowRunSummary]] = {}
    for summary in subflow_runs:
        run = summary.flow_run
        groups.setdefault((run.parent_id or "", run.flow), []).append(summary)
    return [(parent_id, summaries) for (parent_id, _), summaries in groups.items()]


def _node_json(node: Node, parent: Node | None) -> Json:
    is_flow = node.kind in ("flow_run", "flow_runs")
    return {
        "id": node.id,
        "kind": node.kind,
        "label": node.label,
        "task": None if is_flow else node.of,
        "flow": node.of if is_flow else None,
        "inside": None if parent is None else parent.id,
        "state_type": node.worst.value,
        "states": {name: count for (_, name), count in node.states.most_common()},
        "count": len(node.run_ids),
        "run_ids": node.run_ids[:_LISTED_RUNS],
    }
