"""Which part of a value keeps it from being pickled. Looked for only when something has failed, and not for long."""

from __future__ import annotations

import functools
import inspect
import itertools
import time
import types
from typing import TYPE_CHECKING, Any

from localflow.payloads import pickled_size, type_name
from localflow.printable import shortened

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEPTH = 16
_ITEMS = 1000
_SECONDS = 1.0
_KEY_LIMIT = 40


def culprit(name: str, value: object) -> str:
    """Return `: its part config['lock'] (_thread.lock) cannot be pickled` for the innermost part that is found.

    Args:
        name: what the value is called where it comes from.
        value: what cannot be pickled.
    """
    deadline = time.monotonic() + _SECONDS
    path, part = name, value
    seen = [value]
    while len(seen) < _DEPTH:
        for child_path, child in itertools.islice(_parts(path, part), _ITEMS):
            if time.monotonic() < deadline and not any(child is known for known in seen) and _fails(child):
                path, part = child_path, child
                seen.append(child)
                break
        else:
            return "" if part is value else f": its part {path} ({type_name(part)}) cannot be pickled"
    return ""  # nested without end: no part of it is to blame


def _fails(value: object) -> bool:
    try:
        pickled_size(value)
    except BaseException:  # the value's own code runs here, and may call sys.exit()
        return True
    return False


def _parts(path: str, value: Any) -> Iterator[tuple[str, object]]:
    """Yield what pickle would look into, each with how it is reached."""
    try:
        yield from _items(path, value)
        if isinstance(value, types.FunctionType):
            used = inspect.getclosurevars(value)
            for name, variable in {**used.globals, **used.nonlocals}.items():
                yield f"{name} in {path}", variable
        elif isinstance(value, types.MethodType):
            yield f"{path}.__self__", value.__self__
        elif isinstance(value, functools.partial):
            for name in ("func", "args", "keywords"):
                yield f"{path}.{name}", getattr(value, name)
        if not isinstance(value, (type, types.FunctionType, types.ModuleType)):
            yield from ((f"{path}.{name}", attribute) for name, attribute in _attributes(value))
    except Exception:  # values may answer such questions by any code of their own
        return


def _items(path: str, value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            text = shortened(repr(key), _KEY_LIMIT)
            yield f"{path}[{text}]", item
            yield f"key {text} of {path}", key
    elif isinstance(value, (list, tuple)):
        yield from ((f"{path}[{position}]", item) for position, item in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f"member {shortened(repr(item), _KEY_LIMIT)} of {path}", item) for item in value)
    elif isinstance(value, BaseException):
        yield from ((f"{path}.args[{position}]", item) for position, item in enumerate(value.args))


def _attributes(value: Any) -> Iterator[tuple[str, object]]:
    """Yield the attributes of an instance, those of `__slots__` too."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)
