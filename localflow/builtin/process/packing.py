"""Calls as frames, packed in the engine; a call that cannot travel is answered with what is wrong with it.

Functions and flow runs are *definitions*: packed once, and sent to a worker once, under a number that calls refer to.
Arguments travel in three ways: plain ones inside the frame itself, results of other tasks (`Packed`) as the bytes they
already are, and everything else pickled, to be unpickled inside the call. In the frame of a call:

    CALL, call number, call id, attempt, attempts, timeout_seconds, log_prints, function number, flow run number,
    the fields of the task run but its flow run,  args, kwargs

`args` is a tuple in which a pair of text and bytes stands for a `Packed`, and `kwargs` a dict like it; or `args` is
such a pair for both, and `kwargs` None. What is large is in files, each for all calls that have the same argument.
"""

from __future__ import annotations

import itertools
import json
import logging
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any

from localflow.builtin.process.blame import argument_message, function_message, size_message, size_warning
from localflow.builtin.process.importing import keep_importable, shipped_path
from localflow.builtin.process.outcomes import unsendable
from localflow.builtin.process.transport import CALL, DEFINE, FLAT, FLOW_RUN, FUNCTION, PATH, frame
from localflow.calls import Outcome
from localflow.errors import LargeValueError, StoreError, UnpicklableError
from localflow.large_values import FILE, LARGE_BYTES, Reference
from localflow.payloads import Packed, SharedBuffers, Stored, pickle_value
from localflow.records import TaskRun
from localflow.upstreams import MANY, compact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.interfaces import Call, FlowRun
    from localflow.large_values import Folder, Temporary
    from localflow.upstreams import Few

_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_NUMBERS = frozenset({type(None), bool, int, float})
_LIMIT = 1000
_UPSTREAMS = TaskRun._fields.index("upstreams")
#: A call that takes more bytes than this is warned of.
_LARGE = 100_000_000

_log = logging.getLogger("localflow.process")


class Definition:
    """A function or flow run under the number that calls refer to; `frame` tells it to a worker."""

    __slots__ = ("frame", "number", "original", "problem")

    def __init__(self, number: int, original: object, frame: bytes, problem: str = "") -> None:
        self.number = number
        self.original = original
        self.frame = frame
        self.problem = problem
        """Why it cannot travel, if it cannot; without the name of the task."""


class Shipment:
    """A call on its way: `number` is its token, `frame` what a worker reads that knows the definitions."""

    __slots__ = ("call", "definitions", "files", "frame", "number")

    def __init__(
        self,
        call: Call,
        number: int,
        definitions: tuple[Definition, ...],
        frame: bytes,
        files: Sequence[Temporary] = (),
    ) -> None:
        self.call = call
        self.number = number
        self.definitions = definitions
        self.frame = frame
        self.files = files
        """What keeps the files of its large arguments until it is answered."""


class CallPacker:
    """Packs the calls of one executor; several threads may use it at once."""

    def __init__(self, folder: Folder | None = None) -> None:
        """Write large arguments into `folder`; without one they are part of frames."""
        self._folder = folder
        self._shared = None if folder is None else SharedBuffers(folder)
        self.path: list[str] = []
        """The engine's sys.path."""
        self._look_at_path()
        self._call_numbers = itertools.count(1)
        self._definition_numbers = itertools.count(1)
        self._definitions: dict[int, Definition] = {}  # by the id of the original, which they keep alive
        self._last_definitions: tuple[Definition, ...] = ()
        """Those of the last call, to be one object with those of the next if they are the same."""
        self._last_upstreams: tuple[Sequence[str], Few] = (), ()
        """Many that the last call with so many had, and as they are sent: those of the next may be the same."""
        self._warned_of: set[str] = set()
        self._lock = threading.RLock()  # pickling runs code of the user's, which may end up here again

    def pack(self, calls: Sequence[Call]) -> tuple[list[Shipment], list[Outcome]]:
        """Return the calls that can travel and the outcomes of those that cannot."""
        if sys.path != self._seen_path or self._path_is_relative:
            self._look_at_path()
        shipments, refused = [], []
        for call in calls:
            try:
                shipments.append(self._pack(call))
            except _Refusal as refusal:
                refused.append(Outcome(call.id, unsendable(str(refusal))))
        return shipments, refused

    def _look_at_path(self) -> None:
        path = shipped_path()
        if path != self.path:
            self.path = path
            self.path_frame = frame((PATH, path))
            """What tells it to workers."""
        self._seen_path = [*sys.path]
        self._path_is_relative = path != self._seen_path

    def _pack(self, call: Call) -> Shipment:
        call_id, run, attempt, called, _, _, _, attempts, timeout_seconds, log_prints, *_ = call
        known = self._definitions
        function = known.get(id(called)) or self._define_function(called, run.task)
        if function.problem:
            raise _Refusal(f"Task '{run.task}': {function.problem}")
        flow_run = known.get(id(run.flow_run)) or self._define_flow_run(run.flow_run)
        definitions = self._last_definitions
        if not definitions or definitions[0] is not function or definitions[1] is not flow_run:
            definitions = self._last_definitions = (function, flow_run)
        args, kwargs, files = self._pack_arguments(call)
        number = next(self._call_numbers)
        content = (
            CALL, number, call_id, attempt, attempts, timeout_seconds, log_prints,
            function.number, flow_run.number,
            *(run[1:] if len(run.upstreams) < MANY else self._with_few(run)), args, kwargs,
        )  # fmt: skip
        try:
            data = frame(content, FLAT)
        except (ValueError, MemoryError):
            raise _Refusal(size_message(call)) from None
        size = len(data)
        if kwargs is None and args[0] == FILE:  # written for this call alone
            size += Reference.of(args[1]).size
        if size > _LARGE and run.task not in self._warned_of:
            self._warned_of.add(run.task)
            _log.warning("%s", size_warning(call))
        return Shipment(call, number, definitions, data, files)

    def _with_few(self, run: TaskRun) -> tuple[Any, ...]:
        """Return the fields of a task run but its flow run, its many upstreams told by few."""
        many, few = self._last_upstreams
        if run.upstreams is not many:
            few = compact(run.upstreams)
            self._last_upstreams = run.upstreams, few
        return *run[1:_UPSTREAMS], few, *run[_UPSTREAMS + 1 :]

    def _pack_arguments(self, call: Call) -> tuple[Any, dict[str, Any] | None, Sequence[Temporary]]:
        args, kwargs = call.args, call.kwargs
        if not kwargs:
            kinds = {*map(type, args)}
            if _NUMBERS.issuperset(kinds) or (_PLAIN.issuperset(kinds) and not any(map(_is_large, args))):
                return args, {}, ()
        packed: list[Packed] = []
        travelling = []
        for value in (*args, *kwargs.values()) if kwargs else args:
            if type(value) is Packed or type(value) is Stored:
                packed.append(value)
                travelling.append(tuple(value.portable()))
            elif type(value) in _PLAIN and not _is_large(value):
                travelling.append(value)
            else:
                break
        else:
            # The same value twice must arrive as one object, which only a pickle of both can tell.
            if len(packed) < 2 or len({id(value) for value in packed}) == len(packed):
                count = len(args)
                return tuple(travelling[:count]), dict(zip(kwargs, travelling[count:], strict=True)), ()
        try:
            apart: dict[int, _Bytes] = {}
            content = (
                tuple([_apart(value, apart) for value in args]),
                {name: _apart(value, apart) for name, value in kwargs.items()},
            )
            if self._shared is None or self._folder is None or self._folder.place is None:
                return ("pickle", pickle_value(content, defines_classes=True)), None, ()
            payload, files = self._shared.pickle(content)
            return tuple(payload), None, files
        except LargeValueError as error:
            raise _Refusal(f"Task '{call.task_run.task}': {error}") from error
        except StoreError:  # an argument is in the store and cannot be loaded, which is nobody's task's failure
            raise
        except BaseException as error:
            _let_interrupts_pass(error)
            raise _Refusal(argument_message(call, error)) from error

    # -- definitions -------------------------------------------------------------------------------------------------

    def _define_function(self, function: Any, task: str) -> Definition:
        with self._lock:
            keep_importable(function)
            try:
                try:
                    data = pickle_value(function, defines_classes=True)
                except UnpicklableError:
                    if not hasattr(function, "bare"):
                        raise
                    data = pickle_value(function.bare(), defines_classes=True)  # a task whose hooks, say, cannot travel
                return self._define(function, FUNCTION, data)
            except BaseException as error:
                _let_interrupts_pass(error)
                return self._keep(Definition(0, function, b"", function_message(function, error)))

    def _define_flow_run(self, run: FlowRun) -> Definition:
        # Parameters pass through JSON: they are JSON-safe, yet an executor must not stumble where they are not.
        parameters = json.dumps(run.parameters, default=repr)
        plain = run._replace(parameters={}, arguments=None, versions=dict(run.versions))
        return self._define(run, FLOW_RUN, (tuple(plain), parameters))

    def _define(self, original: object, kind: str, content: object) -> Definition:
        number = next(self._definition_numbers)
        return self._keep(Definition(number, original, frame((DEFINE, number, kind, content))))

    def _keep(self, definition: Definition) -> Definition:
        with self._lock:
            self._definitions[id(definition.original)] = definition
            if len(self._definitions) > _LIMIT:  # tasks made anew for each call must not pile up
                del self._definitions[next(iter(self._definitions))]
        return definition


def _apart(value: object, apart: dict[int, _Bytes]) -> object:
    """Return large bytes as what is pickled into a buffer, the same each time; everything else as it is."""
    if type(value) is not bytes or len(value) < LARGE_BYTES:
        return value
    return apart.setdefault(id(value), _Bytes(value))


class _Bytes:
    """Bytes that are not copied into the pickle."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (pickle.PickleBuffer(self._value),)


def _is_large(value: Any) -> bool:
    """Return whether a plain value is so large that it goes into a file."""
    return type(value) in (str, bytes) and len(value) >= LARGE_BYTES


class _Refusal(Exception):
    """A call cannot travel; the text says why."""


def _let_interrupts_pass(error: BaseException) -> None:
    """Raise Ctrl-C again, which reaches the main thread only; anything else a task's values raise is their failure."""
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error
