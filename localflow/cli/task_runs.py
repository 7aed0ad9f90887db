"""Tables of task runs: those of a `map` call on one line, with the ones that did not complete below it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from localflow.cli import output
from localflow.history import MapGroup, grouped, state_counts
from localflow.states import StateType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from localflow.cli.output import Cell
    from localflow.history import RunHistory

SHOWN_TASK_RUNS = 1000
_SHOWN_MEMBERS = 10

# What a reader looks for, first things first.
_RANKS = {
    StateType.FAILED: 0,
    StateType.CRASHED: 0,
    StateType.CANCELLED: 0,
    StateType.RUNNING: 1,
    StateType.CANCELLING: 1,
    StateType.PENDING: 2,
    StateType.SCHEDULED: 2,
    StateType.COMPLETED: 3,
}


class _Row(NamedTuple):
    """A line of the table."""

    type: StateType
    name: str
    state: str
    duration: str
    attempt: int = 1
    worker: str = ""
    message: str = ""

    def cells(self, with_attempt: bool) -> list[str | Cell]:
        attempt = [str(self.attempt) if self.attempt > 1 else ""] if with_attempt else []
        state = output.state_cell(self.type.value, self.state)
        return [self.name, state, *attempt, self.duration, self.worker, self.message]


def print_task_runs(task_runs: Sequence[RunHistory], show_all: bool) -> None:
    """Print how many task runs are in which state, and a table of the most telling of them, or of all."""
    output.print_data("")
    output.print_fields([("Task runs", counts_text(state_counts(task_runs)))])
    rows: list[_Row] = []
    for entry in grouped(task_runs):
        rows += _group_rows(entry, show_all) if isinstance(entry, MapGroup) else [_row(entry)]
    _print(rows, show_all)


def print_members(task_runs: Sequence[RunHistory], show_all: bool) -> None:
    """Print a table of the task runs of `map` calls, each on a line of its own."""
    output.print_data("")
    _print([_row(task_run) for task_run in task_runs], show_all)


def counts_text(counts: Counter[tuple[StateType, str]]) -> str:
    """Return how many runs are in which state, most frequent first."""
    names: Counter[str] = Counter()
    for (_, name), count in counts.items():
        names[name] += count
    return ", ".join(f"{count:,} {name}" for name, count in names.most_common())


def note_left_out(count: int) -> None:
    """Say that a list is not all there is."""
    if count > 0:
        output.print_data(f"... and {count:,} more; --all shows them")


def _print(rows: Sequence[_Row], show_all: bool) -> None:
    shown = rows
    if not show_all and len(rows) > SHOWN_TASK_RUNS:
        chosen = sorted(range(len(rows)), key=lambda place: _RANKS[rows[place].type])[:SHOWN_TASK_RUNS]
        shown = [rows[place] for place in sorted(chosen)]
    with_attempt = any(row.attempt > 1 for row in shown)
    headings = ["TASK RUN", "STATE", *(["ATTEMPT"] if with_attempt else []), "DURATION", "WORKER", "MESSAGE"]
    output.print_table(headings, [row.cells(with_attempt) for row in shown], right=("ATTEMPT", "DURATION"))
    note_left_out(len(rows) - len(shown))


def _group_rows(group: MapGroup, show_all: bool) -> list[_Row]:
    members = group.members if show_all else group.unsuccessful
    shown = members if show_all else members[:_SHOWN_MEMBERS]
    counts = group.counts
    worst = min((type for type, _ in counts), key=_RANKS.__getitem__)
    rows = [_Row(worst, group.label, counts_text(counts), _span(group.members)), *(_row(each, "  ") for each in shown)]
    if len(members) > len(shown):
        left_out = members[len(shown) :]
        rows.append(_Row(left_out[0].state.type, "  ...", counts_text(state_counts(left_out)), ""))
    return rows


def _row(history: RunHistory, indent: str = "") -> _Row:
    state, execution = history.state, history.execution
    return _Row(
        state.type,
        f"{indent}{history.run.name}",
        state.name,
        output.duration(history.started_at, history.ended_at),
        history.attempt,
        execution.worker if execution else "",
        state.message,
    )


def _span(members: Iterable[RunHistory]) -> str:
    """Return the time from the first start to the last end."""
    started = [member.started_at for member in members if member.started_at is not None]
    ended = [member.ended_at for member in members if member.ended_at is not None]
    return output.duration(min(started), max(ended)) if started and ended else ""
