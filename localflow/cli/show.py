"""`localflow show`: all that is recorded of a run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from localflow.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.cli.output import Cell
    from localflow.history import FlowRunHistory, RunHistory
    from localflow.interfaces import StateStore

    Field = tuple[str, str | Cell]

_SHOWN_TASK_RUNS = 1000
_SHOWN_FLOW_RUNS = 20
_SHOWN_VALUE = 1_000


@click.command()
@click.argument("reference", metavar="RUN[/TASK]")
@click.option("--all", "show_all", is_flag=True, help=f"Show all task runs, not only {_SHOWN_TASK_RUNS} of them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all task runs.")
def show(reference: str, show_all: bool, as_json: bool) -> None:
    """Show a flow run with its task runs, or one task run.

    RUN is a name, an id or its beginning, @last or @last-failed. TASK is the name of a task run, or of a task that was
    called once.
    """
    from localflow.cli.reading import recorded
    from localflow.history import result_json

    with recorded() as store:
        history, task_run = _find(store, reference)
        chosen = task_run or history
        result = result_json(store.load_result(history.run.id, chosen.run.number))
    if as_json:
        view = history.as_json() if task_run is None else history.task_run_json(task_run)
        output.print_json({**view, "result": result})
    elif task_run is None:
        _print_flow_run(history, result, show_all)
    else:
        _print_task_run(history, task_run, result)


def _find(store: StateStore, reference: str) -> tuple[FlowRunHistory, RunHistory | None]:
    from localflow.history import FlowRunHistory
    from localflow.references import find_flow_run, find_task_run

    run, slash, task = reference.partition("/")
    history = FlowRunHistory.read(store, find_flow_run(store, run).flow_run)
    return history, find_task_run(history, task) if slash else None


# -- a flow run ------------------------------------------------------------------------------------------------------


def _print_flow_run(history: FlowRunHistory, result: object, show_all: bool) -> None:
    from localflow.history import flow_run_json

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
            ("Called by", run.parent_id or ""),
        ]
    )
    _print_traceback(history)
    if history.task_runs:
        _print_task_runs(history.task_runs, show_all)
    if history.subflow_runs:
        from localflow.cli.runs import print_flow_runs

        shown = history.subflow_runs if show_all else history.subflow_runs[:_SHOWN_FLOW_RUNS]
        output.print_data(f"\n{len(history.subflow_runs):,} flow runs were called:")
        print_flow_runs(shown)
        _note_left_out(len(history.subflow_runs) - len(shown))


def _print_task_runs(task_runs: Sequence[RunHistory], show_all: bool) -> None:
    counts = Counter(task_run.state.name for task_run in task_runs)
    shown = task_runs if show_all else _most_telling(task_runs)
    output.print_data("")
    output.print_fields([("Task runs", ", ".join(f"{count:,} {name}" for name, count in counts.most_common()))])
    output.print_table(
        ["TASK RUN", "STATE", "DURATION", "WORKER", "MESSAGE"], [_row(each) for each in shown], right=("DURATION",)
    )
    _note_left_out(len(task_runs) - len(shown))


def _most_telling(task_runs: Sequence[RunHistory]) -> list[RunHistory]:
    """Return the first that failed, then others that did not complete, then the rest: as many as fit, in call order."""
    from localflow.history import UNSUCCESSFUL
    from localflow.states import StateType

    def rank(task_run: RunHistory) -> int:
        type = task_run.state.type
        return (
            0 if type in UNSUCCESSFUL else 1 if type is StateType.RUNNING else 3 if type is StateType.COMPLETED else 2
        )

    chosen = sorted(task_runs, key=rank)[:_SHOWN_TASK_RUNS]
    return sorted(chosen, key=lambda task_run: task_run.run.number)


def _row(task_run: RunHistory) -> list[str | Cell]:
    state, execution = task_run.state, task_run.execution
    return [
        task_run.run.name,
        output.state_cell(state.type.value, state.name),
        output.duration(task_run.started_at, task_run.ended_at),
        execution.worker if execution else "",
        state.message,
    ]


def _note_left_out(count: int) -> None:
    if count > 0:
        output.print_data(f"... and {count:,} more; --all shows them")


# -- a task run ------------------------------------------------------------------------------------------------------


def _print_task_run(history: FlowRunHistory, task_run: RunHistory, result: object) -> None:
    view = history.task_run_json(task_run)
    execution = task_run.execution
    fields: list[Field] = [
        ("Task run", task_run.run.name),
        ("Id", task_run.run.id),
        ("Task", view["task"]),
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
    output.print_fields(fields)
    _print_traceback(task_run)
    output.print_data("")
    rows: list[list[str | Cell]] = [
        [output.local_time(moment.timestamp), output.state_cell(moment.type.value, moment.name), moment.message]
        for moment in task_run.moments
    ]
    output.print_table(["SINCE", "STATE", "MESSAGE"], rows)


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


def _print_traceback(history: RunHistory) -> None:
    if history.cause is not None and history.cause.traceback_text:
        output.print_data("")
        output.print_lines(history.cause.traceback_text, indent="    ")


def _value(value: object) -> str:
    from localflow.printable import shortened

    return shortened(output.compact_json(value), _SHOWN_VALUE)
