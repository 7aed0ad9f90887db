"""What the end of a run that did not complete tells: what failed and why, and what was not run because of it."""

from __future__ import annotations

import logging
import re
from collections import deque
from typing import TYPE_CHECKING

from localflow.cli import output
from localflow.errors import StoreError
from localflow.history import UNSUCCESSFUL, RunHistory, flow_run_tree
from localflow.printable import shortened
from localflow.records import TaskRun
from localflow.states import INTERRUPTED
from localflow.streams import LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from localflow.interfaces import StateStore
    from localflow.records import FlowRun, LogEntry
    from localflow.states import Cause

_FRAME = re.compile(r' +File ".+", line \d+')
_HEADING = "Traceback (most recent call last):\n"
_HERE = ("", "main")  # no worker that a reader would look for
_IN_FULL = 5
_TRACEBACK_LINES = 40
_LINE_CHARACTERS = 2_000
_LOG_LINES = 5
_LOG_CHARACTERS = 300
_GROUPS = 10
_REFERENCES = 1_000


def tell_failures(store: StateStore, flow_run: FlowRun, full_traceback: bool = False) -> None:
    """Tell on stderr what kept a flow run from completing, in itself and in the flow runs below it.

    Failures of the same task at the same place are told once, and so is an exception that went on into a flow. What
    Ctrl-C or a signal has stopped is named only.
    """
    task_runs: list[RunHistory] = []
    interrupted: list[str] = []
    flow_runs: list[RunHistory] = []
    blocked: list[tuple[str, Sequence[str]]] = []
    for history in flow_run_tree(store, flow_run):
        for task_run in history.task_runs:
            if task_run.state.name == INTERRUPTED:
                interrupted.append(task_run.run.name)
            elif task_run.state.type in UNSUCCESSFUL:
                task_runs.append(task_run)
        flow_runs += [history] if history.cause is not None else []
        blocked += [(culprit, [run.run.name for run in runs]) for culprit, runs in history.blocked_by().items()]
    kinds = _alike(task_runs)
    own = flow_runs[:_IN_FULL][::-1]  # what went up through several of them is told from the bottom
    logs = _last_lines(store, [kind[0] for kind in kinds[:_IN_FULL]] + own)
    report = _Report(flow_run, logs, full_traceback)
    for kind in kinds[:_IN_FULL]:
        report.tell_task_runs(kind)
    _tell_others("", [run for kind in kinds[_IN_FULL:] for run in kind])
    report.know(task_runs)
    for flow_run_history in own:
        report.tell_flow_run(flow_run_history)
    _tell_others("flow runs ", flow_runs[_IN_FULL:])
    _tell_blocked(blocked)
    if interrupted:
        output.say("")
        output.say_line(f"interrupted: {output.listed(interrupted)}")


def print_cause(cause: Cause | None, full_traceback: bool = False) -> None:
    """Print on stdout why a run did not complete."""
    if cause is None:
        return
    if cause.arguments:
        output.print_data("")
        output.print_lines(_called_with(cause.arguments))
    text = (full_traceback and cause.full_traceback_text) or cause.traceback_text
    if text:
        output.print_data("")
        output.print_lines(text, indent="    ")


# -- kinds of failures -----------------------------------------------------------------------------------------------


def _alike(task_runs: Iterable[RunHistory]) -> list[list[RunHistory]]:
    """Return the failures grouped: those of one task (in one `map` call, if in any) that failed at the same place."""
    kinds: dict[object, list[RunHistory]] = {}
    for history in task_runs:
        cause, run = history.cause, history.run
        place: object = (history.state.message,)
        if cause is not None and cause.traceback_text:
            place = (cause.exception_type, *_FRAME.findall(cause.traceback_text))
        task = (run.task, run.map_number) if isinstance(run, TaskRun) else ()
        kinds.setdefault((run.flow_run.id, task, history.state.name, place), []).append(history)
    return list(kinds.values())


def _last_lines(store: StateStore, histories: Iterable[RunHistory]) -> Mapping[str, Iterable[LogEntry]]:
    """Return the last that these runs have said, under the runs' ids."""
    lines: dict[str, deque[LogEntry]] = {history.run.id: deque(maxlen=_LOG_LINES) for history in histories}
    for flow_run_id in dict.fromkeys(run_id.partition("-")[0] for run_id in lines):
        try:
            for _, entry in store.read_logs(flow_run_id):
                if entry.run.id in lines:
                    lines[entry.run.id].append(entry)
        except StoreError as error:  # the failures are what matters here
            output.say_warning(str(error))
    return lines


# -- telling ---------------------------------------------------------------------------------------------------------


class _Report:
    """Tells failures, and what was told of them already."""

    def __init__(self, root: FlowRun, logs: Mapping[str, Iterable[LogEntry]], full_traceback: bool) -> None:
        self._root = root
        self._logs = logs
        self._full_traceback = full_traceback
        self._known: dict[str, str] = {}

    def know(self, task_runs: Sequence[RunHistory]) -> None:
        """Keep in mind that the reader has been told of these."""
        for history in task_runs[:_REFERENCES]:
            if history.cause is not None and history.cause.traceback_text:
                self._known.setdefault(history.cause.traceback_text.rstrip(), history.run.name)

    def tell_task_runs(self, kind: Sequence[RunHistory]) -> None:
        history, others = kind[0], [other.run.name for other in kind[1:]]
        run = history.run
        item = f" (item {run.map_index} of the map)" if isinstance(run, TaskRun) and run.map_number else ""
        of = "" if run.flow_run.id == self._root.id else f" of flow run {run.flow_run.name!r}"
        self._tell(f"task run {run.name!r}{item}{of}", history)
        if others:
            output.say_line(f"and {len(others):,} more like it: {output.listed(others)}")

    def tell_flow_run(self, history: RunHistory) -> None:
        self._tell(f"flow run {history.run.name!r}", history)

    def _tell(self, label: str, history: RunHistory) -> None:
        state, cause, execution = history.state, history.cause, history.execution
        message = shortened(state.message, _LINE_CHARACTERS)
        output.say("")
        output.say_line(f"{label} is {state.name}{f': {message}' if message else ''}")
        if cause is not None and cause.arguments:
            output.say_line(f"    {_called_with(cause.arguments)}")
        where = [
            *([f"attempt {history.attempt}"] if history.attempt > 1 else []),
            *([f"worker {execution.worker}"] if execution is not None and execution.worker not in _HERE else []),
        ]
        if where:
            output.say_line(f"    {', '.join(where)}")
        for line in self._traceback(cause) if cause is not None else ():
            output.say_line(f"    {line}".rstrip())
        self._tell_log(history.run.id)

    def _traceback(self, cause: Cause) -> list[str]:
        if self._full_traceback:
            return (cause.full_traceback_text or cause.traceback_text).rstrip().split("\n")
        text = cause.traceback_text.rstrip()
        for known, name in self._known.items():
            for part in (known, known.removeprefix(_HEADING)):
                text = text.replace(part, f"  ... as told above of task run {name!r}", 1)
        return _bounded(text.split("\n")) if text else []

    def _tell_log(self, run_id: str) -> None:
        entries = list(self._logs.get(run_id, ()))
        if entries:
            output.say("    the last it said:")
        for entry in entries:
            clock = output.local_time(entry.timestamp, with_milliseconds=True).partition(" ")[2]
            label = entry.source if entry.source in LEVELS else logging.getLevelName(entry.level)
            output.say_line(f"      {clock} | {label:<7} | {shortened(entry.message.rstrip(), _LOG_CHARACTERS)}")


def _called_with(arguments: Mapping[str, str]) -> str:
    return "called with " + ", ".join(
        f"and {text}" if name == "..." else f"{name}={text}" for name, text in arguments.items()
    )


def _tell_others(noun: str, histories: Sequence[RunHistory]) -> None:
    if histories:
        output.say("")
        output.say_line(f"and {len(histories):,} more: {noun}{output.listed([each.run.name for each in histories])}")


def _tell_blocked(blocked: Sequence[tuple[str, Sequence[str]]]) -> None:
    if blocked:
        output.say("")
    for culprit, names in blocked[:_GROUPS]:
        output.say_line(f"not run because of {culprit!r}: {output.listed(names)}")
    if blocked[_GROUPS:]:
        more = sum(len(names) for _, names in blocked[_GROUPS:])
        output.say_line(f"and {more:,} more that were not run because of {len(blocked) - _GROUPS:,} other failures")


def _bounded(lines: Sequence[str]) -> list[str]:
    """Return the lines shortened, the middle of very many left out."""
    lines = [shortened(line, _LINE_CHARACTERS) for line in lines]
    left_out = len(lines) - _TRACEBACK_LINES
    if left_out <= 0:
        return lines
    half = _TRACEBACK_LINES // 2
    return [*lines[:half], f"... {left_out:,} lines left out ...", *lines[-half:]]
