"""What the flow runs that this process has claimed have recorded of their task runs, known without a look at it.

Nobody else records anything of them. So a record that continues what the ledger of its flow run has is known to fit,
and may be stored without asking the database, which would find out by its keys.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from localflow.interfaces import LogEntry, StateChange, TaskRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from localflow.interfaces import FlowRun, Record

#: Stands for the newest sequence of a task run where it is not known; so large ones are not kept either.
UNKNOWN = 0xFFFF
#: So many numbers are not left out by an engine.
_LARGEST_GAP = 100_000


class Ledger:
    """What is known of the task runs of one flow run."""

    __slots__ = ("_newest",)

    def __init__(self, highest: int, sequence: int) -> None:
        """Begin.

        Args:
            highest: the highest number of its task runs; of these no more is known than that they may be there.
            sequence: that of the newest change of the flow run itself.
        """
        # The newest sequence of each run, by number.
        self._newest = array("H", [min(sequence, UNKNOWN)]) + array("H", [UNKNOWN]) * highest

    def add_task_run(self, number: int) -> bool:
        """Note a task run; return whether it is surely a new one."""
        newest = self._newest
        missing = number + 1 - len(newest)
        if missing == 1:
            newest.append(0)
        elif 1 < missing < _LARGEST_GAP:
            newest.extend([0] * missing)
        else:
            return False
        return True

    def add_change(self, number: int, sequence: int) -> bool:
        """Note a state change of a run; return whether it surely follows the one before."""
        newest = self._newest
        if not 0 <= number < len(newest) or newest[number] != sequence - 1 or sequence >= UNKNOWN:
            return False
        newest[number] = sequence
        return True

    def set_change(self, number: int, sequence: int) -> None:
        """Note the newest state change of a run, whatever was known before."""
        if 0 <= number < len(self._newest):
            self._newest[number] = min(sequence, UNKNOWN)


class Ledgers:
    """The ledgers of the flow runs in the trees on which this process has claims."""

    def __init__(self, find_ends: Callable[[str], tuple[int, int] | None]) -> None:
        """`find_ends` returns what a ledger begins with, None for a flow run that is not recorded."""
        self._find_ends = find_ends
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
            ledger = tree[flow_run.id] = Ledger(*ends)
        return ledger

    def learn(self, records: Iterable[Record]) -> None:
        """Note records that have been stored although they did not continue what was known."""
        for record in records:
            run = record.run if isinstance(record, (StateChange, LogEntry)) else record
            ledger = self._trees.get(run.flow_run.root_id, {}).get(run.flow_run.id)
            if ledger is not None and isinstance(record, TaskRun):
                ledger.add_task_run(record.number)
            elif ledger is not None and isinstance(record, StateChange):
                ledger.set_change(record.run.number, record.sequence)
