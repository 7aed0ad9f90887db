"""A flow run summed up from its state changes: the same in every built-in store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow.interfaces import FlowRunSummary, StateType
from localflow.states import FINAL_TYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.interfaces import FlowRun, StateChange


def summarise(flow_run: FlowRun, changes: Sequence[StateChange]) -> FlowRunSummary:
    """Return the summary of a flow run, as it was recorded last, from its own state changes in their sequence."""
    if not changes:
        return FlowRunSummary(flow_run, None)
    newest = changes[-1]._replace(run=flow_run)
    started_at = next((change.timestamp for change in changes if change.type is StateType.RUNNING), None)
    ended_at = newest.timestamp if newest.type in FINAL_TYPES else None
    return FlowRunSummary(flow_run, newest, started_at, ended_at)
