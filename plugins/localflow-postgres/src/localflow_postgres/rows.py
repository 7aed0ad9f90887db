"""Records as rows of the tables, and back. Rows of one statement go as columns, see `encoding`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from localflow_postgres.encoding import (
    bytes_array,
    digest,
    fits,
    float_array,
    from_json,
    from_text,
    int_array,
    text_array,
    to_json,
    to_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SMALL_RESULT_BYTES = 1024  # up to this size a result lies in the row of its state change
PART_BYTES = 8 << 20  # of a larger one in each row

Row = tuple[Any, ...]

_TYPES = {type.value: type for type in StateType}
_NOT_EXECUTED = (None,) * len(Execution._fields)


# -- to the tables ---------------------------------------------------------------------------------------------------


def flow_run_row(run: FlowRun) -> Row:
    """Return the values for `ADD_FLOW_RUN`."""
    arguments = run.arguments or (None, None)
    return (
        to_text(run.id),
        to_text(run.name),
        to_text(run.flow),
        float(run.created_at),
        to_text(run.root_id),
        None if run.parent_id is None else to_text(run.parent_id),
        to_json(dict(run.parameters)),
        to_text(run.entry_point),
        to_text(run.executor),
        to_json(dict(run.versions)),
        to_text(run.host),
        run.pid if fits(run.pid) else 0,
        _texts(run.tags),
        to_text(run.code),
        to_text(run.inputs),
        *arguments,
        None if fits(run.pid) else to_json({"pid": run.pid}),
    )


def task_run_columns(runs: Sequence[tuple[int, TaskRun]]) -> list[str]:
    """Return the values for `ADD_TASK_RUNS`: of each run with the key of its flow run."""
    keys, records = zip(*runs, strict=True)
    odd = [_odd(number=run.number, ordinal=run.ordinal, map_number=run.map_number, map_index=run.map_index)
           for run in records]  # fmt: skip
    return [
        int_array(keys),
        int_array([run.number for run in records]),
        text_array([to_text(run.name) for run in records]),
        text_array([to_text(run.task) for run in records]),
        int_array([_int(run.ordinal) for run in records]),
        float_array([run.created_at for run in records]),
        text_array([_texts(run.upstreams) for run in records]),
        text_array([_texts(run.tags) for run in records]),
        text_array([to_text(run.version) for run in records]),
        int_array([_int(run.map_number) for run in records]),
        int_array([_int(run.map_index) for run in records]),
        text_array([to_text(run.code) for run in records]),
        text_array([to_text(run.inputs) for run in records]),
        text_array(odd),
    ]


def plain_change_columns(changes: Sequence[tuple[int, StateChange]]) -> list[str]:
    """Return the values for `ADD_PLAIN_CHANGES`, of changes with nothing beyond the attempt."""
    keys, records = zip(*changes, strict=True)
    return [*_change_columns(keys, records), text_array([_odd(attempt=change.attempt) for change in records])]


def change_columns(changes: Sequence[tuple[int, StateChange]]) -> list[str]:
    """Return the values for `ADD_CHANGES`."""
    keys, records = zip(*changes, strict=True)
    executions = [change.execution or _NOT_EXECUTED for change in records]
    workers, pids, started, ended, cpu, rss = (list(column) for column in zip(*executions, strict=True))
    results = [change.result for change in records]
    caches = [None if change.cache is None else (to_text(change.cache.key), change.cache.expires_at)
              for change in records]  # fmt: skip
    odd = [
        _odd(attempt=change.attempt, pid=pid, peak_rss_bytes=peak)
        for change, pid, peak in zip(records, pids, rss, strict=True)
    ]
    return [
        *_change_columns(keys, records),
        text_array([None if worker is None else to_text(worker) for worker in workers]),
        int_array(map(_int, pids)),
        float_array(started),
        float_array(ended),
        float_array(cpu),
        int_array(map(_int, rss)),
        text_array([None if change.cause is None else _cause(change.cause) for change in records]),
        text_array([None if result is None else to_text(result.format) for result in results]),
        bytes_array([None if result is None or is_large(result) else result.data for result in results]),
        int_array([_part_count(result) for result in results]),
        text_array([cache and cache[0] for cache in caches]),
        int_array([cache and digest(cache[0]) for cache in caches]),
        float_array([cache and cache[1] for cache in caches]),
        text_array(odd),
    ]


def _change_columns(keys: Sequence[int], records: Sequence[StateChange]) -> list[str]:
    return [
        int_array(keys),
        int_array([change.run.number for change in records]),
        int_array([change.sequence for change in records]),
        text_array([change.type.value for change in records]),
        text_array([to_text(change.name) for change in records]),
        text_array([to_text(change.message) for change in records]),
        float_array([change.timestamp for change in records]),
        text_array([to_text(change.previous) for change in records]),
        int_array([_int(change.attempt) for change in records]),
    ]


def log_columns(entries: Sequence[LogEntry]) -> dict[str, str | int]:
    """Return the values for `ADD_LOG_ENTRIES` but the key of the flow run."""
    return {
        "count": len(entries),
        "numbers": int_array([entry.run.number for entry in entries]),
        "attempts": int_array([_int(entry.attempt) for entry in entries]),
        "timestamps": float_array([entry.timestamp for entry in entries]),
        "levels": int_array([_int(entry.level) for entry in entries]),
        "sources": text_array([to_text(entry.source) for entry in entries]),
        "messages": text_array([to_text(entry.message) for entry in entries]),
        "odd": text_array([_odd(attempt=entry.attempt, level=entry.level) for entry in entries]),
    }


def is_large(result: Payload) -> bool:
    """Return whether a result lies apart, in parts."""
    return len(result.data) > SMALL_RESULT_BYTES


def parts(result: Payload) -> Iterator[memoryview]:
    """Yield the parts of a result that lies apart."""
    view = memoryview(result.data)
    return (view[start : start + PART_BYTES] for start in range(0, len(view), PART_BYTES))


def _part_count(result: Payload | None) -> int:
    return 0 if result is None or not is_large(result) else -(-len(result.data) // PART_BYTES)


def _cause(cause: Cause) -> str:
    fields = cause._asdict()
    fields["arguments"] = dict(cause.arguments)
    return to_json({name: value for name, value in fields.items() if value != Cause._field_defaults.get(name)})


def _texts(texts: Sequence[str]) -> str | None:
    return to_json(list(texts)) if texts else None


def _int(number: int | None) -> int | None:
    """Return what a column of integers has in the place of a number."""
    return number if fits(number) else 0


def _odd(**numbers: int | None) -> str | None:
    """Return the numbers that no column can hold, None if all fit."""
    if all(map(fits, numbers.values())):
        return None
    return to_json({name: number for name, number in numbers.items() if not fits(number)})


# -- from the tables -------------------------------------------------------------------------------------------------


def flow_run_of(row: Row) -> FlowRun:
    """Return the flow run of a row."""
    (id, name, flow, created_at, root_id, parent_id, parameters, entry_point, executor, versions, host, pid, tags, code,
     inputs, arguments_format, arguments, odd) = row  # fmt: skip
    run = FlowRun(
        from_text(id),
        from_text(name),
        from_text(flow),
        created_at,
        from_text(root_id),
        None if parent_id is None else from_text(parent_id),
        from_json(parameters),
        None if arguments_format is None else Payload(arguments_format, arguments),
        from_text(entry_point),
        from_text(executor),
        from_json(versions),
        from_text(host),
        pid,
        _texts_of(tags),
        from_text(code),
        from_text(inputs),
    )
    return run if odd is None else run._replace(**from_json(odd))


def task_run_of(flow_run: FlowRun, row: Row) -> TaskRun:
    """Return the task run of a row."""
    number, name, task, ordinal, created_at, upstreams, tags, version, map_number, map_index, code, inputs, odd = row
    run = TaskRun(
        *(flow_run, number, from_text(name), from_text(task), ordinal, created_at, _texts_of(upstreams)),
        *(_texts_of(tags), from_text(version), map_number, map_index, from_text(code), from_text(inputs)),
    )
    return run if odd is None else run._replace(**from_json(odd))


def state_change_of(run: FlowRun | TaskRun, row: Row) -> StateChange:
    """Return the state change of a row, without its result."""
    (_, sequence, type, name, message, timestamp, previous, attempt, worker, pid, started_at, ended_at, cpu_seconds,
     peak_rss_bytes, cause, cache_key, cache_expires_at, odd) = row  # fmt: skip
    numbers: dict[str, Any] = {} if odd is None else from_json(odd)
    execution = None
    if worker is not None:
        execution = Execution(
            *(from_text(worker), numbers.get("pid", pid), started_at, ended_at, cpu_seconds),
            numbers.get("peak_rss_bytes", peak_rss_bytes),
        )
    return StateChange(
        *(run, sequence, _TYPES[type], from_text(name), from_text(message), timestamp, from_text(previous)),
        numbers.get("attempt") or attempt,
        execution,
        None if cause is None else Cause(**from_json(cause)),
        cache=None if cache_key is None else CacheEntry(from_text(cache_key), cache_expires_at),
    )


def log_entry_of(run: FlowRun | TaskRun, row: Row) -> LogEntry:
    """Return the log entry of a row."""
    _, _, attempt, timestamp, level, source, message, odd = row
    entry = LogEntry(run, attempt, timestamp, level, from_text(source), from_text(message))
    return entry if odd is None else entry._replace(**from_json(odd))


def result_of(found: Sequence[Row]) -> Payload | None:
    """Return the result of rows of its format, its data if that is small, its number of parts, and one part each.

    Raises:
        ValueError: there are not as many parts as there were.
    """
    if not found or found[0][0] is None:
        return None
    format, data, count, _ = found[0]
    if count:
        pieces = [row[3] for row in found if row[3] is not None]
        if len(pieces) != count:
            raise ValueError(f"a result has {len(pieces)} parts where {count} were recorded")
        data = pieces[0] if count == 1 else b"".join(pieces)
    return Payload(from_text(format), data)


def cached_result_of(found: Sequence[Row]) -> CachedResult | None:
    """Return the cached result of rows as of `result_of`, with what else there is to tell."""
    result = result_of([row[:4] for row in found])
    if result is None:
        return None
    id, number, task_run, flow_run, timestamp, expires_at = found[0][4:]
    return CachedResult(
        f"{from_text(id)}-{number}", from_text(task_run), from_text(flow_run), timestamp, expires_at, result
    )


def _texts_of(column: str | None) -> tuple[str, ...]:
    return () if column is None else tuple(from_json(column))
