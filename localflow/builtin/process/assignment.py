"""Which worker gets which call. No threads and no waiting; the pool calls everything here under its lock."""

from __future__ import annotations

import time
from collections import deque
from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from localflow.builtin.process.packing import Shipment
    from localflow.builtin.process.workers import Worker

#: How much work is sent ahead to each worker, so that it has its next call while the engine is busy.
_AHEAD_SECONDS = 0.01
_CALL_OVERHEAD = 10e-6
_MOST_AHEAD = 128
_MEMORY = 8
#: A worker that has not answered for so long is in a long call: nothing else shall wait behind it.
OVERDUE_SECONDS = 0.01
_ALL = 8192
#: Outcomes of calls that take so long may gather, but no longer than that. With shorter ones the engine has no time to
#: lose, and they gather all the same.
_GATHERING_FROM, _GATHERING_MOST = 50e-6, 0.001


class Assignment:
    """The calls that wait for a worker, and the workers with what they have in hand.

    Attributes:
        backlog: calls that no worker has room for.
        workers: by number, those that are starting included.
        depth: how many calls a worker may have in hand, the one it is in included.
    """

    def __init__(self, size: int) -> None:
        """Begin with no workers, of at most `size`."""
        self.size = size
        self.backlog: deque[Shipment] = deque()
        self.workers: dict[int, Worker] = {}
        self.depth = 1
        self.path_frame = b""
        self._mean_seconds: float | None = None

    def learn(self, seconds: Sequence[float]) -> None:
        """Adapt the depth to how long calls take."""
        for value in seconds:
            if self._mean_seconds is None:
                self._mean_seconds = value
            else:
                self._mean_seconds += (value - self._mean_seconds) / _MEMORY
        if self._mean_seconds is not None:
            ahead = int(_AHEAD_SECONDS / (max(0.0, self._mean_seconds) + _CALL_OVERHEAD))
            self.depth = 1 + min(ahead, _MOST_AHEAD)

    def missing(self) -> int:
        """Return how many workers more there should be for the calls there are."""
        calls = len(self.backlog)
        staff = 0
        for worker in self.workers.values():
            calls += len(worker.in_hand)
            staff += not worker.retiring
        return min(self.size, calls) - staff

    def busy(self) -> int:
        """Return how many workers are in a call, or begin one now."""
        return sum([bool(worker.in_hand) for worker in self.workers.values()])

    def leisure(self) -> float:
        """Return for how many seconds outcomes may gather, as all workers have more than their next call meanwhile.

        To take them one by one costs the engine four times as much processor time, which it takes from the workers.
        """
        mean, workers = self._mean_seconds, self.workers.values()
        if mean is None or mean < _GATHERING_FROM or len(workers) < self.size:
            return 0.0
        return max(0.0, min(_GATHERING_MOST, mean / 2 * (min([worker.waiting() for worker in workers]) - 1)))

    def take_backlog(self) -> list[Shipment]:
        """Return the calls of the backlog, which is empty then."""
        shipments = [*self.backlog]
        self.backlog.clear()
        return shipments

    def take_all(self) -> list[Shipment]:
        """Return all calls, also those in hand, when no worker is to be expected to answer them."""
        shipments = self.take_backlog()
        for worker in self.workers.values():
            shipments.extend(worker.in_hand.values())
            worker.in_hand.clear()
        return shipments

    def put_back(self, shipments: Iterable[Shipment]) -> None:
        """Take calls back into the backlog, before all others."""
        self.backlog.extendleft(reversed([*shipments]))

    def assign(self) -> None:
        """Send calls of the backlog to the workers that have the least in hand."""
        backlog = self.backlog
        if not backlog:
            return
        now = time.monotonic()
        loads = []
        for number, worker in self.workers.items():
            room = worker.room(1 if is_overdue(worker, now) else self.depth)
            if room > 0:
                loads.append((len(worker.in_hand), number, room))
        heapify(loads)
        batches: dict[int, list[Shipment]] = {}
        while backlog and loads:
            load, number, room = loads[0]
            batches.setdefault(number, []).append(backlog.popleft())
            if room > 1:
                heapreplace(loads, (load + 1, number, room - 1))
            else:
                heappop(loads)
        for number, batch in batches.items():
            self.workers[number].deliver(batch, self.path_frame)

    def balance(self) -> None:
        """Give workers that have nothing to do half of what the fullest one has not begun."""
        if self.backlog:
            return
        for worker in self.workers.values():
            if not worker.in_hand and worker.room(1) > 0:
                fullest = max(self.workers.values(), key=lambda other: other.waiting())
                share = (fullest.waiting() + 1) // 2
                recalled = fullest.recall(min(share, worker.room(_ALL))) if share else ()
                if not recalled:
                    return
                worker.deliver(recalled, self.path_frame)

    def recall_overdue(self) -> None:
        """Take back what waits behind a call that takes long."""
        now = time.monotonic()
        for worker in self.workers.values():
            if len(worker.in_hand) > 1 and is_overdue(worker, now) and len(self.workers) > 1:
                self.put_back(recall_all(worker))

    def is_ahead(self) -> bool:
        """Return whether some worker has calls in hand that may turn out to wait behind a long one."""
        return len(self.workers) > 1 and any(len(worker.in_hand) > 1 for worker in self.workers.values())


def is_overdue(worker: Worker, now: float) -> bool:
    """Return whether a worker has been in one call for long."""
    return bool(worker.in_hand) and now - worker.news_at > OVERDUE_SECONDS


def recall_all(worker: Worker) -> list[Shipment]:
    """Take back everything that a worker has not begun."""
    return worker.recall(_ALL)
