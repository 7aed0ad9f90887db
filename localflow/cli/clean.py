"""`localflow clean`: remove runs that are no longer wanted, or only their results."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from localflow.cli import output
from localflow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from localflow.housekeeping import Removal
    from localflow.interfaces import StateStore
    from localflow.project import Project
    from localflow.records import FlowRunSummary

_CANNOT_ANSWER = "without results a run is not answered from by `localflow resume`: its tasks run again"


def _seconds(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Return the seconds of an age such as 30d."""
    from localflow.retention import parse_age

    seconds = parse_age(text)
    if seconds is None and text is not None:
        raise click.BadParameter(f"{text!r} is no duration; write 90s, 15m, 12h, 30d or 2w", context, parameter)
    return seconds


@click.command()
@click.argument("references", metavar="[RUN]...", nargs=-1)
@click.option(
    "--older-than", callback=_seconds, metavar="AGE", help="Runs that ended longer ago, as 30d; s, m, h, d or w."
)
@click.option(
    "--keep-last", type=click.IntRange(min=0), metavar="N", help="All runs but the newest N; 0 keeps none of them."
)
@click.option("--state", "states", multiple=True, metavar="NAME", help="Runs in this state, or type of state.")
@click.option("--results", "results_only", is_flag=True, help="Remove results only, keep the history.")
@click.option("--dry-run", is_flag=True, help="Show what would be removed, remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def clean(
    references: Sequence[str],
    older_than: float | None,
    keep_last: int | None,
    states: Sequence[str],
    results_only: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove runs with all that is recorded of them.

    What is given must all hold of a run. RUN is a name, an id or its beginning, or @last: a run that no other flow
    called; the flows it called go with it. Without RUN and options, what [retention] in localflow.toml says is done. A
    run that an engine is at work on is always kept.
    """
    from localflow.cli.reading import recorded
    from localflow.housekeeping import disk_usage, find_leftovers, remove_leftovers, remove_runs, store_path
    from localflow.project import Project

    project = Project.load()
    given = older_than is not None or keep_last is not None or bool(states) or bool(references)
    if not given and not project.settings.retention:
        raise UsageError(
            "say which runs to remove: RUN, --older-than 30d, --keep-last 100 or --state Completed, or have a table "
            "[retention] in localflow.toml; --dry-run shows what would be removed"
        )
    path = store_path(project)
    bytes_before = disk_usage(path) if path is not None else 0
    with recorded(project) as store:
        chosen = _chosen(store, references, older_than, keep_last, states) if given else _due(project, store)
        removal = _foreseen(store, chosen) if dry_run else remove_runs(store, chosen, results_only=results_only)
    bytes_freed = None if dry_run or path is None else max(0, bytes_before - disk_usage(path))
    leftovers = find_leftovers(project, time.time())
    if not dry_run:
        remove_leftovers(leftovers)
    if as_json:
        _print_json(removal, results_only, dry_run, bytes_freed, leftovers)
    else:
        _print(removal, results_only, dry_run, bytes_freed, leftovers)


def _chosen(
    store: StateStore,
    references: Sequence[str],
    older_than: float | None,
    keep_last: int | None,
    states: Sequence[str],
) -> list[FlowRunSummary]:
    """Return the runs for which all holds that was given."""
    from localflow.retention import Rule, in_small_letters, unknown_states

    summaries = store.list_flow_runs()
    if unknown := unknown_states(states, [summary.change.name for summary in summaries if summary.change]):
        raise UsageError(f"--state: {unknown[0]}")
    rule = Rule(older_than, keep_last, in_small_letters(states) if states else None)
    chosen = rule.select(summaries, time.time())
    if references:
        named = {_top_level(store, summaries, reference) for reference in references}
        chosen = [summary for summary in chosen if summary.flow_run.id in named]
    return chosen


def _top_level(store: StateStore, summaries: Sequence[FlowRunSummary], reference: str) -> str:
    """Return the id of the run that is meant, which no other flow may have called."""
    from localflow.references import find_flow_run

    run = find_flow_run(store, reference).flow_run
    if run.parent_id is not None:
        root = next((each.flow_run for each in summaries if each.flow_run.id == run.root_id), None)
        advice = f"; remove all of it: localflow clean {root.name}" if root is not None else ""
        raise UsageError(f"flow run {run.name!r} is part of another one{advice}")
    return run.id


def _due(project: Project, store: StateStore) -> list[FlowRunSummary]:
    from localflow.housekeeping import due_runs

    return due_runs(project.settings.retention, store.list_flow_runs(), time.time())


def _foreseen(store: StateStore, chosen: Sequence[FlowRunSummary]) -> Removal:
    """Return what would be removed now, and what would be kept because engines are at work on it."""
    from localflow.housekeeping import Removal

    removal = Removal([], [])
    for summary in chosen:
        claim = store.claim(summary.flow_run.id)
        if claim is not None:
            claim.release()
        (removal.kept if claim is None else removal.removed).append(summary)
    return removal


def _print(
    removal: Removal, results_only: bool, dry_run: bool, bytes_freed: int | None, leftovers: Sequence[Path]
) -> None:
    from localflow.cli.runs import print_flow_runs

    if dry_run and removal.removed:
        print_flow_runs(removal.removed)
    for summary in removal.kept:
        output.say_line(f"kept {summary.flow_run.name!r}: its engine is at work")
    count = len(removal.removed)
    what = f"the results of {_counted(count, 'run')}" if results_only else _counted(count, "run")
    if not count:
        told = "no run to remove"
    elif dry_run:
        told = f"would remove {what}"
    else:
        told = f"removed {what}{'' if bytes_freed is None else f', {output.size(bytes_freed)} came back'}"
    (output.say_line if dry_run else output.print_data)(told)
    if count and results_only:
        output.say_line(_CANNOT_ANSWER)
    if leftovers:
        files = _counted(len(leftovers), "file")
        output.say_line(f"{'would remove' if dry_run else 'removed'} {files} that dead engines have left")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _print_json(
    removal: Removal, results_only: bool, dry_run: bool, bytes_freed: int | None, leftovers: Sequence[Path]
) -> None:
    from localflow.history import summary_json

    output.print_json(
        {
            "dry_run": dry_run,
            "results_only": results_only,
            "removed": [summary_json(summary) for summary in removal.removed],
            "kept": [summary_json(summary) for summary in removal.kept],
            "bytes_freed": bytes_freed,
            "leftovers": [str(path) for path in leftovers],
        }
    )
