"""Values as bytes: JSON where that is the same value again, cloudpickle for the rest. The one home of cloudpickle.

Unpacking a pickle runs code, so it happens only when somebody asks for a value: `Packed` carries the bytes until then.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
from functools import cache
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from localflow import classes
from localflow.errors import StoreError, TaskFailedError, UnpicklableError
from localflow.interrupts import STOPS

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_NODE_LIMIT = 1000


class Payload(NamedTuple):
    """A value as bytes; `format` is `"json"` or `"pickle"`."""

    format: str
    data: bytes


_CONSTANTS: dict[object, Payload] = {
    None: Payload("json", b"null"),
    True: Payload("json", b"true"),
    False: Payload("json", b"false"),
}


def pack(value: object) -> Payload:
    """Return `value` as a payload; raises UnpicklableError when it cannot be pickled."""
    kind = type(value)
    if value is None or kind is bool:
        return _CONSTANTS[value]
    if kind is int or kind is float or kind is str or ((kind is list or kind is dict) and _is_plain(value)):
        try:
            return Payload("json", (repr(value) if kind is int else json.dumps(value)).encode())
        except (ValueError, RecursionError):  # an int of more digits than Python prints; deep nesting
            pass
    return Payload("pickle", pickle_value(value))


def unpack(payload: Payload) -> Any:
    """Return the value again; raises whatever its unpickling raises."""
    if payload.format == "json":
        return json.loads(payload.data)
    return pickle.loads(payload.data)


def pickle_value(value: object, *, defines_classes: bool = False) -> bytes:
    """Pickle by cloudpickle: functions and classes of `__main__` by value.

    Args:
        value: anything.
        defines_classes: classes in it are what the receiver takes values of older classes of the same name for.

    Raises:
        UnpicklableError: it cannot be pickled.
        StoreError: it holds something `Stored` that cannot be loaded.
    """
    file = io.BytesIO()
    _write_pickle(value, file, defines_classes)
    return file.getvalue()


def pickled_size(value: object) -> int:
    """Return how many bytes `pickle_value` would make, without memory for them; raises what that raises."""
    count = _Count()
    _write_pickle(value, count)
    return count.size


class _Count:
    """Counts what is written."""

    size = 0

    def write(self, data: bytes) -> int:
        self.size += memoryview(data).nbytes
        return len(data)


def _write_pickle(value: object, file: io.BytesIO | _Count, defines_classes: bool = False) -> None:
    try:
        pickler = _pickler()(file, protocol=5)
        pickler.defines_classes = defines_classes
        pickler.dump(value)
    except (*STOPS, StoreError):
        raise
    except BaseException as error:  # also sys.exit() in a __reduce__
        raise UnpicklableError(f"{type_name(value)} cannot be pickled: {error}") from error


@cache
def _pickler() -> Any:
    import cloudpickle  # imported late: 30 ms that a flow without workers need not pay

    def reduced_code(code: CodeType) -> tuple[Any, ...]:
        """Keep the name of the file, for tracebacks in workers: newer releases of cloudpickle leave it out."""
        constructor, parts = cloudpickle.Pickler.dispatch_table[CodeType](code)
        return constructor, (*parts[:10], code.co_filename, *parts[11:])

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
        defines_classes = False
        dispatch_table = cloudpickle.Pickler.dispatch_table.new_child({CodeType: reduced_code})

        def reducer_override(self, obj: Any) -> Any:  # called for nearly every object
            is_class = issubclass(type(obj), type)
            if not (is_class or type(obj) is FunctionType):
                return NotImplemented
            parts = super().reducer_override(obj)
            if is_class and type(parts) is tuple and len(parts) == 6:
                return classes.reduced(obj, parts, self.defines_classes)
            return parts

    return Pickler


class Packed:
    """A value that stays bytes until `get()`; pickled inside arguments it arrives as the value itself."""

    __slots__ = ("payload",)

    def __init__(self, payload: Payload) -> None:
        self.payload = payload

    def get(self) -> Any:
        """Unpack the value: a new object at each call.

        Raises:
            TaskFailedError: its unpickling calls `sys.exit()`, which must not end the program that asks for a value.
            Exception: whatever else its unpickling raises.
        """
        try:
            return unpack(self.payload)
        except STOPS:
            raise
        except (SystemExit, GeneratorExit) as error:
            raise TaskFailedError(type(error).__name__, f"unpickling the value raised it: {error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack, (tuple.__new__(Payload, self.payload),)

    def __repr__(self) -> str:
        return f"<packed {self.payload.format}, {len(self.payload.data)} bytes>"


class Stored(Packed):
    """A value in a state store, from which it is loaded whenever it is needed.

    It may be older than this process; a class of the user's script is then the one that the script has now.
    """

    __slots__ = ("_load",)

    def __init__(self, load: Callable[[], Payload]) -> None:
        self._load = load

    @property
    def payload(self) -> Payload:  # type: ignore[override]  # nobody sets it
        """The value as bytes, loaded anew; raises what loading raises."""
        return self._load()

    def __repr__(self) -> str:
        return "<stored>"


def type_name(value: object) -> str:
    """Return the type's name as a reader would import it: `sqlite3.Connection`, but plain `list`."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _is_plain(value: object) -> bool:
    """Return whether JSON gives back the very same lists, dicts and atoms; large structures are left to pickle.

    A container that is there twice would come back as two, so that is left to pickle, too.
    """
    pending: list[Any] = [value]
    containers: set[int] = set()
    nodes = 0
    while pending:
        item = pending.pop()
        nodes += 1
        kind = type(item)
        if nodes > _NODE_LIMIT:
            return False
        if kind is list or kind is dict:
            if id(item) in containers:
                return False
            containers.add(id(item))
        if kind is list:
            pending.extend(item)
        elif kind is dict:
            if not all(type(key) is str for key in item):
                return False
            pending.extend(item.values())
        elif not (item is None or kind is bool or kind is int or kind is float or kind is str):
            return False
    return True


def travels_by_value(module: str | None) -> bool:
    """Return whether functions of this module are pickled whole because workers cannot import it."""
    if module is None or module == "__main__" or module not in sys.modules:  # it is no module, as after `exec`
        return True
    cloudpickle = sys.modules.get("cloudpickle")
    return cloudpickle is not None and module in cloudpickle.list_registry_pickle_by_value()


def by_value(module: ModuleType) -> None:
    """Have everything defined in `module` pickled whole from now on, as for `__main__`."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(module)
