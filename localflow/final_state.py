"""The rule that gives a flow run its final state. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow import arguments
from localflow.futures import TaskFuture
from localflow.states import Completed, Returned, State, aggregate

if TYPE_CHECKING:
    from collections.abc import Sequence


def final_state(returned: object, children: Sequence[State]) -> State:
    """Return the final state of a flow whose body returned, first match wins.

    Args:
        returned: what the body returned; its futures have all ended.
        children: the states of all task runs in call order, then of all subflows.
    """
    if isinstance(returned, State):
        return returned
    if returned is None:
        return aggregate(children, Returned(children, children)) if children else Completed()
    if not arguments.find(returned, (TaskFuture, State)):
        return Completed(data=returned)
    structure = arguments.replace(returned, (TaskFuture,), TaskFuture.get_state)
    states = arguments.find(structure, (State,))
    return aggregate(states, Returned(structure, states))
