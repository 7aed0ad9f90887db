"""`task.map`: one task run for each item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from localflow.futures import TaskFuture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from localflow.live import ActiveFlow
    from localflow.tasks import Task

R = TypeVar("R")


class MappedFutures(list[TaskFuture[R]], Generic[R]):
    """The futures of a `map`, in the order of the items."""


def map_task(
    active: ActiveFlow, task: Task[..., R], args: tuple[Any, ...], kwargs: Mapping[str, Any], wait_for: object
) -> MappedFutures[R]:
    """Make the task runs of a `map` call in the flow run `active`; see `Task.map`."""
    raise NotImplementedError
