"""Task runs by the state they are in, in a form that stays small however many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow.records import FlowRun, Standing, StateChange, TaskRun
from localflow.states import FINAL_TYPES, StateType

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from localflow.records import Record


class Standings:
    """Gathers task runs, given in the order of their numbers."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, StateType, str], _Members] = {}

    def add(
        self,
        number: int,
        map_number: int,
        type: StateType,
        name: str,
        started_at: float | None,
        ended_at: float | None,
    ) -> None:
        """Add a task run with its newest state."""
        members = self._found.get((map_number, type, name))
        if members is None:
            members = self._found[map_number, type, name] = _Members(number)
        if number != members.stop:
            members.ranges.append(range(members.start, members.stop))
            members.start = number
        members.stop = number + 1
        if started_at is not None and (members.started_at is None or started_at < members.started_at):
            members.started_at = started_at
        if ended_at is not None and (members.ended_at is None or ended_at > members.ended_at):
            members.ended_at = ended_at

    def as_list(self) -> list[Standing]:
        """Return what was gathered, in the order in which the first of each were added."""
        return [
            Standing(*key, (*of.ranges, range(of.start, of.stop)), of.started_at, of.ended_at)
            for key, of in self._found.items()
        ]


class _Members:
    __slots__ = ("ended_at", "ranges", "start", "started_at", "stop")

    def __init__(self, number: int) -> None:
        self.ranges: list[range] = []
        self.start = self.stop = number
        self.started_at: float | None = None
        self.ended_at: float | None = None


def standings_of(records: Iterable[Record]) -> list[Standing]:
    """Return the standings of the task runs among a flow run's records."""
    task_runs: dict[int, TaskRun] = {}
    changes: dict[int, list[StateChange]] = {}
    for record in records:
        if isinstance(record, TaskRun):
            task_runs[record.number] = record
        elif isinstance(record, StateChange):
            changes.setdefault(record.run.number, []).append(record)
    standings = Standings()
    for number, task_run in task_runs.items():
        own = changes.get(number, ())
        state = (own[-1].type, own[-1].name) if own else (StateType.PENDING, "Pending")
        standings.add(number, task_run.map_number, *state, first_start(own), last_end(own))
    return standings.as_list()


def chosen(records: Iterable[Record], numbers: Collection[int], called: str | None) -> Iterator[Record]:
    """Yield of a flow run's records those of the runs with these numbers, and of the task runs called like that."""
    found = set(numbers)
    for record in records:
        if isinstance(record, StateChange):
            if record.run.number in found:
                yield record
            continue
        if isinstance(record, TaskRun) and called is not None and called in (record.name, record.task):
            found.add(record.number)
        if isinstance(record, (FlowRun, TaskRun)) and record.number in found:
            yield record


def ranges_of(numbers: Iterable[int]) -> list[range]:
    """Return numbers as ranges, in ascending order."""
    ranges: list[range] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1].stop:
            ranges[-1] = range(ranges[-1].start, number + 1)
        else:
            ranges.append(range(number, number + 1))
    return ranges


def first_start(changes: Iterable[StateChange]) -> float | None:
    """Return when a run started, in its first attempt, from all its changes."""
    running_at: float | None = None
    for change in changes:
        if change.execution is not None and change.execution.started_at is not None:
            return change.execution.started_at
        if running_at is None and change.type is StateType.RUNNING:
            running_at = change.timestamp
    return running_at


def last_end(changes: Sequence[StateChange]) -> float | None:
    """Return when a run ended, in its last attempt, from all its changes; None if it has not."""
    if not changes or changes[-1].type not in FINAL_TYPES:
        return None
    execution = changes[-1].execution
    return execution.ended_at if execution and execution.ended_at is not None else changes[-1].timestamp
