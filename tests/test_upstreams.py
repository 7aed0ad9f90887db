"""Upstreams as they are stored: many of them as few, and always the same ones again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow.upstreams import compact, expanded

_numbered = st.builds("{}-{}".format, st.sampled_from(["a", "b-1", "", "-"]), st.integers(0, 30))
_ids = st.one_of(_numbered, st.text(max_size=5), st.sampled_from(["a-01", "a--3", "a-\u0663", f"a-{10**30}", "a-1\n"]))


@given(ids=st.lists(_ids, max_size=60))
def test_any_ids_come_back(ids: list[str]) -> None:
    """In their order, whatever they look like, by way of JSON too."""
    assert expanded(compact(ids)) == tuple(ids)
    assert expanded(json.loads(json.dumps(compact(ids)))) == tuple(ids)


@given(first=st.integers(0, 10**6), count=st.integers(16, 300))
def test_the_runs_of_a_map_take_the_room_of_one(first: int, count: int) -> None:
    """Numbers that follow each other are told by the first and the last."""
    ids = [f"5f3a-{first + number}" for number in range(count)]

    assert compact(ids) == (("5f3a", first, first + count - 1),)


@pytest.mark.parametrize("count", [0, 1, 15])
def test_few_ids_are_stored_as_they_are(count: int) -> None:
    """There is little to be gained."""
    ids = tuple(f"5f3a-{number}" for number in range(count))

    assert compact(ids) == ids
