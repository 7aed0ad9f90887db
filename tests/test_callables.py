"""What callables say of themselves is what `inspect` would say."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import pytest

from localflow.callables import (
    is_async,
    is_coroutine_function,
    is_generator,
    is_plain,
    parameter_names,
    positional_range,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


def _plain(a: int, /, b: int, c: int = 1, *, d: int, e: int = 2) -> None: ...


def _open_ended(a: int, *rest: int, **options: int) -> None:
    inner = a  # a local name is no parameter
    del inner


def _nothing() -> None: ...


def _optional(a: int = 1, *, b: int = 2) -> None: ...


async def _coroutine() -> None: ...


def _generator() -> Iterator[int]:
    yield 1


async def _async_generator() -> AsyncIterator[int]:
    yield 1


@functools.wraps(_coroutine)
def _decorated(*args: Any) -> None: ...


class _Caller:
    async def __call__(self) -> None: ...

    async def method(self) -> None:
        """Do nothing."""


FUNCTIONS: list[Any] = [_plain, _open_ended, _nothing, _optional, _coroutine, _generator, _async_generator]
OTHERS: list[Any] = [_decorated, functools.partial(_coroutine), _Caller(), _Caller().method, _Caller, print]


def name(function: Any) -> str:
    """Return what a test of this callable is called."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))


@pytest.mark.parametrize("function", FUNCTIONS, ids=name)
def test_parameters_of_a_plain_function(function: Any) -> None:
    """Its code has the names of its parameters, whatever their kind."""
    assert is_plain(function)
    assert sorted(parameter_names(function)) == sorted(inspect.signature(function).parameters)


@pytest.mark.parametrize("function", FUNCTIONS, ids=name)
def test_positional_arguments_of_a_plain_function(function: Any) -> None:
    """As many positional arguments as it says can be bound, neither fewer nor more."""
    least, most = positional_range(function)

    for count in range(5):
        try:
            inspect.signature(function).bind(*range(count))
        except TypeError:
            assert not least <= count <= most
        else:
            assert least <= count <= most


@pytest.mark.parametrize("function", [*FUNCTIONS, *OTHERS], ids=name)
def test_kinds_of_callables(function: Callable[..., Any]) -> None:
    """Coroutine functions and generators are told from others, wrapped ones and methods too."""
    candidates = (function, function.__call__)
    tells_async = any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in candidates)

    assert is_coroutine_function(function) == inspect.iscoroutinefunction(function)
    assert is_async(function) == tells_async
    assert is_generator(function) == inspect.isgeneratorfunction(function)
    assert is_generator(function, or_async=True) == (
        inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    )


def test_what_a_decorator_has_said_of_a_function_counts() -> None:
    """A function with a word of a decorator is not looked at as a plain one."""
    assert not is_plain(_decorated)
