"""JSON that gives back the very same values."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow.builtin.storage.encoding import from_json, to_json

texts = st.text(st.characters() | st.sampled_from("$\udc00\ud800\x00"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts | st.sampled_from(["$int", "$text", "$dict"]), inner),
)


def comparable(value: object) -> object:
    """Return a value in which NaN equals NaN, and True is not 1."""
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if isinstance(value, dict):
        return [(key, comparable(item)) for key, item in value.items()]
    return "NaN" if isinstance(value, float) and math.isnan(value) else (type(value), value)


@given(values)
def test_value_is_given_back(value: object) -> None:
    """Whatever is encoded is decoded to an equal value of the same types, in the same order."""
    assert comparable(from_json(to_json(value))) == comparable(value)


@given(values)
def test_text_is_strict_json(value: object) -> None:
    """Any reader of JSON understands the text: no NaN, no lone surrogates, one line."""
    text = to_json(value)

    text.encode()
    assert "\n" not in text
    json.loads(text, parse_constant=pytest.fail)


def test_integer_beyond_what_python_prints_is_given_back() -> None:
    """An integer of more digits than Python turns into text is given back too."""
    value = {"huge": -(10**6000)}

    same = from_json(to_json(value)) == value

    assert same


def test_plain_values_look_plain() -> None:
    """What JSON has a form for is written in that form."""
    value = {"name": "café", "price": 1.5, "ids": [1, None, True], "cost": "$5"}

    assert to_json(value) == '{"name":"café","price":1.5,"ids":[1,null,true],"cost":"$5"}'
