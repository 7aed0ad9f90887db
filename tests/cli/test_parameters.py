"""Texts of the command line become the values that a flow's annotations ask for."""

# ruff: noqa: UP007, UP045 - the older spellings of unions must work, too

from __future__ import annotations

import datetime
import enum
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow.annotations import describe, fit
from localflow.errors import UsageError
from localflow.parameters import fit_parameters


class Colour(enum.Enum):
    RED = "r"
    BLUE = 2


UserId = NewType("UserId", int)


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("12", Any, 12),
        ("twelve", Any, "twelve"),
        ("[1, {", Any, "[1, {"),
        ('{"a": [1]}', Any, {"a": [1]}),
        ("NaN", Any, "NaN"),
        ("", Any, ""),
        ("12", str, "12"),
        ('"12"', str, "12"),
        ("null", str, "null"),
        ("a=b", str, "a=b"),
        ("12", int, 12),
        ("-3", int, -3),
        ("3", float, 3.0),
        ("1e3", float, 1000.0),
        ("inf", float, float("inf")),
        ("true", bool, True),
        ("False", bool, False),
        ("null", None, None),
        ("[1, 2]", list, [1, 2]),
        ('["a"]', list[str], ["a"]),
        ("[1]", list[float], [1.0]),
        ('["a", "b"]', Sequence[str], ["a", "b"]),
        ("[1]", Iterable[int], [1]),
        ("[1, 1]", set[int], {1}),
        ('["a"]', frozenset[str], frozenset("a")),
        ("[1, 2, 3]", tuple[int, ...], (1, 2, 3)),
        ('[1, "a"]', tuple[int, str], (1, "a")),
        ("[1, 2]", tuple, (1, 2)),
        ('{"a": 1}', dict, {"a": 1}),
        ('{"a": 1}', dict[str, float], {"a": 1.0}),
        ('{"1": "x"}', Mapping[int, str], {1: "x"}),
        ("data/in.csv", Path, Path("data/in.csv")),
        ("12", Path, Path("12")),
        ('["a", "b"]', list[Path], [Path("a"), Path("b")]),
        ("null", Optional[int], None),
        ("12", Optional[int], 12),
        ("12", str | None, "12"),
        ("null", Path | None, None),
        ("12", Union[str, int], 12),
        ("3", Union[float, int], 3),
        ("2025-01-31", Union[str, datetime.date], datetime.date(2025, 1, 31)),
        ("later", Union[datetime.date, str], "later"),
        ("fast", Literal["fast", "safe"], "fast"),
        ("2", Literal[1, 2], 2),
        ("true", Literal["true"], "true"),
        ("2025-01-31", datetime.date, datetime.date(2025, 1, 31)),
        ("20250131", datetime.date, datetime.date(2025, 1, 31)),
        ("2025-01-31T10:00:00+00:00", datetime.datetime, datetime.datetime(2025, 1, 31, 10, tzinfo=datetime.UTC)),
        ("10:30", datetime.time, datetime.time(10, 30)),
        ("RED", Colour, Colour.RED),
        ("r", Colour, Colour.RED),
        ("2", Colour, Colour.BLUE),
        ("5", Annotated[int, "a note"], 5),
        ("5", UserId, 5),
        ("{}", Colour | dict[str, Any], {}),
        ('{"a": 1}', "a class it knows nothing of", {"a": 1}),
    ],
)
def test_a_text_becomes_the_value_its_annotation_asks_for(text: str, annotation: Any, value: object) -> None:
    """JSON where it is JSON, else text, then fitted."""
    fitted = fit(text, annotation)

    assert fitted == value
    assert type(fitted) is type(value)


@pytest.mark.parametrize(
    ("text", "annotation"),
    [
        ("twelve", int),
        ("1.5", int),
        ("true", int),
        ("1", bool),
        ("yes", bool),
        ("true", float),
        ("one", float),
        ("null", int),
        ("0", None),
        ("a,b", list[str]),
        ('["a", 1]', list[str]),
        ('{"a": 1}', list),
        ("[1]", tuple[int, int]),
        ("[]", dict),
        ('{"a": "b"}', dict[str, int]),
        ('{"a": 1}', dict[int, int]),
        ("slow", Literal["fast", "safe"]),
        ("1", Literal[True]),
        ("31.1.2025", datetime.date),
        ("GREEN", Colour),
        ('["a"]', list[set[int]] | int),
        ("x", Optional[int]),
    ],
)
def test_a_text_that_does_not_fit_is_refused(text: str, annotation: Any) -> None:
    """Nothing is bent until it fits."""
    with pytest.raises(ValueError):  # noqa: PT011 - whoever calls it words the message
        fit(text, annotation)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_any_json_arrives_as_itself_where_nothing_else_is_asked_for(value: object) -> None:
    """A parameter without an annotation takes whatever JSON says."""
    assert fit(json.dumps(value), Any) == value


@given(st.text())
def test_any_text_arrives_as_itself_where_text_is_asked_for(text: str) -> None:
    """A `str` parameter takes every text, quoted as JSON or bare unless that is a JSON string itself."""
    assert fit(json.dumps(text), str) == text
    assert fit(f"x{text}", str) == f"x{text}"


def load(path: Path, *, limit: int = 10, api_token: int = 0) -> None:
    """A function with parameters."""


def test_every_mistake_is_listed_at_once() -> None:
    """Unknown, unfitting and missing parameters come in one message."""
    with pytest.raises(UsageError) as caught:
        fit_parameters("load", load, {"limits": "3", "limit": "many", "api_token": "hush"})

    assert str(caught.value).split("\n") == [
        "flow 'load' has no parameter 'limits'; did you mean 'limit'?",
        "parameter 'limit': expected int, got 'many'",
        "parameter 'api_token': expected int, got ***",
        "flow 'load' needs a value for path: -p path=VALUE",
    ]


def test_an_unknown_parameter_without_a_neighbour_lists_those_there_are() -> None:
    """The next move is in the message."""
    with pytest.raises(UsageError, match=r"it takes path, limit, api_token"):
        fit_parameters("load", load, {"path": "x", "zzz": "1"})
    with pytest.raises(UsageError, match=r"it takes none"):
        fit_parameters("nothing", lambda: None, {"zzz": "1"})


def test_extra_names_go_to_a_function_that_takes_any() -> None:
    """`**options` takes what is not named."""

    def anything(first: int, *rest: int, **options: Any) -> None:
        """Take any name."""

    assert fit_parameters("anything", anything, {"first": "1", "colour": "red"}) == {"first": 1, "colour": "red"}


def test_a_parameter_without_a_name_cannot_be_given() -> None:
    """Only a call in code can."""

    def by_position(first: int, /) -> None:
        """Take a value by position."""

    with pytest.raises(UsageError, match="takes 'first' by position only"):
        fit_parameters("by-position", by_position, {"first": "1"})


def test_one_annotation_that_cannot_be_evaluated_leaves_the_others_in_force() -> None:
    """A name that exists for type checkers only is as good as no annotation."""

    def half_known(model: Unimportable, count: int) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Name a type that is not there."""

    assert fit_parameters("f", half_known, {"model": "[1]", "count": "2"}) == {"model": [1], "count": 2}
    with pytest.raises(UsageError, match="expected int"):
        fit_parameters("f", half_known, {"model": "x", "count": "two"})


def test_long_values_are_not_repeated_in_full() -> None:
    """A message stays readable whatever was typed."""
    with pytest.raises(UsageError) as caught:
        fit_parameters("load", load, {"path": "x", "limit": "9" * 10_000 + "x"})

    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "int"),
        (Optional[int], "Optional[int]"),
        (list[Path], "list[pathlib.Path]"),
        (Colour, "one of RED, BLUE"),
        (Literal["a", 2], "one of 'a', 2"),
    ],
)
def test_a_type_is_described_as_its_author_wrote_it(annotation: Any, words: str) -> None:
    """Choices are spelled out."""
    assert describe(annotation) == words
