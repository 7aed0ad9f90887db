"""A run is named by id, id prefix, name, or as the last one."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.memory import MemoryStateStore
from localflow.errors import RunNotFoundError
from localflow.history import FlowRunHistory
from localflow.records import FlowRun, StateChange, TaskRun
from localflow.references import find_flow_run, find_task_run, split_reference
from localflow.states import StateType

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD = FlowRun("aaaa1111", "brave-otter", "load", 1.0, "aaaa1111")
FAILED = FlowRun("aabb2222", "calm-bear", "load", 2.0, "aabb2222")
AGAIN = FlowRun("cccc3333", "brave-otter", "load", 3.0, "cccc3333")
NEWEST = FlowRun("dddd4444", "warm-yak", "load", 4.0, "dddd4444")
SUBFLOW = FlowRun("eeee5555", "tidy-cat", "below", 5.0, "dddd4444", parent_id="dddd4444")
CRASHED_SUBFLOW = FlowRun("ffff6666", "even-owl", "below", 6.0, "dddd4444", parent_id="dddd4444-1")


@pytest.fixture
def store() -> Iterator[MemoryStateStore]:
    """Open a store with four runs, the newest of which called two subflows."""
    with closing(MemoryStateStore()) as store:
        store.append([OLD, FAILED, StateChange(FAILED, 1, StateType.FAILED, "Failed", "", 2.5)])
        store.append([AGAIN, NEWEST, SUBFLOW, CRASHED_SUBFLOW])
        store.append([StateChange(CRASHED_SUBFLOW, 1, StateType.CRASHED, "EngineLost", "", 6.5)])
        yield store


@pytest.mark.parametrize(
    ("reference", "run"),
    [
        ("aaaa1111", OLD),
        ("aaa", OLD),
        ("d", NEWEST),
        ("calm-bear", FAILED),
        ("brave-otter", AGAIN),
        ("tidy-cat", SUBFLOW),
        ("@last", NEWEST),
        ("@last-failed", FAILED),
    ],
)
def test_a_reference_finds_its_run(store: MemoryStateStore, reference: str, run: FlowRun) -> None:
    """Of several runs with one name the newest is meant; `@last` is about runs that no flow called."""
    assert find_flow_run(store, reference).flow_run == run


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("aa", "2 flow runs have an id that begins with 'aa': aabb2222 (calm-bear), aaaa1111 (brave-otter)"),
        ("brave-oter", "no flow run 'brave-oter' in memory; did you mean 'brave-otter'?"),
        ("zzz", "no flow run 'zzz' in memory"),
        ("", "no flow run '' in memory"),
        ("@lats", "'@lats' means no run; did you mean '@last'?"),
    ],
)
def test_a_reference_that_finds_none_or_several_is_an_error(
    store: MemoryStateStore, reference: str, message: str
) -> None:
    """The message lists the candidates, or suggests the nearest name."""
    with pytest.raises(RunNotFoundError) as caught:
        find_flow_run(store, reference)

    assert str(caught.value) == message


def test_an_empty_store_and_one_without_failures_say_so() -> None:
    """They are no typing mistakes."""
    with closing(MemoryStateStore()) as store:
        with pytest.raises(RunNotFoundError, match="no flow run is recorded in memory"):
            find_flow_run(store, "@last")
        store.append([OLD])
        with pytest.raises(RunNotFoundError, match="no flow run that failed, crashed or was interrupted is recorded"):
            find_flow_run(store, "@last-failed")


def test_many_candidates_are_counted(store: MemoryStateStore) -> None:
    """At most ten are listed."""
    store.append([FlowRun(f"5{number:03}", f"name-{number}", "load", 9.0, f"5{number:03}") for number in range(30)])

    with pytest.raises(RunNotFoundError, match=r"30 flow runs have .* 5020 \(name-20\) and 20 more$"):
        find_flow_run(store, "5")


@pytest.fixture
def history(store: MemoryStateStore) -> FlowRunHistory:
    """Read a run of one `make`, two `add` and one task run called `add` of another task."""
    names = [("make-0", "make"), ("add-0", "add"), ("add-1", "add"), ("twice", "other"), ("twice", "other")]
    store.append([TaskRun(OLD, number, name, task, 0, 1.0) for number, (name, task) in enumerate(names, start=1)])
    return FlowRunHistory.read(store, OLD)


@pytest.mark.parametrize(("reference", "number"), [("add-1", 3), ("make", 1), ("make-0", 1), ("aaaa1111-2", 2)])
def test_a_task_run_is_found_by_name_by_id_or_by_the_only_call_of_its_task(
    history: FlowRunHistory, reference: str, number: int
) -> None:
    """`RUN/make` is enough where `make` was called once."""
    assert find_task_run(history, reference).run.number == number


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("add", "2 task runs of flow run 'brave-otter' are called 'add': add-0 (aaaa1111-2), add-1 (aaaa1111-3)"),
        ("twice", "2 task runs of flow run 'brave-otter' are called 'twice': twice (aaaa1111-4), twice (aaaa1111-5)"),
        ("mkae-0", "flow run 'brave-otter' has no task run 'mkae-0'; did you mean 'make-0'?"),
        ("", "flow run 'brave-otter' has no task run ''"),
    ],
)
def test_a_task_run_that_is_not_one_is_an_error(history: FlowRunHistory, reference: str, message: str) -> None:
    """The ids in the message name each of several."""
    with pytest.raises(RunNotFoundError) as caught:
        find_task_run(history, reference)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("etl/2024", ("etl/2024", None)),
        ("etl/2024/load-0", ("etl/2024", "load-0")),
        ("brave-otter/load-0", ("brave-otter", "load-0")),
        ("@last/a/b", ("@last", "a/b")),
        ("brave-otter", ("brave-otter", None)),
    ],
)
def test_names_of_runs_may_hold_slashes(store: MemoryStateStore, reference: str, parts: tuple[str, str | None]) -> None:
    """The longest name of a recorded run is the run's, the rest is the task."""
    store.append([FlowRun("abcd7777", "etl/2024", "load", 7.0, "abcd7777")])

    assert split_reference(store, reference) == parts
