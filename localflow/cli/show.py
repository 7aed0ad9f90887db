"""`localflow show`: all that is recorded of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from localflow.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.cli.output import Cell
    from localflow.history import FlowRunHistory, RunHistory
    from localflow.interfaces import StateStore

    Field = tuple[str, str | Cell]

_SHOWN_FLOW_RUNS = 20
_SHOWN_VALUE = 1_000


@click.command()
@click.argument("reference", metavar="RUN[/TASK]")
@click.option("--all", "show_all", is_flag=True, help="Show all task runs, not only the most telling.")
@click.option("--full-traceback", is_flag=True, help="Show all frames of what failed, not only those of your code.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all task runs.")
def show(reference: str, show_all: bool, full_traceback: bool, as_json: bool) -> None:
    """Show a flow run with its task runs, or one task run.

    RUN is a name, an id or its beginning, @last or @last-failed. TASK is the name of a task run, or of a task that was
    called once, or of one that was mapped: then all its task runs are listed. The id of a task run will do, too.
    """
    from localflow.cli.reading import recorded
    from localflow.history import FlowRunHistory, result_json
    from localflow.references import find_runs

    with recorded() as store:
        history, task_runs = find_runs(store, reference)
        if len(task_runs) > 1:
            _show_members(history, task_runs, show_all, as_json)
            return
        chosen = task_runs[0] if task_runs else history
        result = result_json(store.load_result(history.run.id, chosen.run.number))
        if as_json and task_runs:
            output.print_json({**history.task_run_json(chosen), "result": result})
        elif as_json:
            history = FlowRunHistory.read(store, history.run)
            view = {**history.as_json(), "result": result}
            output.print_json_with(view, "task_runs", history.task_runs_as_json())
        elif task_runs:
            _print_task_run(history, chosen, result, full_traceback)
        else:
            _print_flow_run(store, history, result, show_all, full_traceback)


# -- a flow run ------------------------------------------------------------------------------------------------------


def _print_flow_run(
    store: StateStore, history: FlowRunHistory, result: object, show_all: bool, full_traceback: bool
) -> None:
    from localflow.cli.failures import print_cause
    from localflow.cli.task_runs import note_left_out, print_task_runs
    from localflow.history import flow_run_json, read_task_runs

    run = history.run
    parameters = flow_run_json(run, history.state, None, None)["parameters"]
    output.print_fields(
        [
            ("Flow run", run.name),
            ("Id", run.id),
            ("Flow", run.flow),
            *_state_fields(history),
            *((f"-p {name}", _value(value)) for name, value in parameters.items()),
            *([] if result is None else [("Result", _value(result))]),
            ("Executor", run.executor),
            ("Source", run.entry_point),
            ("Process", f"{run.pid} on {run.host}"),
            ("Versions", ", ".join(f"{name} {version}" for name, version in run.versions.items())),
            ("Tags", ", ".join(run.tags)),
            ("Called by", run.parent_id or ""),
        ]
    )
    print_cause(history.cause, full_traceback)
    standings = store.read_standings(run.id)
    if standings:
        print_task_runs(standings, lambda numbers: read_task_runs(store, run, numbers), show_all)
    if history.subflow_runs:
        from localflow.cli.runs import print_flow_runs

        shown = history.subflow_runs if show_all else history.subflow_runs[:_SHOWN_FLOW_RUNS]
        output.print_data(f"\n{len(history.subflow_runs):,} flow runs were called:")
        print_flow_runs(shown, run)
        note_left_out(len(history.subflow_runs) - len(shown))


# -- a task run ------------------------------------------------------------------------------------------------------


def _print_task_run(history: FlowRunHistory, task_run: RunHistory, result: object, full_traceback: bool) -> None:
    from localflow.cli.failures import print_cause

    view = history.task_run_json(task_run)
    execution, cache = task_run.execution, task_run.cache
    fields: list[Field] = [
        ("Task run", task_run.run.name),
        ("Id", task_run.run.id),
        ("Task", view["task"]),
        ("Map item", "" if view["map_index"] is None else str(view["map_index"])),
        ("Flow run", history.run.name),
        *_state_fields(task_run),
        ("Upstreams", output.listed(view["upstreams"], limit=50)),
        ("Tags", ", ".join(view["tags"])),
        *([] if result is None else [("Result", _value(result))]),
    ]
    if execution is not None:
        fields += [
            ("Worker", execution.worker),
            ("CPU time", "" if execution.cpu_seconds is None else f"{execution.cpu_seconds:.3f}s"),
            ("Peak memory", output.size(execution.peak_rss_bytes)),
        ]
    if cache is not None:
        fields += [("Cache key", cache.key), ("Cached until", output.local_time(cache.expires_at))]
    output.print_fields(fields)
    print_cause(task_run.cause, full_traceback)
    output.print_data("")
    rows: list[list[str | Cell]] = [
        [
            output.local_time(moment.timestamp, with_milliseconds=True),
            output.state_cell(moment.type.value, moment.name),
            moment.message,
        ]
        for moment in task_run.moments
    ]
    output.print_table(["SINCE", "STATE", "MESSAGE"], rows)


def _show_members(history: FlowRunHistory, task_runs: Sequence[RunHistory], show_all: bool, as_json: bool) -> None:
    from localflow.cli.task_runs import counts_text, print_members
    from localflow.history import state_counts

    if as_json:
        output.print_json_list(history.task_runs_as_json(task_runs))
        return
    output.print_fields(
        [
            ("Task", history.task_run_json(task_runs[0])["task"]),
            ("Flow run", history.run.name),
            ("Task runs", counts_text(state_counts(task_runs))),
        ]
    )
    print_members(task_runs, show_all)


# -- both ------------------------------------------------------------------------------------------------------------


def _state_fields(history: RunHistory) -> list[Field]:
    state = history.state
    label = f"{state.name}: {state.message}" if state.message else state.name
    return [
        ("State", output.state_cell(state.type.value, label)),
        ("Attempt", str(history.attempt) if history.attempt > 1 else ""),
        ("Started", output.local_time(history.started_at)),
        ("Ended", output.local_time(history.ended_at)),
        ("Duration", output.duration(history.started_at, history.ended_at)),
    ]


def _value(value: object) -> str:
    from localflow.printable import shortened

    return shortened(output.compact_json(value), _SHOWN_VALUE)
