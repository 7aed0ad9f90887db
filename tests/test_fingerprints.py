"""A fingerprint is the same for equal values of one type in every process, and for no others."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import itertools
import math
import os
import re
import sqlite3
import subprocess
import sys
import threading
import types
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localflow.errors import NoFingerprintError
from localflow.fingerprints import Fingerprints


def fingerprint(value: object) -> bytes:
    """Take the fingerprint of one value."""
    return Fingerprints().of(value)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Settings:
    name: str
    values: list[int]


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    name: object


class Slotted:
    __slots__ = ("first", "second")

    def __init__(self, first: object, second: object) -> None:
        self.first, self.second = first, second


class OrderedNames:
    """Compares with its order, which is that of a dict inside."""

    def __init__(self, *names: str) -> None:
        self.names = dict.fromkeys(names)


class Text(str):
    pass


class Texts(set[str]):
    pass


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.sampled_from([0.0, -0.0, 1.0, math.inf])
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.sampled_from(["1", b"1", Colour.RED, Path("1"), decimal.Decimal(1), 1 + 0j, Point(1, 1), Text("1")])
)
HASHABLE = st.recursive(
    ATOMS,
    lambda inner: st.tuples(inner, inner) | st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner),
    max_leaves=4,
)
VALUES = st.recursive(
    HASHABLE | st.sets(HASHABLE, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.builds(Frozen, inner)
        | st.builds(Slotted, inner, inner)
        | st.binary(max_size=3).map(bytearray)
    ),
    max_leaves=8,
)


def same(one: Any, other: Any, ordered: bool = False) -> bool:
    """Whether two values are equal, and of the same types all the way down; `ordered` is for dicts inside objects."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(*pair, ordered) for pair in zip(one, other, strict=True))
    if isinstance(one, (set, frozenset)):
        return len(one) == len(other) and all(any(same(item, each, ordered) for each in other) for item in one)
    if isinstance(one, dict):
        if ordered:
            return same(list(one.items()), list(other.items()), ordered)
        pairs = list(other.items())
        return len(one) == len(other) and all(any(same(item, pair) for pair in pairs) for item in one.items())
    if isinstance(one, Frozen):
        return same(one.name, other.name, True)
    if isinstance(one, Slotted):
        return same(one.first, other.first, True) and same(one.second, other.second, True)
    return bool(one == other)


@settings(max_examples=500)
@given(VALUES, VALUES)
def test_values_share_a_fingerprint_exactly_if_they_are_the_same(one: object, other: object) -> None:
    """Equal and of one type all the way down, or different."""
    assert (fingerprint(one) == fingerprint(other)) is same(one, other)


@given(VALUES)
def test_a_copy_has_the_fingerprint_of_the_original(value: object) -> None:
    """What was pickled and is read again in another process is found again."""
    import cloudpickle

    assert fingerprint(cloudpickle.loads(cloudpickle.dumps(value))) == fingerprint(value)


@given(st.lists(st.tuples(HASHABLE, HASHABLE), unique_by=lambda pair: pair[0]), st.randoms())
def test_the_order_of_a_dict_or_set_does_not_count(pairs: list[tuple[Any, Any]], dice: Any) -> None:
    """As it does not count when they are compared."""
    shuffled = pairs.copy()
    dice.shuffle(shuffled)

    assert fingerprint(dict(pairs)) == fingerprint(dict(shuffled))
    assert fingerprint({key for key, _ in pairs}) == fingerprint({key for key, _ in shuffled})


DIFFERENT = [
    None, True, False, 0, 1, -1, 1 << 64, (1 << 64) + 1, -(1 << 64), 10**5000, 0.0, -0.0, 1.0, math.nan, math.inf,
    1 + 0j, "", "1", "\0", "\udcff", "x" * 100, "x" * 101, b"", b"1", b"x" * 100, bytearray(b"1"), (), [], {}, set(),
    frozenset(), ..., NotImplemented, [1], (1,), {1}, frozenset([1]), [1, 2], [[1], 2], [[1, 2]], [1, [2]], ["12"],
    ["1", "2"], [b"1", "2"], [(), ()], [((), ())], [None], [[]], {1: 2}, {2: 1}, {(1, 2): None}, {"a": 1, "b": 2},
    {"a": 2, "b": 1}, {"a": {"b": 1}}, range(3), range(4), slice(1, 2), list(range(1000)), list(range(1001)),
    tuple(range(1000)), {str(n): n for n in range(100)}, Colour.RED, Colour.BLUE, Point(1, 2), Point(2, 1), (1, 2),
    Text("1"), Texts({"a"}), {"a"}, Settings("a", [1]), Settings("a", [2]), Settings("b", [1]), Frozen("a"), Frozen(1),
    Slotted(1, 2), Slotted(2, 1), collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1),
    collections.defaultdict(list, a=1), collections.Counter("aab"), collections.deque([1, 2]),
    collections.deque([2, 1]), collections.deque([1, 2], maxlen=2), OrderedNames("a", "b"), OrderedNames("b", "a"),
    Path("a"), Path("b"), Path("a/b"), datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 1, fold=1),
    datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), datetime.date(2024, 1, 1), datetime.time(1),
    datetime.timedelta(1), decimal.Decimal("1.0"), decimal.Decimal("1.00"), fractions.Fraction(1, 2), uuid.UUID(int=1),
    uuid.UUID(int=2), re.compile("a"), re.compile("a", re.IGNORECASE), ValueError("a"), KeyError("a"), len, max,
    [].append, [1].append, int, str, list[int], list[str], math, os, functools.partial(max, 1),
    functools.partial(max, 2), types.SimpleNamespace(a=1), types.SimpleNamespace(a=2), lambda: 1, lambda: 2,
    lambda a=1: a, lambda a=2: a, Colour, Point,
]  # fmt: skip


def test_no_two_of_many_lookalikes_share_a_fingerprint() -> None:
    """1 is not True, "1" is not b"1", and a tuple is no list."""
    prints = {fingerprint(value): value for value in DIFFERENT}

    assert len(prints) == len(DIFFERENT)


def test_one_set_of_fingerprints_tells_apart_as_many_do() -> None:
    """Values that are met one after the other do not get in each other's way."""
    prints = Fingerprints()

    assert [prints.of(value) for value in DIFFERENT] == [fingerprint(value) for value in DIFFERENT]
    assert prints.of([DIFFERENT, DIFFERENT]) == fingerprint([DIFFERENT, DIFFERENT])


SCRIPT = """
import collections, dataclasses, datetime, decimal, enum, pathlib, re, sys, uuid
from localflow.fingerprints import Fingerprints
class Colour(enum.Enum):
    RED = 1
@dataclasses.dataclass
class Settings:
    names: set
class Texts(set):
    pass
def outer(names):
    def inner(x):
        return x in {"a", "b", "c"} or x in names
    return inner
names = {"alpha", "beta", "gamma", 1, (2, "b"), None}
values = [
    1, "a", 2.5, names, frozenset(names), {name: {name} for name in names}, Settings(names), Texts(names), Colour.RED,
    pathlib.Path("a"), decimal.Decimal("1.10"), uuid.UUID(int=7), datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    re.compile("a"), collections.Counter("abc"), outer(names), lambda x: x + 1, outer, Settings, Colour, len, b"x" * 99,
    ValueError(names),
]
for value in values:
    print(type(value).__name__, Fingerprints().of(value).hex())
print(Fingerprints().of_source(outer).hex(), Fingerprints().of_definition(outer(names)).hex())
"""


def test_fingerprints_are_the_same_in_every_process_whatever_its_hash_seed(tmp_path: Path) -> None:
    """Sets of texts are iterated in another order there."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    outputs = {
        subprocess.run(
            [sys.executable, script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=50,
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert len(outputs) == 1


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock,
        threading.Thread,
        lambda: (n for n in [1]),
        lambda: sqlite3.connect(":memory:"),
        object,
        lambda: memoryview(b"a"),
        lambda: {"deep": [{"inside": threading.Lock()}]},
        lambda: Frozen(threading.Lock()),
    ],
)
def test_what_cannot_be_told_apart_has_no_fingerprint(make: Any) -> None:
    """It is refused, not guessed."""
    value = make()

    with pytest.raises(NoFingerprintError):
        fingerprint(value)

    if hasattr(value, "close"):
        value.close()


def test_a_value_nested_too_deeply_is_told_as_that() -> None:
    """The reason is not a matter of stacks."""
    with pytest.raises(NoFingerprintError, match="nested too deeply"):
        fingerprint(functools.reduce(lambda inner, _: [inner], range(100_000), []))


def test_the_order_in_which_attributes_were_set_does_not_count() -> None:
    """An object has no first attribute."""
    assert fingerprint(types.SimpleNamespace(a=1, b=2)) == fingerprint(types.SimpleNamespace(b=2, a=1))


def test_whatever_an_object_raises_when_asked_for_its_state_is_told() -> None:
    """Even an attempt to end the program."""

    class Rude:
        def __reduce__(self) -> Any:
            sys.exit("no")

    with pytest.raises(NoFingerprintError, match="SystemExit: no"):
        fingerprint(Rude())


def test_a_value_that_holds_itself_has_a_fingerprint() -> None:
    """The circle is followed once."""

    def circle(number: int) -> list[Any]:
        ring: list[Any] = [number]
        ring.append(ring)
        return ring

    assert fingerprint(circle(1)) == fingerprint(circle(1))
    assert fingerprint(circle(1)) != fingerprint(circle(2))
    assert fingerprint(circle(1)) != fingerprint([1, circle(1)])


def test_shared_parts_are_looked_at_once() -> None:
    """Forty levels of the same list twice are not a million million lists."""
    value: list[Any] = []
    for _ in range(40):
        value = [value, value]

    assert len(fingerprint(value)) == 20


def test_functions_differ_by_their_code_their_defaults_and_what_they_close_over() -> None:
    """The name alone says little."""

    def make(number: int) -> Any:
        return lambda x: x + number

    assert fingerprint(make(1)) == fingerprint(make(1))
    assert fingerprint(make(1)) != fingerprint(make(2))


def test_classes_made_in_functions_differ_by_what_is_in_them() -> None:
    """Their names are the same."""

    def make(number: int) -> Any:
        class Adder:
            base = number

            def add(self, other: int) -> int:
                return other + number

        return Adder

    assert fingerprint(make(1)) == fingerprint(make(1))
    assert fingerprint(make(1)) != fingerprint(make(2))
    assert fingerprint(make(1)()) == fingerprint(make(1)())
    assert fingerprint(make(1)()) != fingerprint(make(2)())


def test_a_class_stays_the_same_when_it_is_used() -> None:
    """Python notes things in it when it is pickled or asked for its annotations."""

    class Plain:
        pass

    before = fingerprint(Plain)
    pickle_state = Plain().__reduce_ex__(4)

    assert pickle_state
    assert Plain.__annotations__ == {}
    assert fingerprint(Plain) == before


def test_a_function_that_calls_itself_has_a_fingerprint() -> None:
    """Its variable holds the function itself."""

    def make() -> Any:
        def countdown(n: int) -> int:
            return countdown(n - 1) if n else 0

        return countdown

    assert fingerprint(make()) == fingerprint(make())


def source_of(text: str) -> bytes:
    """Take the fingerprint of the source of a function that was never in a file."""
    names: dict[str, Any] = {}
    exec(text, names)
    return Fingerprints().of_source(names["f"])


def test_the_source_of_a_function_without_a_file_is_its_code() -> None:
    """As in a REPL."""
    assert source_of("def f(x): return x + 1") == source_of("def f(x): return x + 1")
    assert source_of("def f(x): return x + 1") == source_of("\n\ndef f(x):\n    return x + 1")
    assert source_of("def f(x): return x + 1") != source_of("def f(x): return x + 2")
    assert source_of("def f(x): return x + 1") != source_of("def f(x): return x - 1")
    assert source_of("def f(x): return x + 1") != source_of("def f(x): return y + 1")
    assert source_of("def f(x): return y + 1") != source_of("def f(x): return z + 1")
    assert source_of("def f(x): return [x + 1 for x in x]") != source_of("def f(x): return [x + 2 for x in x]")


class Account:
    def __init__(self, rate: float) -> None:
        self.rate = rate

    def interest(self, amount: float) -> float:
        """Compute the interest."""
        return amount * self.rate

    @classmethod
    def kind(cls) -> str:
        """Return the kind of account."""
        return cls.__name__


def definition(function: Any, *without: str) -> bytes:
    """Take the fingerprint of a function's definition."""
    return Fingerprints(frozenset(without)).of_definition(function)


def test_the_definition_of_a_method_has_its_object_in_it() -> None:
    """Unless that is left out by its name."""
    low, high = Account(0.1).interest, Account(0.2).interest

    assert definition(low) == definition(Account(0.1).interest)
    assert definition(low) != definition(high)
    assert definition(low, "self") == definition(high, "self")
    assert definition(low) != definition(Account.kind)


def test_the_definition_of_a_partial_has_what_it_puts_in() -> None:
    """Keywords can be left out by their names."""
    one, two = functools.partial(source_of, text="1"), functools.partial(source_of, text="2")

    assert definition(one) == definition(functools.partial(source_of, text="1"))
    assert definition(one) != definition(two)
    assert definition(one, "text") == definition(two, "text")
    assert definition(functools.partial(source_of, "1")) != definition(functools.partial(source_of, "2"))


def test_lambdas_are_told_apart_by_their_code() -> None:
    """All have one name."""
    assert definition(lambda x: x + 1) == definition(lambda x: x + 1)
    assert definition(lambda x: x + 1) != definition(lambda x: x + 2)


def test_the_definition_has_the_variables_around_a_function_as_they_are_now() -> None:
    """A function that changes them is another one from then on."""

    def make(first: int) -> Any:
        calls = [first]
        total = 0

        def count(x: int) -> int:
            nonlocal total
            total += 1
            calls.append(x)
            return total

        return count

    count, other = make(1), make(2)
    before = definition(count)

    assert definition(count) == before == definition(make(1)) != definition(other)
    count(1)
    assert definition(count) != before


def test_a_variable_without_fingerprint_is_named() -> None:
    """It can be left out."""

    def make() -> Any:
        lock = threading.Lock()
        return lambda: lock

    with pytest.raises(NoFingerprintError, match="its variable 'lock'"):
        definition(make())
    assert Fingerprints(frozenset({"lock"})).of_definition(make())


def test_files_with_functions_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Two scripts in one folder both call themselves __main__."""
    found = []
    for name, turn in itertools.product(("a.py", "b.py"), (1, 2)):
        file = tmp_path / name
        file.write_text(f"def load(): return {turn}")
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(file.read_text(), str(file), "exec"), names)
        found.append(definition(names["load"]))

    assert found[0] == found[1] != found[2] == found[3]


def test_arrays_count_by_their_type_their_shape_and_what_is_in_them() -> None:
    """Not by how they lie in memory."""
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(12.0).reshape(3, 4)
    others = [
        array + 1, array.T, array.reshape(4, 3), array.astype("f4"), array[::2], array[0, ::2], array[0, :2], array[:0],
        array.tolist(), numpy.array(3), numpy.array(["a"]), numpy.array(["2024"], dtype="M8[D]"), numpy.array([{}]),
        numpy.ma.array([1, 2], mask=[0, 1]), numpy.ma.array([1, 2], mask=[1, 0]), numpy.float64(3), numpy.int64(3),
    ]  # fmt: skip

    assert len({fingerprint(each) for each in [array, *others]}) == len(others) + 1
    assert fingerprint(array) == fingerprint(array.copy()) == fingerprint(numpy.asfortranarray(array))
    assert fingerprint(array[0, ::2]) == fingerprint(array[0, ::2].copy())


def test_tables_count_by_their_labels_and_columns() -> None:
    """Not by the blocks that pandas puts them in."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    grown = pandas.DataFrame({"a": [1, 2]})
    grown["b"] = ["x", "y"]
    others = [
        table[["b", "a"]], table.rename(columns={"a": "c"}), table.assign(a=[1, 3]), table.assign(b=["x", "z"]),
        table.astype({"a": "f8"}), table.iloc[::-1], table.set_index("a"), table["a"], table["a"].rename("b"),
        table["b"],
    ]  # fmt: skip

    assert len({fingerprint(each) for each in [table, *others]}) == len(others) + 1
    assert fingerprint(table) == fingerprint(table.copy()) == fingerprint(grown)
