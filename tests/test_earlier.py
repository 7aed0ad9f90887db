"""Which call of an attempt belongs to which run of an earlier one."""

from __future__ import annotations

import pytest

from localflow.earlier import OUTDATED, EarlierRun, EarlierRuns
from localflow.records import FlowRun, TaskRun
from localflow.states import StateType

FLOW_RUN = FlowRun("f", "brave-otter", "main", 0.0, "f")


def runs(*inputs: str, failed: str = "") -> EarlierRuns[TaskRun]:
    """Return completed runs of task `t` with these inputs in their order, but for those that failed."""
    made: EarlierRuns[TaskRun] = EarlierRuns()
    for ordinal, each in enumerate(inputs):
        run = EarlierRun(TaskRun(FLOW_RUN, ordinal + 1, f"t-{ordinal}", "t", ordinal, 0.0, inputs=each))
        run.type = StateType.FAILED if each in failed else StateType.COMPLETED
        made.add("t", ordinal, run)
    return made


def taken(earlier: EarlierRuns[TaskRun], *inputs: str) -> list[int | None]:
    """Return the ordinals of the runs that calls with these inputs take, one after the other."""
    found = [earlier.take("t", ordinal, each) for ordinal, each in enumerate(inputs)]
    return [None if run is None else run.record.ordinal for run in found]


@pytest.mark.parametrize(
    ("earlier", "calls", "expected"),
    [
        (runs("a", "b", "c"), "abc", [0, 1, 2]),
        (runs("a", "b", "c"), "cab", [2, 0, 1]),
        (runs("a", "b"), "axb", [0, None, 1]),
        (runs("a", "b"), "b", [1]),
        (runs("a", "a", "a"), "aaaa", [0, 1, 2, None]),
        (runs("a"), "x", [None]),
        (runs("a", "b", failed="a"), "xb", [0, 1]),
        (runs("a", "b", failed="b"), "ba", [1, 0]),
        (runs("a", "b", "c"), "xabc", [None, 0, 1, 2]),
        (runs("a~", "b"), ["b", "a~"], [1, None]),
        (runs("a~", "b~"), ["a~", "b~"], [0, 1]),
        (runs("", "b"), "xb", [0, 1]),
    ],
)
def test_a_call_takes_the_run_it_belongs_to(
    earlier: EarlierRuns[TaskRun], calls: str | list[str], expected: list[int | None]
) -> None:
    """The one at its place with its inputs, else one with its inputs, else one of which nothing is lost."""
    assert taken(earlier, *calls) == expected


def test_of_runs_with_the_same_inputs_one_with_the_same_code_is_taken() -> None:
    """Two tasks may have one name."""
    earlier: EarlierRuns[TaskRun] = EarlierRuns()
    for ordinal, code in enumerate(("3.11:one", "3.11:other")):
        run = EarlierRun(TaskRun(FLOW_RUN, ordinal + 1, f"t-{ordinal}", "t", ordinal, 0.0, code=code, inputs="a"))
        run.type = StateType.COMPLETED
        earlier.add("t", ordinal, run)

    found = [earlier.take("t", ordinal, "a", code) for ordinal, code in enumerate(("3.11:other", "3.11:one"))]

    assert [run and run.record.ordinal for run in found] == [1, 0]


def test_what_was_built_on_a_run_that_runs_again_is_out_of_date() -> None:
    """Once, and only what has completed."""
    earlier = runs("a")
    below = EarlierRun(TaskRun(FLOW_RUN, 2, "t-1", "t", 1, 0.0, ("f-1",), inputs="b"))
    below.type = StateType.COMPLETED
    earlier.add("t", 1, below)

    assert [record.code for record in earlier.outdate("f-1")] == [OUTDATED]
    assert below.record.code == OUTDATED
    assert earlier.outdate("f-1") == []


def test_a_new_run_gets_a_place_of_its_own() -> None:
    """Its own if that is free, else one after all others."""
    earlier = runs("a", "b")

    assert [earlier.free_ordinal("t", 0), earlier.free_ordinal("t", 2), earlier.free_ordinal("u", 0)] == [2, 3, 0]


def test_runs_that_no_call_has_taken_are_known() -> None:
    """For the attempt after this one."""
    earlier = runs("a", "b", "c")
    taken(earlier, "b")

    assert [ordinal for _, ordinal, _ in earlier.untaken()] == [0, 2]
