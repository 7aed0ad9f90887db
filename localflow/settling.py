"""What a flow call waits for before it may begin: the futures in its arguments and in `wait_for`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localflow import arguments
from localflow.coroutines import in_thread
from localflow.futures import TaskFuture, futures_in
from localflow.live import may_be_tolerated
from localflow.states import State

if TYPE_CHECKING:
    from localflow.flows import Flow


def fitting(flow: Flow[..., Any], parameters: dict[str, Any], wait_for: object) -> tuple[dict[str, Any], State | None]:
    """Do `settled` for a flow, and fit what has come to the flow's annotations."""
    parameters, blocker = settled(parameters, wait_for)
    return flow.fitted(parameters) if blocker is None else parameters, blocker


async def fitting_async(
    flow: Flow[..., Any], parameters: dict[str, Any], wait_for: object
) -> tuple[dict[str, Any], State | None]:
    """Do `fitting` without blocking the loop that is running here."""
    parameters, blocker = await settled_async(parameters, wait_for)
    return flow.fitted(parameters) if blocker is None else parameters, blocker


async def settled_async(parameters: dict[str, Any], wait_for: object) -> tuple[dict[str, Any], State | None]:
    """Do `settled` without blocking the loop that is running here."""
    if wait_for is None and not arguments.find(parameters, (TaskFuture,)):
        return settled(parameters, None)
    return await in_thread(lambda: settled(parameters, wait_for))


def settled(parameters: dict[str, Any], wait_for: object) -> tuple[dict[str, Any], State | None]:
    """Wait for the futures in a flow call; return its parameters with data in their place, and what blocks it."""
    found = arguments.find(parameters, (TaskFuture, State))
    if wait_for is not None:
        found += futures_in(wait_for)
    tolerated = {id(item) for item in arguments.find_tolerated((parameters, wait_for), (TaskFuture, State))}

    def data(item: TaskFuture[Any] | State) -> object:
        state: State = item.state if isinstance(item, TaskFuture) else item
        return state.result(raise_on_failure=state.is_completed())

    for item in found:
        state = item.wait() if isinstance(item, TaskFuture) else item
        if state is not None and not state.is_completed() and not (id(item) in tolerated and may_be_tolerated(state)):
            return parameters, state
    return arguments.replace(parameters, (TaskFuture, State), data), None
