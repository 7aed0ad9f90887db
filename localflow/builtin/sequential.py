"""The default executor: each call runs at once, in the thread that makes it."""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, ClassVar

from localflow.interfaces import Executor, Outcome
from localflow.interrupts import STOPS
from localflow.logs import capture_descriptors, is_for_another_process
from localflow.states import INTERRUPTED, Cancelled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.descriptors import Capture
    from localflow.interfaces import Call, Report


class SequentialExecutor(Executor):
    """Runs calls one after the other in the caller's thread."""

    runs_in_caller: ClassVar[bool] = True

    def __init__(self) -> None:
        self._report: Report | None = None
        self._capture: Capture | None = None

    def start(self, report: Report) -> None:
        """Get ready to run calls and give their outcomes to `report`."""
        self._report = report
        # In a worker of another executor they are those of the task that calls the flow.
        self._capture = None if is_for_another_process() else capture_descriptors()

    def submit(self, calls: Sequence[Call]) -> None:
        """Run the calls now.

        Raises:
            KeyboardInterrupt: Ctrl-C hit a task. All calls are answered: the one it hit and those after it, CANCELLED.
        """
        report = self._report
        if report is None:
            raise RuntimeError("the sequential executor is not started; call start(report) first")
        for position, call in enumerate(calls):
            outcome = self._run(call)
            stop = outcome.state.packed_data
            if isinstance(stop, STOPS):
                state = Cancelled("the task was interrupted", name=INTERRUPTED)
                never_began = [Outcome(later.id, state) for later in calls[position + 1 :]]
                report([outcome._replace(state=state), *never_began])
                raise stop
            report([outcome])

    def shutdown(self) -> None:
        """Give the descriptors back."""
        self._report = None
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.close()

    def _run(self, call: Call) -> Outcome:
        # In a copy of the context: the task sees the caller's variables, and what it sets ends with it.
        capture, log = self._capture, call.log
        if capture is None or log is None or not capture.begin(log):
            return copy_context().run(call.run, "main")
        try:
            return copy_context().run(call.run, "main")
        finally:
            capture.end()
