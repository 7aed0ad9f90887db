"""`localflow run`: run a flow of a file and say how it ended."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from localflow.cli import output
from localflow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from localflow.flows import Flow
    from localflow.project import Project
    from localflow.records import FlowRun
    from localflow.roots import FinishedRun


@click.command()
@click.argument("reference", metavar="FILE[:FLOW]")
@click.option(
    "-p", "--parameter", "assignments", metavar="NAME=VALUE", multiple=True,
    help="A parameter of the flow: JSON, or else text. May be given several times.",
)  # fmt: skip
@click.option("--executor", metavar="NAME", help="What a flow that names no executor runs on.")
@click.option("-j", "--workers", type=click.IntRange(min=1), metavar="N", help="How many workers that executor has.")
@click.option("--full-traceback", is_flag=True, help="Show all frames of what failed, not only those of your code.")
def run(
    reference: str, assignments: Sequence[str], executor: str | None, workers: int | None, full_traceback: bool
) -> int:
    """Run a flow of a Python file.

    FLOW is needed where FILE has several. The final state is printed; what did not complete, and why, is told on
    stderr.
    """
    from localflow.cli.foreground import load_project, see_through, with_workers
    from localflow.cli.reading import note_lost
    from localflow.parameters import fit_parameters

    texts = _split(assignments)
    project, overrides = load_project(executor)  # before any code of the user runs

    from localflow.loading import load_flow

    flow = load_flow(reference)
    parameters = fit_parameters(flow.name, flow.fn, texts)
    chosen = _chosen_executor(flow, project, executor, workers)
    if workers is not None and chosen is not None:
        project = with_workers(overrides, chosen, workers)
    with project.prepared(chosen or flow.executor), closing(project.open_store()) as store:
        note_lost(project, store)

        def execute(announce: Callable[[FlowRun], None]) -> FinishedRun:
            return flow.execute(project, store, parameters, announce)

        return see_through(store, execute, full_traceback)


def _split(assignments: Sequence[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not (name and equals):
            raise UsageError(f"-p takes NAME=VALUE, not {assignment!r}")
        if name in texts:
            raise UsageError(f"-p {name} is given twice")
        texts[name] = text
    return texts


def _chosen_executor(flow: Flow[..., Any], project: Project, executor: str | None, workers: int | None) -> str | None:
    """Return the configured executor the flow runs on, None for an instance in code; warn of flags without effect."""
    in_code = flow.executor
    if in_code is None:
        return project.executor
    name = in_code if isinstance(in_code, str) else type(in_code).__name__
    if executor is not None and executor != name:
        output.say_warning(f"--executor has no effect: flow {flow.name!r} names {name!r} in its code")
    if isinstance(in_code, str):
        return in_code
    if workers is not None:
        output.say_warning(f"-j has no effect: flow {flow.name!r} makes its {name} in its code")
    return None
