"""Records out of the rows of the SQLite store, and whether they are all there.

Whoever reads needs no other knowledge of the tables. A row that is damaged or missing is a DamagedRowError; so is what
cannot be: a state change of a task run that is not there, say.
"""

from __future__ import annotations

from heapq import merge
from typing import TYPE_CHECKING, Any, NamedTuple

from localflow.builtin.storage import blocks, rows, statements
from localflow.builtin.storage.checksums import DamagedRowError, Row, change_checksum, odd_checksum
from localflow.builtin.storage.spooled import packed_change, packed_result, packed_task_run
from localflow.builtin.storage.standing_rows import count_standings, kept_standings
from localflow.builtin.storage.summary import summarise
from localflow.standings import ranges_of
from localflow.states import FINAL_TYPES

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterator, Mapping

    from localflow.interfaces import (
        CachedResult,
        FlowRun,
        FlowRunSummary,
        LogEntry,
        Payload,
        Record,
        Standing,
        StateChange,
        TaskRun,
    )


class RecordedRun(NamedTuple):
    """A flow run in the store, and what else of it must be there."""

    key: int
    is_final: int
    changes: int | None
    """How many state changes there were when it ended; some may have been added since."""
    log_entries: int | None
    """The same of log entries."""
    flow_run: FlowRun

    def refuse_missing_changes(self, changes: int) -> None:
        """Raise DamagedRowError if there are fewer state changes than there have been."""
        if self.changes is not None and changes < self.changes:
            raise DamagedRowError(
                f"flow run {self.flow_run.id} has {changes} state changes where {self.changes} were recorded"
            )

    def refuse_missing_entries(self, entries: int) -> None:
        """Raise DamagedRowError if there are fewer log entries than there have been."""
        if self.log_entries is not None and entries < self.log_entries:
            raise DamagedRowError(
                f"flow run {self.flow_run.id} has {entries} log entries where {self.log_entries} were recorded"
            )

    def refuse_wrong_end(self, changes: list[StateChange]) -> None:
        """Raise DamagedRowError unless its own state changes end as it is noted that they do."""
        if bool(changes and changes[-1].type in FINAL_TYPES) != bool(self.is_final):
            raise DamagedRowError(f"the newest state of flow run {self.flow_run.id} is not there")


def find_run(connection: sqlite3.Connection, flow_run_id: str) -> RecordedRun | None:
    """Return a flow run by its id."""
    row = connection.execute(statements.READ_FLOW_RUN, (flow_run_id,)).fetchone()
    if row is not None:
        return recorded_run_of(row)
    if connection.execute(statements.SEEK_FLOW_RUN, (flow_run_id,)).fetchone() is not None:
        raise DamagedRowError(f"flow run {flow_run_id} is not in the index")
    return None


def recorded_run_of(row: Row) -> RecordedRun:
    """Return the flow run of a row."""
    key, also_key, is_final, changes, log_entries, *columns = row
    flow_run = rows.flow_run_of(columns)
    if also_key != key:
        raise DamagedRowError(f"the progress of flow run {flow_run.id} is not there")
    return RecordedRun(key, is_final, changes, log_entries, flow_run)


def summaries(
    connection: sqlite3.Connection, limit: int | None, root_id: str | None, unfinished: bool
) -> list[FlowRunSummary]:
    """Return flow runs with their newest state, last recorded first."""
    statement = statements.LIST_FLOW_RUNS[root_id is not None, unfinished]
    values = {"limit": -1 if limit is None else limit, "root_id": root_id}
    found = []
    for row in connection.execute(statement, values).fetchall():
        run = recorded_run_of(row)
        changes = flow_changes(connection, run)
        run.refuse_wrong_end(changes)
        found.append(summarise(run.flow_run, changes))
    return found


def flow_changes(connection: sqlite3.Connection, run: RecordedRun) -> list[StateChange]:
    """Return the state changes of a flow run itself."""
    found = connection.execute(statements.READ_FLOW_CHANGES, (run.key,))
    return [_change_of(run.flow_run, row) for row in found]


def records(connection: sqlite3.Connection, run: RecordedRun) -> Iterator[Record]:
    """Yield a flow run, its task runs by number, then all state changes."""
    yield run.flow_run
    runs: dict[int, FlowRun | TaskRun] = {0: run.flow_run}
    for task_run in _task_runs(connection, run):
        runs[task_run.number] = task_run
        yield task_run
    count = 0
    for change in _changes(connection, run, runs):
        count += 1
        yield change
    run.refuse_missing_changes(count)


def chosen_records(
    connection: sqlite3.Connection, run: RecordedRun, numbers: Collection[int], called: Any | None
) -> Iterator[Record]:
    """Yield the records of the runs with these numbers, and of the task runs with this name or of this task."""
    found = {number for number in numbers if -(2**63) <= number < 2**63}
    if called is not None:
        (called_in_row,) = rows.boxed((called,))
        wanted = {"flow_run": run.key, "called": called_in_row}
        found.update(number for (number,) in connection.execute(statements.FIND_CALLED, wanted))
        packed = set(blocks.numbers_called(connection, run.key, called))
        if packed:  # and not recorded again under another name
            packed.difference_update(number for (number,) in connection.execute(statements.LIST_NUMBERS, (run.key,)))
        found |= packed
    runs: dict[int, FlowRun | TaskRun] = {0: run.flow_run}
    if 0 in found:
        yield run.flow_run
    ranges = [(each.start, each.stop - 1) for each in ranges_of(found)]
    for ends in ranges:
        for task_run in _task_runs(connection, run, *ends):
            runs[task_run.number] = task_run
            yield task_run
    for ends in ranges:
        yield from _changes(connection, run, runs, *ends)


def _task_runs(
    connection: sqlite3.Connection, run: RecordedRun, first: int = 1, last: int = blocks.LAST
) -> Iterator[TaskRun]:
    """Yield the task runs from one number to another, in the order of their numbers."""
    in_rows = ((row[1], 0, row) for row in connection.execute(statements.READ_TASK_RUNS_OF, (run.key, first, last)))
    packed = ((row[0], 1, row) for row in blocks.task_rows(connection, run.key, first, last))
    before = (0, 0)
    for number, is_packed, row in merge(in_rows, packed):
        if number == before[0]:
            if is_packed > before[1]:  # it was recorded again, which made it a row
                continue
            raise DamagedRowError(f"task run {number} of flow run {run.flow_run.id} is there twice")
        before = (number, is_packed)
        yield packed_task_run(run.flow_run, row) if is_packed else rows.task_run_of(run.flow_run, row)


def _changes(
    connection: sqlite3.Connection,
    run: RecordedRun,
    runs: Mapping[int, FlowRun | TaskRun],
    first: int = 0,
    last: int = blocks.LAST,
) -> Iterator[StateChange]:
    """Yield the state changes of runs from one number to another, by number and sequence."""
    in_rows = (
        (row[1], row[2], 0, row) for row in connection.execute(statements.READ_CHANGES_OF, (run.key, first, last))
    )
    packed = ((row[0], row[1], 1, row) for row in blocks.change_rows(connection, run.key, first, last))
    before = (0, 0)
    for number, sequence, is_packed, row in merge(in_rows, packed):
        if (number, sequence) <= before:
            raise DamagedRowError(f"a state change of flow run {run.flow_run.id} is there twice")
        before = (number, sequence)
        yield packed_change(runs[number], row) if is_packed else _change_of(runs[number], row)


def standings(connection: sqlite3.Connection, run: RecordedRun) -> list[Standing]:
    """Return how the task runs of a flow run stand."""
    kept = kept_standings(connection, run.key)
    return count_standings(connection, run.key) if kept is None else kept


def log_entries(connection: sqlite3.Connection, run: RecordedRun, after: int) -> Iterator[tuple[int, LogEntry]]:
    """Yield a flow run's log entries after a position, with theirs."""
    runs: dict[int, FlowRun | TaskRun] = {0: run.flow_run}
    reader = blocks.BlockReader()
    expected = after + 1
    for row in connection.execute(statements.READ_LOG_ENTRIES, (run.key, after)):
        _, position, number, *_ = row
        if number not in runs:
            task_run = _task_run(connection, run, number, reader)
            if task_run is None:
                raise DamagedRowError(f"task run {number} of flow run {run.flow_run.id} is not there")
            runs[number] = task_run
        entry = rows.log_entry_of(runs[number], row)
        if position != expected:
            raise DamagedRowError(f"log entry {expected} of flow run {run.flow_run.id} is not there")
        expected += 1
        yield position, entry
    run.refuse_missing_entries(expected - 1)


def result(connection: sqlite3.Connection, flow_run_id: str, number: int, reader: blocks.BlockReader) -> Payload | None:
    """Return the newest recorded result of a run."""
    found = connection.execute(statements.FIND_KEY, (flow_run_id,)).fetchone()
    if found is None:
        return None
    row = connection.execute(statements.READ_RESULT, (found[0], number)).fetchone()
    for change in reversed(reader.change_rows(connection, found[0], number)):
        if change[2] == "COMPLETED" and (row is None or change[1] > row[2]):
            return packed_result(change)
    return _result_of(row) if row and row[-1] is not None else None


def cached_result(
    connection: sqlite3.Connection, key: Any, now: float, reader: blocks.BlockReader
) -> CachedResult | None:
    """Return the newest result recorded with a cache key, as it is in a row, that has not expired at `now`."""
    for entry in connection.execute(statements.FIND_CACHED, (key, now)):
        place = flow_run, number, _ = entry[2:5]
        run = recorded_run_of(connection.execute(statements.READ_FLOW_RUN_BY_KEY, (flow_run,)).fetchone())
        task_run = _task_run(connection, run, number, reader)
        if task_run is not None:
            change = _change_of(task_run, connection.execute(statements.READ_CHANGE, place).fetchone())
            result = _result_of(connection.execute(statements.READ_RESULT_OF_CHANGE, place).fetchone())
            return rows.cached_result_of(task_run, change.timestamp, entry, result)
    return None


def _task_run(
    connection: sqlite3.Connection, run: RecordedRun, number: int, reader: blocks.BlockReader
) -> TaskRun | None:
    row = connection.execute(statements.READ_TASK_RUN, (run.key, number)).fetchone()
    if row is not None:
        return rows.task_run_of(run.flow_run, row)
    packed = reader.task_row(connection, run.key, number)
    return None if packed is None else packed_task_run(run.flow_run, packed)


def _change_of(run: FlowRun | TaskRun, row: Row) -> StateChange:
    cache_key, expires_at, cache_checksum = row[18:]
    if cache_checksum is not None and odd_checksum((cache_key, expires_at, *row[:3])) != cache_checksum:
        raise DamagedRowError(f"a cache entry of run {run.id} is not as it was written")
    return rows.state_change_of(run, row[:-1])


def _result_of(row: Row) -> Payload:
    if change_checksum(row[:17]) != row[17]:
        raise DamagedRowError("the state change of a result is not as it was written")
    return rows.result_of((row[16], *row[18:]))
