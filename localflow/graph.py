"""Which task runs may start now. Pure: no I/O, no threads, no clock.

Nodes are numbered in the order they are added. A node waits until all its upstreams have ended; then it is *ready* if
every one of them completed, else *blocked* by the first (in the order given) that did not. An upstream that a node
*tolerates* may have failed or been blocked, but not been lost. A blocked node blocks what comes after it in turn. All
of this is loops over explicit queues: chains may be far longer than the recursion limit.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_OPEN = 0
COMPLETED = 1
FAILED = 2
"""Failed or blocked: who tolerates failures may start all the same."""
LOST = 3
"""Crashed or cancelled."""


class RunGraph:
    """The dependencies of the task runs of one engine.

    Attributes:
        ready: nodes that may start, oldest first; whoever starts them takes them out.
        blocked: (node, culprit) of nodes that never will; whoever records them takes them out.
    """

    def __init__(self) -> None:
        self.ready: deque[int] = deque()
        self.blocked: deque[tuple[int, int]] = deque()
        self._endings = bytearray()
        self._depths = array("I")
        # Only nodes that still wait are in here: an ended node costs five bytes.
        self._upstreams: dict[int, tuple[int, ...]] = {}
        self._tolerated: dict[int, frozenset[int]] = {}
        self._open_upstreams: dict[int, int] = {}
        self._downstreams: dict[int, list[int]] = {}
        self._gates: dict[int, int] = {}
        """Of each gate the upstream that has closed it; of one that is open, or may open, itself."""

    def add_ready(self) -> int:
        """Add a node that waits for nothing and return its number; the caller starts it."""
        endings = self._endings
        endings.append(_OPEN)
        self._depths.append(0)
        return len(endings) - 1

    def add(self, upstreams: Collection[int] = (), tolerated: Collection[int] = ()) -> int:
        """Add a node that waits for `upstreams`, of which it tolerates some, and return its number."""
        node = self.add_ready()
        if not upstreams:
            self.ready.append(node)
            return node
        distinct = tuple(dict.fromkeys(upstreams))
        depths, endings = self._depths, self._endings
        depths[node] = 1 + max([depths[upstream] for upstream in distinct])
        waits_for = [upstream for upstream in distinct if endings[upstream] == _OPEN]
        self._upstreams[node] = distinct
        if tolerated:
            self._tolerated[node] = frozenset(tolerated)
        if waits_for:
            self._open_upstreams[node] = len(waits_for)
            for upstream in waits_for:
                self._downstreams.setdefault(upstream, []).append(node)
        else:
            self._settle(node)
        return node

    def add_gate(self, upstreams: Collection[int]) -> int:
        """Add a node that is nobody's and return its number: who waits for it waits for all of `upstreams`.

        Where many nodes wait for the same many, each of these has a link to the gate and that one to each of those,
        instead of one for every pair.
        """
        gate = len(self._endings)
        self._gates[gate] = gate
        self.add(upstreams)
        self._depths[gate] -= 1
        return gate

    def depth(self, node: int) -> int:
        """Return how many nodes are above it on the longest way up."""
        return self._depths[node]

    def add_ended(self, ending: int) -> int:
        """Add a node that will never run."""
        self._endings.append(ending)
        self._depths.append(0)
        return len(self._endings) - 1

    def end(self, node: int, ending: int) -> None:
        """Note that `node` has ended, which it may do while it still waits; others become ready or blocked by it."""
        self._endings[node] = ending
        if self._upstreams.pop(node, None) is not None:
            self._open_upstreams.pop(node, None)
            self._tolerated.pop(node, None)
        if node not in self._downstreams:
            return
        ended = deque([node])
        while ended:
            for downstream in self._downstreams.pop(ended.popleft(), ()):
                if downstream not in self._open_upstreams:  # it has ended without waiting any longer
                    continue
                self._open_upstreams[downstream] -= 1
                if not self._open_upstreams[downstream]:
                    del self._open_upstreams[downstream]
                    if not self._settle(downstream) or downstream in self._gates:
                        ended.append(downstream)

    def _settle(self, node: int) -> bool:
        """Decide about a node whose upstreams have all ended; return whether it is ready."""
        tolerated = self._tolerated.pop(node, ())
        for upstream in self._upstreams.pop(node):
            ending = self._endings[upstream]
            if ending != COMPLETED and not (ending == FAILED and upstream in tolerated):
                self._endings[node] = FAILED
                culprit = self._gates.get(upstream, upstream)
                if node in self._gates:
                    self._gates[node] = culprit
                else:
                    self.blocked.append((node, culprit))
                return False
        if node in self._gates:
            self._endings[node] = COMPLETED
        else:
            self.ready.append(node)
        return True
