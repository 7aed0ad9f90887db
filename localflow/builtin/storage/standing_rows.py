"""How the task runs of a flow run stand, in the SQLite store: counted from their rows, and kept for large flow runs.

To count takes microseconds for each task run: nothing in a flow run of thousands, seconds in one of a million. So it is
done once when a large flow run ends. What was counted is forgotten with the next change of any of its task runs.
"""

from __future__ import annotations

from heapq import merge
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from localflow.builtin.storage import blocks, rows, statements
from localflow.builtin.storage.checksums import DamagedRowError, Row, odd_checksum
from localflow.builtin.storage.encoding import from_json, to_json
from localflow.interfaces import Standing, StateType
from localflow.standings import Standings
from localflow.states import FINAL_TYPES

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

_NO_MOMENTS = (None, None)
_number, _place = itemgetter(0), itemgetter(0, 1)

#: Up to so many state changes are counted whenever somebody asks: that takes as long as to start Python.
FEW_CHANGES = 100_000


def keep_standings(connection: sqlite3.Connection, key: int) -> None:
    """Keep how the task runs of a flow run stand, within a transaction, if it has ended and has many."""
    found = connection.execute(statements.FIND_COUNT, (key,)).fetchone()
    if found is not None and found[0] > FEW_CHANGES:
        content = _content(count_standings(connection, key))
        connection.execute(statements.ADD_STANDINGS, (key, content, odd_checksum((key, content))))


def kept_standings(connection: sqlite3.Connection, key: int) -> list[Standing] | None:
    """Return how the task runs of a flow run stand, if that was kept. Raises DamagedRowError."""
    row = connection.execute(statements.READ_STANDINGS, (key,)).fetchone()
    if row is None:
        return None
    if odd_checksum(row[:-1]) != row[-1]:
        raise DamagedRowError(f"how the task runs of flow run {key} stand is not as it was written")
    return [
        Standing(map_number, StateType(type), name, tuple(range(*ends) for ends in numbers), *span)
        for map_number, type, name, numbers, *span in from_json(row[1])
    ]


def count_standings(connection: sqlite3.Connection, key: int) -> list[Standing]:
    """Return how the task runs of a flow run stand, from all their rows. Raises DamagedRowError."""
    standings = Standings()
    types = {type.value: type for type in StateType}
    changes = _moments(connection, key)
    change = next(changes, None)
    for number, map_number in _map_numbers(connection, key):
        type, name, start, running_at, end = "PENDING", "Pending", None, None, None
        while change is not None and change[0] == number:
            _, _, type, name, timestamp, started_at, ended_at = change
            if start is None:
                start = started_at
            if running_at is None and type == "RUNNING":
                running_at = timestamp
            end = timestamp if ended_at is None else ended_at
            change = next(changes, None)
        if bytes in (name.__class__, start.__class__, running_at.__class__, end.__class__):
            name, start, running_at, end = map(rows.unboxed, (name, start, running_at, end))
        newest = types[type]
        if start is None:
            start = running_at
        standings.add(number, map_number, newest, name, start, end if newest in FINAL_TYPES else None)
    if change is not None:
        raise DamagedRowError(f"task run {change[0]} of flow run {key} is not there")
    return standings.as_list()


def _map_numbers(connection: sqlite3.Connection, key: int) -> Iterator[Row]:
    """Yield the number and map number of each task run."""
    last = 0
    in_rows = connection.execute(statements.READ_MAP_NUMBERS, (key,))
    packed = ((row[0], row[8]) for row in blocks.task_rows(connection, key))
    for number, map_number in merge(in_rows, packed, key=_number):
        if number != last:  # else it was recorded again, which made it a row
            last = number
            yield number, map_number


def _moments(connection: sqlite3.Connection, key: int) -> Iterator[Row]:
    """Yield what counts of each state change, by number and sequence."""
    packed = (
        (*row[:4], row[5], *(row[8][2:4] if len(row) > 8 and row[8] is not None else _NO_MOMENTS))
        for row in blocks.change_rows(connection, key)
    )
    return merge(connection.execute(statements.READ_MOMENTS, (key,)), packed, key=_place)


def _content(standings: list[Standing]) -> str:
    content: list[Any] = [
        [each.map_number, each.type.value, each.name, [[of.start, of.stop] for of in each.numbers], *each[4:]]
        for each in standings
    ]
    return to_json(content)
