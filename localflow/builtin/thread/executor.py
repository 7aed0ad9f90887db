"""What the engine knows of the thread executor.

Each `start` makes a new `Crew`; a thread stuck in a task at shutdown belongs to a crew that nobody listens to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from localflow.builtin.cores import usable_cores
from localflow.builtin.thread.crew import Crew
from localflow.interfaces import AtLeast, Executor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.interfaces import Call, Report

_THREADS_PER_CORE = 4
_LEAST_THREADS = 8
_ASYNC_CALLS = 1000


class ThreadExecutor(Executor):
    """Runs calls in threads of this process, and those of async functions together in one event loop.

    Made for tasks that mostly wait. A call that is past its timeout is given up: it is answered at once, and another
    thread takes the place of the one that it keeps.
    """

    gives_up_late_calls: ClassVar[bool] = True

    def __init__(self, workers: Annotated[int, AtLeast(1)] | None = None) -> None:
        """Keep options: how many threads there may be, by default 4 for each usable core and at least 8."""
        self.workers = workers or max(_LEAST_THREADS, _THREADS_PER_CORE * usable_cores())
        self._crew: Crew | None = None

    @property
    def capacity(self) -> int | None:
        """One call for each thread, and while calls are short some more, so that no thread waits for its next."""
        return self.workers + (self._crew.lookahead if self._crew is not None else 0)

    @property
    def plenty(self) -> int:
        """A call for each thread at least; they take them from one queue."""
        return max(self.workers, (self.capacity or 0) // 2)

    @property
    def async_capacity(self) -> int | None:
        """As many as a loop can well have open: each costs some memory, but no thread."""
        return _ASYNC_CALLS

    def start(self, report: Report) -> None:
        """Get ready to run calls and give their outcomes to `report`; threads start when there are calls for them."""
        if self._crew is not None:
            raise RuntimeError("this thread executor is already at work for a flow run; give each flow run its own")
        self._crew = Crew(self.workers, report)

    def submit(self, calls: Sequence[Call]) -> None:
        """Queue calls for the threads and the loop."""
        if self._crew is None:
            raise RuntimeError("the thread executor is not started; call start(report) first")
        self._crew.take(calls)

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Stop async calls, and calls that have not begun; one that runs in a thread cannot be stopped."""
        if self._crew is not None:
            self._crew.cancel(call_ids)

    def shutdown(self) -> None:
        """End the threads; one that is stuck in a task ends when the task does, and its outcome is not reported."""
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.dismiss()
