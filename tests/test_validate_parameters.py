"""What a flow is called with is fitted to its annotations, or refused."""

# ruff: noqa: UP007, UP045 - the older spellings of unions must work, too

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import threading
import time
import typing
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, Protocol, TypedDict, TypeVar, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow import flow
from localflow.annotations import fit_value
from localflow.errors import ParameterError
from localflow.parameters import fit_arguments

T = TypeVar("T")
UserId = NewType("UserId", int)


class Colour(enum.Enum):
    RED = "r"
    BLUE = 2


class Shade(enum.StrEnum):
    DARK = "dark"


class Point(NamedTuple):
    x: int
    y: int


class Options(TypedDict):
    depth: int


@typing.runtime_checkable
class Closing(Protocol):
    def close(self) -> None:
        """Close it."""


class Base:
    pass


class Derived(Base):
    pass


class Box(Generic[T]):
    pass


class Number(int):
    pass


class Odd(type):
    def __instancecheck__(cls, instance: object) -> bool:
        raise RuntimeError("ask me not")


class Unaskable(metaclass=Odd):
    pass


def numbers() -> Iterator[int]:
    """Yield a number."""
    yield 1


SAME: list[tuple[Any, Any]] = [
    (1, int), (Number(1), int), (1.5, float), (True, bool), ("a", str), (Shade.DARK, str), (b"a", bytes), (None, None),
    (None, Optional[int]), (1, Optional[int]), ("12", Union[int, str]), ("12", str | int),
    ("2024-01-01", str | datetime.date), (3, float | int), (True, bool | int), ([1, 2], list[int]), ([1], list),
    (["a"], list[Any]), ([1.5], list[int] | list[float]), ([[1]], list[list[int]]), ((1, 2), tuple[int, ...]),
    ((1, "a"), tuple[int, str]), ((1, "a"), tuple), ((), tuple[int, ...]), ({1}, set[int]),
    (frozenset([1]), frozenset[int]), ((1, 2), Sequence[int]), ("abc", Sequence[str]), ("abc", Iterable[str]),
    ({"a": 1}, dict[str, int]), ({1: [1]}, Mapping[int, list[int]]), ({"a": 1}, dict), (range(3), Sequence[int]),
    (collections.deque([1]), collections.deque[int]), (numbers(), Iterator[int]), (numbers(), Iterable[int]),
    (numbers(), Any), (Path("a"), Path), (Path("a"), PurePath), (datetime.datetime(2024, 1, 1), datetime.date),
    (decimal.Decimal(1), decimal.Decimal), (Colour.RED, Colour), ("a", Literal["a", 1]), (1, Literal["a", 1]),
    (Colour.RED, Literal[Colour.RED]), (Point(1, 2), Point), (Point(1, 2), tuple[int, ...]), ({"depth": "x"}, Options),
    ("x", Closing), (Derived(), Base), (Derived, type[Base]), (Box(), Box[int]), (len, Callable[[Any], int]),
    (print, Callable), ("x", T), ([1], list[T]), (object(), object), ("x", Unaskable), (5, Annotated[int, "a note"]),
    (5, UserId), (1, typing.Hashable), ("x", typing.LiteralString), (threading.Lock(), Any),
    (collections.OrderedDict(a="x"), dict[str, int]), ("x", "a name that is none"), (10**400, int),
]  # fmt: skip


@pytest.mark.parametrize(("value", "annotation"), SAME)
def test_a_value_of_the_right_type_stays_the_very_same_object(value: Any, annotation: Any) -> None:
    """Also where a type cannot be checked, or only part of it."""
    assert fit_value(value, annotation) is value


FITTED: list[tuple[Any, Any, Any]] = [
    ("5", int, 5), ("1.5", float, 1.5), ("1e3", float, 1000.0), (5, float, 5.0), ("true", bool, True),
    ("null", Optional[int], None), ("5", Optional[int], 5), ("2024-01-01", datetime.date, datetime.date(2024, 1, 1)),
    ("10:30", datetime.time, datetime.time(10, 30)), ("a/b", Path, Path("a/b")), ("a", Path | None, Path("a")),
    ("RED", Colour, Colour.RED), (2, Colour, Colour.BLUE), ("dark", Shade, Shade.DARK),
    ("1.10", decimal.Decimal, decimal.Decimal("1.10")), (1, decimal.Decimal, decimal.Decimal(1)), (1, complex, 1 + 0j),
    (str(uuid.UUID(int=7)), uuid.UUID, uuid.UUID(int=7)), ("abc", bytes, b"abc"), ("1", Literal[1, 2], 1),
    ([1, 2], tuple[int, ...], (1, 2)), ([1, "a"], tuple[int, str], (1, "a")), ([1, 1], set[int], {1}),
    ([1], frozenset[float], frozenset([1.0])), ((1, 2), list[int], [1, 2]), ({1}, frozenset[int], frozenset([1])),
    ([1, 2.5], list[float], [1.0, 2.5]), ((1,), Sequence[float], (1.0,)), (["a"], list[Path], [Path("a")]),
    ({"a": 1}, dict[str, float], {"a": 1.0}), ({"1": "x"}, dict[int, str], {1: "x"}),
    ({1: {"a": ["b"]}}, dict[int, dict[str, list[Path]]], {1: {"a": [Path("b")]}}), ("[1, 2]", list[int], [1, 2]),
    ('{"a": 1}', dict[str, int], {"a": 1}), ("[1, 2]", Sequence[int], [1, 2]), (1, float | str, 1.0),
    (["2024-01-01"], list[datetime.date], [datetime.date(2024, 1, 1)]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "annotation", "expected"), FITTED)
def test_a_value_is_read_as_the_command_line_would_read_it(value: Any, annotation: Any, expected: Any) -> None:
    """Texts and what JSON has become what the annotation asks for."""
    fitted = fit_value(value, annotation)

    assert fitted == expected
    assert type(fitted) is type(expected)
    assert fit_value(fitted, annotation) is fitted


REFUSED: list[tuple[Any, Any]] = [
    (True, int), (1, bool), (1.5, int), (1.0, int), ("x", int), (None, int), (None, str), (5, str), (True, float),
    (b"a", str), ("x", None), (["a"], list[int]), ([1, None], list[int]), ({"a": 1}, list), ([1], dict),
    ({"a": "b"}, dict[str, int]), ({1: 1}, dict[str, int]), ([1], tuple[int, int]), ((1, 2, 3), tuple[int, int]),
    ((1, "a"), tuple[int, int]), ({1}, list[int]), ("abc", list[str]), ("abc", Sequence[int]), ("GREEN", Colour),
    ("b", Literal["a", 1]), (True, Literal[1]), ("31.1.2025", datetime.date),
    (datetime.date(2024, 1, 1), datetime.datetime), (Base(), Derived), ("x", Base), ("x", Callable[[], int]),
    (Base(), type), (1, Path), (object(), int | str | None), (10**400, float),
    ([{"a": ["x"]}], list[dict[str, list[int]]]), (numbers(), list[int]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "annotation"), REFUSED)
def test_what_does_not_fit_is_refused(value: Any, annotation: Any) -> None:
    """Nothing is bent until it fits."""
    with pytest.raises(ValueError):  # noqa: PT011 - whoever calls it words the message
        fit_value(value, annotation)


@given(st.lists(st.integers() | st.floats(allow_nan=False)))
def test_numbers_become_floats_where_floats_are_asked_for(values: list[Any]) -> None:
    """The list is the caller's own if nothing in it had to change."""
    fitted = fit_value(values, list[float])

    assert fitted == [float(value) for value in values]
    assert (fitted is values) is all(type(value) is float for value in values)


def test_a_list_is_never_changed_in_place() -> None:
    """It is the caller's."""
    values = [1, 2]

    assert fit_value(values, list[float]) == [1.0, 2.0]
    assert [type(value) for value in values] == [int, int]


def test_of_a_large_value_the_beginning_is_looked_at() -> None:
    """A million items must not cost a second."""
    large = [*range(1_000_000), "x"]
    nested = [[1] * 1000] * 1000

    began = time.perf_counter()
    assert fit_value(large, list[int]) is large
    assert fit_value(nested, list[list[int]]) is nested
    assert fit_value({"a": large}, dict[str, list[int]])
    assert time.perf_counter() - began < 0.2

    with pytest.raises(ValueError):  # noqa: PT011
        fit_value(["x", *large], list[int])


def test_a_large_value_whose_beginning_changes_is_changed_throughout() -> None:
    """Half of it would be worse than nothing."""
    assert all(type(item) is float for item in typing.cast(Any, fit_value(list(range(5000)), list[float])))
    assert all(isinstance(item, Path) for item in typing.cast(Any, fit_value(["a"] * 5000, set[Path])))


@pytest.mark.parametrize("annotation", [tuple[int, ...], set[int], frozenset[int]])
def test_of_a_large_value_that_is_made_anew_everything_is_looked_at(annotation: Any) -> None:
    """It is gone through anyway."""
    assert fit_value(list(range(5000)), annotation) == annotation(range(5000))
    with pytest.raises(ValueError):  # noqa: PT011
        fit_value([*range(5000), "x"], annotation)


def test_a_value_nested_beyond_all_measure_is_let_pass() -> None:
    """It is the task's affair."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]

    def nested(value: Any) -> None:
        """Take a deep list."""

    nested.__annotations__["value"] = annotation = list[Any]
    for _ in range(10):
        annotation = list[annotation]  # type: ignore[valid-type]
    nested.__annotations__["value"] = annotation

    assert fit_arguments("flow 'nested'", nested, {"value": deep})["value"] is deep


def test_an_iterator_is_not_used_up() -> None:
    """Its items are nobody's business yet."""
    items = numbers()

    fit_value(items, Iterable[str])

    assert list(items) == [1]


def test_a_pydantic_model_is_made_by_its_own_rules() -> None:
    """Whatever has `model_validate` is asked."""

    class Model:
        def __init__(self, depth: int) -> None:
            self.depth = depth

        @classmethod
        def model_validate(cls, value: Any) -> Model:
            if not isinstance(value, dict):
                raise ValueError("a dict, please")
            return cls(**value)

    model = Model(1)

    assert fit_value(model, Model) is model
    assert typing.cast(Any, fit_value({"depth": 2}, Model)).depth == 2
    assert typing.cast(Any, fit_value('{"depth": 3}', Model)).depth == 3
    for wrong in ({"width": 2}, 5):
        with pytest.raises(ValueError):  # noqa: PT011
            fit_value(wrong, Model)


NEVER: Any = None


def load(path: Path, *limits: int, api_token: int = 0, until: datetime.date = NEVER, **options: float) -> None:
    """A function with parameters."""


def fitted(**parameters: Any) -> dict[str, Any]:
    """Fit parameters of `load`."""
    return fit_arguments("flow 'load'", load, parameters)


def test_every_parameter_is_fitted() -> None:
    """Those without a name of their own, too."""
    assert fitted(path="a", limits=("1", 2), until="2024-01-01", options={"rate": 1}) == {
        "path": Path("a"),
        "limits": (1, 2),
        "until": datetime.date(2024, 1, 1),
        "options": {"rate": 1.0},
    }


def test_a_default_is_right_whatever_its_annotation_says() -> None:
    """`until: date = None` is written all the time."""
    assert fitted(path="a", until=None)["until"] is None


def test_all_that_does_not_fit_is_told_at_once() -> None:
    """In the words of the command line, secrets masked, nothing at length."""
    with pytest.raises(ParameterError) as caught:
        fitted(path=1, limits=(1, "x"), api_token="hush", options={"rate": "y" * 1000})

    assert isinstance(caught.value, TypeError)
    assert caught.value.problems == (
        "parameter 'path': expected pathlib.Path, got 1",
        "parameter 'limits[1]': expected int, got 'x'",
        "parameter 'api_token': expected int, got ***",
        f"parameter 'rate': expected float, got '{'y' * 80}...'",
    )
    assert str(caught.value).startswith("flow 'load': parameter 'path': expected pathlib.Path, got 1\n")


def test_a_value_that_cannot_be_shown_is_told_all_the_same() -> None:
    """Its repr is the user's code."""

    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    with pytest.raises(ParameterError, match=r"expected pathlib\.Path, got <Shy instance"):
        fitted(path=Shy())


def test_an_annotation_that_cannot_be_evaluated_lets_everything_pass() -> None:
    """The others stay in force."""

    def half_known(model: Unimportable, count: int) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Name a type that is not there."""

    assert fit_arguments("f", half_known, {"model": "x", "count": "2"}) == {"model": "x", "count": 2}
    with pytest.raises(ParameterError, match="'count'"):
        fit_arguments("f", half_known, {"model": "x", "count": "two"})


def test_a_function_without_annotations_takes_what_it_is_given() -> None:
    """As Python does."""
    parameters = {"a": "5", "b": threading.Lock()}

    assert fit_arguments("f", lambda a, b: None, parameters) == parameters


@pytest.mark.parametrize(
    "call", [lambda made: made("2", day="2024-01-01"), lambda made: made(n=2, day=datetime.date(2024, 1, 1))]
)
def test_a_flow_gets_what_its_annotations_ask_for(call: Any) -> None:
    """Whoever calls it."""

    @flow
    def main(n: int, day: datetime.date, rate: float = 1) -> Any:
        return n, day, type(rate).__name__

    assert call(main).result() == (2, datetime.date(2024, 1, 1), "int")


def test_a_flow_called_with_what_does_not_fit_does_not_run() -> None:
    """The call raises a TypeError; there is no flow run."""
    ran = []

    @flow
    def main(n: int) -> None:
        ran.append(n)

    with pytest.raises(ParameterError, match=r"^flow 'main': parameter 'n': expected int, got 'x'"):
        main("x")  # type: ignore[arg-type]
    assert not ran
    assert not Path(".localflow").exists()


def test_a_flow_may_take_everything() -> None:
    """With validate_parameters=False."""

    @flow(validate_parameters=False)
    def main(n: int) -> Any:
        return n

    assert main("x").result() == "x"  # type: ignore[arg-type]
