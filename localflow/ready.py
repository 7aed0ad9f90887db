"""The order in which runs that are ready start: higher priority first, then the deeper ones, then as they came.

The deeper a run lies in the graph, the more has been done for it already: who finishes what is begun before beginning
more keeps few results waiting for their last reader, however wide the graph is.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localflow.live import LiveRun


class ReadyQueue:
    """Runs that are ready. Most are of one rank, so each rank has a plain queue of its own."""

    __slots__ = ("_by_rank", "_first", "_ranks", "size")

    def __init__(self) -> None:
        self._first: deque[LiveRun] = deque()
        self._by_rank: dict[tuple[int, int], deque[LiveRun]] = {}
        self._ranks: list[tuple[int, int]] = []
        self.size = 0
        """How many runs it has."""

    def append(self, run: LiveRun) -> None:
        """Add a run behind all others of its rank."""
        rank = (-run.task.priority, -run.depth)
        queue = self._by_rank.get(rank)
        if queue is None:
            queue = self._by_rank[rank] = deque()
            heappush(self._ranks, rank)
        queue.append(run)
        self.size += 1

    def appendleft(self, run: LiveRun) -> None:
        """Add a run before all others, whatever their rank."""
        self._first.appendleft(run)
        self.size += 1

    def take(self, room: int) -> list[LiveRun]:
        """Take out the first runs that are still to start, so many at most."""
        taken: list[LiveRun] = []
        while room > 0 and self.size:
            queue = self._first or self._by_rank[self._ranks[0]]
            while queue and room > 0:
                run = queue.popleft()
                self.size -= 1
                if run.future._ending is None:  # it may have been cancelled while it waited
                    taken.append(run)
                    room -= 1
            if not queue and queue is not self._first:
                del self._by_rank[heappop(self._ranks)]
        return taken
