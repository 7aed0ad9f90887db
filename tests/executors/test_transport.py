"""Frames and plain records: what is written on one side is read on the other, whatever the pieces."""

from __future__ import annotations

import enum
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow.builtin.process.outcomes import from_plain, outcome_frame, read_outcome, to_plain
from localflow.builtin.process.transport import FrameReader, frame, numbers, tokens
from localflow.calls import Outcome
from localflow.payloads import Packed, Payload
from localflow.records import Execution, FlowRun, StateChange, TaskRun
from localflow.states import Cause, State, StateType

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


class Colour(enum.StrEnum):
    RED = "red"


@given(st.lists(st.tuples(PLAIN)), st.lists(st.integers(0, 200)))
def test_frames_are_put_together_from_any_pieces(contents: list[tuple[Any]], cuts: list[int]) -> None:
    """However a stream of frames is cut, every content is read once and in order."""
    stream = b"".join(frame(content) for content in contents)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[begin:end] for begin, end in itertools.pairwise(places)]
    reader = FrameReader()

    found = [content for piece in pieces for content in reader.feed(piece)]

    assert found == contents


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 64, b"\x04\0\0\0\0\0\0\0\xff\xff\xff\xff", b"\x01\0\0\0\0\0\0\0("], ids=range(3)
)
def test_what_is_no_frame_is_an_error(garbage: bytes) -> None:
    """Bytes that are no frame raise ValueError, and nothing else."""
    with pytest.raises(ValueError, match="not a frame"):
        FrameReader().feed(garbage)


def test_members_of_enumerations_travel_as_what_they_are() -> None:
    """A text that is an instance of a subclass of `str`, as a name or tag may be, arrives as a text."""
    [content] = FrameReader().feed(frame((1, {"tags": (Colour.RED, True, 1.5, [b"x", None])})))

    assert content == (1, {"tags": ("red", True, 1.5, [b"x", None])})
    assert type(content[1]["tags"][0]) is str


@given(st.lists(st.integers(1, 2**63)))
def test_tokens_stand_for_numbers(given_numbers: list[int]) -> None:
    """Numbers come back from tokens in order."""
    assert numbers(tokens(given_numbers)) == given_numbers


def test_an_outcome_comes_back_whole() -> None:
    """State, cause, result and execution are on the other side what they were."""
    execution = Execution("pid 12", 12, 1.0, 2.0, 0.5, 4096)
    failed = State(StateType.FAILED, "Odd", "message \udcff", cause=Cause("exception", "ValueError", "boom", "text"))
    completed = State(StateType.COMPLETED, data=[1], instant=12.5)

    [first, second] = FrameReader().feed(
        outcome_frame(1, "task", Outcome(7, failed, None, execution), None)
        + outcome_frame(2, "task", Outcome(8, completed, Payload("json", b"[1]"), execution), [1])
    )
    failure, success = read_outcome(7, first), read_outcome(8, second)

    assert (failure.call_id, failure.state.name, failure.state.message) == (7, "Odd", "message \udcff")
    assert (failure.state.cause, failure.execution, failure.result) == (failed.cause, execution, None)
    assert (success.call_id, success.state.instant, success.result) == (8, 12.5, Payload("json", b"[1]"))
    assert (success.state.name, success.state.message, success.execution) == ("Completed", "", execution)
    assert isinstance(success.state.packed_data, Packed)
    assert success.state.result() == [1]


def test_records_come_back_with_their_runs_shared() -> None:
    """Records of a nested flow are equal on the other side, and their flow run is one object again."""
    run = FlowRun(
        "id", "kind-zebra", "sub", 1.5, "root", "parent", {"n": [1, {"deep": None}]}, Payload("json", b"{}"),
        "file.py:sub", "sequential", {"python": "3.11"}, "host", 42,
    )  # fmt: skip
    tasks = [TaskRun(run, n, f"inner-{n}", "inner", n, 2.5, ("id-1",), ("tag", "b"), "7") for n in (1, 2)]
    changes = [
        StateChange(
            task, 2, StateType.FAILED, "Failed", "message", 3.5, "Running", 1, Execution("main", 42, 1.0, 2.0),
            Cause("exception", "ValueError"), Payload("pickle", b"\x80"),
        )
        for task in tasks
    ]  # fmt: skip
    records = (run, *tasks, *changes)

    [(plain,)] = FrameReader().feed(frame((to_plain(records),)))
    found: Any = from_plain(plain)

    assert found == records
    assert [type(record) for record in found] == [type(record) for record in records]
    assert found[1].flow_run is found[0]
    assert found[3].run is found[1]
