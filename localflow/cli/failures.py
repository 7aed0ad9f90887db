"""What the end of a run that did not complete tells: what failed and why, and what was not run because of it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from localflow.cli import output
from localflow.history import UNSUCCESSFUL, FlowRunHistory, RunHistory, flow_run_tree
from localflow.printable import shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.interfaces import StateStore
    from localflow.records import FlowRun

_PACKAGE = f"{Path(__file__).parent.parent}{os.sep}"
_FRAME = re.compile(r' +File "(.+)", line \d+')
_IN_FULL = 5
_TRACEBACK_LINES = 40
_LINE_CHARACTERS = 2_000
_GROUPS = 10


def tell_failures(store: StateStore, flow_run: FlowRun) -> None:
    """Tell on stderr what kept a flow run from completing, in itself and in the flow runs below it."""
    failures: list[RunHistory] = []
    blocked: list[tuple[str, Sequence[str]]] = []
    for history in flow_run_tree(store, flow_run):
        own = [history] if history.cause is not None else []
        failures += own + [task_run for task_run in history.task_runs if task_run.state.type in UNSUCCESSFUL]
        blocked += [(culprit, [run.run.name for run in runs]) for culprit, runs in history.blocked_by().items()]
    for failure in failures[:_IN_FULL]:
        output.say("")
        _tell_failure(failure)
    if failures[_IN_FULL:]:
        others = [failure.run.name for failure in failures[_IN_FULL:]]
        output.say("")
        output.say_line(f"and {len(others):,} more: {output.listed(others)}")
    if blocked:
        output.say("")
    for culprit, names in blocked[:_GROUPS]:
        output.say_line(f"not run because of {culprit!r}: {output.listed(names)}")
    if blocked[_GROUPS:]:
        more = sum(len(names) for _, names in blocked[_GROUPS:])
        output.say_line(f"and {more:,} more that were not run because of {len(blocked) - _GROUPS:,} other failures")


def _tell_failure(failure: RunHistory) -> None:
    kind = "flow run" if isinstance(failure, FlowRunHistory) else "task run"
    state, cause = failure.state, failure.cause
    message = shortened(state.message, _LINE_CHARACTERS)
    output.say_line(f"{kind} {failure.run.name!r} is {state.name}{f': {message}' if message else ''}")
    if cause is not None:
        for line in _bounded(_without_own_frames(cause.traceback_text)):
            output.say_line(f"    {line}")


def _without_own_frames(traceback_text: str) -> list[str]:
    """Return the lines of a traceback without the frames of localflow."""
    kept: list[str] = []
    in_own_frame = False
    for line in traceback_text.rstrip().split("\n") if traceback_text else ():
        frame = _FRAME.match(line)
        in_own_frame = frame[1].startswith(_PACKAGE) if frame else in_own_frame and line.startswith("    ")
        if not in_own_frame:
            kept.append(line)
    return kept


def _bounded(lines: Sequence[str]) -> list[str]:
    """Return the lines shortened, the middle of very many left out."""
    lines = [shortened(line, _LINE_CHARACTERS) for line in lines]
    left_out = len(lines) - _TRACEBACK_LINES
    if left_out <= 0:
        return lines
    half = _TRACEBACK_LINES // 2
    return [*lines[:half], f"... {left_out:,} lines left out ...", *lines[-half:]]
