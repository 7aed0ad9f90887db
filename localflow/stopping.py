"""Task runs and flow runs that are to end before their time: one, all below a flow run, or everything."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from localflow.interrupts import FlowStop
from localflow.scheduler import interrupted, stopped
from localflow.states import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localflow.active import ActiveFlow
    from localflow.futures import TaskFuture
    from localflow.interrupts import NappingCondition
    from localflow.live import LiveRun
    from localflow.scheduler import Scheduler
    from localflow.states import State

_log = logging.getLogger("localflow.engine")

#: Seconds in which executors stop what runs: their grace, and some.
STOP_DEADLINE = 7.0


class Stopping:
    """Ends runs of one engine. What changes them is done in the engine's turns."""

    def __init__(
        self,
        scheduler: Scheduler,
        flows: Sequence[ActiveFlow],
        progress: NappingCondition,
        tell: Callable[[Callable[[], None]], None],
        is_broken: Callable[[], bool],
    ) -> None:
        """Keep what is given.

        Args:
            scheduler: has the open task runs.
            flows: the flow runs at work, parents before their children.
            progress: told when something has ended.
            tell: has something done in a turn of the engine.
            is_broken: whether nothing will be done any more.
        """
        self._scheduler = scheduler
        self._flows = flows
        self._progress = progress
        self._tell = tell
        self._is_broken = is_broken

    def cancel(self, future: TaskFuture[Any]) -> bool:
        """End a task run CANCELLED if that can be done; return whether it can."""
        answer: list[bool] = []

        def cancel() -> None:
            run = self._scheduler.open_runs.get(future._node)
            answer.append(run is not None and self._scheduler.cancel(run, Cancelled("the task run was cancelled")))
            self._progress.tell()

        self._tell(cancel)
        with self._progress:
            self._progress.wait_for(lambda: answer or self._is_broken())
        return bool(answer and answer[0])

    def cancel_runs(self, actives: Sequence[ActiveFlow], state: Callable[[], State]) -> None:
        """End all open task runs of these flow runs with a state; what cannot be stopped is given up."""

        def cancel() -> None:
            for run in self._scheduler.open_runs:
                if run.active in actives and not self._scheduler.cancel(run, state()):
                    self._scheduler.finish(run, state())

        self._tell(cancel)

    def stop_flow(self, active: ActiveFlow, state: State) -> None:
        """Have a flow run end with `state`: its task runs are cancelled, its body is ended where that can be done.

        May be called in any thread but the body's.
        """
        stop = FlowStop(active.record.id, state)
        family = self.family_of(active)
        for each in family:
            each.stop = stop
            each.stopped.set()
        self.cancel_runs(family, stopped)
        with active.lock:
            if active.interrupt is not None:
                active.interrupt(stop)

    def family_of(self, active: ActiveFlow) -> list[ActiveFlow]:
        """Return a flow run with the flow runs below it that are at work."""
        ids = {active.record.id}
        found = [active]
        for other in self._flows:
            if other.record.parent_id in ids:
                ids.add(other.record.id)
                found.append(other)
        return found

    def stop_all(self) -> None:
        """Cancel everything, and wait for what is being stopped at its work."""
        stopping = self._cancel_all()
        if stopping:
            with self._progress:
                self._progress.wait_for(
                    lambda: self._is_broken() or all(run.has_ended for run in stopping), STOP_DEADLINE
                )

    def _cancel_all(self) -> list[LiveRun]:
        """Cancel everything; return the runs that are being stopped at their work."""
        stopping: list[LiveRun] = []
        given_up: list[LiveRun] = []
        waiting, done = 0, False

        def cancel() -> None:
            nonlocal waiting, done
            done = True
            for run in self._scheduler.open_runs:
                if run.in_hand:
                    (stopping if run.lane.can_stop(run) else given_up).append(run)
                else:
                    waiting += 1
                self._scheduler.cancel(run, interrupted())
            self._progress.tell()

        self._tell(cancel)
        with self._progress:  # another thread may be in a turn
            self._progress.wait_for(lambda: done or self._is_broken())
        parts = [
            *([f"stopping {_counted(stopping, 'running ')}"] if stopping else []),
            *([f"giving up {_counted(given_up)}, which cannot be stopped"] if given_up else []),
            *([f"{waiting} {'more' if stopping or given_up else _noun(waiting)} will not start"] if waiting else []),
        ]
        if parts:
            _log.warning("interrupted: %s (press Ctrl-C again to kill)", ", ".join(parts))
        return stopping


def _counted(runs: Sequence[LiveRun], adjective: str = "") -> str:
    names = ", ".join(f"'{run.record.name}'" for run in runs[:5])
    return f"{len(runs)} {adjective}{_noun(len(runs))} ({names}{', ...' if len(runs) > 5 else ''})"


def _noun(count: int) -> str:
    return "task run" if count == 1 else "task runs"
