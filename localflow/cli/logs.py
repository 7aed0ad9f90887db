"""`localflow logs`: what a run has said, also while it goes on."""

from __future__ import annotations

import heapq
import logging
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from localflow.cli import output

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from localflow.interfaces import StateStore
    from localflow.records import FlowRun, FlowRunSummary, LogEntry, StateChange

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_COLOURS = ((logging.ERROR, "red"), (logging.WARNING, "yellow"))
_POLL_SECONDS = 0.2
_BATCH = 1_000


@click.command()
@click.argument("reference", metavar="RUN[/TASK]")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@click.option(
    "--level", type=click.Choice(_LEVELS, case_sensitive=False), default="DEBUG", metavar="LEVEL",
    help=f"Leave out what is below: {', '.join(_LEVELS)}; stdout counts as INFO, stderr as WARNING.",
)  # fmt: skip
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="N", help="Begin with the last N entries.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with -f an object on each line.")
def logs(reference: str, follow: bool, level: str, tail: int | None, as_json: bool) -> int:
    """Show what a flow run or a task run has logged, printed and written, oldest first.

    What the flows that it called have said is among it. RUN and TASK are those of `localflow show`.
    """
    from localflow.cli.reading import recorded
    from localflow.control import control_path
    from localflow.project import Project

    least = logging.getLevelNamesMapping()[level]
    project = Project.load()
    with recorded(project) as store:
        log = _Log(store, _Selection.find(store, reference), least)
        if follow:
            engine = control_path(project.state_directory, log.selection.flow_run.root_id)
            with suppress(KeyboardInterrupt):
                return _follow(log, tail, as_json, engine)
            return 0
        entries = _tail(log.read_new(), tail)
        if as_json:
            output.print_json_list(map(_as_json, entries))
        elif not _print(entries, log.selection):
            output.say_line(f"nothing is recorded of what {reference} has said")
    return 0


def _follow(log: _Log, tail: int | None, as_json: bool, engine: Path) -> int:
    """Print what is said until the run has ended; return 1 if its engine was lost before that.

    Args:
        log: what to print.
        tail: how many of the entries there are to begin with; None for all.
        as_json: whether to print objects.
        engine: where the engine of the run listens as long as it lives.
    """
    lost = 0
    while True:
        begun = time.monotonic()
        lost = 0 if _is_alive(engine) else lost + 1
        over = log.is_over()  # asked first: what is read afterwards is then all there is
        entries = _tail(log.read_new(), tail)
        tail = None
        if as_json:
            for entry in entries:
                output.print_json(_as_json(entry), indent=None)
        else:
            _print(entries, log.selection)
        if over:
            return 0
        if lost > 1:  # not at the first look: a run is recorded just before its engine listens
            output.say_line(f"flow run {log.selection.flow_run.name!r} goes on no longer: its engine is gone")
            return 1
        time.sleep(max(_POLL_SECONDS, 10 * (time.monotonic() - begun)))


def _is_alive(engine: Path) -> bool:
    from localflow.control import is_listening

    try:
        return is_listening(engine)
    except OSError:  # nobody can tell
        return True


def _tail(entries: Iterator[LogEntry], count: int | None) -> Iterable[LogEntry]:
    return entries if count is None else deque(entries, count)


# -- which entries ---------------------------------------------------------------------------------------------------


class _Selection(NamedTuple):
    """The flow run, or those of its task runs, that a reference means."""

    flow_run: FlowRun
    task_run_ids: frozenset[str] = frozenset()
    """Empty for all of them and the flow run itself."""

    @classmethod
    def find(cls, store: StateStore, reference: str) -> _Selection:
        from localflow.errors import RunNotFoundError
        from localflow.references import find_flow_run, find_runs

        if "/" not in reference:
            with suppress(RunNotFoundError):  # it may be the id of a task run
                return cls(find_flow_run(store, reference).flow_run)
        history, task_runs = find_runs(store, reference)
        return cls(history.run, frozenset(task_run.run.id for task_run in task_runs))


class _Log:
    """The entries of a selection and of the flow runs below it, each given once."""

    def __init__(self, store: StateStore, selection: _Selection, least_level: int) -> None:
        self.selection = selection
        self._store = store
        self._least_level = least_level
        self._positions: dict[str, int] = {}

    def read_new(self) -> Iterator[LogEntry]:
        """Yield what has been added since the last time: those of one flow run in their order, together by time."""
        flow_run, chosen = self.selection
        sources = [self._read(flow_run.id, chosen)]
        sources += [self._read(subflow_run.id, ()) for subflow_run in self._subflow_runs()]
        return heapq.merge(*sources, key=lambda entry: entry.timestamp)

    def is_over(self) -> bool:
        """Return whether all that is selected has ended."""
        from localflow.history import read_task_runs

        flow_run, chosen = self.selection
        changes = [summary.change for summary in self._family() if summary.flow_run.id == flow_run.id]
        if not changes or _is_end(changes[0]):
            return True
        if not chosen:
            return False
        numbers = [int(task_run_id.rpartition("-")[2]) for task_run_id in chosen]
        task_runs = read_task_runs(self._store, flow_run, numbers)
        return all(run.changes and _is_end(run.changes[-1]) for run in task_runs)

    def _read(self, flow_run_id: str, chosen: Collection[str]) -> Iterator[LogEntry]:
        for position, entry in self._store.read_logs(flow_run_id, self._positions.get(flow_run_id, 0)):
            self._positions[flow_run_id] = position
            if entry.level >= self._least_level and (not chosen or entry.run.id in chosen):
                yield entry

    def _subflow_runs(self) -> list[FlowRun]:
        """Return the flow runs called by what is selected, directly or not."""
        flow_run, chosen = self.selection
        callers = set() if chosen else {flow_run.id}
        found: list[FlowRun] = []
        for summary in reversed(self._family()):  # who calls comes before who is called
            run, parent = summary.flow_run, summary.flow_run.parent_id or ""
            if parent in chosen or _flow_run_id(parent) in callers:
                callers.add(run.id)
                found.append(run)
        return found

    def _family(self) -> list[FlowRunSummary]:
        """Return the flow runs under the same root as the selected one, newest first, without reading all there are."""
        flow_run, limit = self.selection.flow_run, 64
        while True:
            summaries = self._store.list_flow_runs(limit)
            if len(summaries) < limit or any(summary.flow_run.id == flow_run.id for summary in summaries):
                return [summary for summary in summaries if summary.flow_run.root_id == flow_run.root_id]
            limit *= 4


def _is_end(change: StateChange | None) -> bool:
    from localflow.states import FINAL_TYPES, NOT_READY

    return change is not None and (change.type in FINAL_TYPES or change.name == NOT_READY)


def _flow_run_id(run_id: str) -> str:
    return run_id.partition("-")[0]


# -- how they are shown ----------------------------------------------------------------------------------------------


def _print(entries: Iterable[LogEntry], selection: _Selection) -> bool:
    """Print entries and return whether there were any."""
    lines: list[str] = []
    any_printed = False
    today = time.localtime()[:3]
    for entry in entries:
        lines.append(_line(entry, selection.flow_run, today))
        any_printed = True
        if len(lines) == _BATCH:
            output.print_data("\n".join(lines))
            lines.clear()
    if lines:
        output.print_data("\n".join(lines))
    return any_printed


def _line(entry: LogEntry, flow_run: FlowRun, today: tuple[int, ...]) -> str:
    from localflow.printable import printable, printable_lines
    from localflow.streams import LEVELS

    whole, fraction = divmod(entry.timestamp, 1)
    at = time.localtime(whole)
    clock = f"{time.strftime('%H:%M:%S' if at[:3] == today else '%Y-%m-%d %H:%M:%S', at)}.{int(fraction * 1000):03}"
    label = entry.source if entry.source in LEVELS else logging.getLevelName(entry.level)
    colour = next((colour for level, colour in _COLOURS if entry.level >= level and entry.source not in LEVELS), None)
    head = f"{clock} | {click.style(f'{label:<7}', fg=colour)} | {printable(_name(entry, flow_run))} | "
    return head + "\n    ".join(printable_lines(entry.message))


def _name(entry: LogEntry, flow_run: FlowRun) -> str:
    run = entry.run
    name = run.name
    if run.flow_run.id != flow_run.id and run.number:
        name = f"{run.flow_run.name}/{name}"
    return f"{name} (attempt {entry.attempt})" if entry.attempt > 1 else name


def _as_json(entry: LogEntry) -> dict[str, Any]:
    from localflow.history import instant

    run = entry.run
    return {
        "timestamp": instant(entry.timestamp),
        "level": logging.getLevelName(entry.level),
        "source": entry.source,
        "message": entry.message,
        "run": run.name,
        "run_id": run.id,
        "flow_run": run.flow_run.name,
        "flow_run_id": run.flow_run.id,
        "attempt": entry.attempt,
    }
