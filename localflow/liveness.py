"""Marks the runs whose engine is gone.

Whether an engine lives is asked of the operating system, by the claim that it has on its flow run; never of the clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow.records import FlowRun, StateChange, TaskRun
from localflow.states import (
    ENGINE_LOST,
    FINAL_TYPES,
    NOT_READY,
    Cause,
    StateType,
    engine_lost_message,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow.interfaces import StateStore


def mark_lost(store: StateStore) -> list[StateChange]:
    """Mark all unfinished flow runs whose engine is gone, with their open attempts, CRASHED `EngineLost`.

    Returns:
        What has been recorded, for the notifiers.

    Raises:
        StoreError: the store cannot be read or written.
    """
    if not store.survives:
        return []
    changes: list[StateChange] = []
    unfinished = [summary.flow_run for summary in store.list_flow_runs(unfinished=True)]
    incomplete = {flow_run.id for flow_run in unfinished if flow_run.is_incomplete_copy}  # it never had an engine here
    for root_id in dict.fromkeys(flow_run.root_id for flow_run in unfinished):
        if root_id in incomplete:
            continue
        claim = store.claim(root_id)
        if claim is not None:
            try:
                changes += mark_claimed(store, root_id)
            finally:
                claim.release()
    return changes


def mark_claimed(store: StateStore, root_id: str) -> list[StateChange]:
    """Mark what is unfinished of a flow run, on which the caller has the claim, and of those below it."""
    changes: list[StateChange] = []
    for summary in store.list_flow_runs(root_id=root_id):  # newest first, so what is below comes before what is above
        if summary.change is None or not _has_ended(summary.change):
            changes += _lost_runs(store, summary.flow_run)
    if changes:
        store.append(changes)
    return changes


def _has_ended(change: StateChange) -> bool:
    return change.type in FINAL_TYPES or (change.type is StateType.PENDING and change.name == NOT_READY)


def _lost_runs(store: StateStore, flow_run: FlowRun) -> Iterator[StateChange]:
    """Yield the changes that end the open attempts of a flow run, and the flow run itself at last.

    They bear the time of the last sign of life: nobody knows the moment of the engine's death.
    """
    newest: dict[int, StateChange] = {}
    for record in store.read(flow_run.id):
        if isinstance(record, StateChange):
            newest[record.run.number] = record
    last_sign = max((change.timestamp for change in newest.values()), default=flow_run.created_at)
    own = newest.pop(0, None)
    for change in newest.values():
        if change.type in (StateType.RUNNING, StateType.SCHEDULED, StateType.CANCELLING):
            yield _lost(change.run, change, last_sign, flow_run.pid)
    yield _lost(flow_run, own, last_sign, flow_run.pid)


def _lost(run: FlowRun | TaskRun, before: StateChange | None, timestamp: float, pid: int) -> StateChange:
    message = engine_lost_message(pid)
    return StateChange(
        run, before.sequence + 1 if before else 1, StateType.CRASHED, ENGINE_LOST, message, timestamp,
        before.name if before else "Pending", before.attempt if before else 1,
        cause=Cause("engine", message=message, pid=pid),
    )  # fmt: skip
