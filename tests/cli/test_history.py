"""What readers are told of a run follows from its records alone."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.memory import MemoryStateStore
from localflow.history import FlowRunHistory, RunHistory, flow_run_tree, result_json, summary_json
from localflow.payloads import Payload
from localflow.records import Execution, FlowRun, FlowRunSummary, StateChange, TaskRun
from localflow.states import Cause, StateType

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN = FlowRun(
    "aaaa1111", "brave-otter", "load", 1_700_000_000.25, "aaaa1111",
    parameters={"path": "x", "auth_token": "t", "nested": {"password": "p"}, "ratio": float("nan")},
)  # fmt: skip
MAKE = TaskRun(RUN, 1, "make-0", "make", 0, 1_700_000_001.0)
ADD = TaskRun(RUN, 2, "add-0", "add", 0, 1_700_000_001.0, upstreams=(MAKE.id,), tags=("db",))
LATER = TaskRun(RUN, 3, "later-0", "later", 0, 1_700_000_001.0, upstreams=(ADD.id, "bbbb2222", "cccc9999-7"))
BELOW = FlowRun("bbbb2222", "calm-bear", "below", 1_700_000_002.0, "aaaa1111", parent_id="aaaa1111")
IN_TASK = FlowRun("dddd4444", "warm-yak", "below", 1_700_000_002.0, "aaaa1111", parent_id=MAKE.id)
ELSEWHERE = FlowRun("eeee5555", "even-owl", "load", 1_700_000_002.0, "eeee5555")


def change(run: FlowRun | TaskRun, sequence: int, type: StateType, name: str = "", attempt: int = 1) -> StateChange:
    """Make a state change at a second of its own."""
    at = 1_700_000_010.0 + sequence
    return StateChange(run, sequence, type, name or type.value.capitalize(), "", at, attempt=attempt)


@pytest.fixture
def store() -> Iterator[MemoryStateStore]:
    """Open an empty store."""
    with closing(MemoryStateStore()) as store:
        yield store


def test_a_run_begins_pending_as_its_record_implies() -> None:
    """Also before any change is recorded."""
    history = RunHistory(MAKE)

    assert history.state.type is StateType.PENDING
    assert history.as_json()["history"] == [
        {"type": "PENDING", "name": "Pending", "message": "", "timestamp": "2023-11-14T22:13:21.000000+00:00"}
    ]
    assert (history.started_at, history.ended_at, history.attempt) == (None, None, 1)


def test_times_come_from_where_the_call_ran() -> None:
    """Where that is unknown, from the state changes."""
    execution = Execution("pid 7", 7, 1_700_000_011.5, 1_700_000_011.75, 0.2, 4096)
    changes = [change(MAKE, 1, StateType.RUNNING), change(MAKE, 2, StateType.COMPLETED)]

    measured = RunHistory(MAKE, [changes[0], changes[1]._replace(execution=execution)])
    unmeasured = RunHistory(MAKE, changes)

    assert (measured.started_at, measured.ended_at) == (1_700_000_011.5, 1_700_000_011.75)
    assert (unmeasured.started_at, unmeasured.ended_at) == (1_700_000_011.0, 1_700_000_012.0)
    view = measured.as_json()
    assert (view["worker"], view["pid"], view["cpu_seconds"], view["peak_rss_bytes"]) == ("pid 7", 7, 0.2, 4096)


def test_several_attempts_are_one_run() -> None:
    """It started with the first, has ended only if the last has, and counts attempts."""
    failed = [change(MAKE, 1, StateType.RUNNING), change(MAKE, 2, StateType.FAILED)]
    retrying = [
        *failed,
        change(MAKE, 3, StateType.SCHEDULED, "AwaitingRetry"),
        change(MAKE, 4, StateType.RUNNING, "Retrying", 2),
    ]
    completed = [*retrying, change(MAKE, 5, StateType.COMPLETED, attempt=2)]

    assert RunHistory(MAKE, retrying).ended_at is None
    assert RunHistory(MAKE, retrying).started_at == RunHistory(MAKE, completed).started_at == failed[0].timestamp
    assert RunHistory(MAKE, completed).ended_at == completed[-1].timestamp
    assert RunHistory(MAKE, completed).attempt == 2
    assert [moment["name"] for moment in RunHistory(MAKE, completed).as_json()["history"]] == [
        "Pending", "Running", "Failed", "AwaitingRetry", "Retrying", "Completed",
    ]  # fmt: skip


def test_a_cause_is_shown_as_the_data_it_is() -> None:
    """Nothing is left out."""
    cause = Cause("worker", signal=9, pid=7, message="killed")
    history = RunHistory(MAKE, [change(MAKE, 1, StateType.CRASHED, "WorkerLost")._replace(cause=cause)])

    assert history.as_json()["cause"] == {
        "kind": "worker", "exception_type": "", "message": "killed", "traceback_text": "", "signal": 9,
        "exit_code": None, "pid": 7, "full_traceback_text": "", "arguments": {},
    }  # fmt: skip


def test_a_flow_run_is_read_with_its_task_runs_and_the_flow_runs_it_called(store: MemoryStateStore) -> None:
    """Those that its tasks called too, and no others; upstreams are named where they are known."""
    store.append([RUN, MAKE, ADD, LATER, BELOW, IN_TASK, ELSEWHERE, change(RUN, 1, StateType.RUNNING)])
    store.append([change(MAKE, 1, StateType.RUNNING), change(MAKE, 2, StateType.COMPLETED)])

    history = FlowRunHistory.read(store, RUN)
    view, task_runs = history.as_json(), [*history.task_runs_as_json()]

    assert view["state"] == {"type": "RUNNING", "name": "Running", "message": ""}
    assert [(run["name"], run["state"]["name"]) for run in task_runs] == [
        ("make-0", "Completed"), ("add-0", "Pending"), ("later-0", "Pending"),
    ]  # fmt: skip
    assert task_runs[1]["tags"] == ["db"]
    assert task_runs[2]["upstreams"] == ["add-0", "calm-bear", "cccc9999-7"]
    assert task_runs[2]["upstream_ids"] == [ADD.id, "bbbb2222", "cccc9999-7"]
    assert [run["name"] for run in view["subflow_runs"]] == ["calm-bear", "warm-yak"]


def test_views_are_strict_json_without_secrets() -> None:
    """Whatever the parameters hold, at any depth."""
    view = summary_json(FlowRunSummary(RUN, None))

    assert json.loads(json.dumps(view, allow_nan=False))["parameters"] == {
        "path": "x", "auth_token": "***", "nested": {"password": "***"}, "ratio": "nan",
    }  # fmt: skip
    assert view["state"]["name"] == "Pending"
    assert view["created_at"] == "2023-11-14T22:13:20.250000+00:00"
    assert view["started_at"] is None


def test_what_never_ran_is_grouped_by_the_failure_at_its_root(store: MemoryStateStore) -> None:
    """However long the chain, and also if that was a subflow."""
    chain = [TaskRun(RUN, n, f"step-{n}", "step", n, 1.0, upstreams=(f"{RUN.id}-{n - 1}",)) for n in range(2, 5000)]
    other = TaskRun(RUN, 5000, "other", "other", 0, 1.0, upstreams=(BELOW.id,))
    store.append([RUN, MAKE, *chain, other, BELOW, change(MAKE, 1, StateType.FAILED)])
    store.append([change(run, 1, StateType.PENDING, "NotReady") for run in (*chain, other)])

    groups = FlowRunHistory.read(store, RUN).blocked_by()

    assert {culprit: len(runs) for culprit, runs in groups.items()} == {"make-0": 4998, "calm-bear": 1}


def test_the_tree_leaves_out_flow_runs_that_completed(store: MemoryStateStore) -> None:
    """The reader looks for what went wrong, top down."""
    deeper = FlowRun("ffff6666", "tidy-cat", "deeper", 1_700_000_003.0, "aaaa1111", parent_id="dddd4444")
    store.append([RUN, MAKE, BELOW, IN_TASK, deeper, ELSEWHERE, change(BELOW, 1, StateType.COMPLETED)])

    assert [history.run.name for history in flow_run_tree(store, RUN)] == ["brave-otter", "warm-yak", "tidy-cat"]


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (None, None),
        (Payload("json", b'{"a": [1]}'), {"a": [1]}),
        (Payload("json", b"NaN"), "nan"),
        (Payload("json", b"[" * 60 + b"]" * 60), json.loads("[" * 50 + '"..."' + "]" * 50)),
        (Payload("pickle", b"12345"), "<pickled, 5 bytes>"),
    ],
)
def test_a_result_is_shown_only_where_it_is_json(payload: Payload | None, shown: object) -> None:
    """A pickle is never opened to look at it."""
    assert result_json(payload) == shown
