"""The runs of one `map` on their way to the engine.

What is the same for all of them is found out once. While the executor has plenty in hand, runs reach the engine
together. That is for items that are there at once: what comes after a while goes on alone, so that it does not wait for
the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from localflow.active import ActiveFlow
    from localflow.futures import TaskFuture
    from localflow.inputs import KnownInputs
    from localflow.live import LiveRun
    from localflow.tasks import Task


class Batch:
    """Makes the runs of a `map` and submits them."""

    def __init__(
        self,
        active: ActiveFlow,
        task: Task[..., Any],
        map_number: int,
        wait_for: object,
        known: KnownInputs | None = None,
        size: int = 1,
    ) -> None:
        """Begin a `map`.

        Args:
            active: the flow run.
            task: whose runs these are.
            map_number: which `map` of the flow run it is.
            wait_for: what each of them waits for.
            known: values that are among the arguments of each, and have been looked at.
            size: how many may go together, `MOST_WAITING` at most.
        """
        self._active = active
        self._task = task
        self._lane = active.lane_of(task)
        self._wait_for = wait_for
        self._known = known
        self._size = size
        self._map_number = map_number
        self._map_index = 0
        self._waiting: list[LiveRun] = []

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TaskFuture[Any]:
        """Make the run of a call; it reaches the engine now, or with one of the next or the flush."""
        future, run = self._active.make_run(
            self._task, self._lane, args, kwargs, self._wait_for, self._map_number, self._map_index, self._known
        )
        self._map_index += 1
        if run is not None:
            waiting = self._waiting
            waiting.append(run)
            if len(waiting) >= self._size or not run.may_wait:
                self.flush()
        return future

    def flush(self) -> None:
        """Submit what has been kept back."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._active.engine.submit(waiting)
