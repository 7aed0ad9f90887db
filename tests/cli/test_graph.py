"""`localflow graph RUN` draws what ran, for people and for the tools that make pictures."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow.builtin.memory import MemoryStateStore
from localflow.cli import drawings
from localflow.diagrams import diagram_of
from localflow.records import FlowRun, StateChange, TaskRun
from localflow.states import StateType

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Cli

    from localflow.diagrams import Diagram

FLOWS = """
from localflow import flow, task

@task
def create(): return 1

@task
def double(x):
    if x == 2: raise ValueError(x)
    return 2 * x

@task
def total(*values): return 1

@flow
def below(): return total(create())

@task
def calls(x): return below().is_completed()

@flow
def main():
    start = create()
    total(double.map(range(4), wait_for=[start]))
    left, right = double(10, wait_for=[start]), double(20, wait_for=[start])
    both = total(left, right)
    calls(both)
    total(below())
"""

RUN = FlowRun("aaaa1111", "brave-otter", "load", 1_700_000_000.0, "aaaa1111")

# What a statement of each language looks like; a name of a user's must not make another one.
MERMAID_LABEL = r'"(?:[\w .,:()\[\]/=+*\'-]|#\d+;|<br/>)*"'
MERMAID_LINE = re.compile(
    rf"flowchart TD| +n\d+(?:\[{MERMAID_LABEL}\]|\[\[{MERMAID_LABEL}\]\]|\(\[{MERMAID_LABEL}\]\)):::[a-z]+"
    rf"| +subgraph n\d+\[{MERMAID_LABEL}\]| +end| +class n\d+ [a-z]+| +n\d+ (?:-->|-\.->) n\d+"
    r"| +classDef [a-z]+ fill:#[0-9a-f]{6},stroke:#[0-9a-f]{6},color:#000000"
)
DOT_TEXT = r'"(?:[^"\\]|\\.)*"'
DOT_LINE = re.compile(
    rf'digraph {DOT_TEXT} {{| +(?:compound=true|fontname="sans-serif");| +node \[.*\];| +subgraph cluster_n\d+ {{| *}}'
    rf'| +n\d+ \[label={DOT_TEXT}, fillcolor="#\w+", color="#\w+"(?:, peripheries=2)?\];'
    rf'| +label={DOT_TEXT}; fillcolor="#\w+"; color="#\w+"; style="rounded,filled";'
    r"| +n\d+ \[shape=point, style=invis\];"
    r"| +n\d+ -> n\d+(?: \[(?:(?:style=dashed|ltail=cluster_n\d+|lhead=cluster_n\d+)(?:, )?)+\])?;"
)


@pytest.fixture
def drawn(cli: Cli, own_folder: Path) -> Any:
    """Run the flow and return what draws it."""
    (own_folder / "flows.py").write_text(FLOWS)
    assert cli("run", "flows.py").returncode == 1

    def draw(*options: str) -> str:
        done = cli("graph", "@last", *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return draw


@pytest.fixture
def store() -> Iterator[MemoryStateStore]:
    """Keep records for a test."""
    with closing(MemoryStateStore()) as store:
        store.append([RUN])
        yield store


def task_run(number: int, name: str, *upstreams: int, task: str = "", map_number: int = 0) -> TaskRun:
    """Return a task run of the flow run."""
    ids = tuple(f"{RUN.id}-{upstream}" for upstream in upstreams)
    return TaskRun(RUN, number, name, task or name, 0, 1.0, ids, map_number=map_number, map_index=number - 1)


def text(diagram: Diagram) -> list[str]:
    """Return the lines below the heading, without colours."""
    return [re.sub(r"\x1b\[\d*m", "", line).removesuffix("  Pending") for line in drawings.text(diagram)][1:]


# -- text ------------------------------------------------------------------------------------------------------------


def test_the_text_is_a_tree_with_states(drawn: Any, read_json: Any) -> None:
    """Each run once, below the first that it comes after; subflows have a tree of their own."""
    by_flow, by_task, root = (run["name"] for run in read_json("runs"))

    assert drawn().splitlines() == [
        f"flow run {root} of 'main': Failed",
        "create-0  Completed",
        "├─ double[0..3]  3 Completed, 1 Failed",
        "│  ↓ total-0  NotReady",
        "├─ double-4  Completed",
        "│  ↓ total-1  Completed  (also after double-5)",
        "│  ↓ calls-0  Completed",
        f"│  ↓ flow run {by_task} (below)  Completed",
        "└─ double-5  Completed  → total-1",
        f"flow run {by_flow} (below)  Completed",
        "↓ total-2  Completed",
        "",
        f"flow run {by_task} of 'below', called by calls-0 of {root}: Completed",
        "create-0  Completed",
        "↓ total-0  Completed",
        "",
        f"flow run {by_flow} of 'below', called by {root}: Completed",
        "create-0  Completed",
        "↓ total-0  Completed",
    ]


def test_a_diamond_is_told_once(store: MemoryStateStore) -> None:
    """Its second way is named at both ends."""
    store.append([task_run(1, "a"), task_run(2, "b", 1), task_run(3, "c", 1), task_run(4, "d", 2, 3)])

    assert text(diagram_of(store, RUN)) == ["a", "├─ b", "│  ↓ d  Pending  (also after c)", "└─ c  Pending  → d"]


def test_a_long_chain_stays_narrow(store: MemoryStateStore) -> None:
    """What follows as the only one is in the same column."""
    store.append([task_run(1, "s1"), *(task_run(n, f"s{n}", n - 1) for n in range(2, 201))])

    assert max(map(len, text(diagram_of(store, RUN)))) < 20


def test_a_flow_in_a_flow_in_a_flow_comes_after_nothing(store: MemoryStateStore) -> None:
    """It is in the one that called it, which is no run before it."""
    called = FlowRun("bbbb2222", "calm-bee", "middle", 2.0, RUN.id, RUN.id)
    store.append([called, FlowRun("cccc3333", "dry-cat", "inner", 3.0, RUN.id, called.id)])

    diagram = diagram_of(store, RUN)

    assert text(diagram) == [
        "flow run calm-bee (middle)",
        "",
        "flow run calm-bee of 'middle', called by brave-otter: Pending",
        "flow run dry-cat (inner)",
    ]
    assert diagram.as_json()["edges"] == []


def test_a_terminal_without_lines_gets_letters(drawn: Any, cli: Cli) -> None:
    """What the encoding of the output can hold decides."""
    done = cli("graph", "@last", PYTHONIOENCODING="ascii")

    assert done.stdout.isascii()
    assert "\n|- double[0..3]  3 Completed, 1 Failed\n|  v total-0  NotReady\n" in done.stdout


# -- size ------------------------------------------------------------------------------------------------------------


def test_a_graph_too_large_to_take_in_is_drawn_by_task(cli: Cli, own_folder: Path, read_json: Any) -> None:
    """With a note; `--all` draws each run."""
    (own_folder / "flows.py").write_text(
        "from localflow import flow, task\n"
        "@task\ndef step(x): ...\n@task\ndef last(*xs): ...\n@flow\ndef empty(): ...\n"
        "@flow\ndef main():\n    last(*[step(x) for x in range(300)])\n    for _ in range(20): empty()\n"
    )
    cli("run", "flows.py")
    name = read_json("runs", "-n", "50")[-1]["name"]

    done, everything = cli("graph", name), cli("graph", name, "--all")

    assert done.stdout.splitlines()[1:] == [
        "step (300 task runs)  300 Completed", "↓ last-0  Completed", "empty (20 flow runs)  20 Completed",
    ]  # fmt: skip
    assert done.stderr == "so many runs are drawn together; --all draws each of them\n"
    assert len(everything.stdout.splitlines()) == 1 + 301 + 20
    assert everything.stderr == ""


def test_runs_drawn_together_do_not_point_to_themselves(store: MemoryStateStore) -> None:
    """A chain of one task is a single node."""
    store.append([task_run(1, "s1", task="s"), *(task_run(n, f"s{n}", n - 1, task="s") for n in range(2, 301))])

    view = diagram_of(store, RUN).as_json()

    assert ([node["count"] for node in view["nodes"]], view["edges"]) == ([300], [])


def test_runs_drawn_together_may_follow_each_other(store: MemoryStateStore) -> None:
    """A chain of two tasks in turn is a circle then, and is drawn all the same."""
    names = ["even" if number % 2 else "odd" for number in range(1, 401)]
    store.append([task_run(n, f"r{n}", *range(max(1, n - 1), n), task=names[n - 1]) for n in range(1, 401)])

    diagram = diagram_of(store, RUN)

    assert diagram.is_reduced
    assert text(diagram) == [
        "even (200 task runs)  200 Pending  (after odd (200 task runs))",
        "↓ odd (200 task runs)  200 Pending  → even (200 task runs)",
    ]
    assert [(edge["from"], edge["to"]) for edge in diagram.as_json()["edges"]] == [("n2", "n1"), ("n1", "n2")]


# -- for tools -------------------------------------------------------------------------------------------------------


def test_every_form_has_the_same_edges(drawn: Any, read_json: Any) -> None:
    """Solid ones for data and order, dashed ones for flows that tasks called; JSON by both spellings."""
    view = read_json("graph", "@last")
    edges = {(edge["from"], edge["to"], edge["kind"] == "call") for edge in view["edges"]}

    assert edges == {
        (a, b, sign == "-.->") for a, sign, b in re.findall(r"(n\d+) (-\S+>) (n\d+)", drawn("--as", "mermaid"))
    }
    assert edges == {
        (a, b, "dashed" in look) for a, b, look in re.findall(r"(n\d+) -> (n\d+)(.*);", drawn("--as", "dot"))
    }
    assert sum(edge[2] for edge in edges) == 1
    labels = {node["id"]: node["label"] for node in view["nodes"]}
    assert ("double[0..3]", "total-0") in {(labels[edge["from"]], labels[edge["to"]]) for edge in view["edges"]}
    group = next(node for node in view["nodes"] if node["kind"] == "map")
    assert (group["states"], group["state_type"], group["count"]) == ({"Completed": 3, "Failed": 1}, "FAILED", 4)
    inside = [node for node in view["nodes"] if node["inside"]]
    assert len(inside) == 4
    assert {labels[node["inside"]].partition(" ")[2] for node in inside} == {"(below)"}
    assert view["reduced"] is False


def test_drawings_are_the_same_each_time(drawn: Any) -> None:
    """So that they can be compared."""
    for form in ("text", "mermaid", "dot", "json"):
        assert drawn("--as", form) == drawn("--as", form)


def test_states_have_words_and_colours(drawn: Any) -> None:
    """Nobody depends on seeing red."""
    mermaid, dot = drawn("--as", "mermaid"), drawn("--as", "dot")

    assert '[["double[0..3]<br/>3 Completed, 1 Failed"]]:::failed' in mermaid
    assert "classDef failed fill:" in mermaid
    assert re.search(r'label="double\[0\.\.3\]\\n3 Completed, 1 Failed", fillcolor="#fbd5d5"', dot)


def assert_well_formed(diagram: Diagram) -> None:
    """Check each line of both languages against what a line may be, and that blocks end."""
    mermaid, dot = list(drawings.mermaid(diagram)), list(drawings.dot(diagram))
    for lines, allowed in ((mermaid, MERMAID_LINE), (dot, DOT_LINE)):
        for line in lines:
            assert allowed.fullmatch(line), line
    assert sum(" subgraph " in line for line in mermaid) == sum(line.strip() == "end" for line in mermaid)
    assert sum(line.endswith("{") for line in dot) == sum(line.strip() == "}" for line in dot)


def test_what_is_drawn_is_well_formed(store: MemoryStateStore) -> None:
    """With maps, subflows in each other, and flows called by tasks."""
    below = FlowRun("bbbb2222", "calm-bear", "below", 2.0, RUN.id, parent_id=RUN.id)
    deeper = FlowRun("cccc3333", "tidy-cat", "deeper", 3.0, RUN.id, parent_id=f"{below.id}-1")
    inner, innermost = TaskRun(below, 1, "in-0", "in", 0, 2.0), TaskRun(deeper, 1, "in-0", "in", 0, 3.0)
    members = [task_run(number, f"m{number}", 1, task="m", map_number=1) for number in (2, 3)]
    after = task_run(4, "after", 2, 3)._replace(upstreams=(f"{RUN.id}-2", below.id, "elsewhere-1"))
    failed = StateChange(members[0], 1, StateType.FAILED, "Failed", "", 2.0)
    store.append([task_run(1, "a"), *members, after, failed, below, inner, deeper, innermost])

    diagram = diagram_of(store, RUN)

    assert_well_formed(diagram)
    assert len(list(diagram.all_nodes())) == 7


@given(st.text(), st.text())
def test_names_of_users_stay_names(name: str, other: str) -> None:
    """Whatever is in them, in every form."""
    with closing(MemoryStateStore()) as store:
        store.append([RUN, task_run(1, name), task_run(2, other, 1)])
        diagram = diagram_of(store, RUN)

        assert_well_formed(diagram)
        for draw in (drawings.text, drawings.mermaid, drawings.dot):
            assert all(re.sub(r"\x1b\[\d*m", "", line).isprintable() for line in draw(diagram))


@pytest.mark.parametrize(
    "name", ['end"]\n  x --> y', "%%{init: {}}%%", "`**bold**`", "<b>&amp;</b>", "#quot;", "\\", "\\N", "😀"]
)
def test_hostile_names_are_shown_as_they_are(store: MemoryStateStore, name: str) -> None:
    """Read back as the tools would, they are the printable form of the name."""
    from html import unescape

    from localflow.printable import printable

    store.append([task_run(1, name)])
    diagram = diagram_of(store, RUN)

    [mermaid] = re.findall(r'n1\["(.*)<br/>Pending"\]', "\n".join(drawings.mermaid(diagram)))
    [dot] = re.findall(r'n1 \[label="(.*)\\nPending"', "\n".join(drawings.dot(diagram)))

    assert re.sub(r"#(\d+);", lambda code: chr(int(code[1])), mermaid) == printable(name)
    assert unescape(re.sub(r"\\(.)", r"\1", dot)) == printable(name)


def test_a_graph_is_of_a_whole_flow_run(cli: Cli, drawn: Any) -> None:
    """A task run has none; an unknown run is named."""
    of_task, unknown, form = cli("graph", "@last/create"), cli("graph", "nobody"), cli("graph", "@last", "--as", "png")

    assert (of_task.returncode, unknown.returncode, form.returncode) == (2, 2, 2)
    assert "localflow graph @last" in of_task.stderr
    assert "no flow run 'nobody'" in unknown.stderr


def test_a_run_that_has_called_nothing_is_drawn(cli: Cli, own_folder: Path) -> None:
    """In every form."""
    (own_folder / "flows.py").write_text("from localflow import flow\n@flow\ndef main(): ...\n")
    cli("run", "flows.py")

    for form in ("text", "mermaid", "dot", "json"):
        assert cli("graph", "@last", "--as", form).returncode == 0
