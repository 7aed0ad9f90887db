"""Functions and classes as they were written: where they are, their text, their members, what they refer to.

For who wants to know whether code is still the same, or travels by value.
"""

from __future__ import annotations

import collections
import dis
import enum
import functools
import inspect
import os
import sys
import textwrap
from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType
from typing import TYPE_CHECKING, Any

from localflow.pickler import travels_by_value

if TYPE_CHECKING:
    from collections.abc import Mapping

_IN_FUNCTION = "<locals>"
_PLAIN = frozenset({type(None), type(Ellipsis), bool, int, float, complex, str, bytes, bytearray})
#: What is in a class but does nothing, is known from elsewhere, or is put there by Python once somebody asks for it.
_NO_MEMBERS = frozenset(
    {
        "__dict__",
        "__weakref__",
        "__module__",
        "__qualname__",
        "__doc__",
        "__firstlineno__",
        "__slotnames__",
        "_abc_impl",
    }
)


def home_of(module: str | None) -> str | None:
    """Return what says which module it is: the file of a script, which has one name for Python and one for us."""
    if module is None or not travels_by_value(module):
        return module
    file = getattr(sys.modules.get(module), "__file__", None)
    return module if file is None else real_file(file) or module


def is_by_value(kind: type) -> bool:
    """Whether a class cannot be found by its name in another process, or may be another one there."""
    return _IN_FUNCTION in kind.__qualname__ or travels_by_value(kind.__module__)


def refers_by_value(function: FunctionType) -> bool:
    """Whether the globals of a function are those of a module that travels by value."""
    module = function.__globals__.get("__name__")
    return isinstance(module, str) and travels_by_value(module)


@functools.lru_cache(maxsize=1024)
def global_names(code: CodeType) -> tuple[str, ...]:
    """Return the names that a function and those inside it look up in their module."""
    names = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for const in code.co_consts:
        if isinstance(const, CodeType):
            names.update(global_names(const))
    return tuple(sorted(names))


def functions_of(value: Any) -> tuple[Any, ...] | None:
    """Return the functions of a method, property or the like as it lies in a class, None of anything else."""
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel
    if isinstance(value, (staticmethod, classmethod)):
        return (value.__func__,)
    if isinstance(value, functools.cached_property):
        return value.func, value.attrname
    return None


def members_of(kind: type) -> dict[str, Any]:
    """Return what in a class decides what it does."""
    members = {
        name: value
        for name, value in vars(kind).items()
        if name not in _NO_MEMBERS
        and not isinstance(value, (GetSetDescriptorType, MemberDescriptorType))
        and (name != "__annotations__" or value)  # to ask for them makes them
    }
    if not issubclass(kind, enum.Enum):
        return members
    named = {name: member._value_ for name, member in kind.__members__.items()}
    own = {
        name: value for name, value in members.items() if not name.startswith("_") or isinstance(value, FunctionType)
    }
    return {**own, **named}


def code_members_of(kind: type) -> dict[str, Any]:
    """Return the functions and plain values of a class that can be imported."""
    members: dict[str, Any] = {}
    for name, value in vars(kind).items():
        found = [each for each in (value, *(functions_of(value) or ())) if isinstance(each, FunctionType)]
        if found:
            members[name] = found
        elif type(value) in _PLAIN and not name.startswith("__"):
            members[name] = value
    return members


def innermost(function: Any) -> Any:
    """Return the function inside partials, methods and callable objects."""
    while not isinstance(function, FunctionType):
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        else:  # a callable object, or something written in C
            called = type(function).__call__
            return called if isinstance(called, FunctionType) else function
    return function


def text_of(function: Any) -> str | None:
    """Return the text of a function without its decorators: their options are no part of what it computes."""
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError, SyntaxError):
        return None
    import ast

    try:
        first = ast.parse(text).body[0].lineno
    except (SyntaxError, IndexError, ValueError):  # a lambda in the middle of an expression
        return text
    return "".join(text.splitlines(keepends=True)[first - 1 :])


@functools.lru_cache(maxsize=256)
def real_file(name: str) -> str | None:
    """Return the true path of a file, None if there is none."""
    path = os.path.realpath(name)
    return path if os.path.isfile(path) else None  # noqa: PTH113 - a str in, a str out


def is_only_one(file: str, qualname: str) -> bool:
    """Whether a file defines one function of this name, so that the name says which; if it is Python at all."""
    return _counts(file, os.stat(file).st_mtime_ns).get(qualname, 0) <= 1  # noqa: PTH116 - a str in


@functools.lru_cache(maxsize=256)
def _counts(file: str, changed: int) -> Mapping[str, int]:
    """Return how often each function is defined in a file, as last `changed`."""
    import ast

    counts: collections.Counter[str] = collections.Counter()

    def count(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                counts[prefix + child.name] += 1
                inner += f"{child.name}." if isinstance(child, ast.ClassDef) else f"{child.name}.{_IN_FUNCTION}."
            count(child, inner)

    try:
        with open(file, "rb") as text:  # noqa: PTH123 - a str in
            count(ast.parse(text.read()), "")
    except (OSError, SyntaxError, ValueError):
        counts.clear()
    return counts
