"""Calls that an earlier attempt of a flow has made, each to be taken by the call of this attempt that it belongs to.

Calls are told apart by the name of what they call, their place among the calls of that name, and their inputs. The
place alone would not do: what a flow calls when something else is done comes in another order each time. So a call
takes the run at its place if that had the same inputs; else any run that had them; and a run that had others only if
that has not completed, so that nothing is lost. Vague inputs, of which something could not be looked at, are the same
only at the same place.
"""

from __future__ import annotations

from collections import defaultdict, deque
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

from localflow.code import is_changed
from localflow.inputs import VAGUE
from localflow.records import FlowRun, TaskRun
from localflow.states import StateType
from localflow.upstreams import MANY

if TYPE_CHECKING:
    from localflow.futures import TaskFuture
    from localflow.states import State

#: In the place of a task run's code: what it was built on has run again since it completed.
OUTDATED = "outdated"

_LOOKED_AT = 100  # runs with the same inputs, for one whose code is the same as well

R = TypeVar("R", TaskRun, FlowRun)


class EarlierRun(Generic[R]):
    """A run as an earlier attempt of its flow has left it."""

    __slots__ = ("begun", "future", "is_taken", "message", "name", "record", "sequence", "state", "timestamp", "type")

    def __init__(self, record: R) -> None:
        self.record: R = record
        self.sequence = 0
        self.begun = 0
        """The number of its last attempt that began; 0 if none did."""
        self.type = StateType.PENDING
        self.name = "Pending"
        self.message = ""
        self.timestamp = record.created_at
        self.future: TaskFuture[object] | None = None
        """Of a task run of this process, which stands for the call itself."""
        self.state: State | None = None
        """Of a flow run of this process."""
        self.is_taken = False

    @property
    def is_completed(self) -> bool:
        """Whether its newest state is COMPLETED."""
        return self.type is StateType.COMPLETED


class EarlierRuns(Generic[R]):
    """Runs of earlier attempts, by what they are runs of."""

    def __init__(self) -> None:
        self.highest_number = 0
        self._by_place: dict[tuple[str, int], EarlierRun[R] | None] = {}
        self._completed: defaultdict[tuple[str, str], deque[EarlierRun[R]]] = defaultdict(deque)
        self._others: defaultdict[tuple[str, str], deque[EarlierRun[R]]] = defaultdict(deque)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._dependents: defaultdict[str, list[EarlierRun[R]]] = defaultdict(list)
        self._dependents_of_many: dict[tuple[str, ...], list[EarlierRun[R]]] = {}
        """Runs with many upstreams, by these: others have the same."""

    def add(self, name: str, ordinal: int, run: EarlierRun[R]) -> None:
        """Add a run of the task or flow `name`, the one at this place among its runs."""
        self._by_place[name, ordinal] = run
        (self._completed if run.is_completed else self._others)[name, run.record.inputs].append(run)
        self._counts[name] = max(self._counts[name], ordinal + 1)
        self.highest_number = max(self.highest_number, run.record.number)
        if isinstance(run.record, TaskRun):
            upstreams = run.record.upstreams
            if len(upstreams) < MANY:
                for upstream in upstreams:
                    self._dependents[upstream].append(run)
            else:
                self._dependents_of_many.setdefault(upstreams, []).append(run)

    def take(
        self, name: str, ordinal: int, inputs: str, code: str = "", *, prefers_completed: bool = False
    ) -> EarlierRun[R] | None:
        """Return the run that a call continues or is answered by, None if it is a new one; each is taken once."""
        there = self._by_place.get((name, ordinal))
        if there is not None and there.is_taken:
            there = None
        is_same = there is not None and there.record.inputs in (inputs, "")
        if there is not None and is_same:
            suits = not is_changed(code, there.record.code) and (there.is_completed or not prefers_completed)
        else:
            suits = False
        if not suits and not inputs.endswith(VAGUE):
            found = _next(self._completed.get((name, inputs)), code)
            if found is None and not is_same:
                found = _next(self._completed.get((name, inputs))) or _next(self._others.get((name, inputs)))
            if found is not None:
                there, is_same = found, True
        if there is not None and not is_same and there.is_completed:
            there = None
        if there is not None:
            there.is_taken = True
        return there

    def outdate(self, run_id: str) -> list[R]:
        """Note that a run is run again, and return the new records of completed ones that were built on what it gave.

        They are to be recorded with its new attempt: another interruption may come before they have run again.
        """
        outdated: list[R] = []
        dependents = self._dependents.pop(run_id, [])
        for many in [each for each in self._dependents_of_many if run_id in each]:
            dependents += self._dependents_of_many.pop(many)
        for run in dependents:
            if run.is_completed and run.record.code != OUTDATED:
                run.record = run.record._replace(code=OUTDATED)
                outdated.append(run.record)
        return outdated

    def at(self, name: str, ordinal: int) -> EarlierRun[R] | None:
        """Return the run at a place, taken or not."""
        return self._by_place.get((name, ordinal))

    def free_ordinal(self, name: str, ordinal: int) -> int:
        """Return a place for a new run: this one if it is free, else the first after all others."""
        if (name, ordinal) in self._by_place:
            ordinal = self._counts[name]
        self._by_place[name, ordinal] = None
        self._counts[name] = max(self._counts[name], ordinal + 1)
        return ordinal

    def untaken(self) -> list[tuple[str, int, EarlierRun[R]]]:
        """Return the runs that no call has taken, with what they were added by."""
        return [
            (name, ordinal, run)
            for (name, ordinal), run in self._by_place.items()
            if run is not None and not run.is_taken
        ]


def _next(runs: deque[EarlierRun[R]] | None, code: str = "") -> EarlierRun[R] | None:
    """Return the first run that is not taken, of those with the same code if one is given."""
    while runs and runs[0].is_taken:
        runs.popleft()
    for run in islice(runs or (), _LOOKED_AT):
        if not (run.is_taken or is_changed(code, run.record.code)):
            return run
    return None
