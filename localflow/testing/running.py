"""Drives an executor the way the engine does: hands over what it has room for, and takes outcomes as they come."""

from __future__ import annotations

import threading
import time
import uuid
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

from localflow.interfaces import Call, FlowRun, Outcome, TaskRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from localflow.interfaces import Executor, LogLine, Output


class CallRunner:
    """Starts an executor for the block, makes calls and collects their outcomes.

        with CallRunner(executor) as runner:
            [outcome] = runner.run(runner.call(max, 1, 2))

    Attributes:
        outcomes: every outcome that was reported, in the order of the reports.
        lines: what each call has said so far, by its id, in the order in which it came.
        on_outcome: called in the thread of the report with each outcome; calls it returns are submitted there.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.outcomes: list[Outcome] = []
        self.on_outcome: Callable[[Outcome], Iterable[Call]] = _nothing
        self.flow_run = FlowRun(uuid.uuid4().hex[:20], "brave-otter", "contract", time.time(), "root")
        self._numbers = 0
        self.lines: defaultdict[int, list[LogLine]] = defaultdict(list)
        self._plain, self._async = _Queue(), _Queue()
        self._handed: dict[int, _Queue] = {}
        """The queue from which each call in hand was taken."""
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self.executor.start(self.report)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.executor.shutdown()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call:
        """Return a call of `function`, a task run of its own in the runner's flow run.

        What it says goes to `lines`: at once if the executor shares memory, else with what the executor reports.
        """
        with self._changed:
            self._numbers += 1
            number = self._numbers
        task = getattr(function, "__name__", "task")
        run = TaskRun(self.flow_run, number, f"{task}-{number}", task, number, time.time(), (), ("contract",), "7")
        log = self.lines[number].append if self.executor.shares_memory else None
        return Call(number, run, 1, function, args, kwargs, holds_packed=True, log=log)

    def submit(self, *calls: Call) -> None:
        """Hand calls over as soon as the executor has room for them."""
        with self._changed:
            self._queue_up(calls)
        self._hand_over()

    def run(self, *calls: Call, timeout: float = 30.0) -> list[Outcome]:
        """Submit calls, wait for them, and return their outcomes in the order of the calls."""
        self.submit(*calls)
        return self.wait_for(calls, timeout)

    def wait_for(self, calls: Sequence[Call], timeout: float = 30.0) -> list[Outcome]:
        """Wait until these calls are answered and return their outcomes in their order; raises TimeoutError."""
        wanted = {call.id for call in calls}
        self.wait_until(lambda: wanted <= {outcome.call_id for outcome in self.outcomes}, timeout)
        found = {outcome.call_id: outcome for outcome in self.outcomes}
        return [found[call.id] for call in calls]

    def wait_until(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        """Wait until `condition`, looked at after each report, is true; raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                waiting = len(self._plain.waiting) + len(self._async.waiting)
                raise TimeoutError(
                    f"after {timeout:g} seconds {len(self._handed)} calls are in hand and {waiting} wait; "
                    f"{len(self.outcomes)} outcomes came"
                )

    def report(self, reported: Sequence[Outcome | Output]) -> None:
        """Take outcomes and output; the executor calls this."""
        outcomes = [item for item in reported if isinstance(item, Outcome)]
        with self._changed:
            for item in reported:
                self.lines[item.call_id].extend(item.lines)
        following = [call for outcome in outcomes for call in self.on_outcome(outcome)]
        with self._changed:
            self.outcomes.extend(outcomes)
            for outcome in outcomes:
                queue = self._handed.pop(outcome.call_id, None)
                if queue is not None:
                    queue.in_hand -= 1
            self._queue_up(following)
            self._changed.notify_all()
        self._hand_over()

    def _queue_up(self, calls: Iterable[Call]) -> None:
        apart = self.executor.async_capacity is not None
        for call in calls:
            (self._async if apart and call.is_async else self._plain).waiting.append(call)

    def _hand_over(self) -> None:
        with self._changed:
            calls = [
                *self._taken(self._plain, self.executor.capacity),
                *self._taken(self._async, self.executor.async_capacity),
            ]
        if calls:
            self.executor.submit(calls)

    def _taken(self, queue: _Queue, capacity: int | None) -> list[Call]:
        room = len(queue.waiting) if capacity is None else capacity - queue.in_hand
        calls = [queue.waiting.popleft() for _ in range(min(room, len(queue.waiting)))]
        queue.in_hand += len(calls)
        self._handed.update((call.id, queue) for call in calls)
        return calls


class _Queue:
    """Calls that wait for room in the executor, and how many of their kind it has in hand."""

    def __init__(self) -> None:
        self.waiting: deque[Call] = deque()
        self.in_hand = 0


def _nothing(outcome: Outcome) -> Iterable[Call]:
    return ()
