"""`localflow store`: what is done with whole state stores."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from localflow.cli import output
from localflow.cli.groups import VerbGroup
from localflow.errors import StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.copying import CopiedTree, Counts
    from localflow.interfaces import StateStore
    from localflow.project import Project
    from localflow.records import FlowRunSummary


@click.group(cls=VerbGroup)
def store() -> None:
    """Copy runs from one state store to another."""


@store.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--run", "references", multiple=True, metavar="RUN", help="Only this run; may be given several times.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def copy(source: str, target: str, references: Sequence[str], as_json: bool) -> None:
    """Copy runs from the state store FROM to the state store TO.

    Both are named as in localflow.toml: sqlite, json, a table's name or a plugin's. Copied are runs that no other flow
    called, with the flows they called, results, logs and what the cache has of them. What is there already is passed
    by, so a copy that was broken off is simply repeated. A run that an engine is at work on is refused.
    """
    from localflow.cli.reading import recorded
    from localflow.copying import copy_trees
    from localflow.interrupts import SHIELD
    from localflow.project import Project

    project = Project.load()
    if source == target:
        raise UsageError(f"'{source}' cannot be copied to itself; name two state stores")
    copies: list[CopiedTree] = []
    with recorded(project, source) as from_store:
        chosen = _chosen(from_store, references)
        with closing(_opened(project, target)) as to_store, SHIELD.listening():
            if to_store.location == from_store.location:
                raise UsageError(f"'{source}' and '{target}' are both {to_store.location}; name two state stores")
            try:
                for each in copy_trees(from_store, to_store, chosen):
                    copies.append(each)
                    _say(each)
            finally:  # what was copied is there, whatever came after it
                if as_json:
                    _print_json(from_store, to_store, copies)
    if not chosen:
        output.say_line(f"no flow run is recorded in {from_store.location}")
    refused = sum(each.outcome == "refused" for each in copies)
    if refused:
        raise StoreError(f"{refused:,} of {len(copies):,} flow runs were not copied")


def _opened(project: Project, name: str) -> StateStore:
    opened = project.open_store(name)
    if not opened.survives:
        opened.close()
        raise UsageError(f"the state store '{name}' keeps nothing; name one that does")
    return opened


def _chosen(store: StateStore, references: Sequence[str]) -> list[FlowRunSummary]:
    """Return the runs to copy, the oldest first."""
    from localflow.references import find_flow_run

    roots = [summary for summary in reversed(store.list_flow_runs()) if summary.flow_run.parent_id is None]
    if not references:
        return roots
    wanted = set()
    for reference in references:
        run = find_flow_run(store, reference).flow_run
        if run.parent_id is not None:
            root = next((each.flow_run for each in roots if each.flow_run.id == run.root_id), None)
            advice = f"; copy all of it: --run {root.name}" if root is not None else ""
            raise UsageError(f"flow run {run.name!r} is part of another one{advice}")
        wanted.add(run.id)
    return [summary for summary in roots if summary.flow_run.id in wanted]


def _say(tree: CopiedTree) -> None:
    name = tree.summary.flow_run.name
    if tree.outcome == "copied":
        output.say_line(f"copied flow run {name!r}: {_counted(tree.counts)}")
    elif tree.outcome == "present":
        output.say_line(f"flow run {name!r} is there already")
    else:
        output.say_warning(f"flow run {name!r} was not copied: {tree.reason}")


def _counted(counts: Counts) -> str:
    named = (
        f"{count:,} {name.replace('_', ' ')[: -1 if count == 1 else None]}"
        for name, count in counts._asdict().items()
        if count
    )
    return ", ".join(named)


def _print_json(source: StateStore, target: StateStore, copies: Sequence[CopiedTree]) -> None:
    from localflow.history import summary_json

    output.print_json(
        {
            "from": source.location,
            "to": target.location,
            "copied": [
                {**summary_json(each.summary), "counts": each.counts._asdict()}
                for each in copies
                if each.outcome == "copied"
            ],
            "present": [summary_json(each.summary) for each in copies if each.outcome == "present"],
            "refused": [
                {**summary_json(each.summary), "reason": each.reason} for each in copies if each.outcome == "refused"
            ],
        }
    )
