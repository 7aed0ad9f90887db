"""How the task runs of a flow run stand, in the SQLite store: counted from their rows, and kept for large flow runs.

To count takes microseconds for each task run: nothing in a flow run of thousands, seconds in one of a million. So it is
done once when a large flow run ends. What was counted is forgotten with the next change of any of its task runs.
"""

from __future__ import annotations

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

_TYPES = {type.value: type for type in StateType}
_place = itemgetter(0, 1)

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
    tasks_in_rows = _Rows(connection.execute(statements.READ_MAP_NUMBERS, (key,)))
    changes_in_rows = _Rows(connection.execute(statements.READ_MOMENTS, (key,)))
    for tasks, changes in blocks.in_order(connection, key):
        end = max([rows[-1][0] for rows in (tasks, changes) if rows], default=0) + 1
        _count(key, standings, tasks, changes, tasks_in_rows.before(end), changes_in_rows.before(end))
    _count(key, standings, [], [], tasks_in_rows.before(blocks.LAST + 1), changes_in_rows.before(blocks.LAST + 1))
    return standings.as_list()


class _Rows:
    """Rows in the order of their numbers, to be had piece by piece."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def before(self, number: int) -> list[Row]:
        """Return those with lower numbers that were not returned before."""
        found = []
        while self._next is not None and self._next[0] < number:
            found.append(self._next)
            self._next = next(self._rows, None)
        return found


def _count(
    key: int,
    standings: Standings,
    tasks: list[Row],
    changes: list[Row],
    tasks_in_rows: list[Row],
    changes_in_rows: list[Row],
) -> None:
    """Add task runs of which all that is recorded is given, by number and sequence, from blocks and from rows."""
    map_numbers = {row[0]: row[8] for row in tasks}
    if tasks_in_rows:
        map_numbers.update(tasks_in_rows)  # what is in both was recorded again, which made it a row
        map_numbers = dict(sorted(map_numbers.items()))
    if changes_in_rows:
        changes = sorted([*changes, *map(_as_packed, changes_in_rows)], key=_place)
    remaining = iter(changes)
    change = next(remaining, None)
    for number, map_number in map_numbers.items():
        type, name, start, running_at, end = "PENDING", "Pending", None, None, None
        while change is not None and change[0] == number:
            type, name, end = change[2], change[3], change[5]
            if running_at is None and type == "RUNNING":
                running_at = end
            if len(change) > 8 and change[8] is not None:
                _, _, started_at, ended_at, *_ = change[8]
                if start is None:
                    start = started_at
                if ended_at is not None:
                    end = ended_at
            change = next(remaining, None)
        newest = _TYPES[type]
        if start is None:
            start = running_at
        standings.add(number, map_number, newest, name, start, end if newest in FINAL_TYPES else None)
    if change is not None:
        raise DamagedRowError(f"task run {change[0]} of flow run {key} is not there")


def _as_packed(row: Row) -> Row:
    """Return a state change as it would be in a block, as far as it counts."""
    number, sequence, type, *rest = row
    name, timestamp, started_at, ended_at = map(rows.unboxed, rest)
    return number, sequence, type, name, "", timestamp, "", 0, (None, None, started_at, ended_at)


def _content(standings: list[Standing]) -> str:
    content: list[Any] = [
        [each.map_number, each.type.value, each.name, [[of.start, of.stop] for of in each.numbers], *each[4:]]
        for each in standings
    ]
    return to_json(content)
