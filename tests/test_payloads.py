"""Values as bytes: JSON where it is faithful, pickle otherwise, and never a failure that escapes."""

from __future__ import annotations

import functools
import json
import math
import pickle
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, NewType, ParamSpec, TypeVarTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow import Completed, Failed
from localflow.classes import SCRIPTS
from localflow.definitions import global_names
from localflow.errors import StoreError, TaskFailedError, UnpicklableError
from localflow.loading import MODULE_NAME
from localflow.payloads import Packed, Payload, Stored, pack, type_name, unpack

if TYPE_CHECKING:
    from pathlib import Path


class Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    def __hash__(self) -> int:
        return self.x


class Loud:
    """Says when it is unpickled."""

    unpickled = 0

    def __setstate__(self, state: object) -> None:
        Loud.unpickled += 1

    def __getstate__(self) -> object:
        return {"some": "state"}


class Exiting:
    """Ends the program when it is pickled."""

    def __reduce__(self) -> Any:
        sys.exit("pickled")


class Name(str):
    """A text that is more than a text."""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
python_values = st.recursive(
    st.none()
    | st.integers()
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.builds(Point, st.integers()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text() | st.booleans(), inner, max_size=3)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=15,
)


def same(left: object, right: object) -> bool:
    """Return whether two values agree in type and content, NaN and the sign of zero included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float) and isinstance(right, float):
        return repr(left) == repr(right)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))  # type: ignore[arg-type]
    if isinstance(left, dict) and isinstance(right, dict):
        return same(list(left), list(right)) and all(same(left[key], right[key]) for key in left)
    return left == right


@given(json_values)
def test_plain_values_come_back_the_same(value: object) -> None:
    """Everything JSON can hold comes back equal, of the same types, in the same order."""
    assert same(unpack(pack(value)), value)


@given(python_values)
def test_other_values_come_back_the_same(value: object) -> None:
    """Tuples, bytes, odd keys and objects come back as themselves."""
    assert same(unpack(pack(value)), value)


@pytest.mark.parametrize("value", [None, True, False, 1, -1.5, "text", [1, "a", None], {"k": [{"l": 2}]}])
def test_plain_values_are_readable_json(value: object) -> None:
    """What JSON gives back exactly is stored as JSON, so that no reader needs to unpickle it."""
    payload = pack(value)

    assert payload.format == "json"
    assert json.loads(payload.data) == value


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1: "a"}, {True: 1}, {None: 1}, b"bytes", Name("n"), [Name("n")], {Name("k"): 1}, [(1,)], {1}, Point(1)],
)
def test_what_json_would_change_is_pickled(value: Any) -> None:
    """JSON would make tuples lists and keys texts, so it is not used for them."""
    payload = pack(value)

    assert payload.format == "pickle"
    assert same(unpack(payload), value)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, -0.0, 1e308, 5e-324, 10**5000, -(2**64), "\ud800", "\0"], ids=range(10)
)
def test_odd_atoms_come_back(value: object) -> None:
    """Numbers at the edges, lone surrogates and NUL are kept."""
    for item in (value, [value], {"k": value}):
        assert same(unpack(pack(item)), item)


def test_a_list_that_holds_itself_comes_back() -> None:
    """A cycle is for pickle."""
    loop: list[Any] = [1]
    loop.append(loop)

    result = unpack(pack(loop))

    assert result[1] is result


def test_a_list_held_twice_stays_one_list() -> None:
    """Two references to one list come back as two references to one list."""
    inner = [1]

    result = unpack(pack([inner, inner]))

    assert result[0] is result[1]


@pytest.mark.parametrize("depth", [50, 400, 900, 990])
def test_deeply_nested_lists_are_packed_or_refused(depth: int) -> None:
    """Nesting deeper than the encoder bears is an UnpicklableError, nothing else."""
    value: Any = []
    for _ in range(depth):
        value = [value]

    try:
        payload = pack(value)
    except UnpicklableError:
        return

    assert unpack(payload) == value


def test_large_structures_come_back() -> None:
    """Size changes the format, not the value."""
    value = {"rows": [[n, str(n)] for n in range(5_000)]}

    assert unpack(pack(value)) == value


@pytest.mark.parametrize(
    "value",
    [threading.Lock(), (n for n in range(3)), [threading.Lock()]],
    ids=["lock", "generator", "nested"],
)
def test_what_cannot_be_pickled_says_so(value: object) -> None:
    """The error names the type."""
    with pytest.raises(UnpicklableError, match=f"{type_name(value)} cannot be pickled"):
        pack(value)


def test_a_completed_state_whose_value_cannot_be_kept_has_no_record_of_it() -> None:
    """A result is kept if possible, and its state never fails for it."""
    assert Completed(data=threading.Lock()).recordable() is None
    assert Completed(data=[1]).recordable() == Payload("json", b"[1]")
    assert Failed(data=[1]).recordable() is None


def test_a_value_that_exits_when_pickled_has_no_record() -> None:
    """Even sys.exit() while a value is pickled is no more than a missing record."""
    assert Completed(data=Exiting()).recordable() is None


def test_a_deeply_nested_value_has_a_record_or_none() -> None:
    """Asking for the record of a deeply nested value does not raise."""
    value: Any = []
    for _ in range(990):
        value = [value]

    Completed(data=value).recordable()


def test_lambdas_and_local_classes_are_packed() -> None:
    """What plain pickle refuses travels by value."""

    class Local:
        x = 3

    function, kind = unpack(pack((lambda n: n + 1, Local)))

    assert function(1) == 2
    assert kind.x == 3


def test_a_cache_of_a_local_function_is_packed() -> None:
    """It comes back empty, with its parameters; one that calls itself is still one."""

    @functools.lru_cache(maxsize=99, typed=True)
    def factorial(n: int) -> int:
        return n * factorial(n - 1) if n else 1

    assert factorial(5) == 120

    copy = unpack(pack(factorial))

    assert copy.cache_info().currsize == 0
    assert (copy(5), copy.cache_info().currsize) == (120, 6)
    assert copy.cache_parameters() == {"maxsize": 99, "typed": True}


def test_a_cache_that_can_be_imported_stays_itself() -> None:
    """As any function does."""
    assert unpack(pack(global_names)) is global_names


def test_a_cached_property_of_a_local_class_is_packed() -> None:
    """Python 3.11 gives it a lock, which is left out."""

    class Square:
        side = 3

        @functools.cached_property
        def area(self) -> int:
            return self.side**2

    assert unpack(pack(Square())).area == 9


def test_a_local_function_that_dispatches_by_type_is_packed() -> None:
    """With what is registered."""

    @functools.singledispatch
    def name(value: object) -> str:
        return "object"

    @name.register
    def _(value: int) -> str:
        return "int"

    copy = unpack(pack(name))

    assert (copy(1), copy("1")) == ("int", "object")


def test_a_function_takes_along_what_classes_in_it_are_made_with() -> None:
    """Names that the body of a class looks up in the module, at any depth."""
    names: dict[str, Any] = {}
    exec(
        "from dataclasses import dataclass, field\n"
        "def make():\n"
        "    class Outer:\n"
        "        @dataclass\n"
        "        class Inner:\n"
        "            items: list = field(default_factory=list)\n"
        "    return Outer.Inner().items\n",
        names,
    )

    assert unpack(pack(names["make"]))() == []


def test_types_of_annotations_of_a_script_are_packed() -> None:
    """Pickle knows them by their names alone, by which no worker finds them; within a value each stays one."""
    kinds = [NewType("Id", int), ParamSpec("ParamSpec"), TypeVarTuple("TypeVarTuple")]

    copies = unpack(pack([*kinds, *kinds]))

    assert [kind.__name__ for kind in copies[:3]] == ["Id", "ParamSpec", "TypeVarTuple"]
    assert [type(kind) for kind in copies[:3]] == [type(kind) for kind in kinds]
    assert all(kind is twin for kind, twin in zip(copies[:3], copies[3:], strict=True))
    assert copies[0].__supertype__ is int


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a statement of Python 3.12")
def test_an_alias_of_a_script_is_packed() -> None:
    """One made by `type`."""
    names: dict[str, Any] = {}
    exec("type Pair[T] = tuple[T, T]", names)

    copy = unpack(pack(names["Pair"]))

    assert copy.__value__ == tuple[(*copy.__type_params__, *copy.__type_params__)]


def test_packed_values_stay_bytes_until_asked_for() -> None:
    """Looking at a packed value unpickles nothing; each `get` gives a new object."""
    packed = Packed(pack(Loud()))
    before = Loud.unpickled
    repr(packed)
    state = Completed(data=packed)
    repr(state)
    state.is_completed()
    untouched = Loud.unpickled - before

    first, second = packed.get(), state.result()

    assert untouched == 0
    assert first is not second


def test_a_packed_value_inside_a_pickle_arrives_as_the_value() -> None:
    """What receives the arguments need not know that they were packed."""
    sent = pickle.dumps([Packed(pack((1, Point(2))))])

    assert pickle.loads(sent) == [(1, Point(2))]


def test_type_names() -> None:
    """Types are named as one would import them."""
    assert type_name([]) == "list"
    assert type_name(threading.Event()) == "threading.Event"


class Leaving:
    """Calls `sys.exit` when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return sys.exit, (0,)


def test_a_value_that_exits_when_unpickled_does_not_end_the_program() -> None:
    """Whoever asks for it gets an ordinary exception."""
    with pytest.raises(TaskFailedError, match="SystemExit"):
        Packed(pack(Leaving())).get()


# -- values from the store of an earlier process ---------------------------------------------------------------------

CLASSES = """
import collections, dataclasses, enum, sys
from pathlib import Path
from localflow import *
from localflow.payloads import Payload, Stored, pack

class Base:
    def describe(self):
        return (VERSION, type(self).__qualname__)

class Point(Base):
    seen = VERSION
    class Inner:
        pass
    def __init__(self):
        self.x = 1

class Color(enum.Enum):
    RED = "red"

@dataclasses.dataclass(frozen=True)
class Pair:
    left: object
    right: object

Named = collections.namedtuple("Named", "a b")

def local():
    class Point:
        x = "local"
    return Point()

def stored():
    payload = Payload(*__import__("pickle").loads(Path("payload").read_bytes()))
    return Stored(lambda: payload)
"""
KEEP = """
value = {"point": Point(), "color": Color.RED, "inner": Point.Inner(), "pair": Pair(Point(), Color.RED),
    "named": Named(1, 2), "class": Point, "local": local()}
Path("payload").write_bytes(__import__("pickle").dumps(tuple(pack(value))))
"""
CHECK = """
def check(value):
    point = value["point"]
    return [
        name for name, holds in {
            "instance": isinstance(point, Point) and isinstance(point, Base),
            "the present code": point.describe() == ("new", "Point") and point.seen == "new",
            "its state": vars(point) == {"x": 1},
            "class": value["class"] is Point,
            "member": value["color"] is Color.RED,
            "nested": isinstance(value["inner"], Point.Inner),
            "dataclass": isinstance(value["pair"], Pair) and value["pair"].right is Color.RED,
            "named tuple": isinstance(value["named"], Named) and value["named"].b == 2,
            "local": type(value["local"]) is not Point and value["local"].x == "local",
        }.items() if not holds
    ]
"""


def run(source: str, own_folder: Path, *how: str) -> str:
    """Run a script as `how` says and return what it prints."""
    (own_folder / "script.py").write_text(source)
    done = subprocess.run([sys.executable, *how], capture_output=True, text=True, cwd=own_folder, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def keep(own_folder: Path) -> None:
    """Have a process of its own pack values of the classes of its script."""
    run(f"VERSION = 'old'{CLASSES}{KEEP}", own_folder, "script.py")


def test_a_stored_value_is_of_the_classes_that_the_script_has_now(own_folder: Path) -> None:
    """After a resume `isinstance` holds, members of enums are the same, and the classes have their present code."""
    keep(own_folder)

    printed = run(f"VERSION = 'new'{CLASSES}{CHECK}print(check(stored().get()))", own_folder, "script.py")

    assert printed == "[]"


def test_a_stored_value_finds_its_classes_in_a_script_that_localflow_has_loaded(own_folder: Path) -> None:
    """`python flows.py` and `localflow resume` give the script's module two names."""
    assert MODULE_NAME in SCRIPTS
    keep(own_folder)
    main = """
@flow
def main():
    print(check(stored().get()))
"""

    printed = run(f"VERSION = 'new'{CLASSES}{CHECK}{main}", own_folder, "-m", "localflow", "run", "script.py")

    assert "[]" in printed


def test_a_stored_value_has_these_classes_in_workers_too(own_folder: Path) -> None:
    """Also inside other arguments, and when a task that knows nothing of its class hands it on."""
    keep(own_folder)
    main = """
@task
def look(value):
    value, = value if isinstance(value, list) else [value]
    return check(value)

@task
def hand_on(value):
    return value

@flow(executor="process")
def main():
    value = stored()
    handed_on = hand_on(value)
    return look(value), look([value]), look(handed_on), check(handed_on.result())

print(main().result()) if __name__ == "__main__" else None
"""

    printed = run(f"VERSION = 'new'{CLASSES}{CHECK}{main}", own_folder, "script.py")

    assert printed == "([], [], [], [])"


def test_a_class_that_is_gone_from_the_script_is_the_stored_one(own_folder: Path) -> None:
    """Nothing else could be meant."""
    keep(own_folder)
    gone = "del Point, Base\nprint(stored().get()['point'].describe())"

    printed = run(f"VERSION = 'new'{CLASSES}{gone}", own_folder, "script.py")

    assert printed == "('old', 'Point')"


def test_unpacking_leaves_the_classes_of_this_process_alone(own_folder: Path) -> None:
    """A value of a worker, which has a copy of the class, does not change the original."""
    script = """
class Counter:
    count = 0
    def grow(self):
        Counter.count += 1

before = vars(Counter)["grow"]

@task
def make():
    Counter().grow()
    return Counter()

@flow(executor="process")
def main():
    return make()

if __name__ == "__main__":
    counter = main().result()
    print(isinstance(counter, Counter), Counter.count, vars(Counter)["grow"] is before)
"""

    printed = run(f"from localflow import *{script}", own_folder, "script.py")

    assert printed == "True 0 True"


def test_a_class_defined_anew_is_another_one(own_folder: Path) -> None:
    """In a notebook a cell is run again: functions and values of the class before still belong together."""
    script = """
def define(version):
    class Point:
        number = version
    Point.__qualname__ = "Point"
    globals()["Point"] = Point
    return task(lambda point: (isinstance(point, Point), point.number, Point.number), name=f"look-{version}"), Point()

@flow(executor="process")
def main():
    (old, old_point), (new, new_point) = define(1), define(2)
    return [old(old_point), new(new_point), new(old_point), old(new_point)]

if __name__ == "__main__":
    print(main().result())
"""

    printed = run(f"from localflow import *{script}", own_folder, "script.py")

    assert printed == "[(True, 1, 1), (True, 2, 2), (False, 1, 2), (False, 2, 1)]"


def test_a_stored_value_is_loaded_when_it_is_needed() -> None:
    """Not before, and anew each time, so that thousands of them take no memory."""
    loads = []

    def load() -> Payload:
        loads.append(1)
        return pack((1, 2))

    stored = Stored(load)
    state = Completed(data=stored)
    repr(stored)
    untouched = len(loads)

    assert state.result() == (1, 2)
    assert pickle.loads(pickle.dumps([stored])) == [(1, 2)]
    assert (untouched, len(loads)) == (0, 2)


def test_a_stored_value_that_cannot_be_loaded_is_a_failure_of_the_store() -> None:
    """It is not mistaken for a value that cannot be pickled."""

    def load() -> Payload:
        raise StoreError("the disk is gone")

    with pytest.raises(StoreError, match="the disk is gone"):
        pack([Stored(load)])


def test_a_class_whose_module_is_not_loaded_is_still_the_class(tmp_path: Path) -> None:
    """A class that its package shows under the name of a module to be imported arrives as that very class."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("class Kind: pass\nKind.__module__ = 'package.kinds'\n")
    (tmp_path / "package" / "kinds.py").write_text("from package import Kind\n")
    (tmp_path / "sender.py").write_text(
        "import sys, package\nfrom localflow.payloads import pack\nsys.stdout.buffer.write(pack(package.Kind()).data)\n"
    )
    (tmp_path / "receiver.py").write_text(
        "import sys, package\n"
        "from localflow.payloads import Payload, unpack\n"
        "assert type(unpack(Payload('pickle', sys.stdin.buffer.read()))) is package.Kind\n"
    )

    sent = subprocess.run([sys.executable, "sender.py"], cwd=tmp_path, check=True, timeout=30, capture_output=True)

    subprocess.run([sys.executable, "receiver.py"], cwd=tmp_path, check=True, timeout=30, input=sent.stdout)
