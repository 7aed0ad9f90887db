"""Flows as tests run them: the final state, and what was recorded on the way to it."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from localflow.flows import Flow
    from localflow.history import FlowRunHistory, RunHistory
    from localflow.interfaces import FlowRun, LogEntry, State
    from localflow.testing.harness import Harness


class FlowTestRun(NamedTuple):
    """A flow that has run."""

    state: State
    """Its final state."""
    flow_run: FlowRun
    harness: Harness

    def result(self) -> Any:
        """Return what the flow returned, or raise what it has failed with."""
        return self.state.result()

    def read(self) -> FlowRunHistory:
        """Return the flow run with its task runs."""
        return self.harness.read(self.flow_run.id)

    def task_run(self, name: str) -> RunHistory:
        """Return a task run such as `add-0` with all its state changes; raises RunNotFoundError."""
        return self.harness.task_run(name, self.flow_run.id)

    def history(self, name: str | None = None) -> list[str]:
        """Return the names of the states that a task run, or the flow run itself, was in."""
        return self.harness.history(name, self.flow_run.id)

    def logs(self, name: str | None = None) -> list[LogEntry]:
        """Return what the flow run and its task runs, or one of these, have said."""
        return self.harness.logs(name, self.flow_run.id)


class FlowRunner:
    """Runs flows; what the fixture `localflow_run` gives."""

    def __init__(self, harness: Harness) -> None:
        #: The runs of all flows of the test.
        self.harness = harness

    def __call__(self, flow: Flow[..., Any], *args: Any, **kwargs: Any) -> FlowTestRun:
        """Run a flow to its end; an async one in an event loop of its own.

        Raises:
            TypeError: the arguments are not those of the flow. Whatever fails in it is in its state.
        """
        known = {summary.flow_run.id for summary in self.harness.flow_runs()}
        returned = flow(*args, **kwargs)
        state: State = asyncio.run(_awaited(returned)) if inspect.isawaitable(returned) else returned
        recorded = (summary.flow_run for summary in self.harness.flow_runs())
        [flow_run] = [run for run in recorded if run.id not in known and run.id == run.root_id]
        return FlowTestRun(state, flow_run, self.harness)


async def _awaited(state: Awaitable[State]) -> State:
    return await state
