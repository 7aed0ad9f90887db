"""Outcomes as plain data: packed in a worker, unpacked in the engine without running any code of the user's.

The value of a completed task and the exception of a failed one travel as bytes and stay bytes in the engine until
somebody asks for them. What cannot travel is told in words: the state's message and its cause are always plain.
"""

from __future__ import annotations

import itertools
import pickle
from typing import TYPE_CHECKING, Any

from localflow.builtin.process.transport import DONE, FLAT, OUTCOME, frame
from localflow.calls import Outcome
from localflow.errors import LargeValueError, UnpicklableError
from localflow.large_values import FILE, Reference
from localflow.payloads import Packed, Payload, pack, pickle_value, type_name
from localflow.printable import shortened
from localflow.records import CacheEntry, Execution, FlowRun, LogEntry, StateChange, TaskRun
from localflow.states import Cause, Returned, State, StateType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.builtin.process.capture import Ends
    from localflow.large_values import Folder
    from localflow.records import Record

#: The most that one argument or one result may take, in bytes: what `marshal` can write.
SIZE_LIMIT = (1 << 31) - 1

_COMPLETED = "Completed"
_CHAIN_LIMIT = 16
_REASON_LIMIT = 5_000
_RECORD_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (FlowRun, TaskRun, StateChange, LogEntry)}
_PART_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Execution, Cause, Payload, CacheEntry)}
_KINDS = {**_RECORD_KINDS, **_PART_KINDS}
_TYPES = {type.value: type for type in StateType}


# -- in a worker -----------------------------------------------------------------------------------------------------


def outcome_frame(
    number: int, task: str, outcome: Outcome, ends: Ends | None = None, folder: Folder | None = None
) -> bytes:
    """Return the frame for an outcome; a result that cannot travel makes it FAILED.

    Args:
        number: the number of the call on its way.
        task: the task's name, for messages.
        outcome: how the call ended.
        ends: how far its output goes; None if there is nothing new.
        folder: where a large result is written.
    """
    state, payload = outcome.state, outcome.result
    if payload is None:
        try:
            payload = _pack_data(state, folder)
        except BaseException as error:  # pickling runs code of the user's, which may call sys.exit()
            if state.type is StateType.COMPLETED:
                state = unsendable(result_message(task, state.packed_data, error))
                payload = _pack_data(state)
    if payload is not None and len(payload.data) > SIZE_LIMIT:
        state, payload = unsendable(size_message(task, outcome.state.packed_data, len(payload.data))), None
    ended = outcome.execution
    if (
        state.type is StateType.COMPLETED
        and payload is not None
        and ended is not None
        and not (outcome.records or state.message or state.name != _COMPLETED or state.cause)
    ):
        return frame((DONE, number, state.instant, *payload, *ended, ends), FLAT)
    cause = None if state.cause is None else tuple(state.cause)
    execution = None if ended is None else tuple(ended)
    records = to_plain(outcome.records) if outcome.records else ()
    return frame(
        (
            OUTCOME, number, state.type._value_, state.name, state.message, state.instant, cause,
            None if payload is None else tuple(payload), execution, records, ends,
        )
    )  # fmt: skip


def unsendable(message: str) -> State:
    """Return the FAILED state of a call whose arguments, function or result cannot travel."""
    error = UnpicklableError(message)
    return State(StateType.FAILED, message=message, data=error, cause=Cause("exception", "UnpicklableError", message))


def result_message(task: str, value: object, error: BaseException) -> str:
    """Word the failure of a task whose result cannot travel."""
    said = f"Task '{task}' succeeded but its result ({type_name(value)}) cannot be sent from a worker process"
    if isinstance(error, LargeValueError):  # nothing is wrong with the value
        return f"{said}: {error}"
    from localflow.builtin.process.parts import culprit

    return (
        f"{said}{culprit('result', value)}; "
        f"return what it is made from, such as a path or plain data, or use the thread executor ({reason(error)})"
    )


def size_message(task: str, value: object, size: int) -> str:
    """Word the failure of a task whose result is too large for one frame."""
    return (
        f"Task '{task}' succeeded but its result ({type_name(value)}) cannot be sent from a worker process: it takes "
        f"{size_text(size)} of at most {size_text(SIZE_LIMIT)}; write it to a file and return its path"
    )


def size_text(size: int) -> str:
    """Return a number of bytes as a reader likes it: `150 MB`, `2.1 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def reason(error: BaseException) -> str:
    """Say in short why something could not be pickled or unpickled."""
    origin = error.__cause__ if isinstance(error, UnpicklableError) and error.__cause__ is not None else error
    try:
        return shortened(f"{type(origin).__name__}: {origin}", _REASON_LIMIT)
    except Exception:  # the str() of it is the user's too
        return type(origin).__name__


def _pack_data(state: State, folder: Folder | None = None) -> Payload | None:
    data = state.packed_data
    if isinstance(data, Returned):  # of a flow that the task called: its states stay here, what they mean travels
        data = state.result() if state.type is StateType.COMPLETED else state.exception()
    if isinstance(data, BaseException):
        return _pack_error(data)
    if data is None and state.type is not StateType.COMPLETED:
        return None
    return pack(data, folder)


def _pack_error(error: BaseException) -> Payload | None:
    """Return the exception with its causes, as far as they come back whole, tried here where it can do no harm."""
    if not isinstance(error, Exception):
        return None
    links: list[BaseException] = []
    data = b""
    link: BaseException | None = error
    while link is not None and len(links) < _CHAIN_LIMIT and not any(link is known for known in links):
        try:
            data = pickle_value(link)
            if type(pickle.loads(data)) is not type(link):
                break
        except BaseException:  # its state may hold anything, and its class may rebuild it by any code
            break
        links.append(link)
        link = link.__cause__
    if not links:
        return None
    return Payload("pickle", data if len(links) == 1 and link is None else pickle_value(_Chain(links)))


class _Chain:
    """An exception with its explicit causes, which pickle leaves out."""

    def __init__(self, links: Sequence[BaseException]) -> None:
        self.links = links

    def __reduce__(self) -> tuple[Any, ...]:
        return chained, (list(self.links),)


def chained(links: Sequence[BaseException]) -> BaseException:
    """Return the first of the exceptions, each with the next one as its cause."""
    for error, cause in itertools.pairwise(links):
        error.__cause__ = cause
    return links[0]


# -- in the engine ---------------------------------------------------------------------------------------------------


def read_outcome(call_id: int, content: tuple[Any, ...], folder: Folder | None = None) -> Outcome:
    """Return the outcome of a call from the content of its frame; a large result is in `folder`."""
    if content[0] == DONE:
        # Here `tuple.__new__` makes the named tuples, at a third of the cost of `_make`: this is done for every call.
        kept = tuple.__new__(Payload, content[3:5])
        state = State(StateType.COMPLETED, _COMPLETED, "", _packed(kept, folder), instant=content[2])
        return tuple.__new__(Outcome, (call_id, state, kept, tuple.__new__(Execution, content[5:11]), (), ()))
    _, _, type, name, message, instant, cause, payload, execution, records, _ = content
    result = None if payload is None else Payload._make(payload)
    data = None if result is None else _packed(result, folder)
    state = State(_TYPES[type], name, message, data, instant=instant)
    if cause is not None:
        state.cause = Cause._make(cause)
    return Outcome(
        call_id,
        state,
        result if state.type is StateType.COMPLETED else None,
        None if execution is None else Execution._make(execution),
        from_plain(records) if records else (),
    )


def _packed(payload: Payload, folder: Folder | None) -> Packed:
    """Return a value as it came; while it is wanted, its file stays."""
    if folder is not None and payload.format == FILE:
        return Packed(payload, folder.hold(Reference.of(payload.data).file))
    return Packed(payload)


# -- records of flows that a task called -----------------------------------------------------------------------------


def to_plain(records: Sequence[Record]) -> tuple[Any, ...]:
    """Return records as nested tuples of plain data; a run that many of them mention is in there once."""
    known: dict[int, Any] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, StateType):
            return "StateType", [value.value]
        name = type(value).__name__
        if _KINDS.get(name) is not type(value):
            return value
        if id(value) not in known:
            known[id(value)] = (name, [plain(field) for field in value])
        return known[id(value)]

    return tuple([plain(record) for record in records])


def from_plain(plain: Sequence[Any]) -> tuple[Record, ...]:
    """Return the records again; each run in them is one object, as it was."""
    known: dict[int, Any] = {}

    def record(value: Any) -> Any:
        # Fields hold tuples of texts and JSON-safe values; only what `to_plain` made is a pair with a list.
        if type(value) is not tuple or len(value) != 2 or type(value[1]) is not list:
            return value
        name, fields = value
        if id(value) not in known:
            values = [record(field) for field in fields]
            known[id(value)] = _TYPES[values[0]] if name == "StateType" else _KINDS[name]._make(values)
        return known[id(value)]

    return tuple([record(item) for item in plain])
