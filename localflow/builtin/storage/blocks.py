"""Blocks in the SQLite store: the packs of many commits of one flow run in one value, as they came out of the spool.

A block costs the engine a tenth of what its records cost as rows. It is never changed: what is to be forgotten of it
goes with the whole block, and the rest comes back in another one.
"""

from __future__ import annotations

import marshal
from bisect import bisect_left
from collections import OrderedDict
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from localflow.builtin.storage import statements
from localflow.builtin.storage.checksums import DamagedRowError, Row, block_checksum
from localflow.builtin.storage.spooled import FORMAT, Pack

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

LAST = 2**63 - 1
"""The highest number there can be."""
_MOST_BYTES = 128 << 10  # of a block with more than one pack: whoever looks for one task run reads that much
_KEPT = 8

_number, _place = itemgetter(0), itemgetter(0, 1)


class Unpacked(NamedTuple):
    """What is in a block: rows of task runs, and rows of state changes; see `spooled`."""

    task_rows: list[Row]
    change_rows: list[Row]


def block_rows(key: int, packs: Iterable[Pack]) -> Iterator[Row]:
    """Yield the rows of blocks for packs of the flow run with this key."""
    group: list[Pack] = []
    size = 0
    for pack in packs:
        if group and size + len(pack.content) > _MOST_BYTES:
            yield _block_row(key, group)
            group, size = [], 0
        group.append(pack)
        size += len(pack.content)
    if group:
        yield _block_row(key, group)


def _block_row(key: int, packs: Sequence[Pack]) -> Row:
    row: Row = (
        key,
        min([pack.first for pack in packs]),
        max([pack.last for pack in packs]),
        sum([pack.task_runs for pack in packs]),
        sum([pack.changes for pack in packs]),
        marshal.dumps([pack.content for pack in packs], FORMAT),
    )
    return *row, block_checksum(row)


def unpacked(row: Row) -> Unpacked:
    """Return what is in a block. Raises DamagedRowError."""
    block, *columns, checksum = row
    if block_checksum(tuple(columns)) != checksum:
        raise DamagedRowError(f"block {block} of task runs is not as it was written")
    task_rows: list[Row] = []
    change_rows: list[Row] = []
    for pack in marshal.loads(columns[-1]):
        tasks, changes = marshal.loads(pack)
        task_rows += tasks
        change_rows += changes
    return Unpacked(task_rows, change_rows)


def are_there(connection: sqlite3.Connection | sqlite3.Cursor, key: int) -> bool:
    """Return whether anything of a flow run is in blocks."""
    return connection.execute(statements.HAS_BLOCKS, (key,)).fetchone() is not None


def task_rows(connection: sqlite3.Connection, key: int, first: int = 1, last: int = LAST) -> Iterator[Row]:
    """Yield the rows of task runs from one number to another, in the order of their numbers."""
    pending: list[Row] = []
    for block in connection.execute(statements.READ_BLOCKS, (key, first, last)):
        yield from _before(block[2], pending)
        pending += [row for row in unpacked(block).task_rows if first <= row[0] <= last]
        pending.sort(key=_number)
    yield from pending


def numbers_called(connection: sqlite3.Connection, key: int, called: str) -> Iterator[int]:
    """Yield the numbers of the task runs with this name or of the task with this name."""
    mention = called.encode("utf-8", "surrogatepass")  # as marshalled texts are
    for block in connection.execute(statements.READ_BLOCKS, (key, 1, LAST)):
        if mention in block[6]:
            yield from [row[0] for row in unpacked(block).task_rows if called in row[1:3]]


def change_rows(connection: sqlite3.Connection, key: int, first: int = 1, last: int = LAST) -> Iterator[Row]:
    """Yield the rows of the state changes of these task runs, by number and sequence."""
    pending: list[Row] = []
    for block in connection.execute(statements.READ_BLOCKS, (key, first, last)):
        yield from _before(block[2], pending)
        pending += [row for row in unpacked(block).change_rows if first <= row[0] <= last]
        pending.sort(key=_place)
    yield from pending


def _before(first: int, pending: list[Row]) -> list[Row]:
    """Take out the rows of task runs before a number: blocks come in the order of their first ones."""
    end = bisect_left(pending, first, key=_number)
    taken = pending[:end]
    del pending[:end]
    return taken


def without_results(row: Row) -> Row | None:
    """Return the row of a block with the same but no results, None if there are none."""
    found = unpacked(row)
    changes = [(*change[:10], None) if len(change) > 8 else change for change in found.change_rows]
    if changes == found.change_rows:
        return None
    content = marshal.dumps([marshal.dumps((found.task_rows, changes), FORMAT)], FORMAT)
    columns = (*row[1:6], content)
    return *columns, block_checksum(columns)


class BlockReader:
    """Finds what blocks have of single task runs; those it has read last are at hand."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[dict[int, Row], dict[int, list[Row]]]] = OrderedDict()

    def task_row(self, connection: sqlite3.Connection, key: int, number: int) -> Row | None:
        """Return the row of a task run."""
        for tasks, _ in self._blocks(connection, key, number):
            if number in tasks:
                return tasks[number]
        return None

    def change_rows(self, connection: sqlite3.Connection, key: int, number: int) -> list[Row]:
        """Return the rows of the state changes of a task run, by their sequence."""
        found = [row for _, changes in self._blocks(connection, key, number) for row in changes.get(number, ())]
        return sorted(found, key=_place)

    def _blocks(
        self, connection: sqlite3.Connection, key: int, number: int
    ) -> Iterator[tuple[dict[int, Row], dict[int, list[Row]]]]:
        for (block,) in connection.execute(statements.FIND_BLOCKS, (key, number, number)).fetchall():
            if block in self._kept:
                self._kept.move_to_end(block)
            else:
                found = unpacked(connection.execute(statements.READ_BLOCK, (block,)).fetchone())
                changes: dict[int, list[Row]] = {}
                for row in found.change_rows:
                    changes.setdefault(row[0], []).append(row)
                self._kept[block] = {row[0]: row for row in found.task_rows}, changes
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            yield self._kept[block]
