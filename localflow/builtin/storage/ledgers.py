"""What the flow runs that this process has claimed have recorded of their task runs, known without a look at it.

Nobody else records anything of them. So a record that continues what the ledger of its flow run has is known to fit,
and may be stored without asking the database, which would find out by its keys.
"""

from __future__ import annotations

import sys
from array import array
from functools import partial
from typing import TYPE_CHECKING

from localflow.interfaces import StateChange, TaskRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from localflow.interfaces import FlowRun, Record

#: Stands for the newest sequence of a task run where it is not known; so large ones are not kept either.
UNKNOWN = 0xFFFF
#: So many numbers are not left out by an engine.
_LARGEST_GAP = 100_000


class Ledger:
    """What is known of the task runs of one flow run.

    What it takes for the newest sequence of a task run is never less than what is recorded, whatever failed in between.
    """

    __slots__ = ("_end", "_find_newest", "_newest")

    def __init__(self, highest: int, sequence: int, find_newest: Callable[[int], int]) -> None:
        """Begin.

        Args:
            highest: the highest number that anything is recorded of; of the task runs up to it no more is known than
                that they may be there.
            sequence: that of the newest change of the flow run itself.
            find_newest: looks up the newest sequence that a run has, 0 for none, by its number.
        """
        self._find_newest = find_newest
        # The newest sequence of each run, by number.
        self._newest = array("H", [min(sequence, UNKNOWN)]) + array("H", [UNKNOWN]) * highest
        # Of no run from this number on anything is known: there may be some with far higher numbers than the others.
        self._end = sys.maxsize

    def add_task_run(self, number: int) -> bool:
        """Note a task run; return whether it is surely a new one."""
        newest = self._newest
        missing = number + 1 - len(newest)
        if not 0 < missing < _LARGEST_GAP or number >= self._end:
            return False
        if missing == 1:
            newest.append(0)
        else:
            newest.extend([0] * missing)
        return True

    def add_change(self, number: int, sequence: int) -> bool:
        """Note a state change of a run; return whether it surely follows the one before."""
        newest = self._newest
        if not 0 <= number < len(newest) or sequence >= UNKNOWN:
            return False
        if newest[number] != sequence - 1:
            if newest[number] == UNKNOWN:  # an earlier engine has recorded it
                self.learn(number)
            if newest[number] != sequence - 1:
                return False
        newest[number] = sequence
        return True

    def learn(self, number: int) -> None:
        """Look up what is stored of a run, for it may be more than what was known."""
        if number >= len(self._newest):
            self._end = min(self._end, number)
        elif number >= 0:
            self._newest[number] = min(self._find_newest(number), UNKNOWN)


class Ledgers:
    """The ledgers of the flow runs in the trees on which this process has claims."""

    def __init__(
        self, find_ends: Callable[[str], tuple[int, int] | None], find_newest: Callable[[str, int], int]
    ) -> None:
        """Begin.

        Args:
            find_ends: returns what a ledger begins with, None for a flow run that is not recorded.
            find_newest: returns the newest sequence that a run has, 0 for none, by its flow run and number.
        """
        self._find_ends = find_ends
        self._find_newest = find_newest
        self._trees: dict[str, dict[str, Ledger]] = {}

    def __bool__(self) -> bool:
        """Return whether there is a tree."""
        return bool(self._trees)

    def add_tree(self, root_id: str) -> None:
        """Keep ledgers for a tree of flow runs from now on."""
        self._trees[root_id] = {}

    def discard_tree(self, root_id: str) -> None:
        """Forget a tree."""
        self._trees.pop(root_id, None)

    def clear(self) -> None:
        """Forget all trees."""
        self._trees.clear()

    def forget(self) -> None:
        """Keep the trees, and look anew at what their flow runs have recorded."""
        for tree in self._trees.values():
            tree.clear()

    def of(self, flow_run: FlowRun) -> Ledger | None:
        """Return the ledger of a flow run; None if it is in no claimed tree, or not recorded."""
        tree = self._trees.get(flow_run.root_id)
        if tree is None:
            return None
        ledger = tree.get(flow_run.id)
        if ledger is None:
            ends = self._find_ends(flow_run.id)
            if ends is None:
                return None
            ledger = tree[flow_run.id] = Ledger(*ends, partial(self._find_newest, flow_run.id))
        return ledger

    def learn(self, records: Iterable[Record]) -> None:
        """Note records that have been stored although they did not continue what was known."""
        stored: dict[tuple[str, int], Ledger] = {}
        for record in records:
            if isinstance(record, (StateChange, TaskRun)):
                run = record.run if isinstance(record, StateChange) else record
                ledger = self._trees.get(run.flow_run.root_id, {}).get(run.flow_run.id)
                if ledger is not None:
                    stored[run.flow_run.id, run.number] = ledger
        for place, ledger in stored.items():
            ledger.learn(place[1])
