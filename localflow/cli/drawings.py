"""A diagram as lines for a terminal, as a Mermaid flowchart and as a Graphviz graph."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from localflow.cli import output
from localflow.cli.task_runs import counts_text
from localflow.printable import printable, shortened
from localflow.states import StateType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from localflow.diagrams import Diagram, Node

_LABEL_CHARACTERS = 200
_LISTED = 3

# Fill and border; in words, too, so that nothing depends on colours alone.
_COLOURS = {
    StateType.COMPLETED: ("#d9f2dd", "#2e7d32"),
    StateType.FAILED: ("#fbd5d5", "#c62828"),
    StateType.CRASHED: ("#f3d1f0", "#8e24aa"),
    StateType.CANCELLED: ("#fff0c2", "#b28704"),
    StateType.CANCELLING: ("#fff0c2", "#b28704"),
    StateType.RUNNING: ("#d6e6fb", "#1565c0"),
    StateType.PENDING: ("#eeeeee", "#616161"),
    StateType.SCHEDULED: ("#eeeeee", "#616161"),
}


# -- text ------------------------------------------------------------------------------------------------------------


class _Signs(NamedTuple):
    branch: str
    last: str
    bar: str
    below: str
    arrow: str


_LINES = _Signs("├─ ", "└─ ", "│  ", "↓ ", "→")
_ASCII = _Signs("|- ", "`- ", "|  ", "v ", "->")


def text(diagram: Diagram) -> Iterator[str]:
    """Yield the lines of a tree: what comes after a run is below it, once; `→` leads to what is below another one.

    A run that follows as the only one is below in the same column, behind `↓`, so that long chains stay narrow.
    """
    signs = _signs()
    pending = [(diagram, "")]
    while pending:
        part, caller = pending.pop(0)
        run, state = part.history.run, part.history.state
        if caller:
            yield ""
        called = f", called by {caller}" if caller else ""
        label = printable(f"flow run {run.name} of {run.flow!r}{called}:")
        yield f"{label} {_in_colour(state.type, state.name)}"
        yield from _Tree(part.nodes, signs).lines()
        pending += [(node.inside, _caller(run.name, node)) for node in part.nodes if node.inside and node.inside.nodes]


def _signs() -> _Signs:
    try:
        "".join(_LINES).encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return _ASCII
    return _LINES


def _caller(flow_run: str, node: Node) -> str:
    return flow_run if node.called_by is None else f"{node.called_by.label} of {flow_run}"


class _Tree:
    """The nodes of one flow run, each below the first that it comes after."""

    def __init__(self, nodes: Sequence[Node], signs: _Signs) -> None:
        self._signs = signs
        self._below: dict[str, list[Node]] = {node.id: [] for node in nodes}
        self._elsewhere: dict[str, list[Node]] = {node.id: [] for node in nodes}
        self._others: dict[str, list[Node]] = {}
        self._roots: list[Node] = []
        places = {node.id: place for place, node in enumerate(nodes)}
        for node in nodes:
            before = [*([node.called_by] if node.called_by else []), *node.upstreams]
            # A task grouped with others may come before what comes before it: only a place above counts.
            above = [upstream for upstream in before if places.get(upstream.id, len(nodes)) < places[node.id]]
            (self._below[above[0].id] if above else self._roots).append(node)
            self._others[node.id] = [upstream for upstream in before if upstream not in above[:1]]
            for upstream in self._others[node.id]:
                if upstream.id in places:
                    self._elsewhere[upstream.id].append(node)

        self._root_ids = {root.id for root in self._roots}

    def lines(self) -> Iterator[str]:
        pending = [(node, "", "") for node in reversed(self._roots)]
        while pending:
            node, lead, indent = pending.pop()
            yield f"{lead}{self._described(node)}"
            below = self._below[node.id]
            if len(below) == 1:
                pending.append((below[0], indent + self._signs.below, indent))
                continue
            for child in reversed(below):
                is_last = child is below[-1]
                sign = self._signs.last if is_last else self._signs.branch
                pending.append((child, indent + sign, indent + ("   " if is_last else self._signs.bar)))

    def _described(self, node: Node) -> str:
        label = shortened(f"{'flow run ' if node.kind == 'flow_run' else ''}{node.label}", _LABEL_CHARACTERS)
        others, elsewhere = self._others[node.id], self._elsewhere[node.id]
        also = "also after" if node.id not in self._root_ids else "after"
        after = f"  ({also} {_names(others)})" if others else ""
        leads = f"  {self._signs.arrow} {_names(elsewhere)}" if elsewhere else ""
        return f"{printable(label)}  {_in_colour(node.worst, _states(node))}{printable(after)}{leads}"


def _names(nodes: Sequence[Node]) -> str:
    return printable(output.listed([shortened(node.label, _LABEL_CHARACTERS) for node in nodes], _LISTED))


def _in_colour(type: StateType, text: str) -> str:
    import click

    return click.style(printable(text), fg=output.state_cell(type.value, "").colour)


def _states(node: Node) -> str:
    return next(iter(node.states))[1] if len(node.run_ids) == 1 else counts_text(node.states)


# -- Mermaid ---------------------------------------------------------------------------------------------------------

_MERMAID_UNSAFE = re.compile(r"[^\w .,:()\[\]/=+*'-]")


def mermaid(diagram: Diagram) -> Iterator[str]:
    """Yield the lines of a Mermaid flowchart."""
    yield "flowchart TD"
    yield from _mermaid_nodes(diagram, "    ")
    for node in diagram.all_nodes():
        yield from (f"    {upstream.id} --> {node.id}" for upstream in node.upstreams)
        if node.called_by is not None:
            yield f"    {node.called_by.id} -.-> {node.id}"
    for type in dict.fromkeys(node.worst for node in diagram.all_nodes()):
        fill, stroke = _COLOURS[type]
        yield f"    classDef {type.value.lower()} fill:{fill},stroke:{stroke},color:#000000"


def _mermaid_nodes(diagram: Diagram, indent: str) -> Iterator[str]:
    for node in diagram.nodes:
        label = _label(node, _mermaid_text, "<br/>")
        if node.inside is not None and node.inside.nodes:
            yield f'{indent}subgraph {node.id}["{label}"]'
            yield from _mermaid_nodes(node.inside, indent + "    ")
            yield f"{indent}end"
            yield f"{indent}class {node.id} {node.worst.value.lower()}"
        else:
            opening, closing = _MERMAID_SHAPES[node.kind]
            yield f'{indent}{node.id}{opening}"{label}"{closing}:::{node.worst.value.lower()}'


_MERMAID_SHAPES = {
    "task_run": ("[", "]"),
    "map": ("[[", "]]"),
    "task_runs": ("[[", "]]"),
    "flow_run": ("([", "])"),
    "flow_runs": ("([", "])"),
}


def _mermaid_text(text: str) -> str:
    """Return text as it may stand in quotes: all that Mermaid could take for its own as a character code."""
    return _MERMAID_UNSAFE.sub(lambda match: f"#{ord(match[0])};", text)


# -- Graphviz --------------------------------------------------------------------------------------------------------


def dot(diagram: Diagram) -> Iterator[str]:
    """Yield the lines of a graph in Graphviz' language."""
    yield f'digraph "{_dot_text(printable(diagram.history.run.name))}" {{'
    yield "    compound=true;"
    yield '    node [shape=box, style="rounded,filled", fontname="sans-serif"];'
    yield '    fontname="sans-serif";'
    yield from _dot_nodes(diagram, "    ")
    for node in diagram.all_nodes():
        yield from (f"    {_dot_edge(upstream, node)};" for upstream in node.upstreams)
        if node.called_by is not None:
            yield f"    {_dot_edge(node.called_by, node, 'style=dashed')};"
    yield "}"


def _dot_nodes(diagram: Diagram, indent: str) -> Iterator[str]:
    for node in diagram.nodes:
        fill, border = _COLOURS[node.worst]
        label = _label(node, _dot_text, r"\n")
        look = [f'label="{label}"', f'fillcolor="{fill}"', f'color="{border}"']
        if _is_cluster(node):
            assert node.inside is not None
            yield f"{indent}subgraph cluster_{node.id} {{"
            yield f'{indent}    {"; ".join(look)}; style="rounded,filled";'
            yield f"{indent}    {node.id} [shape=point, style=invis];"
            yield from _dot_nodes(node.inside, indent + "    ")
            yield f"{indent}}}"
        else:
            look += ["peripheries=2"] if len(node.run_ids) > 1 else []
            yield f"{indent}{node.id} [{', '.join(look)}];"


def _dot_edge(upstream: Node, node: Node, look: str = "") -> str:
    """Return an edge; one to or from a subflow ends at the border of its cluster."""
    attributes = [
        *([look] if look else []),
        *([f"ltail=cluster_{upstream.id}"] if _is_cluster(upstream) else []),
        *([f"lhead=cluster_{node.id}"] if _is_cluster(node) else []),
    ]
    return f"{upstream.id} -> {node.id}" + (f" [{', '.join(attributes)}]" if attributes else "")


def _is_cluster(node: Node) -> bool:
    return node.inside is not None and bool(node.inside.nodes)


def _dot_text(text: str) -> str:
    """Return text as it may stand in quotes; Graphviz knows escapes and HTML entities there."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")


# -- both ------------------------------------------------------------------------------------------------------------


def _label(node: Node, escaped: Callable[[str], str], line_end: str) -> str:
    label = printable(shortened(node.label, _LABEL_CHARACTERS))
    return f"{escaped(label)}{line_end}{escaped(printable(_states(node)))}"
