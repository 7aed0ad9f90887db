"""Records out of the tables. What is long is read in pages, so that memory is needed for one of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, LiteralString

from localflow.interfaces import FlowRunSummary, Standing, StateType
from localflow_postgres import rows, statements
from localflow_postgres.encoding import digest, fits, from_text, int_array, to_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import psycopg

    from localflow.interfaces import CachedResult, FlowRun, LogEntry, Payload, Record, TaskRun

_PAGE = 5_000
_KEPT_RUNS = 50_000  # task runs that are kept while their state changes are read; of more, they are read again
_FINAL = frozenset({StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED})
_FLOW_RUN_COLUMNS = 18


def summaries(
    connection: psycopg.Connection, limit: int | None, root_id: str | None, unfinished: bool
) -> list[FlowRunSummary]:
    """Return flow runs with their newest state, last recorded first."""
    conditions: list[LiteralString] = []
    if root_id is not None:
        conditions.append(statements.OF_TREE)
    if unfinished:
        conditions.append(statements.UNFINISHED)
    where = (" WHERE " + " AND ".join(conditions)) if conditions else ""
    values = {"root_id": None if root_id is None else to_text(root_id), "limit": limit}
    statement = statements.LIST_FLOW_RUNS + where + statements.NEWEST_FIRST
    return [_summary(row) for row in _all(connection, statement, values)]


def _summary(row: rows.Row) -> FlowRunSummary:
    flow_run = rows.flow_run_of(row[1 : 1 + _FLOW_RUN_COLUMNS])
    running_at, *newest = row[1 + _FLOW_RUN_COLUMNS :]
    if newest[0] is None:
        return FlowRunSummary(flow_run, None)
    change = rows.state_change_of(flow_run, tuple(newest))
    return FlowRunSummary(flow_run, change, running_at, change.timestamp if change.type in _FINAL else None)


def find_run(connection: psycopg.Connection, flow_run_id: str) -> tuple[int, FlowRun] | None:
    """Return a flow run by its id, with its key."""
    found = _all(connection, statements.READ_FLOW_RUN, (to_text(flow_run_id),))
    return (found[0][0], rows.flow_run_of(found[0][1:])) if found else None


def records(connection: psycopg.Connection, flow_run_id: str) -> Iterator[Record]:
    """Yield a flow run, its task runs by number, then all state changes."""
    found = find_run(connection, flow_run_id)
    if found is None:
        return
    key, flow_run = found
    yield flow_run
    kept: dict[int, FlowRun | TaskRun] = {}
    count = last = 0
    while page := _all(connection, statements.READ_TASK_RUNS, (key, last, _PAGE)):
        runs = [rows.task_run_of(flow_run, row) for row in page]
        last, count = page[-1][0], count + len(page)
        if count <= _KEPT_RUNS:
            kept.update((run.number, run) for run in runs)
        else:
            kept.clear()
        yield from runs
        if len(page) < _PAGE:
            break
    place = (-1, 0)
    while page := _all(connection, statements.READ_CHANGES, (key, *place, _PAGE)):
        place = page[-1][:2]
        of = kept if count <= _KEPT_RUNS else _between(connection, key, flow_run, page[0][0], place[0])
        of[0] = flow_run
        for row in page:
            yield rows.state_change_of(of[row[0]], row)
        if len(page) < _PAGE:
            break


def chosen_records(
    connection: psycopg.Connection, flow_run_id: str, numbers: Collection[int], called: str | None
) -> Iterator[Record]:
    """Yield the records of the runs with these numbers, and of the task runs with this name or of this task."""
    found = find_run(connection, flow_run_id)
    if found is None:
        return
    key, flow_run = found
    wanted = {number for number in numbers if number >= 0 and fits(number)}
    if called is not None:
        values = {"flow_run": key, "called": to_text(called)}
        wanted.update(number for (number,) in _all(connection, statements.FIND_CALLED, values))
    runs: dict[int, FlowRun | TaskRun] = {}
    if 0 in wanted:
        runs[0] = flow_run
        yield flow_run
    ordered = sorted(wanted)
    pages = [int_array(ordered[start : start + _PAGE]) for start in range(0, len(ordered), _PAGE)]
    for page in pages:
        for row in _all(connection, statements.READ_TASK_RUNS_OF, (key, page)):
            task_run = runs[row[0]] = rows.task_run_of(flow_run, row)
            yield task_run
    for page in pages:
        for row in _all(connection, statements.READ_CHANGES_OF, (key, page)):
            yield rows.state_change_of(runs[row[0]], row)


def log_entries(connection: psycopg.Connection, flow_run_id: str, after: int) -> Iterator[tuple[int, LogEntry]]:
    """Yield a flow run's log entries after a position, with theirs."""
    found = find_run(connection, flow_run_id)
    if found is None:
        return
    key, flow_run = found
    runs: dict[int, FlowRun | TaskRun] = {0: flow_run}
    while page := _all(connection, statements.READ_LOG_ENTRIES, (key, after, _PAGE)):
        unknown = {row[1] for row in page} - runs.keys()
        if unknown:
            if len(runs) > _KEPT_RUNS:
                runs, unknown = {0: flow_run}, {row[1] for row in page} - {0}
            for row in _all(connection, statements.READ_TASK_RUNS_OF, (key, int_array(sorted(unknown)))):
                runs[row[0]] = rows.task_run_of(flow_run, row)
        for row in page:
            yield row[0], rows.log_entry_of(runs[row[1]], row)
        after = page[-1][0]
        if len(page) < _PAGE:
            break


def standings(connection: psycopg.Connection, flow_run_id: str) -> list[Standing]:
    """Return how the task runs of a flow run stand, as it was kept when it ended, or counted."""
    found = _all(connection, statements.FIND_STANDINGS, (to_text(flow_run_id),))
    if not found:
        return []
    key, kept = found[0]
    if kept is not None:
        return [_standing(*entry) for entry in json.loads(kept)]
    return [_standing(*row[:7]) for row in _all(connection, statements.COUNT_STANDINGS, {"flow_run": key})]


def _standing(
    map_number: int, type: str, name: str, firsts: Sequence[int], lasts: Sequence[int], started_at: Any, ended_at: Any
) -> Standing:
    numbers = tuple(range(first, last + 1) for first, last in zip(firsts, lasts, strict=True))
    span = (None if instant is None else float(instant) for instant in (started_at, ended_at))
    return Standing(map_number, StateType(type), from_text(name), numbers, *span)


def result(connection: psycopg.Connection, flow_run_id: str, number: int) -> Payload | None:
    """Return the result that a run has last completed with."""
    if not fits(number):
        return None
    return rows.result_of(_all(connection, statements.LOAD_RESULT, (to_text(flow_run_id), number)))


def cached_result(connection: psycopg.Connection, key: str, now: float) -> CachedResult | None:
    """Return the newest result recorded with a cache key that has not expired."""
    text = to_text(key)
    values = {"digest": digest(text), "key": text, "now": float(now)}
    return rows.cached_result_of(_all(connection, statements.FIND_CACHED, values))


def _between(
    connection: psycopg.Connection, key: int, flow_run: FlowRun, first: int, last: int
) -> dict[int, FlowRun | TaskRun]:
    found = _all(connection, statements.READ_TASK_RUNS_BETWEEN, (key, first, last))
    return {row[0]: rows.task_run_of(flow_run, row) for row in found}


def _all(connection: psycopg.Connection, statement: LiteralString, values: Any) -> list[rows.Row]:
    with connection.cursor(binary=True) as cursor:
        return cursor.execute(statement, values).fetchall()
