"""In the engine: calls as requests for workers of Ray; a call that cannot travel is answered with what is wrong.

Functions and flow runs travel as bytes with each request, or lie in the object store if they are large; workers load
them once. Results that lie in the object store are passed on as references, and so are large buffers of other
arguments, each written once while its content stays the same.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import threading
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import ray

from localflow import arguments
from localflow.builtin.process.blame import argument_message, function_message
from localflow.builtin.process.importing import keep_importable, shipped_path
from localflow.builtin.process.outcomes import unsendable
from localflow.calls import Outcome
from localflow.errors import LargeValueError, StoreError, UnpicklableError
from localflow.large_values import FILE
from localflow.payloads import CONTENT, Packed, Payload, pickle_parts, pickle_value
from localflow_ray.values import INLINE_BYTES, Kept, Parts, ValueGoneError, content_parts
from localflow_ray.worker import Definition, Request, Slot

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.interfaces import Call, FlowRun

#: A function whose pickle is larger lies in the object store.
_LARGE_DEFINITION = 16_000
_KEPT_DEFINITIONS = 500
_RECENT_VALUES = 16  # in the object store, for the next call that has them


class Shipment(NamedTuple):
    """A call as it is handed to Ray."""

    request: bytes
    beside: list[Any]
    """ObjectRefs of what it needs."""
    kept: list[Kept]
    """The results of other tasks among it, which must stay."""


class _Definition(NamedTuple):
    original: object
    """So that its id is not used again."""
    travelling: Definition
    reference: Any
    problem: str


class RequestPacker:
    """Packs the calls of one executor; several threads may use it at once."""

    def __init__(self, *, ships_path: bool) -> None:
        """Pack nothing yet; `ships_path`: whether workers look for modules and files where this process does."""
        self._name = uuid.uuid4().hex[:12]
        self._ships_path = ships_path
        self._numbers = itertools.count(1)
        self._definitions: dict[int, _Definition] = {}
        self._recent: dict[Any, tuple[object, Any]] = {}
        self._lock = threading.RLock()  # pickling runs code of the user's, which may end up here again

    def pack(self, call: Call, number: int, mailbox: str) -> Shipment:
        """Return a call as it travels.

        Args:
            call: the call.
            number: what its letters are known by.
            mailbox: the name of where they go.

        Raises:
            Refusal: it cannot travel.
            StoreError: an argument is in the state store and cannot be loaded.
        """
        run = call.task_run
        function = self._definitions.get(id(call.function)) or self._define_function(call.function)
        if function.problem:
            raise Refusal(call, f"Task '{run.task}': {function.problem}")
        flow_run = self._definitions.get(id(run.flow_run)) or self._define_flow_run(run.flow_run)
        beside = [each.reference for each in (function, flow_run) if each.reference is not None]
        data, parts, buffers, kept = self._pack_arguments(call)
        path, directory = (tuple(shipped_path()), _directory()) if self._ships_path else ((), "")
        request = Request(
            mailbox,
            number,
            (call.id, call.attempt, call.attempts, call.timeout_seconds, call.log_prints),
            tuple(run[1:]),
            function.travelling,
            flow_run.travelling,
            path,
            directory,
            data,
            len(parts),
            len(buffers),
        )
        return Shipment(_plain(request), [*beside, *parts, *buffers], kept)

    def close(self) -> None:
        """Let go of what lies in the object store."""
        with self._lock:
            self._definitions.clear()
            self._recent.clear()

    # -- arguments --

    def _pack_arguments(self, call: Call) -> tuple[bytes, list[Any], list[Any], list[Kept]]:
        parts: list[Any] = []
        kept: list[Kept] = []

        def travelling(packed: Packed) -> object:
            """Return what is pickled in the place of a result."""
            if isinstance(packed, Kept):
                if packed.reference is None:
                    packed.reference = ray.put(packed.parts())
                kept.append(packed)
                parts.append(packed.reference)
                return Slot(len(parts) - 1)
            payload = packed.portable()
            if payload.format not in (FILE, CONTENT) and len(payload.data) < INLINE_BYTES:
                return Packed(payload)
            if payload.format == "json":
                return packed
            parts.append(self._shared((payload.format, _key(payload)), payload, lambda: content_parts(payload)))
            return Slot(len(parts) - 1)

        try:
            content = call.args, dict(call.kwargs)
            if call.holds_packed:
                content = arguments.replace(content, (Packed,), travelling)
            data, views = pickle_parts(content, defines_classes=True)
            buffers = [self._share_buffer(view) for view in views]
            return data, parts, buffers, kept
        except (LargeValueError, ValueGoneError) as error:
            raise Refusal(call, f"Task '{call.task_run.task}': {error}") from error
        except StoreError:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            raise Refusal(call, argument_message(call, error)) from error

    def _share_buffer(self, view: memoryview) -> Any:
        # An array that was changed between two calls has another checksum; the address alone would not tell.
        key = (id(view.obj), view.nbytes, crc32(view))
        return self._shared(key, view.obj, lambda: Parts(view))

    def _shared(self, key: Any, held: object, make: Callable[[], Parts]) -> Any:
        with self._lock:
            found = self._recent.pop(key, None)
            if found is None:
                found = held, ray.put(make())
            self._recent[key] = found  # as the newest
            while len(self._recent) > _RECENT_VALUES:
                del self._recent[next(iter(self._recent))]
            return found[1]

    # -- definitions --

    def _define_function(self, function: Any) -> _Definition:
        with self._lock:
            keep_importable(function)
            try:
                try:
                    data = pickle_value(function, defines_classes=True)
                except UnpicklableError:
                    if not hasattr(function, "bare"):
                        raise
                    data = pickle_value(function.bare(), defines_classes=True)  # a task whose hooks, say, cannot travel
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                    raise
                return self._keep(_Definition(function, Definition("", b""), None, function_message(function, error)))
            return self._define(function, data)

    def _define_flow_run(self, run: FlowRun) -> _Definition:
        # Parameters pass through JSON: they are JSON-safe, yet an executor must not stumble where they are not.
        parameters = json.loads(json.dumps(run.parameters, default=repr))
        plain = run._replace(parameters=parameters, arguments=None, versions=dict(run.versions))
        return self._define(run, pickle.dumps(tuple(plain), 5))

    def _define(self, original: object, data: bytes) -> _Definition:
        key = f"{self._name}-{next(self._numbers)}"
        if len(data) < _LARGE_DEFINITION:
            return self._keep(_Definition(original, Definition(key, data), None, ""))
        return self._keep(_Definition(original, Definition(key, None), ray.put(Parts(data)), ""))

    def _keep(self, definition: _Definition) -> _Definition:
        with self._lock:
            self._definitions[id(definition.original)] = definition
            if len(self._definitions) > _KEPT_DEFINITIONS:  # tasks made anew for each call must not pile up
                del self._definitions[next(iter(self._definitions))]
        return definition


class Refusal(Exception):
    """A call cannot travel; `outcome` says why."""

    def __init__(self, call: Call, message: str) -> None:
        super().__init__(message)
        self.outcome = Outcome(call.id, unsendable(message))


def _key(payload: Payload) -> object:
    return payload.data if payload.format == FILE else id(payload.data)


def _directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - a text is what travels
    except OSError:  # it is deleted
        return ""


def _plain(request: Request) -> bytes:
    """Return a request as bytes; a pickle of its plain tuples runs no code when it is loaded."""
    fields = request._replace(
        function=tuple(request.function),  # type: ignore[arg-type]
        flow_run=tuple(request.flow_run),  # type: ignore[arg-type]
    )
    return pickle.dumps(tuple(fields), 5)
