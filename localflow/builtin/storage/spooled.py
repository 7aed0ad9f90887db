"""Records as the content of a spool's entry, and back: marshalled plain data, so that reading it runs no code."""

from __future__ import annotations

import marshal
from typing import TYPE_CHECKING, Any

from localflow.interfaces import (
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

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from localflow.interfaces import Record

_VERSION = 2  # the newest that tells no more than plain data need, and all versions of Python read
_TASK_RUN, _CHANGE, _LOG_ENTRY = range(3)
_TYPES = {type.value: type for type in StateType}


def spooled(records: Sequence[Record], roots: Collection[str]) -> bytes | None:
    """Return the content of an entry; None for what does not go through a spool.

    That is: flow runs themselves, what belongs to none of the trees of `roots`, and values that cannot be marshalled.
    """
    flow_runs: dict[str, int] = {}
    last_id, known = "", 0
    rows: list[tuple[Any, ...]] = []
    for record in records:
        if isinstance(record, TaskRun):
            flow_run = record.flow_run
        elif isinstance(record, (StateChange, LogEntry)):
            flow_run = record.run.flow_run
        else:
            return None
        if flow_run.id is not last_id:
            if flow_run.root_id not in roots:
                return None
            last_id = flow_run.id
            known = flow_runs.setdefault(last_id, len(flow_runs))
        if isinstance(record, StateChange):
            run, sequence, type, name, message, timestamp, previous, attempt, execution, cause, result, cache = record
            row: tuple[Any, ...] = (
                _CHANGE,
                known,
                run.number,
                sequence,
                type._value_,
                name,
                message,
                timestamp,
                previous,
                attempt,
            )
            if execution is not None or cause is not None or result is not None:
                row += (
                    None if execution is None else tuple(execution),
                    None if cause is None else tuple(cause),
                    None if result is None else tuple(result),
                    None if cache is None else tuple(cache),
                )
            rows.append(row)
        elif isinstance(record, TaskRun):
            rows.append((_TASK_RUN, known, *record[1:]))
        else:
            rows.append((_LOG_ENTRY, known, record.run.number, *record[1:]))
    try:
        return marshal.dumps((tuple(flow_runs), rows), _VERSION)
    except ValueError:  # an instance of a subclass of str, say
        return None


class _Numbered:
    """Stands for a task run or flow run of which a record tells the number alone."""

    __slots__ = ("flow_run", "number")

    def __init__(self, flow_run: FlowRun, number: int) -> None:
        self.flow_run = flow_run
        self.number = number

    @property
    def id(self) -> str:
        """The id of the run."""
        return f"{self.flow_run.id}-{self.number}" if self.number else self.flow_run.id


def unspooled(content: bytes) -> list[Record]:
    """Return the records of an entry; of the flow runs in them only the ids are known."""
    ids, rows = marshal.loads(content)
    flow_runs = [FlowRun(id, "", "", 0.0, id) for id in ids]
    records: list[Record] = []
    for kind, known, number, *fields in rows:
        run: Any = _Numbered(flow_runs[known], number)
        if kind == _CHANGE:
            sequence, type, *plain = fields[:7]
            change = StateChange(run, sequence, _TYPES[type], *plain)
            if len(fields) > len(plain) + 2:
                execution, cause, result, cache = fields[7:]
                change = change._replace(
                    execution=None if execution is None else Execution._make(execution),
                    cause=None if cause is None else Cause._make(cause),
                    result=None if result is None else Payload._make(result),
                    cache=None if cache is None else CacheEntry._make(cache),
                )
            records.append(change)
        elif kind == _TASK_RUN:
            records.append(TaskRun(flow_runs[known], number, *fields))
        else:
            records.append(LogEntry(run, *fields))
    return records
