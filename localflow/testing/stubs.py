"""Stand-ins for tests: an executor that waits to be told, a notifier that remembers, and state changes to tell."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from localflow.calls import failed_state, timed_out_outcome
from localflow.interfaces import (
    Call,
    Cause,
    Executor,
    FlowRun,
    LogLine,
    Notifier,
    Outcome,
    Output,
    Report,
    State,
    StateChange,
    StateType,
    TaskRun,
)
from localflow.states import WORKER_LOST, Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class ManualExecutor(Executor):
    """Takes calls and lets the test decide when and how each of them ends.

    Attributes:
        cancelled: ids of the calls that were to be cancelled, in the order of the requests.
    """

    def __init__(self, capacity: int | None = None, async_capacity: int | None = None) -> None:
        self.cancelled: list[int] = []
        self._capacity = capacity
        self._async_capacity = async_capacity
        self._report: Report | None = None
        self._calls: dict[int, Call] = {}
        self._changed = threading.Condition()

    @property
    def capacity(self) -> int | None:
        """The capacity given to the constructor."""
        return self._capacity

    @property
    def async_capacity(self) -> int | None:
        """The capacity for async calls given to the constructor."""
        return self._async_capacity

    @property
    def is_started(self) -> bool:
        """Whether the executor was started and not shut down since."""
        return self._report is not None

    @property
    def calls(self) -> list[Call]:
        """The calls in hand, in the order in which they were submitted."""
        with self._changed:
            return list(self._calls.values())

    def start(self, report: Report) -> None:
        """Keep `report` for later."""
        self._report = report

    def submit(self, calls: Sequence[Call]) -> None:
        """Keep the calls until the test ends them."""
        with self._changed:
            self._calls.update((call.id, call) for call in calls)
            self._changed.notify_all()

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Keep the request; the calls go on until the test ends them, with `stop` for instance."""
        with self._changed:
            self.cancelled.extend(call_ids)
            self._changed.notify_all()

    def shutdown(self) -> None:
        """Forget the calls in hand."""
        with self._changed:
            self._report = None
            self._calls.clear()

    def wait_for_calls(self, count: int, timeout: float = 10.0) -> list[Call]:
        """Return the calls in hand as soon as there are `count` of them; raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._calls) >= count, timeout):
                raise TimeoutError(f"{len(self._calls)} calls in hand after {timeout:g} seconds, not {count}")
            return list(self._calls.values())

    def wait_for_cancelled(self, count: int, timeout: float = 10.0) -> list[int]:
        """Return the ids of the calls to be cancelled as soon as there are `count` of them; raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.cancelled) >= count, timeout):
                raise TimeoutError(f"{len(self.cancelled)} calls to cancel after {timeout:g} seconds, not {count}")
            return list(self.cancelled)

    def run(self, call_id: int) -> None:
        """Run the call here and report how it ended."""
        self._tell(self._taken(call_id).run("manual"))

    def complete(self, call_id: int, value: object = None) -> None:
        """Report that the call returned `value`."""
        self._tell(_answered(self._taken(call_id), lambda: value))

    def fail(self, call_id: int, error: BaseException) -> None:
        """Report that the call raised `error`."""
        self._taken(call_id)
        self._tell(Outcome(call_id, failed_state(error)))

    def crash(self, call_id: int, message: str = "worker died") -> None:
        """Report that the worker of the call died."""
        self._taken(call_id)
        state = State(StateType.CRASHED, WORKER_LOST, message, cause=Cause("worker", message=message))
        self._tell(Outcome(call_id, state))

    def time_out(self, call_id: int) -> None:
        """Report that the call, which has a timeout, ran out of time."""
        self._tell(timed_out_outcome(self._taken(call_id)))

    def stop(self, call_id: int) -> None:
        """Report that the call was cancelled."""
        self._taken(call_id)
        self._tell(Outcome(call_id, Cancelled("the task was cancelled while it was running")))

    def say(self, call_id: int, *messages: str, level: int = logging.INFO, source: str = "stdout") -> None:
        """Report lines that the call, which goes on, has said."""
        self._held(call_id)
        self._tell(Output(call_id, [LogLine(time.time(), level, source, message) for message in messages]))

    def _held(self, call_id: int) -> Call:
        with self._changed:
            if call_id not in self._calls:
                raise LookupError(f"no call {call_id} in hand, only {list(self._calls)}")
            return self._calls[call_id]

    def _taken(self, call_id: int) -> Call:
        with self._changed:
            call = self._held(call_id)
            del self._calls[call_id]
            return call

    def _tell(self, news: Outcome | Output) -> None:
        assert self._report is not None, "the executor is not started"
        self._report([news])


class RecordingNotifier(Notifier):
    """Remembers the changes it is told; raises `error`, if there is one, after remembering."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.changes: list[StateChange] = []
        self.is_closed = False
        self._error = error
        self._changed = threading.Condition()

    def notify(self, change: StateChange) -> None:
        """Remember the change."""
        with self._changed:
            self.changes.append(change)
            self._changed.notify_all()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Remember that the end has come."""
        self.is_closed = True

    def wait_for_changes(self, count: int, timeout: float = 10.0) -> list[StateChange]:
        """Return the changes as soon as there are `count` of them; raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.changes) >= count, timeout):
                raise TimeoutError(f"told of {len(self.changes)} changes after {timeout:g} seconds, not {count}")
            return list(self.changes)


def make_change(
    type: StateType = StateType.FAILED,
    name: str = "",
    *,
    message: str = "",
    flow: str = "etl",
    flow_run: str = "brave-otter",
    task_run: str | None = "load-0",
    seconds: float = 1.0,
    sequence: int = 2,
    cause: Cause | None = None,
) -> StateChange:
    """Return a state change of a task run, or of a flow run if `task_run` is None.

    Args:
        type: the type of the state.
        name: the name of the state, if it is not its type's.
        message: the message of the state.
        flow: the name of the flow.
        flow_run: the name of the flow run.
        task_run: the name of the task run.
        seconds: how long after the creation of the run the change happened.
        sequence: the place of the change among those of the run.
        cause: why the run did not complete.
    """
    now = time.time()
    created_at = now - seconds
    run: Any = FlowRun("0123456789abcdef0123", flow_run, flow, created_at, "0123456789abcdef0123", host="here", pid=1)
    if task_run is not None:
        run = TaskRun(run, 1, task_run, task_run.rpartition("-")[0] or task_run, 0, created_at)
    return StateChange(run, sequence, type, name or type.value.capitalize(), message, now, cause=cause)


def _answered(call: Call, function: Callable[[], object]) -> Outcome:
    return call._replace(function=function, args=(), kwargs={}, holds_packed=False).run("manual")
