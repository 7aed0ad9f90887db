"""The rule that gives a flow its final state, worked out from what its body returned."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from localflow import Completed, Failed, Pending, State, quote
from localflow.final_state import final_state
from localflow.states import not_ready

GOOD, BAD = Completed(data=1), Failed("bad", data=ValueError("boom"))


@dataclasses.dataclass
class Report:
    rows: Any
    note: str = "n"


def test_a_returned_state_is_the_final_state_itself() -> None:
    """It is used unaltered, whatever the children did."""
    state = Completed("by hand", data=7)

    assert final_state(state, [BAD]) is state


def test_none_without_children_is_completed() -> None:
    """A flow that called nothing and returned nothing completed."""
    state = final_state(None, [])

    assert repr(state) == "State(name='Completed', type=StateType.COMPLETED)"
    assert state.result() is None


def test_none_with_children_is_their_aggregate() -> None:
    """The children decide, and the list of their states is what the result is without raising."""
    state = final_state(None, [GOOD, BAD])

    assert repr(state) == "State(name='Failed', type=StateType.FAILED, message='1/2 states failed.')"
    assert state.result(raise_on_failure=False) == [GOOD, BAD]
    with pytest.raises(ValueError, match="boom"):
        state.result()


def test_the_result_of_completed_children_is_the_list_of_their_states() -> None:
    """States stay states when the flow returned nothing."""
    state = final_state(None, [GOOD, GOOD])

    assert state.message == "All states completed."
    assert state.result() == [GOOD, GOOD]
    assert state.data == [GOOD, GOOD]


@pytest.mark.parametrize("value", [0, "", [], {}, (), False, [None], {"k": [1]}, object(), ValueError("v"), State])
def test_any_other_value_completes_with_it(value: object) -> None:
    """A value without futures or states is the data, even when tasks failed."""
    state = final_state(value, [BAD])

    assert repr(state) == "State(name='Completed', type=StateType.COMPLETED)"
    assert state.result() is value


@pytest.mark.parametrize(
    ("wrap", "data"),
    [
        (lambda s: [s], [1]),
        (lambda s: (s, s), (1, 1)),
        (lambda s: {"k": s}, {"k": 1}),
        (lambda s: {s}, {1}),
        (lambda s: Report([s]), Report([1])),
        (lambda s: [{"k": (s, 5)}, "text"], [{"k": (1, 5)}, "text"]),
    ],
)
def test_states_in_containers_are_aggregated(wrap: Any, data: object) -> None:
    """Any nesting counts; the result has data in the place of states, or the states on request."""
    returned = wrap(GOOD)

    state = final_state(returned, [BAD])

    assert state.message == "All states completed."
    assert state.result() == data
    assert state.result(raise_on_failure=False) == returned
    assert state.data == returned


def test_a_state_returned_twice_counts_once() -> None:
    """The aggregate is over states, not over the places they stand in."""
    assert final_state([BAD, (BAD,)], []).message == "1/1 states failed."


def test_only_what_was_returned_counts() -> None:
    """Children that were not returned do not matter."""
    state = final_state([GOOD], [GOOD, BAD])

    assert state.is_completed()
    assert state.result() == [1]


def test_a_failed_state_among_the_returned_raises() -> None:
    """The result raises the first failure."""
    state = final_state({"a": GOOD, "b": BAD}, [])

    assert repr(state) == "State(name='Failed', type=StateType.FAILED, message='1/2 states failed.')"
    with pytest.raises(ValueError, match="boom"):
        state.result()
    assert state.result(raise_on_failure=False) == {"a": GOOD, "b": BAD}


def test_states_that_are_not_final_fail_the_flow() -> None:
    """A flow whose returned states are blocked or unfinished did not complete."""
    state = final_state([GOOD, not_ready(BAD), Pending()], [])

    assert repr(state) == "State(name='Failed', type=StateType.FAILED, message='2/3 states are not final.')"


def test_data_that_hold_states_are_not_looked_into() -> None:
    """A completed state whose data is a failed one counts as completed."""
    state = final_state([Completed(data=[BAD])], [])

    assert state.is_completed()
    assert state.result() == [[BAD]]


def test_a_quoted_state_is_a_value() -> None:
    """What is quoted is not looked at."""
    assert final_state([quote(BAD)], []).is_completed()


def test_a_returned_container_is_left_as_it_was() -> None:
    """Neither the final state nor its result change what the flow returned."""
    returned = [GOOD, [GOOD]]

    state = final_state(returned, [])
    state.result()

    assert returned == [GOOD, [GOOD]]


def test_a_container_that_holds_itself_can_be_returned() -> None:
    """A cycle does not hang the end of a flow."""
    loop: list[Any] = [GOOD]
    loop.append(loop)

    assert final_state(loop, []).is_completed()
