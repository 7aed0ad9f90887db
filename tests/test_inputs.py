"""The fingerprint of a call: equal for the same call in any process, different for another one."""

from __future__ import annotations

import datetime
import enum
import functools
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow import allow_failure, quote, unmapped
from localflow.inputs import NO_INPUTS, InputPrints

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner),
    max_leaves=10,
)


def of(*args: Any, **kwargs: Any) -> str:
    """Return the fingerprint of a call."""
    return InputPrints().of(args, kwargs)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Pair(NamedTuple):
    left: int
    right: int


@dataclass
class Point:
    x: int
    tags: list[str] = field(default_factory=list)


class Plain:
    def __init__(self, value: int) -> None:
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


class Guarded:
    """Does not let itself be looked at, and would say so if its code were run."""

    def __reduce__(self) -> Any:
        raise AssertionError("it was pickled")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("it was compared")

    def __repr__(self) -> str:
        raise AssertionError("it was shown")

    __hash__ = None  # type: ignore[assignment]


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


@given(PLAIN, PLAIN)
def test_plain_values_are_the_same_only_if_they_are_equal_and_of_one_type(one: Any, other: Any) -> None:
    """1, 1.0 and True are three values."""
    assert of(one) == of(one)
    if one != other:
        assert of(one) != of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True), (1, 1.0), ("a", b"a"), ([1], (1,)), ({1, 2}, {1, 3}), ({"a": 1}, {"a": 2}),
        (Colour.RED, Colour.BLUE), (Pair(1, 2), Pair(2, 1)), (Pair(1, 2), (1, 2)), (Point(1), Point(2)),
        (Point(1), Point(1, ["x"])),
        (Plain(1), Plain(2)), (Slotted(1), Slotted(2)), (Path("a"), Path("b")),
        (datetime.date(2021, 1, 1), datetime.date(2021, 1, 2)), (range(3), range(4)), (int, float), (os, sys),
        (lambda: 1, lambda: 2), (functools.partial(add, 1), functools.partial(add, 2)), (add, len), (Plain, Slotted),
        (quote([1]), unmapped([1])), (allow_failure(1), 1), (ValueError("a"), ValueError("b")), ("", None), ((), [()]),
    ],
)  # fmt: skip
def test_other_values_have_other_fingerprints(one: Any, other: Any) -> None:
    """Whatever their class."""
    assert of(one) != of(other)
    assert of([{"x": one}]) != of([{"x": other}])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Point(1, ["x"]), lambda: Plain(1), lambda: Slotted(1), lambda: Pair(1, 2), threading.Lock,
        lambda: {"b": 1, "a": 2}, lambda: {3, 1, 2}, lambda: functools.partial(add, 1), lambda: quote([1]),
        lambda: Plain.__init__.__get__(Plain(1)), object, lambda: iter([1]), lambda: (n for n in range(3)),
    ],
)  # fmt: skip
def test_the_same_value_made_anew_has_the_same_fingerprint(make: Any) -> None:
    """Another process makes everything anew."""
    assert of(make()) == of(make())


def test_names_and_places_of_arguments_count() -> None:
    """So do those that are given twice."""
    assert len({of(), of(1), of(1, 1), of(a=1), of(b=1), of(1, a=1), of([1])}) == 7
    assert of(a=1, b=2) == of(b=2, a=1)
    assert of() == NO_INPUTS


def test_none_of_the_users_code_is_run() -> None:
    """It may be slow, or do something."""
    assert of(Guarded()) == of(Guarded())
    assert of([Guarded()]) != of([])


def test_deep_and_endless_values_end() -> None:
    """They count by what is looked at."""
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]

    assert of(endless) == of(endless)
    assert of(deep) == of(deep)
    while deep != 1:  # so that it is not taken apart recursively
        (deep,) = deep


def test_large_values_are_looked_at_once() -> None:
    """They are passed again and again, to every run of a map."""
    prints = InputPrints()
    large = list(range(50_000))
    first = prints.of((large, 1), {})
    large[7] = -1  # which shows that it is not looked at again

    assert prints.of((large, 1), {}) == first
    assert prints.of((large, 2), {}) != first
    assert InputPrints().of((large, 1), {}) != first


def test_fingerprints_are_the_same_in_another_process() -> None:
    """Whatever its hashes of strings are."""
    call = "(({'a', 'b', 'c'}, {'x': [1.5, None]}), {'k': b'z'})"
    program = f"from localflow.inputs import InputPrints; print(InputPrints().of(*{call}))"
    found = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip

    assert found == {of({"a", "b", "c"}, {"x": [1.5, None]}, k=b"z")}
