"""Tables of task runs: those of a `map` call on one line, with the ones that did not complete below it."""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import chain, islice, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from localflow.cli import output
from localflow.history import UNSUCCESSFUL, map_label
from localflow.records import TaskRun
from localflow.states import NOT_READY, StateType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from localflow.cli.output import Cell
    from localflow.history import RunHistory
    from localflow.records import Standing

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


class _Line(NamedTuple):
    """A line of the table before the task runs that it tells of are read."""

    place: tuple[int, int]
    """Where it stands: the number of the task run, or of the first of a `map` call, and the place below that."""
    type: StateType
    numbers: tuple[int, ...]
    """The task run; the first and the last of a `map` call."""
    counts: Counter[tuple[StateType, str]] | None = None
    """How many task runs of a `map` call are in which state, where the line is about several."""
    duration: str = ""

    @property
    def rank(self) -> tuple[int, tuple[int, int]]:
        return _RANKS[self.type], self.place

    def row(self, histories: Mapping[int, RunHistory]) -> _Row:
        found = [histories[number] for number in self.numbers]
        if self.counts is None:
            return _row(found[0], "  " if self.place[1] else "")
        runs = [history.run for history in found if isinstance(history.run, TaskRun)]
        label = map_label(runs[0], runs[-1]) if runs else "  ..."
        return _Row(self.type, label, counts_text(self.counts), self.duration)


def print_task_runs(
    standings: Sequence[Standing], read: Callable[[Iterable[int]], Iterable[RunHistory]], show_all: bool
) -> None:
    """Print how many task runs are in which state, and a table of the most telling of them, or of all.

    Args:
        standings: how the task runs stand.
        read: returns the task runs of some numbers; it is asked for those that the table shows.
        show_all: show every task run.
    """
    output.print_data("")
    output.print_fields([("Task runs", counts_text(_counts(standings)))])
    single = [standing for standing in standings if not standing.map_number]
    maps: dict[int, list[Standing]] = {}
    for standing in standings:
        if standing.map_number:
            maps.setdefault(standing.map_number, []).append(standing)
    lines = [line for group in maps.values() for line in _map_lines(group, show_all)]
    count = len(lines) + sum(standing.size for standing in single)
    limit = count if show_all else SHOWN_TASK_RUNS
    for standing in single:
        numbers = islice(chain.from_iterable(standing.numbers), limit)
        lines += [_Line((number, 0), standing.type, (number,)) for number in numbers]
    shown = sorted(heapq.nsmallest(limit, lines, key=lambda line: line.rank))
    needed = {number for line in shown for number in line.numbers}
    histories = {history.run.number: history for history in read(needed)}
    _print([line.row(histories) for line in shown])
    note_left_out(count - len(shown))


def _map_lines(group: Sequence[Standing], show_all: bool) -> Iterator[_Line]:
    """Yield the lines of a `map` call: itself, those of its task runs that did not complete, and how many more."""
    first = min(standing.numbers[0].start for standing in group)
    last = max(standing.numbers[-1].stop for standing in group) - 1
    worst = min((standing.type for standing in group), key=_RANKS.__getitem__)
    yield _Line((first, 0), worst, (first, last), _counts(group), _span(group))
    told = [standing for standing in group if show_all or _is_unsuccessful(standing)]
    members = heapq.merge(*(zip(chain.from_iterable(each.numbers), repeat(each)) for each in told), key=itemgetter(0))
    place = 0
    for place, (number, standing) in enumerate(islice(members, None if show_all else _SHOWN_MEMBERS), 1):
        yield _Line((first, place), standing.type, (number,))
    left_out = [standing for _, standing in members]
    if left_out:
        yield _Line((first, place + 1), left_out[0].type, (), Counter((each.type, each.name) for each in left_out))


def _is_unsuccessful(standing: Standing) -> bool:
    """Return whether the task runs failed, crashed, were cancelled or never ran."""
    return standing.type in UNSUCCESSFUL or (standing.type is StateType.PENDING and standing.name == NOT_READY)


def _counts(standings: Iterable[Standing]) -> Counter[tuple[StateType, str]]:
    counts: Counter[tuple[StateType, str]] = Counter()
    for standing in standings:
        counts[standing.type, standing.name] += standing.size
    return counts


def print_members(task_runs: Sequence[RunHistory], show_all: bool) -> None:
    """Print a table of the task runs of `map` calls, each on a line of its own."""
    output.print_data("")
    limit = len(task_runs) if show_all else SHOWN_TASK_RUNS
    places = heapq.nsmallest(
        limit, range(len(task_runs)), key=lambda place: (_RANKS[task_runs[place].state.type], place)
    )
    _print([_row(task_runs[place]) for place in sorted(places)])
    note_left_out(len(task_runs) - len(places))


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


def _print(rows: Sequence[_Row]) -> None:
    with_attempt = any(row.attempt > 1 for row in rows)
    headings = ["TASK RUN", "STATE", *(["ATTEMPT"] if with_attempt else []), "DURATION", "WORKER", "MESSAGE"]
    output.print_table(headings, [row.cells(with_attempt) for row in rows], right=("ATTEMPT", "DURATION"))


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


def _span(standings: Sequence[Standing]) -> str:
    """Return the time from the first start to the last end."""
    started = [standing.started_at for standing in standings if standing.started_at is not None]
    ended = [standing.ended_at for standing in standings if standing.ended_at is not None]
    return output.duration(min(started), max(ended)) if started and ended else ""
