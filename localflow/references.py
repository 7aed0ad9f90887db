"""Find the run that a reference of the command line means: `RUN` or `RUN/TASK`."""

from __future__ import annotations

import re
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from localflow.errors import RunNotFoundError, suggestion
from localflow.history import FlowRunHistory, read_task_runs
from localflow.records import StateChange, TaskRun
from localflow.states import INTERRUPTED, StateType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from localflow.history import RunHistory
    from localflow.interfaces import StateStore
    from localflow.records import FlowRun, FlowRunSummary

LAST, LAST_FAILED = "@last", "@last-failed"

_FAILURES = frozenset({StateType.FAILED, StateType.CRASHED})
_SHOWN_CANDIDATES = 10
_SUGGESTED = 10_000  # names among which a misspelt one is looked for
_NUMBER = "[1-9][0-9]{0,17}"


def find_runs(store: StateStore, reference: str) -> tuple[FlowRunHistory, list[RunHistory]]:
    """Return the flow run of a reference, and its task runs that are meant: none where it is the flow run itself.

    Several are meant by `RUN/TASK` with the name of a task that was mapped. The id of a task run stands for `RUN/TASK`.
    The history of the flow run has, of its task runs, those that are meant and those they wait for.

    Raises:
        RunNotFoundError: nothing is recorded that the reference could mean, or too much.
    """
    run, task = split_reference(store, reference)
    try:
        summary = find_flow_run(store, run)
    except RunNotFoundError:
        run_id, dash, number = run.rpartition("-")
        if task is not None or not dash or not number.isdecimal():
            raise
        found = [known for known in store.list_flow_runs() if known.flow_run.id == run_id]
        if not found:
            raise
        [summary], task = found, run
    flow_run = summary.flow_run
    if task is None:
        return FlowRunHistory.read_chosen(store, flow_run), []
    history = FlowRunHistory.read_chosen(store, flow_run)
    history.task_runs = read_task_runs(store, flow_run, _numbers(flow_run, [task]), called=task)
    if not history.task_runs:
        raise _no_task_run(flow_run, task, _names(store, flow_run))
    meant = _task_runs(history, task)
    upstreams = {id for each in meant if isinstance(each.run, TaskRun) for id in each.run.upstreams}
    others = set(_numbers(flow_run, upstreams)) - {each.run.number for each in meant}
    history.task_runs = sorted([*meant, *read_task_runs(store, flow_run, others)], key=lambda each: each.run.number)
    return history, meant


def split_reference(store: StateStore, reference: str) -> tuple[str, str | None]:
    """Return what names the run in `RUN/TASK` and what the task, None for a run alone; names may hold slashes."""
    if "/" not in reference:
        return reference, None
    names = {known.flow_run.name for known in store.list_flow_runs()}
    if reference in names:
        return reference, None
    for place in reversed([place for place, character in enumerate(reference) if character == "/"]):
        if reference[:place] in names:
            return reference[:place], reference[place + 1 :]
    run, _, task = reference.partition("/")
    return run, task


def find_flow_run(store: StateStore, reference: str) -> FlowRunSummary:
    """Return the flow run with this id, name or id prefix, or the one that `@last` or `@last-failed` means.

    A name that several runs have means the newest of them; the other two are about runs that no flow called.

    Raises:
        RunNotFoundError: there is none, or the prefix is that of several.
    """
    runs = store.list_flow_runs()
    for run in runs:
        if run.flow_run.id == reference:
            return run
    next(store.read(reference), None)  # a damaged flow run is not in the list, but says so itself
    if not runs:
        raise RunNotFoundError(f"no flow run is recorded in {store.location}")
    if reference.startswith("@"):
        return _last(runs, reference)
    named = [run for run in runs if run.flow_run.name == reference]
    if named:
        return named[0]
    candidates = [run for run in runs if run.flow_run.id.startswith(reference)] if reference else []
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = _listed(f"{run.flow_run.id} ({run.flow_run.name})" for run in candidates)
        raise RunNotFoundError(f"{len(candidates)} flow runs have an id that begins with {reference!r}: {listed}")
    hint = suggestion(reference, {run.flow_run.name for run in runs})
    raise RunNotFoundError(f"no flow run {reference!r} in {store.location}{hint}")


def _task_runs(history: FlowRunHistory, reference: str) -> list[RunHistory]:
    """Return the task run with this name or id, or all of a task of this name that was only mapped."""
    mapped = [
        task_run
        for task_run in history.task_runs
        if isinstance(task_run.run, TaskRun) and task_run.run.task == reference
    ]
    if len(mapped) > 1 and all(isinstance(each.run, TaskRun) and each.run.map_number for each in mapped):
        return mapped
    return [find_task_run(history, reference)]


def find_task_run(history: FlowRunHistory, reference: str) -> RunHistory:
    """Return the task run with this name or id, or the only one of the task with this name.

    Raises:
        RunNotFoundError: there is none, or there are several.
    """
    task_runs = history.task_runs
    for matching in (
        [task_run for task_run in task_runs if task_run.run.id == reference],
        [task_run for task_run in task_runs if task_run.run.name == reference],
        [task_run for task_run in task_runs if isinstance(task_run.run, TaskRun) and task_run.run.task == reference],
    ):
        if len(matching) == 1:
            return matching[0]
        if matching:
            listed = _listed(f"{task_run.run.name} ({task_run.run.id})" for task_run in matching)
            raise RunNotFoundError(
                f"{len(matching)} task runs of flow run {history.run.name!r} are called {reference!r}: {listed}"
            )
    raise _no_task_run(history.run, reference, {task_run.run.name for task_run in task_runs})


def _no_task_run(flow_run: FlowRun, reference: str, names: set[str]) -> RunNotFoundError:
    return RunNotFoundError(f"flow run {flow_run.name!r} has no task run {reference!r}{suggestion(reference, names)}")


def _names(store: StateStore, flow_run: FlowRun) -> set[str]:
    """Return the names of the first task runs of a flow run, to suggest one of them."""
    task_runs = takewhile(lambda record: not isinstance(record, StateChange), store.read(flow_run.id))
    return {record.name for record in islice(task_runs, _SUGGESTED) if isinstance(record, TaskRun)}


def _numbers(flow_run: FlowRun, ids: Iterable[str]) -> list[int]:
    """Return the numbers of those task runs of a flow run that have one of these ids."""
    parts = (id.rpartition("-") for id in ids)
    return [int(number) for run_id, _, number in parts if run_id == flow_run.id and re.fullmatch(_NUMBER, number)]


def _last(runs: Sequence[FlowRunSummary], reference: str) -> FlowRunSummary:
    if reference not in (LAST, LAST_FAILED):
        raise RunNotFoundError(f"{reference!r} means no run{suggestion(reference, (LAST, LAST_FAILED))}")
    for run in runs:
        if run.flow_run.parent_id is None and (reference == LAST or _is_failed(run)):
            return run
    raise RunNotFoundError("no flow run that failed, crashed or was interrupted is recorded")


def _is_failed(run: FlowRunSummary) -> bool:
    change = run.change
    if change is None or run.flow_run.is_incomplete_copy:
        return False
    return change.type in _FAILURES or (change.type is StateType.CANCELLED and change.name == INTERRUPTED)


def _listed(texts: Iterable[str]) -> str:
    known = list(texts)
    more = len(known) - _SHOWN_CANDIDATES
    return ", ".join(known[:_SHOWN_CANDIDATES]) + (f" and {more} more" if more > 0 else "")
