"""What is known of a class without running any of its code: its name, and whether attributes are all there is.

A module of the user's is named by its file, for it has one name as a script, another for the command line, and a third
when it is imported.
"""

from __future__ import annotations

import sys
import types
import weakref
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from localflow.code import is_own
from localflow.typed import NamedTuple

_IMMUTABLE, _HEAP = 1 << 8, 1 << 9  # Py_TPFLAGS_IMMUTABLETYPE, ..._HEAPTYPE; without the second it is written in C
_WRITTEN_IN_C = (types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType)


class ClassFacts(NamedTuple):
    """What is known of a class."""

    name: bytes
    is_plain: bool
    """Whether it is written in Python, and an object's own attributes say all that it adds to its bases."""
    is_local: bool
    """Whether it is defined in a function, which may define another one of that name at its next call."""


#: What is in a class but says nothing of what it does.
_NO_MEMBERS = frozenset(
    {"__module__", "__doc__", "__firstlineno__", "__qualname__", "__annotations__", "__orig_bases__"}
)
_NO_CONTENT = frozenset({"getset_descriptor", "member_descriptor", "_abc_data", "_tuplegetter"})
#: By id, for a metaclass may have a hash of the user's; with a reference, for an id is used again.
_known: dict[int, tuple[weakref.ref[type], ClassFacts]] = {}


def facts_of(kind: type) -> ClassFacts:
    """Return what is known of a class."""
    key = id(kind)
    known = _known.get(key)
    if known is not None and known[0]() is kind:
        return known[1]
    qualname = str(kind.__qualname__)
    name = f"{module_name(kind.__module__)}.{qualname}".encode("utf-8", "surrogatepass")
    facts = ClassFacts(name, _is_plain(kind), "<locals>" in qualname)
    _known[key] = weakref.ref(kind, lambda gone: _forget(key, gone)), facts
    return facts


def module_name(module: object) -> str:
    """Return the name of a module that is the same however the module was loaded."""
    if not isinstance(module, str):
        return "?"
    if not is_own(module):
        return module
    file = getattr(sys.modules.get(module), "__file__", None)
    return _name_of(file) if isinstance(file, str) else module


def attributes(value: Any, kind: type) -> dict[str, Any]:
    """Return the attributes of an object, without a call of anything that its class defines."""
    found: dict[str, Any] = {}
    for each in kind.__mro__:
        if not each.__flags__ & _HEAP or each.__flags__ & _IMMUTABLE or each.__module__.startswith("pathlib"):
            continue  # members of what is written in C, and what a path has worked out of itself
        for name, member in vars(each).items():
            if isinstance(member, types.MemberDescriptorType):
                with suppress(AttributeError):
                    found[name] = member.__get__(value, kind)
    with suppress(AttributeError, TypeError):
        found.update(object.__getattribute__(value, "__dict__"))
    return found


def members(kind: type) -> dict[str, Any]:
    """Return what a class itself defines: its functions and values."""
    return {
        name: _within(member)
        for name, member in vars(kind).items()
        if type(member).__name__ not in _NO_CONTENT and name not in _NO_MEMBERS
    }


def _within(member: Any) -> Any:
    """Return the functions inside what a class makes of them."""
    kind = type(member)
    if kind is property:
        return [member.fget, member.fset, member.fdel]
    return member.__func__ if kind is staticmethod or kind is classmethod else member


def _forget(key: int, gone: weakref.ref[type]) -> None:
    known = _known.get(key)
    if known is not None and known[0] is gone:  # else another class has got the id
        del _known[key]


def _is_plain(kind: type) -> bool:
    if kind.__flags__ & _IMMUTABLE or not kind.__flags__ & _HEAP:
        return False
    members = list(vars(kind).values())
    if any(isinstance(each, _WRITTEN_IN_C) and each.__objclass__ is kind for each in members):
        return False
    slots = sum(isinstance(each, types.MemberDescriptorType) for each in members)
    base: Any = kind.__base__
    return bool(
        kind.__basicsize__ <= base.__basicsize__ + 8 * (slots + 2)
    )  # the two are its dict and its weak references


@lru_cache(maxsize=1024)
def _name_of(file: str) -> str:
    """Return the dotted name by which a file would be imported from the folder of its outermost package."""
    try:
        path = Path(file).resolve()
        names = [] if path.stem == "__init__" else [path.stem]
        for folder in path.parents:
            if not (folder / "__init__.py").is_file():
                break
            names.insert(0, folder.name)
    except (OSError, ValueError):
        return file
    return ".".join(names)
