"""The task runs of an engine that have not ended, by their nodes in its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow.live import LiveRun


class OpenRuns:
    """Open task runs. They are added in the order of their nodes, none left out.

    A list with a place for every node: a dict takes five times as much for each of them, and after a million open runs
    it stays that large.
    """

    __slots__ = ("_by_node",)

    def __init__(self) -> None:
        self._by_node: list[LiveRun | None] = []

    def __iter__(self) -> Iterator[LiveRun]:
        """Iterate over those that are open at this moment."""
        return iter([run for run in self._by_node if run is not None])

    def __contains__(self, run: LiveRun) -> bool:
        return self._by_node[run.node] is not None

    def __getitem__(self, node: int) -> LiveRun:
        """Return a run that is open."""
        run = self._by_node[node]
        assert run is not None
        return run

    def add(self, run: LiveRun) -> None:
        """Add a run at the next node."""
        self._by_node.append(run)

    def add_ended(self) -> None:
        """Leave out a node: its run has ended already."""
        self._by_node.append(None)

    def get(self, node: int) -> LiveRun | None:
        """Return the run at a node; None if it has ended, or if this is no node: executors may report anything."""
        try:
            return self._by_node[node] if 0 <= node < len(self._by_node) else None
        except TypeError:
            return None

    def pop(self, node: int) -> LiveRun | None:
        """Take the run at a node out and return it; None if it has ended."""
        run, self._by_node[node] = self._by_node[node], None
        return run

    def clear(self) -> None:
        """Take all out."""
        self._by_node = [None] * len(self._by_node)
