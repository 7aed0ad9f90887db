"""What `NamedTuple` and `TypedDict` of localflow.typed make is what those of `typing` make."""

from __future__ import annotations

import pickle
import typing

from localflow.typed import NamedTuple, TypedDict


class Point(NamedTuple):
    """Where something is."""

    x: int
    y: int = 2
    """How high."""

    @property
    def total(self) -> int:
        """Both together."""
        return self.x + self.y


class Same(typing.NamedTuple):
    """Where something is."""

    x: int
    y: int = 2


def test_fields_defaults_and_members_are_those_of_the_statement() -> None:
    """It has names, defaults, methods and a text, as written."""
    point = Point(1)

    assert point == (1, 2) == Point._make([1, 2])
    assert (point.total, point._replace(y=5).total) == (3, 6)
    assert repr(point) == "Point(x=1, y=2)"
    assert type(point) is Point
    assert Point.__doc__ == "Where something is."


def test_it_tells_readers_what_a_named_tuple_tells() -> None:
    """Whoever asks for fields, defaults and types gets the same answers."""
    for name in ("_fields", "_field_defaults", "__match_args__", "__bases__", "__slots__", "__module__", "__doc__"):
        assert getattr(Point, name) == getattr(Same, name)
    assert Point.__qualname__ == "Point"
    assert typing.get_type_hints(Point) == typing.get_type_hints(Same) == {"x": int, "y": int}


def test_it_is_pickled_by_its_name() -> None:
    """A named tuple that travels is one of the same class."""
    copy = pickle.loads(pickle.dumps(Point(3, 4)))

    assert type(copy) is Point
    assert copy == (3, 4)


class Size(TypedDict, total=False):
    """How large something is."""

    width: int


class Box(Size, total=False):
    """A size with one more side."""

    depth: int


def test_keys_of_a_typed_dict_are_those_of_its_bases_too() -> None:
    """Its annotations name all keys, those of the base first, and a call of it makes a dict."""
    box: Box = Box(width=1, depth=2)

    assert [*Box.__annotations__] == ["width", "depth"]
    assert [*Size.__annotations__] == ["width"]
    assert box == {"width": 1, "depth": 2}
