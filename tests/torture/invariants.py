"""What must be true of the store, the oracle and the folder after every kill, whatever was killed and when."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from localflow.interfaces import StateChange, StateType, StoreError, TaskRun
from localflow.payloads import Stored
from tests.torture.workload import digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from localflow.interfaces import FlowRunSummary, Payload, StateStore
    from tests.torture.place import Place

LOST = ("EngineLost", "WorkerLost")

#: Which state a run may enter from which, by their names; the flow run itself among them.
LEGAL = {
    "Pending": {"Running", "NotReady", "EngineLost"},
    "Running": {"Completed", "Failed", "AwaitingRetry", *LOST},
    "Retrying": {"Completed", "Failed", "AwaitingRetry", *LOST},
    "AwaitingRetry": {"Retrying", "EngineLost"},
    "EngineLost": {"Retrying", "Running", "NotReady"},
    "WorkerLost": {"Retrying", "Running", "AwaitingRetry", "NotReady"},
    "Failed": {"Retrying", "Running", "NotReady"},
    "NotReady": {"Running", "NotReady", "Retrying"},
    "Completed": set[str](),
}


class RecordedRun(NamedTuple):
    """A task run or flow run as the store has it."""

    id: str
    name: str
    flow_run_id: str
    number: int
    changes: list[StateChange]

    @property
    def state(self) -> str:
        """The name of the newest state."""
        return self.changes[-1].name if self.changes else "Pending"

    @property
    def is_completed(self) -> bool:
        """Whether it has COMPLETED."""
        return bool(self.changes) and self.changes[-1].type is StateType.COMPLETED


class Recorded:
    """All that the store has of the one run of a place."""

    def __init__(self, store: StateStore, place: Place) -> None:
        self.problems = store.check()
        self.summaries = [each for each in store.list_flow_runs() if place.is_own(each.flow_run)]
        self.flow_runs: dict[str, RecordedRun] = {}
        """By the names of flows."""
        self.task_runs: dict[str, RecordedRun] = {}
        """By name."""
        self.by_id: dict[str, RecordedRun] = {}
        self.results: dict[str, str] = {}
        """Digests of the results of what has COMPLETED, by name; why there is none where it could not be had."""
        for summary in self.summaries:
            self._read(store, summary)

    @property
    def root(self) -> FlowRunSummary | None:
        """The flow run at the top, if it is there."""
        return next((each for each in self.summaries if each.flow_run.parent_id is None), None)

    @property
    def completed(self) -> set[str]:
        """The names of the task runs that have COMPLETED."""
        return {name for name, run in self.task_runs.items() if run.is_completed}

    def _read(self, store: StateStore, summary: FlowRunSummary) -> None:
        flow_run = summary.flow_run
        by_number: dict[int, RecordedRun] = {}
        for record in store.read(flow_run.id):
            if isinstance(record, StateChange):
                by_number[record.run.number].changes.append(record)
            elif isinstance(record, TaskRun):
                run = RecordedRun(record.id, record.name, flow_run.id, record.number, [])
                by_number[record.number] = self.task_runs[record.name] = run
            else:
                run = RecordedRun(flow_run.id, flow_run.flow, flow_run.id, 0, [])
                by_number[0] = self.flow_runs[flow_run.flow] = run
        for run in by_number.values():
            self.by_id[run.id] = run
            if run.is_completed:
                try:
                    payload = store.load_result(flow_run.id, run.number)
                    self.results[run.name] = digest_of(payload) if payload is not None else "there is no result"
                except StoreError as error:
                    self.results[run.name] = str(error)


def digest_of(payload: Payload) -> str:
    """Return the digest of a result, as the workload makes it of the value."""
    return digest(Stored(lambda: payload).get())


# -- before anybody has marked what was lost ------------------------------------------------------------------------


def shown_is_stored(recorded: Recorded, place: Place) -> Iterator[str]:
    """Yield what was shown, told or begun although the store does not know of it."""
    for name, digests in place.acks().items():
        run = recorded.task_runs.get(name)
        if run is None or not run.is_completed:
            yield f"{name} was shown COMPLETED, the store has it {run.state if run else 'not at all'}"
        elif digests != {recorded.results.get(name)}:
            yield f"{name} was shown with {digests}, the store has {recorded.results.get(name)}"
    for run_id, sequence, state in place.told():
        run = recorded.by_id.get(run_id)
        if run is None and not place.is_alone:  # whoever looks marks the lost runs of others
            continue
        stored = [change.name for change in run.changes if change.sequence == sequence] if run else []
        if stored != [state]:
            yield f"a notifier was told that {run.name if run else run_id} is {state}, the store has {stored}"
    for note in place.oracle():
        run = recorded.task_runs.get(note.name)
        if run is None or note.attempt not in _begun(run):
            yield f"attempt {note.attempt} of {note.name} has begun, the store does not know of it"


def _begun(run: RecordedRun) -> list[int]:
    return [change.attempt for change in run.changes if change.type is StateType.RUNNING]


def is_sound(recorded: Recorded, expected: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with the store itself: damage, results, transitions, numbers."""
    yield from recorded.problems
    for name, result in recorded.results.items():
        if result != expected.get(name):
            yield f"the result of {name} is not {expected.get(name)}: {result}"
    for run in recorded.by_id.values():
        before = "Pending"
        for expected_sequence, change in enumerate(run.changes, 1):
            if change.sequence != expected_sequence:
                yield f"{run.name}: change {expected_sequence} has sequence {change.sequence}"
            if change.previous != before:
                yield f"{run.name}: from {before} to {change.name}, recorded as from {change.previous}"
            # A subflow that called tasks is called again in a resumed run; its tasks answer from the store.
            is_called_again = run.number == 0 and (before, change.name) == ("Completed", "Retrying")
            if change.name not in LEGAL.get(before, ()) and not is_called_again:
                yield f"{run.name} went from {before} to {change.name}"
            before = change.name
        begun = _begun(run)
        if begun != sorted(set(begun)):
            yield f"{run.name}: attempts {begun}"


def ran_as_recorded(recorded: Recorded, place: Place) -> Iterator[str]:
    """Yield attempts that ran twice, and completed task runs whose attempt did not run."""
    notes = Counter(place.oracle())
    for note, count in notes.items():
        if count > 1:
            yield f"attempt {note.attempt} of {note.name} {'began' if note.kind == 'S' else 'ended'} {count} times"
    ended = {(note.name, note.attempt) for note in notes if note.kind == "E"}
    for name in recorded.completed:
        attempt = recorded.task_runs[name].changes[-1].attempt
        if (name, attempt) not in ended:
            yield f"{name} is COMPLETED in attempt {attempt}, which never ended by its own log"


# -- afterwards ------------------------------------------------------------------------------------------------------


def lost_is_marked(recorded: Recorded, place: Place) -> Iterator[str]:
    """Yield attempts that ended and are neither COMPLETED nor marked as lost, and all that is RUNNING still."""
    for note in place.oracle():
        run = recorded.task_runs.get(note.name)
        outcomes = [change.name for change in run.changes if change.attempt == note.attempt] if run else []
        if note.kind == "E" and not {"Completed", *LOST} & set(outcomes):
            yield f"attempt {note.attempt} of {note.name} has ended, the store has {outcomes}"
    for run in recorded.by_id.values():
        if run.state in ("Running", "Retrying", "AwaitingRetry"):
            yield f"{run.name} is {run.state} though nobody runs it"


def fingerprint(recorded: Recorded) -> str:
    """Return what tells what is stored from anything else, for messages."""
    text = repr([(run.id, [change[1:5] for change in run.changes]) for run in recorded.by_id.values()])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
