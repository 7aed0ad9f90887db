"""What a callable says of itself. A plain function tells it by its code: importing `inspect` costs more than a flow."""

from __future__ import annotations

import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Bits of `co_flags`; `inspect` has them under these names.
_VARARGS, _VARKEYWORDS, _GENERATOR, _COROUTINE, _ASYNC_GENERATOR = 0x04, 0x08, 0x20, 0x80, 0x200


def is_plain(fn: object) -> TypeGuard[FunctionType]:
    """Return whether a callable is a function about which no decorator has said anything, such as a signature."""
    return type(fn) is FunctionType and not fn.__dict__


def is_coroutine_function(fn: object) -> bool:
    """Return whether calling it gives a coroutine, as far as it is known to be a function."""
    if is_plain(fn):
        return bool(fn.__code__.co_flags & _COROUTINE)
    from inspect import iscoroutinefunction

    return iscoroutinefunction(fn)


def is_async(fn: Callable[..., Any]) -> bool:
    """Return whether calling it gives something to await: an async function, partial, method or callable object."""
    if is_plain(fn):
        return bool(fn.__code__.co_flags & (_COROUTINE | _ASYNC_GENERATOR))
    from inspect import isasyncgenfunction, iscoroutinefunction

    return any(
        iscoroutinefunction(candidate) or isasyncgenfunction(candidate)
        for candidate in (fn, getattr(fn, "__call__", None))  # noqa: B004 - it is looked into, not called
    )


def is_generator(fn: object, *, or_async: bool = False) -> bool:
    """Return whether it is a generator function; with `or_async` also whether it is an async one."""
    if is_plain(fn):
        return bool(fn.__code__.co_flags & (_GENERATOR | (_ASYNC_GENERATOR if or_async else 0)))
    from inspect import isasyncgenfunction, isgeneratorfunction

    return isgeneratorfunction(fn) or (or_async and isasyncgenfunction(fn))


def parameter_names(fn: FunctionType) -> Iterable[str]:
    """Return the names of a plain function's parameters."""
    code = fn.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & _VARARGS) + bool(code.co_flags & _VARKEYWORDS)
    return code.co_varnames[:count]


def positional_range(fn: FunctionType) -> tuple[int, int]:
    """Return how few and how many positional arguments suffice to call a plain function; (1, 0) for never."""
    code = fn.__code__
    if code.co_kwonlyargcount > len(fn.__kwdefaults__ or ()):
        return 1, 0
    most = sys.maxsize if code.co_flags & _VARARGS else code.co_argcount
    return code.co_argcount - len(fn.__defaults__ or ()), most
