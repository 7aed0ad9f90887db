"""A flow run in the foreground, begun or resumed: announced, seen through to its end, and what then is to be told."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

from localflow.cli import output
from localflow.errors import ConfigError, LocalflowError, StoreError
from localflow.printable import printable
from localflow.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from localflow.interfaces import StateStore
    from localflow.records import FlowRun
    from localflow.roots import FinishedRun

NOT_COMPLETED = 1
CANCELLED = 130

_LOG = "log"


def load_project(executor: str | None) -> tuple[Project, dict[str, object]]:
    """Return the project with what the command line overrides, and those overrides."""
    overrides: dict[str, object] = {} if executor is None else {"executor": executor}
    project = Project.load(overrides=overrides)
    if _LOG not in project.settings.notifiers:  # what it would tell by default, the end of the run tells
        overrides[f"notifiers.{_LOG}.on"] = []
        project = Project.load(overrides=overrides)
    return project, overrides


def with_workers(overrides: Mapping[str, object], executor: str, workers: int) -> Project:
    """Return the project with so many workers of an executor."""
    try:
        return Project.load(overrides={**overrides, f"executors.{executor}.workers": workers})
    except ConfigError as error:
        hint = f"-j sets the option 'workers' of executor '{printable(executor)}'; --executor chooses another one"
        raise ConfigError([*error.problems, hint]) from None


def see_through(
    store: StateStore, execute: Callable[[Callable[[FlowRun], None]], FinishedRun | None], full_traceback: bool
) -> int:
    """Execute a flow run, tell how it ended and return the exit code.

    Args:
        store: where it is recorded.
        execute: executes it, and calls what it is given once the start is recorded; returns None if it never started.
        full_traceback: whether all frames of what failed are shown.
    """
    begun: list[FlowRun] = []
    begun_at = time.monotonic()

    def announce(flow_run: FlowRun) -> None:
        begun.append(flow_run)
        output.say_line(
            f"flow run {flow_run.name!r} of {flow_run.flow!r} on executor {flow_run.executor!r}, "
            f"recorded in {store.location}"
        )

    try:
        finished = execute(announce)
    except (KeyboardInterrupt, SystemExit):
        for flow_run in begun:
            output.say_line(f"flow run {flow_run.name!r} was stopped")
            tell_stopped(store, flow_run, full_traceback)
        raise
    except LocalflowError:
        for flow_run in begun:
            tell_next(store, flow_run)
        raise
    if finished is None:
        return 0
    flow_run, state, failed_notifications, incomplete = finished
    since = max(0.0, time.time() - state.instant)  # the notifiers have been waited for
    took = output.duration(begun_at, max(begun_at, time.monotonic() - since))
    output.say_line(f"flow run {flow_run.name!r} is {state.name} after {took}")
    if failed_notifications:
        output.say_warning(f"notifications: {failed_notifications} failed")
    output.print_last_data(repr(state))
    if state.is_completed():
        if incomplete:  # the flow has seen to it, or forgotten it
            runs = "task run" if len(incomplete) == 1 else "task runs"
            output.say_line(f"{len(incomplete):,} {runs} did not complete: {output.listed(incomplete)}")
            output.say_line(f"see: localflow show {shlex.quote(flow_run.name)}")
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
