"""What is recorded of a flow run, for the attempt that takes it up where an earlier process has left it."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from localflow.code import is_changed
from localflow.earlier import EarlierRun, EarlierRuns
from localflow.errors import NotResumableError, RunClaimedError, RunNotFoundError, suggestion
from localflow.failpoints import reach
from localflow.interrupts import STOPS
from localflow.liveness import mark_claimed
from localflow.payloads import Stored
from localflow.records import FlowRun, StateChange, TaskRun
from localflow.states import (
    RunRef,
    State,
    StateType,
    type_and_text,
)
from localflow.strays import birth_of
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from localflow.interfaces import Claim, StateStore
    from localflow.payloads import Payload
    from localflow.records import FlowRunSummary


_SETTLING_SECONDS = 2.0
_SMALL_RESULT = 4096  # bytes that are kept rather than read again


class Again(NamedTuple):
    """Which runs are wanted to run again although they completed."""

    from_task: str | None = None
    """The name of a task or task run: it and all that was called after it."""
    patterns: Sequence[str] = ()
    """Patterns as of file names, for the names of tasks and task runs."""
    is_strict: bool = False
    """Whether it is an error if code or arguments of what completed have changed."""

    @property
    def wants_any(self) -> bool:
        """Whether anything is to run again."""
        return self.from_task is not None or bool(self.patterns)


class LeftFlow(NamedTuple):
    """A flow run as earlier processes have left it."""

    run: EarlierRun[FlowRun]
    task_runs: Sequence[EarlierRun[TaskRun]]


class Resumption:
    """What is recorded of a flow run and those below it, for the attempt that resumes them."""

    def __init__(self, store: StateStore, root: FlowRun, again: Again) -> None:
        """Read what is recorded.

        Raises:
            RunNotFoundError: no task run is what `again` names.
            StoreError: the store cannot be read.
        """
        self.is_strict = again.is_strict
        self._store = store
        self._patterns = again.patterns
        self._summaries: dict[str, FlowRunSummary] = {}
        self._children: defaultdict[str, list[FlowRun]] = defaultdict(list)
        for summary in reversed(store.list_flow_runs(root_id=root.id)):  # in the order of their calls
            self._summaries[summary.flow_run.id] = summary
            if summary.flow_run.parent_id is not None:
                self._children[summary.flow_run.parent_id].append(summary.flow_run)
        self._left: dict[str, LeftFlow] = {}
        self._all: EarlierRuns[TaskRun] | None = None
        self._since: float | None = None
        self._root = root
        if again.from_task is not None:
            wanted = again.from_task
            begun = [
                each.record.created_at for each in self.task_runs() if wanted in (each.record.name, each.record.task)
            ]
            if not begun:
                raise self._no_such(wanted)
            self._since = min(begun)
        for pattern in again.patterns:
            if not any(_matches(each.record, pattern) for each in self.task_runs()):
                raise self._no_such(pattern)

    def left(self, flow_run_id: str) -> LeftFlow:
        """Return what is recorded of one of the flow runs."""
        if flow_run_id not in self._left:
            self._left[flow_run_id] = _read(self._store, self._summaries[flow_run_id].flow_run)
        return self._left[flow_run_id]

    def earlier(self, flow_run_id: str) -> tuple[EarlierRuns[TaskRun], EarlierRuns[FlowRun]]:
        """Return the calls that one of the flow runs has made, of tasks and of flows."""
        runs: EarlierRuns[TaskRun] = EarlierRuns()
        for run in self.left(flow_run_id).task_runs:
            runs.add(run.record.task, run.record.ordinal, run)
        subflows: EarlierRuns[FlowRun] = EarlierRuns()
        counts: defaultdict[str, int] = defaultdict(int)
        for child in self._children[flow_run_id]:
            subflows.add(child.flow, counts[child.flow], self.left(child.id).run)
            counts[child.flow] += 1
        return runs, subflows

    def answer_flow(self, run: EarlierRun[FlowRun], inputs: str, code: str) -> State | None:
        """Return the state of a completed flow run that has called nothing, if it would be called in the same way.

        One that has called tasks or flows is called again, and they answer from the store.
        """
        record = run.record
        left = self.left(record.id)
        if not run.is_completed or left.task_runs or self._children[record.id]:
            return None
        if record.inputs != inputs or is_changed(code, record.code):
            return None
        return self.answer(run)

    def task_runs(self) -> Iterator[EarlierRun[TaskRun]]:
        """Yield the task runs of the flow run and of the flows it has called, in the order of their calls."""
        pending = [self._root.id]
        while pending:
            flow_run_id = pending.pop(0)
            yield from self.left(flow_run_id).task_runs
            pending += [child.id for child in self._children[flow_run_id]]

    def outdate(self, run_id: str) -> list[TaskRun]:
        """Do what `EarlierRuns.outdate` does for all flow runs of the tree."""
        if self._all is None:
            self._all = EarlierRuns()
            for run in self.task_runs():
                self._all.add(run.record.task, run.record.ordinal, run)
        return self._all.outdate(run_id)

    def ancestors(self, flow_run: FlowRun) -> Iterator[str]:
        """Yield the ids of a flow run and of those that have called it."""
        flow_run_id: str | None = flow_run.id
        while flow_run_id is not None and flow_run_id in self._summaries:
            yield flow_run_id
            flow_run_id = self._summaries[flow_run_id].flow_run.parent_id

    def is_wanted(self, run: TaskRun) -> bool:
        """Return whether a run that completed was asked to run again."""
        if self._since is not None and run.created_at >= self._since:
            return True
        return any(_matches(run, pattern) for pattern in self._patterns)

    def answer(self, run: EarlierRun[Any]) -> State | None:
        """Return the state that a run completed with, its data read when it is asked for; None if it is not there."""
        flow_run_id, number = run.record.flow_run.id, run.record.number
        payload = self._store.load_result(flow_run_id, number)
        if payload is None:
            return None
        if len(payload.data) <= _SMALL_RESULT:
            data = Stored(lambda: payload)
        else:
            data = Stored(lambda: self._reload(flow_run_id, number))
        ref = RunRef(flow_run_id, number, run.record.name)
        return State(run.type, run.name, run.message, data, instant=run.timestamp, run=ref)

    def _reload(self, flow_run_id: str, number: int) -> Payload:
        payload = self._store.load_result(flow_run_id, number)
        assert payload is not None  # it was there when the run was resumed
        return payload

    def _no_such(self, wanted: str) -> RunNotFoundError:
        names = {name for each in self.task_runs() for name in (each.record.name, each.record.task)}
        return RunNotFoundError(f"flow run '{self._root.name}' has no task run '{wanted}'{suggestion(wanted, names)}")


def _matches(run: TaskRun, pattern: str) -> bool:
    return fnmatchcase(run.name, pattern) or fnmatchcase(run.task, pattern)


def _read(store: StateStore, flow_run: FlowRun) -> LeftFlow:
    left: dict[int, EarlierRun[Any]] = {0: EarlierRun(flow_run)}
    for record in store.read(flow_run.id):
        if isinstance(record, TaskRun):
            left[record.number] = EarlierRun(record)
        elif isinstance(record, StateChange):
            run = left[record.run.number]
            run.sequence, run.type, run.name = record.sequence, record.type, record.name
            run.message, run.timestamp = record.message, record.timestamp
            if record.type is StateType.RUNNING:
                run.begun = max(run.begun, record.attempt)
    own = left.pop(0)
    return LeftFlow(own, list(left.values()))


@contextmanager
def claimed_run(
    store: StateStore, run: FlowRun, again: Again, tell: Callable[[Sequence[StateChange]], None]
) -> Iterator[tuple[FlowRun, Resumption]]:
    """Claim a flow run for the block, and give it with what is recorded of it; mark it as lost if it was.

    Raises:
        RunClaimedError: another process is running it.
        NotResumableError: there is nothing to resume.
    """
    refuse_incomplete(run)
    if run.parent_id is not None:
        raise NotResumableError(f"flow run '{run.name}' is part of another one; resume that: its id is {run.root_id}")
    claim = _claim(store, run)
    try:
        reach("claimed-run")
        found = [each for each in store.list_flow_runs(root_id=run.id) if each.flow_run.id == run.id]
        if not found:
            raise RunNotFoundError(f"flow run '{run.name}' has been removed from {store.location}")
        summary = found[0]
        lost = mark_claimed(store, run.id)
        if lost:
            tell(lost)
        elif summary.change is not None and summary.change.type is StateType.COMPLETED and not again.wants_any:
            raise NotResumableError(
                f"flow run '{run.name}' is {summary.change.name}, there is nothing to resume; --from TASK or "
                "--rerun PATTERN runs parts of it again"
            )
        yield summary.flow_run, Resumption(store, summary.flow_run, again)
    finally:
        claim.release()


def refuse_incomplete(run: FlowRun) -> None:
    """Raise NotResumableError for a flow run of which only a part has been copied to this store."""
    if run.is_incomplete_copy:
        raise NotResumableError(f"flow run '{run.name}' is an incomplete copy; repeat: localflow store copy FROM TO")


def _claim(store: StateStore, run: FlowRun) -> Claim:
    """Return the claim on a flow run.

    Who only marks a lost run holds the claim for moments, and who has just taken it is about to record that: so if the
    process that is recorded is dead, look again.
    """
    deadline = time.monotonic() + _SETTLING_SECONDS
    while (claim := store.claim(run.id)) is None:
        pid, since = _holder(store, run)
        if birth_of(pid) or time.monotonic() > deadline:
            raise RunClaimedError(run.name, pid, since)
        time.sleep(0.02)
    return claim


def _holder(store: StateStore, run: FlowRun) -> tuple[int, str]:
    """Return the pid of who executes a flow run, and since when."""
    for summary in store.list_flow_runs(root_id=run.id):
        if summary.flow_run.id == run.id:
            since = summary.change.timestamp if summary.change is not None else summary.flow_run.created_at
            return summary.flow_run.pid, datetime.fromtimestamp(since, UTC).isoformat(sep=" ", timespec="seconds")
    return run.pid, "?"


def stored_parameters(run: FlowRun) -> dict[str, Any]:
    """Return the parameters that a flow run was called with.

    Raises:
        NotResumableError: they were not kept, or cannot be had here.
    """
    payload = run.arguments
    if payload is None:
        raise NotResumableError(
            f"flow run '{run.name}' cannot be resumed: its parameters could not be pickled, so they are not recorded; "
            "run the flow anew"
        )
    try:
        parameters: dict[str, Any] = Stored(lambda: payload).get()
    except STOPS:
        raise
    except BaseException as error:  # unpickling runs code of the user's
        raise NotResumableError(
            f"flow run '{run.name}' cannot be resumed: its parameters cannot be unpickled: {type_and_text(error)}"
        ) from error
    return parameters
