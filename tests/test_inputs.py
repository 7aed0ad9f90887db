"""The fingerprint of a call: equal for the same call in any process, different for another one."""

from __future__ import annotations

import array
import datetime
import enum
import functools
import io
import logging
import operator
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
import uuid
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow import allow_failure, quote, unmapped
from localflow.input_values import Encoder
from localflow.inputs import NO_INPUTS, VAGUE, InputPrints

if TYPE_CHECKING:
    from collections.abc import Callable

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


class Bytes(bytearray):
    pass


class Day(datetime.date):
    pass


class Amount(Decimal):
    pass


class Flags(enum.IntFlag):
    A = 1


class Node:
    def __init__(self, parent: Node | None, number: int) -> None:
        self.parent, self.number, self.children = parent, number, []  # type: ignore[var-annotated]
        if parent is not None:
            parent.children.append(self)


def closure(values: list[int]) -> Any:
    """Return a function over a list."""
    return lambda: values[0]


def defaulted(number: int) -> Any:
    """Return a function with a default that is no plain value."""
    return lambda values=[number]: values


def wrapped(number: int) -> Any:
    """Return a function around another one."""

    @functools.wraps(add)
    def inner(*args: int) -> int:
        return add(*args) + number

    return inner


def local_class(number: int) -> Any:
    """Return a class of the same name as others, with another content."""

    class Local:
        value = number

    return Local


def local_data(number: int) -> Any:
    """Return a dataclass of the same name as others, with another property."""

    @dataclass
    class Local:
        tags: list[str] = field(default_factory=list)

        @property
        def number(self) -> int:
            return number

    return Local


def nested(depth: int) -> Any:
    """Return lists inside of each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list of what has been looked at, one by one, but for plain values."""
    found: list[Any] = []
    encode = Encoder.encode

    def noting(self: Encoder, value: Any) -> bytes:
        found.append(type(value))
        return encode(self, value)

    monkeypatch.setattr(Encoder, "encode", noting)
    return found


@given(PLAIN, PLAIN)
def test_plain_values_are_the_same_only_if_they_are_equal_and_of_one_type(one: Any, other: Any) -> None:
    """1, 1.0 and True are three values."""
    assert of(one) == of(one)
    if one != other:
        assert of(one) != of(other)


PAIRS: list[tuple[Any, Any]] = [
    (1, True), (1, 1.0), ("a", b"a"), ([1], (1,)), ({1, 2}, {1, 3}), ({"a": 1}, {"a": 2}),
    (Colour.RED, Colour.BLUE), (Pair(1, 2), Pair(2, 1)), (Pair(1, 2), (1, 2)), (Point(1), Point(2)),
    (Point(1), Point(1, ["x"])),
    (Plain(1), Plain(2)), (Slotted(1), Slotted(2)), (Path("a"), Path("b")),
    (datetime.date(2021, 1, 1), datetime.date(2021, 1, 2)), (range(3), range(4)), (int, float), (os, sys),
    (lambda: 1, lambda: 2), (functools.partial(add, 1), functools.partial(add, 2)), (add, len), (Plain, Slotted),
    (quote([1]), unmapped([1])), (allow_failure(1), 1), (ValueError("a"), ValueError("b")), ("", None), ((), [()]),
    (deque([1]), deque([2])), (deque([1], 2), deque([1], 3)), (array.array("d", [1]), array.array("d", [2])),
    (array.array("b", [1]), array.array("B", [1])), (Bytes(b"a"), Bytes(b"b")), (Day(2021, 1, 1), Day(2021, 1, 2)),
    (Day(2021, 1, 1), datetime.date(2021, 1, 1)), (Decimal("1"), Decimal("2")), (Amount("1"), Amount("2")),
    (Decimal("1.0"), Decimal("1.00")), (datetime.datetime(2021, 1, 1), datetime.datetime(2021, 1, 1, fold=1)),
    (datetime.datetime(2021, 1, 1, tzinfo=ZoneInfo("UTC")), datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC)),
    (ZoneInfo("UTC"), ZoneInfo("Etc/GMT")), (datetime.timedelta(1), datetime.timedelta(2)),
    (datetime.time(1), datetime.time(2)),
    (Fraction(1, 2), Fraction(1, 3)), (uuid.UUID(int=1), uuid.UUID(int=2)), (Flags(8), Flags(16)),
    (re.compile("a" * 300 + "b"), re.compile("a" * 300 + "c")), (re.compile("a"), re.compile("a", re.IGNORECASE)),
    ({1: 2}.items(), {1: 3}.items()), ({1: 2}.keys(), {2: 2}.keys()), ({1: 2}.values(), {1: 3}.values()),
    (MappingProxyType({1: 2}), MappingProxyType({1: 3})), (operator.itemgetter(1), operator.itemgetter(2)),
    (operator.attrgetter("a"), operator.attrgetter("b")), (io.BytesIO(b"a"), io.BytesIO(b"b")),
    (io.StringIO("a"), io.StringIO("b")), (ElementTree.fromstring("<a/>"), ElementTree.fromstring("<b/>")),
    (ElementTree.fromstring("<a><b/></a>"), ElementTree.fromstring("<a><c/></a>")),
    (random.Random(1), random.Random(2)),
    (closure([1]), closure([2])), (defaulted(1), defaulted(2)), (local_class(1), local_class(2)),
    (local_class(1)(), local_class(2)()), ([b"a" * 33_000_000, b"b"], [b"b" * 33_000_000, b"b"]),
    (defaultdict(int, a=1), defaultdict(list, a=1)), (Counter("a"), Counter("b")), ([1].append, [2].append),
    (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)), (SimpleNamespace(a=1), SimpleNamespace(a=2)), (slice(1), slice(2)),
    (str.upper, str.lower), (list[int], list[str]), (int | str, int | None), (memoryview(b"a"), memoryview(b"b")),
    (logging.getLogger("a"), logging.getLogger("b")), (1j, 2j),
    (wrapped(1), wrapped(2)), (local_data(1), local_data(2)), (local_data(1)(), local_data(2)()),
    (OSError(2, "no", "a"), OSError(2, "no", "b")),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), PAIRS)
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
        lambda: deque([1]), lambda: array.array("d", [1]), lambda: Day(2021, 1, 1), lambda: Amount("1"),
        lambda: random.Random(1), lambda: io.BytesIO(b"a"), lambda: closure([1]), lambda: defaulted(1),
        lambda: local_class(1)(), lambda: wrapped(1), lambda: ElementTree.fromstring("<a>x</a>"), lambda: Flags(8),
        lambda: operator.itemgetter(1), lambda: MappingProxyType({1: 2}), lambda: datetime.datetime(2021, 1, 1),
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


@pytest.mark.parametrize(
    "make",
    [
        lambda: list(range(300)), lambda: bytearray(100_000), lambda: {n: n for n in range(300)},
        lambda: array.array("q", range(300)), lambda: deque(range(300)), lambda: ([0] * 300,),
        lambda: OrderedDict.fromkeys(range(300)),
    ],
)  # fmt: skip
def test_what_is_changed_in_place_has_another_fingerprint(make: Callable[[], Any]) -> None:
    """Although it is the same object, and large."""
    prints = InputPrints()
    value = make()
    first = prints.of((value,), {})
    (value[0] if isinstance(value, tuple) else value)[7] = 9

    assert prints.of((value,), {}) not in (first, prints.of((make(),), {}))
    assert prints.of((make(),), {}) == first


@pytest.mark.parametrize("value", [tuple(range(50_000)), "x" * 100_000, b"x" * 100_000, (tuple(range(300)), 1)])
def test_large_values_that_cannot_change_are_looked_at_once(value: Any, encoded: list[Any]) -> None:
    """They are passed again and again."""
    prints = InputPrints()
    first = prints.of((value, 1), {})
    encoded.clear()

    assert prints.of((value, 1), {}) == first
    assert not encoded
    assert prints.of((value, 2), {}) != first
    assert InputPrints().of((value, 1), {}) == first


def test_values_that_go_to_each_run_of_a_map_are_looked_at_once(encoded: list[Any]) -> None:
    """Although they could be changed meanwhile."""
    prints = InputPrints()
    rows = [[n] for n in range(300)]
    lock = threading.Lock()
    known = prints.known([rows, lock, 1])
    encoded.clear()
    all_prints = {prints.of((rows, n), {}, None, known) for n in range(10)}

    assert not encoded
    assert len(all_prints) == 10
    assert prints.of((rows, 3), {}) in all_prints
    assert prints.of((lock,), {}, None, known) == prints.of((lock,), {})


def test_nothing_large_is_kept_alive() -> None:
    """A flow run passes many large values on, one after the other."""
    tracemalloc.start()
    try:
        prints = InputPrints()
        for number in range(2):
            prints.of(
                (bytearray(8 << 20), bytes([number]) * (8 << 20), tuple(b"%d" % n * 99 for n in range(12_000))), {}
            )
        assert tracemalloc.get_traced_memory()[0] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock, object, lambda: iter([1]), lambda: (n for n in range(3)), lambda: sqlite3.connect(":memory:"),
        lambda: Plain(threading.Lock()), lambda: {"a": [object()]}, lambda: functools.partial(add, object()),
        lambda: list(range(200_000)), lambda: bytes(200 << 20), lambda: nested(100), lambda: weakref.ref(Plain),
        lambda: [Plain(n) for n in range(20_000)], lambda: threading.local(),
    ],
)  # fmt: skip
def test_a_call_with_something_that_is_not_looked_at_by_content_is_vague(make: Callable[[], Any]) -> None:
    """Another call may have the same fingerprint."""
    value = make()
    assert of(value).endswith(VAGUE)
    assert of(1, a=[value]).endswith(VAGUE)
    assert not of(1, a=[1]).endswith(VAGUE)
    if isinstance(value, sqlite3.Connection):
        value.close()


@pytest.mark.parametrize("number", range(len(PAIRS)))
def test_values_that_count_by_their_content_are_not_vague(number: int) -> None:
    """However many kinds there are."""
    assert not [value for value in PAIRS[number] if of(value).endswith(VAGUE)]


def test_a_graph_is_looked_at_once(encoded: list[Any]) -> None:
    """However its objects refer to each other."""
    root = Node(None, 0)
    nodes = [Node(root, number) for number in range(20)]
    found = {of(node) for node in nodes}
    assert len(found) == 20
    assert not any(each.endswith(VAGUE) for each in found)
    assert len(encoded) < 20 * 1000

    shared: Any = [Plain(1)]
    for _ in range(40):
        shared = [shared, shared]
    encoded.clear()
    of(shared)
    assert len(encoded) < 100


def test_objects_that_refer_to_each_other_differ_by_how() -> None:
    """And those made anew in the same way do not."""

    def circle(*numbers: int) -> Node:
        nodes = [Node(None, number) for number in numbers]
        for node, other in zip(nodes, nodes[1:] + nodes[:1], strict=True):
            node.parent = other
        return nodes[0]

    assert of(circle(1, 2, 3)) == of(circle(1, 2, 3))
    assert len({of(circle(*each)) for each in [(1,), (1, 1), (1, 2), (2, 1), (1, 2, 3), (1, 3, 2)]}) == 6
    itself, other = Node(None, 1), Node(None, 1)
    itself.parent = itself
    other.parent = Node(None, 1)
    assert of(itself) != of(other)


def test_values_count_the_same_whether_they_are_one_object_or_two() -> None:
    """A result that is loaded again is another object."""
    row = [1, [2]]
    assert of(row, row) == of([1, [2]], [1, [2]])
    assert of([row, row]) == of([[1, [2]], [1, [2]]])


def test_a_class_has_one_name_as_script_and_imported(own_folder: Path) -> None:
    """A flow may be run in one way and resumed in the other."""
    package = own_folder / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    for folder, module in ((own_folder, "flows"), (package, "shop.flows")):
        (folder / "flows.py").write_text(
            "from localflow.inputs import InputPrints\n"
            "class P:\n    def __init__(self): self.x = 1\n"
            "def f(): return 1\n"
            "def main(): print(InputPrints().of((P(), P, f, {'p': P()}), {}))\n"
            "if __name__ == '__main__': main()\n"
        )
        loaded = "from localflow.loading import _load_module as load; load({!r}).main()".format(
            str(folder / "flows.py")
        )
        ways = [
            [str(folder / "flows.py")], ["-m", module], ["-c", f"from {module} import main; main()"], ["-c", loaded]
        ]  # fmt: skip
        found = {
            subprocess.run(
                [sys.executable, *way], capture_output=True, text=True, check=True,
                env={**os.environ, "PYTHONPATH": str(own_folder)},
            ).stdout.strip()
            for way in ways
        }  # fmt: skip
        assert len(found) == 1


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
