"""Records as the content of a spool's entry, and back: marshalled plain data, so that reading it runs no code.

Nearly all that an engine records is about task runs and short. That is *packed*, the records of each flow run into one
value, which later goes into the database as it is (see `blocks`); what is left over becomes rows there.
"""

from __future__ import annotations

import marshal
from typing import TYPE_CHECKING, Any, NamedTuple

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
from localflow.upstreams import MANY, compact, expanded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localflow.builtin.storage.checksums import Row
    from localflow.builtin.storage.ledgers import Ledgers
    from localflow.interfaces import Record
    from localflow.upstreams import Few

FORMAT = 2  # the newest that tells no more than plain data need, and all versions of Python read
#: A longer result is not packed: whoever reads anything of a pack reads all of it.
LONGEST_RESULT = 1_000
_TASK_RUN, _CHANGE, _LOG_ENTRY = range(3)
_UPSTREAMS = TaskRun._fields.index("upstreams") - 1  # in a row of a pack
_TYPES = {type.value: type for type in StateType}


class Pack(NamedTuple):
    """Records of the task runs of one flow run."""

    flow_run_id: str
    first: int
    """The lowest number of a task run in it."""
    last: int
    """The highest."""
    task_runs: int
    """How many records of task runs themselves there are."""
    changes: int
    """How many state changes."""
    content: bytes
    """Marshalled: a list of rows of task runs, and one of state changes."""


class Entry(NamedTuple):
    """The records of one commit."""

    packs: Sequence[Pack]
    others: Sequence[Record]


def entry_of(records: Sequence[Record], ledgers: Ledgers) -> Entry | None:
    """Return records as an entry, and note them in the ledgers.

    None for what does not go through a spool: flow runs themselves, what belongs to no ledger, changes that do not
    follow the one before as far as the ledgers know, and values that cannot be marshalled.
    """
    packings: dict[str, tuple[list[Row], list[Row], list[int]]] = {}  # by flow run, what `packed` takes
    others: list[Record] = []
    known: FlowRun | None = None
    many: Sequence[str] = ()
    few: Few = ()
    for record in records:
        if isinstance(record, (StateChange, LogEntry)):
            run = record.run
        elif isinstance(record, TaskRun):
            run = record
        else:
            return None
        flow_run, number = run.flow_run, run.number
        if flow_run is not known:
            found = ledgers.of(flow_run)
            if found is None:
                return None
            known, ledger = flow_run, found
            task_rows, change_rows, numbers = packings.setdefault(flow_run.id, ([], [], []))
        if isinstance(record, StateChange):
            _, sequence, type, name, message, timestamp, previous, attempt, execution, cause, result, cache = record
            if not ledger.add_change(number, sequence):
                return None
            if not number or cache is not None or (result is not None and not _is_short(result)):
                others.append(record)
                continue
            row: Row = (number, sequence, type._value_, name, message, timestamp, previous, attempt)
            if execution is not None or cause is not None or result is not None:
                row += (execution and tuple(execution), cause and tuple(cause), result and tuple(result))
            change_rows.append(row)
            numbers.append(number)
        elif isinstance(record, TaskRun) and ledger.add_task_run(number):
            row = record[1:]
            if len(record.upstreams) >= MANY:
                if record.upstreams is not many:  # which is the same for all runs of a map
                    many, few = record.upstreams, compact(record.upstreams)
                row = (*row[:_UPSTREAMS], few, *row[_UPSTREAMS + 1 :])
            task_rows.append(row)
            numbers.append(number)
        else:  # a task run may take the place of one that is in a pack: a row does that
            others.append(record)
    try:
        return Entry([packed(id, *rows) for id, rows in packings.items() if rows[2]], others)
    except ValueError:  # an instance of a subclass of str, say
        return None


def packed(flow_run_id: str, task_rows: list[Row], change_rows: list[Row], numbers: Sequence[int]) -> Pack:
    """Return rows as a pack; `numbers` are those of the task runs in them."""
    content = marshal.dumps((task_rows, change_rows), FORMAT)
    first, last = min(numbers), max(numbers)
    # `tuple.__new__` makes a named tuple in a third of the time: this is done at every commit.
    return tuple.__new__(Pack, (flow_run_id, first, last, len(task_rows), len(change_rows), content))


def _is_short(result: Payload) -> bool:
    return len(result.data) <= LONGEST_RESULT and result.format != FILE


def spooled(entry: Entry) -> bytes | None:
    """Return the content for an entry; None if there are values in it that cannot be marshalled."""
    flow_runs: dict[str, int] = {}
    rows: list[Row] = []
    for record in entry.others:
        run = record.run if isinstance(record, (StateChange, LogEntry)) else record
        known = flow_runs.setdefault(run.flow_run.id, len(flow_runs))
        if isinstance(record, StateChange):
            plain = (record.sequence, record.type._value_, *record[3:8])
            rows.append((_CHANGE, known, run.number, *plain, *[each and tuple(each) for each in record[8:]]))
        elif isinstance(record, TaskRun):
            rows.append((_TASK_RUN, known, *record[1:]))
        elif isinstance(record, LogEntry):
            rows.append((_LOG_ENTRY, known, run.number, *record[1:]))
    try:
        return marshal.dumps(([*map(tuple, entry.packs)], tuple(flow_runs), rows), FORMAT)
    except ValueError:
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


def unspooled(content: bytes) -> Entry:
    """Return the entry again; of the flow runs in it only the ids are known."""
    packs, ids, rows = marshal.loads(content)
    flow_runs = [_known_by(id) for id in ids]
    others: list[Record] = []
    for kind, known, number, *fields in rows:
        run: Any = _Numbered(flow_runs[known], number)
        if kind == _CHANGE:
            others.append(_change(run, fields, fields[7:]))
        elif kind == _TASK_RUN:
            others.append(TaskRun(flow_runs[known], number, *fields))
        else:
            others.append(LogEntry(run, *fields))
    return Entry([Pack._make(pack) for pack in packs], others)


def records_of(entry: Entry) -> list[Record]:
    """Return the records of an entry that was read, those that are packed first."""
    return [*[record for pack in entry.packs for record in packed_records(pack)], *entry.others]


def packed_records(pack: Pack) -> Iterator[Record]:
    """Yield the records in a pack; of the flow run in them only the id is known."""
    flow_run = _known_by(pack.flow_run_id)
    task_rows, change_rows = marshal.loads(pack.content)
    for row in task_rows:
        yield packed_task_run(flow_run, row)
    for row in change_rows:
        run: Any = _Numbered(flow_run, row[0])
        yield packed_change(run, row)._replace(result=packed_result(row))


def packed_task_run(flow_run: FlowRun, row: Row) -> TaskRun:
    """Return the task run of a row in a pack."""
    task_run = TaskRun(flow_run, *row)
    upstreams, tags = task_run.upstreams, task_run.tags
    if upstreams.__class__ is tuple is tags.__class__ and tuple not in map(type, upstreams):
        return task_run
    return task_run._replace(upstreams=expanded(upstreams), tags=tuple(tags))  # as rows give them back


def packed_change(run: FlowRun | TaskRun, row: Row) -> StateChange:
    """Return the state change of a row in a pack, without its result."""
    return _change(run, row[1:], (*row[8:10], None))


def packed_result(row: Row) -> Payload | None:
    """Return the result in the row of a state change in a pack."""
    return None if len(row) == 8 or row[10] is None else Payload._make(row[10])


def _change(run: Any, fields: Sequence[Any], more: Sequence[Any]) -> StateChange:
    sequence, type, *plain = fields[:7]
    change = StateChange(run, sequence, _TYPES[type], *plain)
    if not any(more):
        return change
    execution, cause, result, cache = (*more, None, None, None, None)[:4]
    return change._replace(
        execution=None if execution is None else Execution._make(execution),
        cause=None if cause is None else Cause._make(cause),
        result=None if result is None else Payload._make(result),
        cache=None if cache is None else CacheEntry._make(cache),
    )


def _known_by(id: str) -> FlowRun:
    return FlowRun(id, "", "", 0.0, id)
