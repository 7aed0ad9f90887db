"""Records as the JSON objects of a journal, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from localflow.builtin.storage.failures import not_a_record
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
from localflow.large_values import FILE
from localflow.upstreams import compact, expanded

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.interfaces import Record

Entry: TypeAlias = "dict[str, Any]"


def flow_run_of(record: Record) -> FlowRun:
    """Return the flow run that a record belongs to; raises StoreError for anything that is no record."""
    if isinstance(record, (StateChange, LogEntry)):
        return record.run.flow_run
    if isinstance(record, (TaskRun, FlowRun)):
        return record.flow_run
    raise not_a_record(record)


def entry_of(record: FlowRun | TaskRun | StateChange, keep: Callable[[str, Payload], Entry]) -> Entry:
    """Return a record as a JSON object; `keep(name, payload)` gives the one for a payload."""
    if isinstance(record, StateChange):
        return _state_entry(record, keep)
    if isinstance(record, TaskRun):
        return _task_entry(record)
    entry = {"kind": "flow_run", **record._asdict()}
    entry["parameters"], entry["versions"] = dict(record.parameters), dict(record.versions)
    if record.arguments is not None:
        entry["arguments"] = keep(f"{record.id}-arguments", record.arguments)
    return entry


def log_entry_of(record: LogEntry) -> Entry:
    """Return what a run has said as a JSON object."""
    run = record.run
    return {
        "kind": "log",
        "flow_run": run.flow_run.id,
        "number": run.number,
        "attempt": record.attempt,
        "timestamp": record.timestamp,
        "level": record.level,
        "source": record.source,
        "message": record.message,
    }


def _task_entry(run: TaskRun) -> Entry:
    entry = {
        "kind": "task_run",
        "flow_run": run.flow_run.id,
        "number": run.number,
        "name": run.name,
        "task": run.task,
        "ordinal": run.ordinal,
        "created_at": run.created_at,
        "upstreams": compact(run.upstreams),
        "tags": run.tags,
        "version": run.version,
    }
    if run.map_number or run.map_index:
        entry["map_number"], entry["map_index"] = run.map_number, run.map_index
    if run.code or run.inputs:
        entry["code"], entry["inputs"] = run.code, run.inputs
    return entry


def _state_entry(change: StateChange, keep: Callable[[str, Payload], Entry]) -> Entry:
    run = change.run
    entry = {
        "kind": "state",
        "flow_run": run.flow_run.id,
        "number": run.number,
        "sequence": change.sequence,
        "type": change.type.value,
        "name": change.name,
        "message": change.message,
        "timestamp": change.timestamp,
        "previous": change.previous,
        "attempt": change.attempt,
    }
    if change.execution is not None:
        entry["execution"] = change.execution._asdict()
    if change.cause is not None:
        entry["cause"] = cause_entry(change.cause)
    if change.result is not None:
        entry["result"] = keep(f"{run.flow_run.id}-{run.number}-{change.sequence}", change.result)
    if change.cache is not None:
        entry["cache"] = change.cache._asdict()
    return entry


def cause_entry(cause: Cause) -> Entry:
    """Return a cause as a JSON object, without those of the long fields that are empty."""
    entry = cause._asdict()
    if not cause.full_traceback_text:
        del entry["full_traceback_text"]
    if cause.arguments:
        entry["arguments"] = dict(cause.arguments)
    else:
        del entry["arguments"]
    return entry


def payload_entry(payload: Payload) -> Entry:
    """Return a payload as a JSON object: as text where it is JSON, else as base64."""
    if payload.format in ("json", FILE):
        try:
            return {"format": payload.format, "text": payload.data.decode()}
        except UnicodeDecodeError:
            pass
    from base64 import b64encode

    return {"format": payload.format, "base64": b64encode(payload.data).decode()}


def payload_of(entry: Entry) -> Payload:
    """Return the payload of `payload_entry`."""
    if "text" in entry:
        return Payload(entry["format"], entry["text"].encode())
    from base64 import b64decode

    return Payload(entry["format"], b64decode(entry["base64"], validate=True))


class EntryReader:
    """Makes records of the entries of one journal, each of the runs as they were recorded last before it."""

    def __init__(self, load: Callable[[Entry], Payload]) -> None:
        """Read payloads by `load`."""
        self._load = load
        self._runs: dict[tuple[str, int], FlowRun | TaskRun] = {}

    def record(self, entry: Entry) -> Record:
        """Return the record of an entry; raises KeyError, TypeError or ValueError where it makes no sense."""
        fields = entry.copy()
        kind = fields.pop("kind")
        if kind == "state":
            return self._state_change(fields)
        if kind == "log":
            return LogEntry(self._run(fields), **fields)
        run = self._flow_run(fields) if kind == "flow_run" else self._task_run(fields)
        self._runs[run.flow_run.id, run.number] = run
        return run

    def _run(self, fields: Entry) -> FlowRun | TaskRun:
        """Return the run that a record is about, taken out of its fields."""
        id, number = fields.pop("flow_run"), fields.pop("number")
        run, flow_run = self._runs[id, number], self._runs[id, 0].flow_run
        if isinstance(run, TaskRun) and run.flow_run is not flow_run:  # which was recorded again
            run = self._runs[id, number] = run._replace(flow_run=flow_run)
        return run

    def _flow_run(self, fields: Entry) -> FlowRun:
        arguments, tags = fields.pop("arguments"), fields.pop("tags")
        return FlowRun(**fields, arguments=None if arguments is None else self._load(arguments), tags=tuple(tags))

    def _task_run(self, fields: Entry) -> TaskRun:
        flow_run, upstreams, tags = (fields.pop(name) for name in ("flow_run", "upstreams", "tags"))
        return TaskRun(self._runs[flow_run, 0].flow_run, **fields, upstreams=expanded(upstreams), tags=tuple(tags))

    def _state_change(self, fields: Entry) -> StateChange:
        fields.pop("result", None)
        run = self._run(fields)
        type = StateType(fields.pop("type"))
        execution, cause, cache = (fields.pop(name, None) for name in ("execution", "cause", "cache"))
        return StateChange(
            run,
            type=type,
            **fields,
            execution=None if execution is None else Execution(**execution),
            cause=None if cause is None else Cause(**cause),
            cache=None if cache is None else CacheEntry(**cache),
        )
