"""Drives an executor the way the engine does: hands over what it has room for, and takes outcomes as they come."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
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
        on_outcome: called in the thread of the report with each outcome; calls it returns are submitted there.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.outcomes: list[Outcome] = []
        self.on_outcome: Callable[[Outcome], Iterable[Call]] = _nothing
        self.flow_run = FlowRun(uuid.uuid4().hex[:20], "brave-otter", "contract", time.time(), "root")
        self._numbers = 0
        self._waiting: deque[Call] = deque()
        self._in_hand = 0
        self.lines: dict[int, list[LogLine]] = {}
        """What calls have said, by their id."""
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self.executor.start(self.report)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.executor.shutdown()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call:
        """Return a call of `function`, a task run of its own in the runner's flow run."""
        with self._changed:
            self._numbers += 1
            number = self._numbers
        task = getattr(function, "__name__", "task")
        run = TaskRun(self.flow_run, number, f"{task}-{number}", task, number, time.time(), (), ("contract",), "7")
        return Call(number, run, 1, function, args, kwargs, holds_packed=True)

    def submit(self, *calls: Call) -> None:
        """Hand calls over as soon as the executor has room for them."""
        with self._changed:
            self._waiting.extend(calls)
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
                names = [call.task_run.name for call in self._waiting]
                raise TimeoutError(
                    f"after {timeout:g} seconds {self._in_hand} calls are in hand and {len(names)} wait; "
                    f"{len(self.outcomes)} outcomes came"
                )

    def report(self, reported: Sequence[Outcome | Output]) -> None:
        """Take outcomes and output; the executor calls this."""
        outcomes = [item for item in reported if isinstance(item, Outcome)]
        with self._changed:
            for item in reported:
                self.lines.setdefault(item.call_id, []).extend(item.lines)
        following = [call for outcome in outcomes for call in self.on_outcome(outcome)]
        with self._changed:
            self.outcomes.extend(outcomes)
            self._in_hand -= len(outcomes)
            self._waiting.extend(following)
            self._changed.notify_all()
        self._hand_over()

    def _hand_over(self) -> None:
        with self._changed:
            capacity = self.executor.capacity
            room = len(self._waiting) if capacity is None else capacity - self._in_hand
            calls = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            self._in_hand += len(calls)
        if calls:
            self.executor.submit(calls)


def _nothing(outcome: Outcome) -> Iterable[Call]:
    return ()
