"""A look at everything in a SQLite store: by SQLite itself, and whether what it holds fits together."""

from __future__ import annotations

import sqlite3
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from localflow.builtin.storage import blocks, reading, rows, statements
from localflow.builtin.storage.checksums import DamagedRowError, odd_checksum
from localflow.builtin.storage.standing_rows import count_standings, kept_standings
from localflow.interfaces import StateChange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow.builtin.storage.reading import RecordedRun
    from localflow.interfaces import Payload

_DAMAGE = (DamagedRowError, ArithmeticError, KeyError, TypeError, ValueError)
_ENOUGH = 100  # lines; whoever reads them has understood

_STRAYS = {
    "task runs": "SELECT DISTINCT flow_run FROM task_runs",
    "state changes": "SELECT DISTINCT flow_run FROM state_changes",
    "blocks": "SELECT DISTINCT flow_run FROM blocks",
    "results": "SELECT DISTINCT flow_run FROM large_results",
    "cache entries": "SELECT DISTINCT flow_run FROM cache_entries",
    "log entries": "SELECT DISTINCT flow_run FROM log_entries",
}
_KNOWN = "SELECT key FROM flow_runs UNION SELECT flow_run FROM removed_runs"
_READ_RESULTS = (
    "SELECT number, sequence, result_format, coalesce(result, data), result_checksum "
    "FROM state_changes LEFT JOIN large_results USING (flow_run, number, sequence) "
    "WHERE flow_run = ? AND result_checksum IS NOT NULL"
)
_READ_REFERENCES = (
    "SELECT result_format, coalesce(result, data), result_checksum "
    "FROM state_changes LEFT JOIN large_results USING (flow_run, number, sequence) "
    "WHERE result_format = 'file' AND result_checksum IS NOT NULL "
    "AND (:root_id IS NULL OR flow_run IN (SELECT key FROM flow_runs WHERE root_id = :root_id))"
)
_READ_CACHE_ENTRIES = (
    "SELECT key, expires_at, flow_run, number, sequence, checksum FROM cache_entries WHERE flow_run = ?"
)


def wrongs(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield a line for each thing that is wrong, up to a number that is enough."""
    yield from islice(_all_wrongs(connection), _ENOUGH)


def references(connection: sqlite3.Connection, root_id: str | None = None) -> Iterator[Payload]:
    """Return the results that name files, of all runs or of one tree; raises DamagedRowError."""
    return map(rows.result_of, connection.execute(_READ_REFERENCES, {"root_id": root_id}))


def _all_wrongs(connection: sqlite3.Connection) -> Iterator[str]:
    try:
        for (verdict,) in connection.execute("PRAGMA integrity_check(100)"):
            if verdict != "ok":
                yield from (line for line in str(verdict).splitlines() if not line.startswith("***"))
        known = {key for (key,) in connection.execute(_KNOWN)}
        for what, statement in _STRAYS.items():
            for key in sorted({key for (key,) in connection.execute(statement)} - known):
                yield f"there are {what} of a flow run {key} that is not there"
        ids = set()
        for row in connection.execute(statements.READ_ALL_FLOW_RUNS):
            try:
                run = reading.recorded_run_of(row)
            except _DAMAGE as error:
                yield _worded(error)
                continue
            ids.add(run.flow_run.id)
            if run.flow_run.root_id not in ids:
                yield f"flow run {run.flow_run.root_id}, which is above {run.flow_run.id}, is not there"
            yield from _wrongs_of(connection, run)
    except sqlite3.Error as error:
        yield f"reading cannot go on: {error}"


def _wrongs_of(connection: sqlite3.Connection, run: RecordedRun) -> Iterator[str]:
    for look in (
        _look_at_blocks,
        _look_at_records,
        _look_at_standings,
        _look_at_log,
        _look_at_results,
        _look_at_cache_entries,
    ):
        try:
            yield from look(connection, run)
        except _DAMAGE as error:
            yield _worded(error)


def _look_at_blocks(connection: sqlite3.Connection, run: RecordedRun) -> Iterator[str]:
    for row in connection.execute(statements.READ_ALL_BLOCKS, (run.key,)):
        blocks.unpacked(row)
    yield from ()


def _look_at_records(connection: sqlite3.Connection, run: RecordedRun) -> Iterator[str]:
    previous = (0, 0)
    flow_changes = []
    for record in reading.records(connection, run):
        if isinstance(record, StateChange):
            number, sequence = record.run.number, record.sequence
            expected = previous[1] + 1 if number == previous[0] else 1
            if sequence != expected:
                yield f"state change {expected} of run {record.run.id} is not there"
            previous = (number, sequence)
            if not number:
                flow_changes.append(record)
    run.refuse_wrong_end(flow_changes)


def _look_at_standings(connection: sqlite3.Connection, run: RecordedRun) -> Iterator[str]:
    kept = kept_standings(connection, run.key)
    if kept is not None and repr(kept) != repr(count_standings(connection, run.key)):
        yield f"how the task runs of flow run {run.flow_run.id} stand was not counted rightly"


def _look_at_log(connection: sqlite3.Connection, run: RecordedRun) -> Iterator[str]:
    deque(reading.log_entries(connection, run, 0), maxlen=0)
    yield from ()


def _look_at_results(connection: sqlite3.Connection, run: RecordedRun) -> Iterator[str]:
    for number, sequence, *result in connection.execute(_READ_RESULTS, (run.key,)):
        try:
            rows.result_of(tuple(result))
        except DamagedRowError:
            yield f"the result {sequence} of run {run.flow_run.id}-{number} is not as it was written"


def _look_at_cache_entries(connection: sqlite3.Connection, run: RecordedRun) -> Iterator[str]:
    for row in connection.execute(_READ_CACHE_ENTRIES, (run.key,)):
        if odd_checksum(row[:-1]) != row[-1]:
            yield f"the cache entry of run {run.flow_run.id}-{row[3]} is not as it was written"


def _worded(error: Exception) -> str:
    return str(error) if isinstance(error, DamagedRowError) else f"a row makes no sense ({error!r})"
