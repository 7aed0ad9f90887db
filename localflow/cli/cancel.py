"""`localflow cancel`: stop a flow run that goes on in another process."""

from __future__ import annotations

import os
import platform
import time
from typing import TYPE_CHECKING

import click

from localflow.cli import output
from localflow.errors import LocalflowError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from localflow.interfaces import StateStore
    from localflow.records import FlowRun, FlowRunSummary

_LOOK_EVERY = 0.05  # seconds


class CancelError(LocalflowError):
    """A flow run could not be cancelled."""


@click.command()
@click.argument("reference", metavar="RUN")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=30.0, show_default=True, metavar="SECONDS",
    help="How long to wait for its end.",
)  # fmt: skip
@click.option("--no-wait", is_flag=True, help="Do not wait for its end.")
def cancel(reference: str, timeout: float, no_wait: bool) -> None:
    """Cancel a flow run with all that it has started, and wait for its end.

    RUN is a name, an id or its beginning, or @last: a run that no other flow called. Its final state is printed.
    """
    from localflow.cli.reading import recorded
    from localflow.control import control_path
    from localflow.project import Project

    project = Project.load()
    with recorded(project) as store:
        run = _running(store, reference)
        path = control_path(project.state_directory, run.id)
        _send(store, run, path)
        output.say_line(f"flow run {run.name!r} is told to stop")
        if not no_wait:
            _wait(path, run, timeout)
            _print_end(store, run)


def _running(store: StateStore, reference: str) -> FlowRun:
    """Return the flow run that is meant, if it is one to cancel."""
    from localflow.references import find_flow_run

    summary = find_flow_run(store, reference)
    run = summary.flow_run
    if run.parent_id is not None:
        root = next((each.flow_run for each in store.list_flow_runs() if each.flow_run.id == run.root_id), None)
        advice = f"; cancel all of it: localflow cancel {root.name}" if root is not None else ""
        raise UsageError(f"flow run {run.name!r} is part of another one{advice}")
    if run.is_incomplete_copy:
        raise UsageError(f"flow run {run.name!r} is an incomplete copy, there is nothing to cancel")
    if _is_over(summary):
        raise UsageError(f"flow run {run.name!r} is {_state_name(summary)} already, there is nothing to cancel")
    return run


def _send(store: StateStore, run: FlowRun, path: Path) -> None:
    from localflow.control import SUPPORTED, send_cancel

    if run.host != platform.node():
        raise CancelError(f"flow run {run.name!r} goes on on host {run.host!r}; cancel it there")
    if not SUPPORTED:
        raise CancelError(
            f"this system has no named pipes, by which another process could reach flow run {run.name!r}; "
            "press Ctrl-C where it runs"
        )
    try:
        is_told = send_cancel(path)
    except OSError as error:
        raise CancelError(f"cannot reach the engine of flow run {run.name!r} by {path}: {error.strerror}") from None
    if not is_told:
        _running(store, run.id)  # it may have ended in the meantime
        raise _unheard(run)


def _unheard(run: FlowRun) -> CancelError:
    try:
        os.kill(run.pid, 0)
    except ProcessLookupError:
        return CancelError(
            f"flow run {run.name!r} cannot be cancelled: its engine, process {run.pid}, is gone, and nothing of the "
            "run is left at work"
        )
    except OSError:
        pass  # somebody else's process, which has got the number
    return CancelError(
        f"flow run {run.name!r} cannot be cancelled: nobody listens for it; if process {run.pid} is still its engine, "
        f"stop that: kill {run.pid}"
    )


def _wait(path: Path, run: FlowRun, timeout: float) -> None:
    """Return when the engine does not listen any more: it has recorded the end then, or is dead."""
    from localflow.control import is_listening

    until = time.monotonic() + timeout
    while is_listening(path):
        if time.monotonic() >= until:
            raise CancelError(
                f"flow run {run.name!r} has not ended within {timeout:g} seconds; it knows that it is to stop"
            )
        time.sleep(_LOOK_EVERY)


def _print_end(store: StateStore, run: FlowRun) -> None:
    from localflow.references import find_flow_run
    from localflow.states import State

    summary = find_flow_run(store, run.id)
    change = summary.change
    if change is None or not _is_over(summary):
        raise CancelError(f"the engine of flow run {run.name!r} died before it could record how the run ended")
    output.print_last_data(repr(State(change.type, change.name, change.message)))


def _is_over(summary: FlowRunSummary) -> bool:
    from localflow.states import FINAL_TYPES, NOT_READY

    change = summary.change
    return change is not None and (change.type in FINAL_TYPES or change.name == NOT_READY)


def _state_name(summary: FlowRunSummary) -> str:
    return summary.change.name if summary.change else "Pending"
