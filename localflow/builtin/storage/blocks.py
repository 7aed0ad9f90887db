"""Blocks in the SQLite store: the packs of many commits of one flow run in one value, as they came out of the spool.

A block costs the engine a tenth of what its records cost as rows. It is never changed: what is to be forgotten of it
goes with the whole block, and the rest comes back in another one.

Whoever looks for one task run reads all blocks with numbers below and above it. So that these are few and found without
a look at the others, a block has only numbers close to each other, and something of many of those: where task runs end
in quite another order than they began, their records become rows.
"""

from __future__ import annotations

import marshal
from bisect import bisect_left
from collections import OrderedDict
from itertools import chain
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, NamedTuple

from localflow.builtin.storage import statements
from localflow.builtin.storage.checksums import DamagedRowError, Row, block_checksum
from localflow.builtin.storage.spooled import FORMAT, packed
from localflow.interfaces import StateType, TaskRun

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

    from localflow.builtin.storage.spooled import Pack

LAST = 2**63 - 1
"""The highest number there can be."""
_MOST_BYTES = 32 << 10  # of a block with more than one pack: whoever looks for one task run reads that much
_MOST_NUMBERS = 512  # from the first to the last of a block; readers rely on it
_PART_NUMBERS = 128  # of a pack that is taken apart
_WIDEST_GAP = 64  # between packs of one block
_LEAST_DENSITY = 0.25  # records for each number from the first to the last
_KEPT = 32

_TASK_COLUMNS = len(TaskRun._fields) - 1
_CHANGE_COLUMNS = {8, 11}  # without and with execution, cause and result
_STATES = {type.value for type in StateType}

_number, _place, _state = itemgetter(0), itemgetter(0, 1), itemgetter(2)
_first = attrgetter("first")


class Unpacked(NamedTuple):
    """What is in a block: rows of task runs, and rows of state changes; see `spooled`."""

    task_rows: list[Row]
    change_rows: list[Row]


def in_groups(packs: Iterable[Pack]) -> Iterator[list[Pack]]:
    """Yield packs of one flow run in groups of which each may become a block."""
    group: list[Pack] = []
    size = last = 0
    for pack in sorted(chain.from_iterable(map(_narrow, packs)), key=_first):
        if group and (
            size + len(pack.content) > _MOST_BYTES
            or pack.last - group[0].first >= _MOST_NUMBERS
            or pack.first - last > _WIDEST_GAP
        ):
            yield group
            group, size, last = [], 0, 0
        group.append(pack)
        size += len(pack.content)
        last = max(last, pack.last)
    if group:
        yield group


def are_dense(group: Sequence[Pack]) -> bool:
    """Return whether packs are worth a block: else each of many blocks would have a little of each task run."""
    numbers = max([pack.last for pack in group]) - group[0].first + 1
    return sum([pack.task_runs + pack.changes for pack in group]) >= numbers * _LEAST_DENSITY


def _narrow(pack: Pack) -> Iterable[Pack]:
    """Return a pack in parts that have only numbers close to each other; most are as they should be."""
    width = pack.last - pack.first
    if width < _PART_NUMBERS or (width < _MOST_NUMBERS and are_dense([pack])):
        return (pack,)
    parts: dict[int, Unpacked] = {}
    for kind, rows in enumerate(marshal.loads(pack.content)):
        for row in rows:
            parts.setdefault(row[0] // _PART_NUMBERS, Unpacked([], []))[kind].append(row)
    return [packed(pack.flow_run_id, *part, [row[0] for row in chain(*part)]) for part in parts.values()]


def block_row(key: int, packs: Sequence[Pack]) -> Row:
    """Return the row of a block for packs of the flow run with this key."""
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
    _refuse_damaged(row)
    found = Unpacked([], [])
    try:
        for pack in marshal.loads(row[6]):
            tasks, changes = marshal.loads(pack)
            found.task_rows.extend(tasks)
            found.change_rows.extend(changes)
        makes_sense = _is_what_it_says(row, found)
    except Exception as error:  # whatever comes of data that are no pack
        raise DamagedRowError(f"block {row[0]} of task runs makes no sense ({error!r})") from error
    if not makes_sense:
        raise DamagedRowError(f"block {row[0]} of task runs does not have what it says")
    return found


def _refuse_damaged(row: Row) -> None:
    block, *columns, checksum = row
    if block_checksum(tuple(columns)) != checksum:
        raise DamagedRowError(f"block {block} of task runs is not as it was written")


def _is_what_it_says(row: Row, found: Unpacked) -> bool:
    """Return whether rows are such rows, and those of which the block tells."""
    tasks, changes = found
    numbers = [*map(_number, tasks), *map(_number, changes)]
    return (
        row[2:6] == (min(numbers), max(numbers), len(tasks), len(changes))
        and row[3] - row[2] < _MOST_NUMBERS
        and set(map(type, numbers)) == {int}
        and {*map(type, tasks), *map(type, changes)} == {tuple}
        and set(map(len, tasks)) <= {_TASK_COLUMNS}
        and set(map(len, changes)) <= _CHANGE_COLUMNS
        and set(map(_state, changes)) <= _STATES
    )


def are_there(connection: sqlite3.Connection | sqlite3.Cursor, key: int) -> bool:
    """Return whether anything of a flow run is in blocks."""
    return connection.execute(statements.HAS_BLOCKS, (key,)).fetchone() is not None


def task_rows(connection: sqlite3.Connection, key: int, first: int = 1, last: int = LAST) -> Iterator[Row]:
    """Yield the rows of task runs from one number to another, in the order of their numbers."""
    for found in in_order(connection, key, first, last):
        yield from found.task_rows


def change_rows(connection: sqlite3.Connection, key: int, first: int = 1, last: int = LAST) -> Iterator[Row]:
    """Yield the rows of the state changes of these task runs, by number and sequence."""
    for found in in_order(connection, key, first, last):
        yield from found.change_rows


def in_order(connection: sqlite3.Connection, key: int, first: int = 1, last: int = LAST) -> Iterator[Unpacked]:
    """Yield what all blocks have of these task runs, in the order of their numbers: all of one of them at once."""
    tasks: list[Row] = []
    changes: list[Row] = []
    for block in connection.execute(statements.READ_BLOCKS, _bounds(key, first, last)):
        if tasks or changes:
            yield Unpacked(_before(block[2], tasks), _before(block[2], changes))
        is_within = first <= block[2] and block[3] <= last
        for pending, rows, place in zip((tasks, changes), unpacked(block), (_number, _place), strict=True):
            pending += rows if is_within else [row for row in rows if first <= row[0] <= last]
            pending.sort(key=place)
    yield Unpacked(tasks, changes)


def numbers_called(connection: sqlite3.Connection, key: int, called: str) -> Iterator[int]:
    """Yield the numbers of the task runs with this name or of the task with this name."""
    mention = called.encode("utf-8", "surrogatepass")  # as marshalled texts are
    for block in connection.execute(statements.READ_BLOCKS, _bounds(key, 1, LAST)):
        _refuse_damaged(block)
        if mention in block[6]:
            yield from [row[0] for row in unpacked(block).task_rows if called in row[1:3]]


def _bounds(key: int, first: int, last: int) -> Row:
    """Return what to look for blocks with: the lowest and highest first number, and the lowest last one."""
    return key, max(first - _MOST_NUMBERS, -LAST), last, first


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
        for (block,) in connection.execute(statements.FIND_BLOCKS, _bounds(key, number, number)).fetchall():
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
