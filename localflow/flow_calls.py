"""What a flow call is: a run at the top of its own tree, a subflow of the flow it is in, or a flow inside a task."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from localflow.context import FlowContext, TaskContext, current_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow.flows import Flow
    from localflow.project import Project
    from localflow.states import State


def run_flow(flow: Flow[..., Any], parameters: dict[str, Any], wait_for: object) -> Any:
    """Run a flow where it was called and return its final state, of an async one something to await."""
    context = current_run()
    if flow.is_async:
        return _run_async(flow, context, parameters, wait_for)
    if context is not None:
        from localflow import subflows

        if isinstance(context, FlowContext):
            return subflows.run(flow, context, parameters, wait_for)
        return subflows.run_in_task(flow, context, parameters, wait_for)
    with _own_project(flow) as project:
        from localflow.roots import begun
        from localflow.settling import fitting

        parameters, blocker = fitting(flow, parameters, wait_for)
        with project.opened_store() as store, begun(flow, project, store, parameters, blocker) as call:
            return call.run()


async def _run_async(
    flow: Flow[..., Any],
    context: FlowContext | TaskContext | None,
    parameters: dict[str, Any],
    wait_for: object,
) -> State:
    if context is not None:
        from localflow import subflows

        if isinstance(context, FlowContext):
            return await subflows.run_async(flow, context, parameters, wait_for)
        return await subflows.run_in_task_async(flow, context, parameters, wait_for)
    with _own_project(flow) as project:
        from localflow.roots import begun
        from localflow.settling import fitting_async

        parameters, blocker = await fitting_async(flow, parameters, wait_for)
        with project.opened_store() as store, begun(flow, project, store, parameters, blocker) as call:
            return await call.run_async()


@contextmanager
def _own_project(flow: Flow[..., Any]) -> Iterator[Project]:
    """Give the project of the working directory; what the flow runs on gets ready while the block does.

    For worker processes that takes as long as it takes to import the engine and to open the store.
    """
    from localflow.project import Project

    project = Project.current()
    with project.prepared(flow.executor or project.executor):
        yield project
