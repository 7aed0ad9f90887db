"""Compiled code as text that is the same in every process, and what can be read off it without running it."""

from __future__ import annotations

import dis
import functools
from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

ATOMS = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_CONSTANTS = frozenset(dis.hasconst)  # instructions that take a constant
_NAME_LOADS = ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_FUNCTION = 1  # a flag: the body of a class has it not


@functools.lru_cache(maxsize=4096)
def compiled(code: CodeType) -> str:
    """Return compiled code as text, with constants where they are used: a docstring is used nowhere."""
    parts = [
        f"{code.co_names} {code.co_varnames} {code.co_freevars} {code.co_flags} "
        f"{code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount}"
    ]
    operations, extended = code.co_code, 0
    for place in range(0, len(operations), 2):
        operation, argument = operations[place], operations[place + 1] | extended
        extended = argument << 8 if operation == dis.EXTENDED_ARG else 0
        if operation in _CONSTANTS:
            constant = code.co_consts[argument]
            parts.append(compiled(constant) if isinstance(constant, CodeType) else shown(constant))
        elif not extended:
            parts.append(f"{operation} {argument}")
    return " ".join(parts)


@functools.lru_cache(maxsize=1024)
def names_in(code: CodeType) -> tuple[str, ...]:
    """Return the names that code and the functions inside it use, attributes among them."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(names_in(constant))
    return tuple(sorted(names))


@functools.lru_cache(maxsize=1024)
def class_body_names(code: CodeType) -> tuple[str, ...]:
    """Return the names that the bodies of classes in code look up, in their module if nowhere else."""
    names: set[str] = set()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(class_body_names(constant))
            if not constant.co_flags & _FUNCTION:
                names.update(each.argval for each in dis.get_instructions(constant) if each.opname in _NAME_LOADS)
    return tuple(sorted(names))


@functools.lru_cache(maxsize=1024)
def settled(code: CodeType) -> frozenset[str]:
    """Return the variables for inner functions that are arguments or constants, and neither computed nor counted."""
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    given = stored(code)
    return frozenset(name for name in code.co_cellvars if given.get(name, []) == ([] if name in arguments else [True]))


@functools.lru_cache(maxsize=1024)
def stored(code: CodeType) -> Mapping[str, list[bool]]:
    """Return which variables shared with inner functions are given values here and inside; whether by a constant."""
    found: dict[str, list[bool]] = {}
    before = ""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_DEREF":
            found.setdefault(str(instruction.argval), []).append(before == "LOAD_CONST")
        before = instruction.opname
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            for name, stores in stored(inner).items():
                if name in inner.co_freevars:
                    found.setdefault(name, []).extend([False for _ in stores])
    return found


def shown(value: Any) -> str:
    """Return a constant as text that is the same in every process."""
    if isinstance(value, frozenset):
        return f"frozenset({sorted(map(shown, value))})"
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{shown(key)}: {shown(item)}' for key, item in value.items())}}}"
    return f"{type(value).__name__} {value!r}" if type(value) in ATOMS else type(value).__name__
