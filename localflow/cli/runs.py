"""`localflow runs`: the flow runs that are recorded, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from localflow.cli import output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from localflow.cli.output import Cell
    from localflow.records import FlowRun, FlowRunSummary

_SHORT_ID = 8


@click.command()
@click.option("-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def runs(limit: int, as_json: bool) -> None:
    """List the newest flow runs.

    Those that other flows called are among them.
    """
    from localflow.cli.reading import recorded
    from localflow.history import summary_json

    with recorded() as store:
        summaries = store.list_flow_runs(limit)
    if not summaries:
        output.say_line(f"no flow run is recorded in {store.location}")
    if as_json:
        output.print_json([summary_json(summary) for summary in summaries])
    elif summaries:
        print_flow_runs(summaries)


def print_flow_runs(summaries: Sequence[FlowRunSummary], *callers: FlowRun) -> None:
    """Print a table of flow runs; the caller of a subflow by name where it is in the table too, or given."""
    names = {run.id: run.name for run in (*callers, *(summary.flow_run for summary in summaries))}
    has_subflows = any(summary.flow_run.parent_id for summary in summaries)
    headings = ["RUN", "ID", "FLOW", "STATE", "STARTED", "DURATION", *(["CALLED BY"] if has_subflows else [])]
    rows = [_row(summary, names)[: len(headings)] for summary in summaries]
    output.print_table(headings, rows, right=("DURATION",))


def _row(summary: FlowRunSummary, names: Mapping[str, str]) -> list[str | Cell]:
    run, change, started_at, ended_at = summary
    return [
        run.name,
        run.id[:_SHORT_ID] if output.is_terminal() else run.id,
        run.flow,
        output.state_cell(change.type.value, change.name) if change else output.state_cell("PENDING", "Pending"),
        output.local_time(started_at),
        output.duration(started_at, ended_at),
        _caller(run.parent_id, names) if run.parent_id else "",
    ]


def _caller(parent_id: str, names: Mapping[str, str]) -> str:
    """Return the flow run that called a flow, itself or in one of its tasks."""
    flow_run_id = parent_id.partition("-")[0]
    return names.get(flow_run_id, flow_run_id)
