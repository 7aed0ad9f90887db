"""`localflow run`: run a flow of a file and say how it ended."""

from __future__ import annotations

import shlex
import time
from contextlib import closing
from typing import TYPE_CHECKING

import click

from localflow.cli import output
from localflow.errors import ConfigError, LocalflowError, StoreError, UsageError
from localflow.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from localflow.flows import Flow
    from localflow.interfaces import StateStore
    from localflow.project import Project
    from localflow.records import FlowRun

NOT_COMPLETED = 1
CANCELLED = 130

_LOG = "log"


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
    from localflow.parameters import fit_parameters
    from localflow.project import Project

    texts = _split(assignments)
    overrides: dict[str, object] = {} if executor is None else {"executor": executor}
    project = Project.load(overrides=overrides)  # before any code of the user runs
    if _LOG not in project.settings.notifiers:  # what it would tell by default, the end of the run tells
        overrides[f"notifiers.{_LOG}.on"] = []
        project = Project.load(overrides=overrides)

    from localflow.loading import load_flow

    flow = load_flow(reference)
    parameters = fit_parameters(flow.name, flow.fn, texts)
    chosen = _chosen_executor(flow, project, executor, workers)
    if workers is not None and chosen is not None:
        try:
            project = Project.load(overrides={**overrides, f"executors.{chosen}.workers": workers})
        except ConfigError as error:
            hint = f"-j sets the option 'workers' of executor '{printable(chosen)}'; --executor chooses another one"
            raise ConfigError([*error.problems, hint]) from None
    with closing(project.open_store()) as store:
        return _run(flow, project, store, parameters, full_traceback)


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


def _run(
    flow: Flow[..., Any], project: Project, store: StateStore, parameters: dict[str, object], full_traceback: bool
) -> int:
    begun: list[FlowRun] = []
    begun_at = time.monotonic()

    def announce(flow_run: FlowRun) -> None:
        begun.append(flow_run)
        output.say_line(
            f"flow run {flow_run.name!r} of {flow_run.flow!r} on executor {flow_run.executor!r}, "
            f"recorded in {store.location}"
        )

    try:
        flow_run, state, failed_notifications = flow.execute(project, store, parameters, announce)
    except (KeyboardInterrupt, SystemExit):
        for flow_run in begun:
            output.say_line(f"flow run {flow_run.name!r} was stopped")
            tell_stopped(store, flow_run, full_traceback)
        raise
    except LocalflowError:
        for flow_run in begun:
            tell_next(store, flow_run)
        raise
    took = output.duration(begun_at, time.monotonic())
    output.say_line(f"flow run {flow_run.name!r} is {state.name} after {took}")
    if failed_notifications:
        output.say_warning(f"notifications: {failed_notifications} failed")
    output.print_last_data(repr(state))
    if state.is_completed():
        return 0
    from localflow.cli.failures import tell_failures

    tell_failures(store, flow_run, full_traceback)
    output.say("")
    tell_next(store, flow_run)
    return CANCELLED if state.is_cancelled() else NOT_COMPLETED


def tell_stopped(store: StateStore, flow_run: FlowRun, full_traceback: bool) -> None:
    """Tell what a signal has stopped, what had failed by then, and how it goes on."""
    from localflow.cli.failures import tell_failures

    try:
        tell_failures(store, flow_run, full_traceback)
        output.say("")
    except StoreError as error:  # it is being stopped: what can be told is told
        output.say_warning(str(error))
    tell_next(store, flow_run)


def tell_next(store: StateStore, flow_run: FlowRun) -> None:
    """Tell which commands show a flow run that did not complete, and have it go on."""
    if store.survives:
        name = shlex.quote(flow_run.name)
        output.say_line(f"see: localflow show {name}")
        output.say_line(f"resume: localflow resume {name}")
