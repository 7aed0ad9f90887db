"""Records as rows of the SQLite store, and back.

A value that SQLite has no form for (a text with lone surrogates, an integer of more than 64 bits, NaN) is *boxed*: the
column holds its JSON as a BLOB. Rows are built unboxed, for hardly any needs it, and SQLite refuses those that do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

from localflow.builtin.storage.checksums import (
    DamagedRowError,
    Row,
    change_checksum,
    log_checksum,
    odd_checksum,
    plain_change_checksum,
    task_run_checksum,
)
from localflow.builtin.storage.encoding import from_json, is_unicode, to_json
from localflow.builtin.storage.entries import cause_entry
from localflow.interfaces import (
    CachedResult,
    CacheEntry,
    Cause,
    Execution,
    FlowRun,
    LogEntry,
    Payload,
    StateChange,
    StateType,
    TaskRun,
)
from localflow.upstreams import compact, expanded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SMALL_RESULT_BYTES = 200  # up to this size a result lies in the row of its state change: one page less to write
MAX_RESULT_BYTES = 999_999_000  # SQLite's limit for a row is 10**9; a larger result is not kept

# `type._value_` is `type.value`, without the three calls that this takes.
_TYPES = {type.value: type for type in StateType}
_NOT_EXECUTED = (None,) * len(Execution._fields)


def flow_run_row(run: FlowRun) -> Row:
    """Return the row of a flow run, boxed where it must be."""
    parameters, versions = to_json(dict(run.parameters)), to_json(dict(run.versions))
    start = (run.id, run.name, run.flow, run.created_at, run.root_id, run.parent_id, parameters)
    end = (run.entry_point, run.executor, versions, run.host, run.pid, _joined(run.tags), run.code, run.inputs)
    row = boxed((*start, *end, *(run.arguments or (None, None))))
    return *row, odd_checksum(row)


def flow_run_of(row: Sequence[Any]) -> FlowRun:
    """Return the flow run of a row."""
    *columns, arguments, checksum = row  # the arguments are a BLOB of their own right
    if odd_checksum(row[:-1]) != checksum:
        raise DamagedRowError(f"flow run {row[0]!r} is not as it was written")
    id, name, flow, created_at, root_id, parent_id, parameters, *end, format = map(unboxed, columns)
    entry_point, executor, versions, host, pid, tags, code, inputs = end
    payload = None if format is None else Payload(format, arguments)
    start = (id, name, flow, created_at, root_id, parent_id, from_json(parameters), payload)
    return FlowRun(*start, entry_point, executor, from_json(versions), host, pid, _split(tags), code, inputs)


def task_run_row(key: int, run: TaskRun, box: bool) -> Row:
    """Return the row of a task run; `key` is that of its flow run."""
    _, number, name, task, ordinal, created_at, upstreams, tags, *end = run
    row: Row = (key, number, name, task, ordinal, created_at, _joined(compact(upstreams)), _joined(tags), *end)
    if box:
        row = boxed(row)
    return *row, task_run_checksum(row)


def task_run_of(flow_run: FlowRun, row: Row) -> TaskRun:
    """Return the task run of a row."""
    columns = row[:-1]
    if task_run_checksum(columns) != row[-1]:
        raise DamagedRowError(f"task run {row[1]!r} of flow run {flow_run.id} is not as it was written")
    if bytes in map(type, columns):
        columns = tuple(map(unboxed, columns))
    _, number, name, task, ordinal, created_at, upstreams, tags, *end = columns
    return TaskRun(flow_run, number, name, task, ordinal, created_at, expanded(_split(upstreams)), _split(tags), *end)


def plain_change_row(key: int, change: StateChange, box: bool) -> Row:
    """Return the row of a state change without execution, cause, result and cache entry."""
    run, sequence, type, name, message, timestamp, previous, attempt, _, _, _, _ = change
    row: Row = (key, run.number, sequence, type._value_, name, message, timestamp, previous, attempt)
    if box:
        row = boxed(row)
    return *row, plain_change_checksum(row)


def full_change_row(key: int, change: StateChange, box: bool) -> Row:
    """Return the row of a state change, a large result only by its format and checksum."""
    run, sequence, type, name, message, timestamp, previous, attempt, execution, cause, result, _ = change
    measured: Row = execution or _NOT_EXECUTED
    if execution is not None and _has_nan(execution):
        measured = boxed(execution)  # here, for SQLite would take NaN for NULL without a word
    format, data = (None, None) if result is None or len(result.data) > MAX_RESULT_BYTES else result
    row: Row = (
        *(key, run.number, sequence, type._value_, name, message, timestamp, previous, attempt),
        *measured,
        None if cause is None else to_json(cause_entry(cause)),
        format,
    )
    if box:
        row = boxed(row)
    if data is None:
        return *row, change_checksum(row), None, None
    return *row, change_checksum(row), data if len(data) <= SMALL_RESULT_BYTES else None, crc32(data)


def large_result_row(key: int, change: StateChange) -> Row | None:
    """Return the row of a result that does not lie in the row of its state change."""
    result = change.result
    if result is None or not SMALL_RESULT_BYTES < len(result.data) <= MAX_RESULT_BYTES:
        return None
    return key, change.run.number, change.sequence, result.data


def cache_row(key: int, change: StateChange, cache: CacheEntry, box: bool) -> Row:
    """Return the row of a state change's cache entry."""
    cache_key, expires_at = cache
    if box or expires_at != expires_at:  # SQLite would take NaN for NULL, which is for ever
        cache_key, expires_at = boxed(cache)
    row = (cache_key, expires_at, key, change.run.number, change.sequence)
    return *row, odd_checksum(row)


def state_change_of(run: FlowRun | TaskRun, row: Row) -> StateChange:
    """Return the state change of a row, without its result."""
    if change_checksum(row[:17]) != row[17]:
        raise DamagedRowError(f"state change {row[2]!r} of run {run.id} is not as it was written")
    if bytes in map(type, row):
        row = tuple(map(unboxed, row))
    _, _, sequence, type_, name, message, timestamp, previous, attempt, *execution, cause, _, _, key, expires_at = row
    return StateChange(
        *(run, sequence, _TYPES[type_], name, message, timestamp, previous, attempt),
        None if execution[0] is None else Execution(*execution),
        None if cause is None else Cause(**from_json(cause)),
        cache=None if key is None else CacheEntry(key, expires_at),
    )


def cached_result_of(task_run: TaskRun, timestamp: float, entry: Row, result: Payload) -> CachedResult:
    """Return a cached result, its task run, when that completed, and the row of its cache entry."""
    if odd_checksum(entry[:-1]) != entry[-1]:
        raise DamagedRowError(f"the cache entry of task run {task_run.id} is not as it was written")
    expires_at = unboxed(entry[1])
    return CachedResult(task_run.id, task_run.name, task_run.flow_run.name, timestamp, expires_at, result)


def log_row(key: int, position: int, entry: LogEntry, box: bool) -> Row:
    """Return the row of a log entry; `key` is that of its flow run."""
    run, *fields = entry
    row: Row = (key, position, run.number, *fields)
    if box:
        row = boxed(row)
    return *row, log_checksum(row)


def log_entry_of(run: FlowRun | TaskRun, row: Row) -> LogEntry:
    """Return the log entry of a row."""
    if log_checksum(row[:-1]) != row[-1]:
        raise DamagedRowError(f"log entry {row[1]!r} of flow run {run.flow_run.id} is not as it was written")
    return LogEntry(run, *map(unboxed, row[3:-1]))


def result_of(row: Row) -> Payload:
    """Return the result of a row of its format, data and checksum."""
    format, data, checksum = row
    if data is None or crc32(data) != checksum:
        raise DamagedRowError("a result is not as it was written")
    return Payload(unboxed(format), data)


def boxed(row: Iterable[Any]) -> Row:
    """Return a row with every value that SQLite has no form for as its JSON in a BLOB."""
    return tuple(value if _fits(value) else to_json(value).encode() for value in row)


def unboxed(value: Any) -> Any:
    """Return the value that a row has, boxed or not."""
    return from_json(value.decode()) if type(value) is bytes else value


def _fits(value: object) -> bool:
    if isinstance(value, str):
        return is_unicode(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return not (isinstance(value, float) and math.isnan(value))


def _has_nan(execution: Execution) -> bool:
    _, _, started_at, ended_at, cpu_seconds, _ = execution
    return started_at != started_at or ended_at != ended_at or cpu_seconds != cpu_seconds


def _joined(texts: Sequence[str | tuple[str, int, int]]) -> str | bytes | None:
    """Return texts as the lines of one; None for no texts, and boxed where there are others or some have lines."""
    if not texts:
        return None
    if tuple not in map(type, texts):
        text = "\n".join(cast("Sequence[str]", texts))
        if text.count("\n") == len(texts) - 1:
            return text
    return to_json(texts).encode()


def _split(joined: str | list[str] | None) -> tuple[str, ...]:
    if joined is None:
        return ()
    return tuple(joined.split("\n") if isinstance(joined, str) else joined)
