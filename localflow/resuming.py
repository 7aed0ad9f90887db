"""A flow run at the top of its tree, taken up where an earlier process has left it."""

from __future__ import annotations

from contextlib import contextmanager
from inspect import unwrap
from typing import TYPE_CHECKING, Any

from localflow.context import current_run
from localflow.errors import NotResumableError
from localflow.plans import codes_of_tasks, make_plan
from localflow.project import Project
from localflow.recovery import Again, claimed_run, stored_parameters
from localflow.references import find_flow_run
from localflow.roots import FinishedRun, begun, run_to_end
from localflow.tags import tags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.flow_runs import FlowCall
    from localflow.flows import Flow
    from localflow.interfaces import StateStore
    from localflow.notifications import Notifications
    from localflow.plans import Plan
    from localflow.records import FlowRun
    from localflow.states import State


def resume_flow(flow: Flow[..., Any], run_id: str, from_task: str | None, rerun: tuple[str, ...]) -> Any:
    """Resume a flow run in the project of the working directory, as `Flow.resume` tells it."""
    if current_run() is not None:
        raise NotResumableError("a flow run is resumed by a program of its own, not by a flow or task")
    again = Again(from_task, rerun)
    if flow.is_async:
        return _resume_async(flow, run_id, again)
    with _own_run(flow, run_id, again) as call:
        return call.run()


async def _resume_async(flow: Flow[..., Any], run_id: str, again: Again) -> State:
    with _own_run(flow, run_id, again) as call:
        return await call.run_async()


def execute_again(
    flow: Flow[..., Any],
    project: Project,
    store: StateStore,
    run: FlowRun,
    again: Again | None = None,
    on_plan: Callable[[Plan], bool] | None = None,
    on_start: Callable[[FlowRun], None] | None = None,
    executor: str | None = None,
) -> FinishedRun | None:
    """Take up a flow run where it has ended, otherwise like `Flow.execute`.

    Args:
        flow: the flow.
        project: where executors and notifiers come from.
        store: where the flow run is recorded.
        run: the flow run.
        again: what is to run again although it completed.
        on_plan: told what is going to happen; nothing happens if it returns False.
        on_start: told of the flow run once it is recorded that it goes on.
        executor: the name of an executor, in the place of the one that the flow run had.

    Returns:
        None if `on_plan` has returned False.

    Raises:
        RunClaimedError: another process is running it.
        NotResumableError: it completed, it is part of another one, or its parameters were not kept.
    """
    notifications = project.make_notifications()
    try:
        with _taken_up(flow, project, store, run, again or Again(), notifications, on_plan, on_start, executor) as call:
            if call is None:
                return None
            state = run_to_end(call)
    finally:
        failed = notifications.close()
    return FinishedRun(call.record, state, failed, call.active.incomplete())


@contextmanager
def _own_run(flow: Flow[..., Any], run_id: str, again: Again) -> Iterator[FlowCall]:
    """Give what is needed to resume a flow run in the project of the working directory."""
    project = Project.current()
    with project.opened_store() as store:
        run = find_flow_run(store, run_id).flow_run
        notifications = project.make_notifications()
        try:
            with _taken_up(flow, project, store, run, again, notifications) as call:
                assert call is not None  # nobody has asked for the plan
                yield call
        finally:
            notifications.close()


@contextmanager
def _taken_up(
    flow: Flow[..., Any],
    project: Project,
    store: StateStore,
    run: FlowRun,
    again: Again,
    notifications: Notifications,
    on_plan: Callable[[Plan], bool] | None = None,
    on_start: Callable[[FlowRun], None] | None = None,
    executor: str | None = None,
) -> Iterator[FlowCall | None]:
    """Give what is needed to resume a flow run; None if `on_plan` does not want it."""
    with claimed_run(store, run, again, notifications.publish) as (run, resumption):
        if run.flow != flow.name:
            raise NotResumableError(f"flow run '{run.name}' is of flow '{run.flow}', not of '{flow.name}'")
        codes = codes_of_tasks([unwrap(flow.fn)])
        if on_plan is not None and not on_plan(make_plan(resumption, run, codes)):
            yield None
            return
        left = (run, resumption, executor or run.executor)
        parameters = stored_parameters(run)
        with (
            tags(*run.tags),
            begun(flow, project, store, parameters, None, on_start, notifications, left) as call,
        ):
            yield call
