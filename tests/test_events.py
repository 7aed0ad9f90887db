"""State changes as JSON-safe events."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from hypothesis import example, given
from hypothesis import strategies as st

from localflow.events import describe, duration
from localflow.interfaces import Cause, FlowRun, Payload, StateChange, StateType, TaskRun
from localflow.testing import make_change

RUN = FlowRun("f00d", "brave-otter", "etl", 1_700_000_000.0, "f00d", host="laptop", pid=42)
TASK_RUN = TaskRun(RUN, 3, "load-0", "load", 0, 1_700_000_001.0)


def test_event_of_a_task_run() -> None:
    """Every field of the event of a failed task run."""
    cause = Cause("exception", "IntegrityError", "CHECK constraint failed", "Traceback ...")
    change = StateChange(
        TASK_RUN, 3, StateType.FAILED, "TimedOut", "too slow", 1_700_000_003.5, "Running", 2, cause=cause
    )

    assert describe(change) == {
        "id": "f00d-3:3",
        "kind": "task_run",
        "run_id": "f00d-3",
        "run_name": "load-0",
        "flow": "etl",
        "flow_run_id": "f00d",
        "flow_run_name": "brave-otter",
        "task": "load",
        "state": {"type": "FAILED", "name": "TimedOut", "message": "too slow"},
        "previous": "Running",
        "attempt": 2,
        "timestamp": "2023-11-14T22:13:23.500000+00:00",
        "duration": 2.5,
        "cause": {"type": "IntegrityError", "message": "CHECK constraint failed"},
        "host": "laptop",
        "pid": 42,
    }


def test_event_of_a_flow_run() -> None:
    """A flow run is its own flow run and has no task."""
    event = describe(StateChange(RUN, 2, StateType.COMPLETED, "Completed", "", 1_700_000_001.0))

    assert event["kind"] == "flow_run"
    assert event["run_id"] == event["flow_run_id"] == "f00d"
    assert event["run_name"] == event["flow_run_name"] == "brave-otter"
    assert event["task"] is None
    assert event["cause"] is None


def test_cause_without_an_exception_is_told_by_its_kind() -> None:
    """A lost worker has no exception type."""
    change = make_change(StateType.CRASHED, cause=Cause("worker", message="killed by SIGKILL"))

    assert describe(change)["cause"] == {"type": "worker", "message": "killed by SIGKILL"}


def test_ids_differ_between_changes_and_runs() -> None:
    """No two changes share an id, and the same change has the same id each time."""
    changes = [StateChange(run, n, StateType.RUNNING, "Running", "", 0.0) for run in (RUN, TASK_RUN) for n in (2, 3)]

    assert len({describe(change)["id"] for change in changes}) == 4
    assert [describe(change)["id"] for change in changes] == [describe(change)["id"] for change in changes]


def test_values_are_not_part_of_it() -> None:
    """Parameters, arguments and results stay in the store."""
    secret = Payload("json", b'"canary"')
    run = RUN._replace(parameters={"token": "canary"}, arguments=secret)

    event = describe(StateChange(run, 2, StateType.COMPLETED, "Completed", "", 0.0, result=secret))

    assert "canary" not in json.dumps(event)


def test_duration_is_never_negative() -> None:
    """A clock that was set back makes a run of no time."""
    assert duration(make_change(seconds=-5.0)) == 0.0


@given(st.text(st.characters(codec=None)), st.floats(0, 4e9))
@example("\udcff", 0.0)
def test_every_text_survives_strict_json(text: str, timestamp: float) -> None:
    """Whatever a user names things, the event is valid UTF-8 JSON and its instant an aware one."""
    run = TASK_RUN._replace(name=text, task=text, flow_run=RUN._replace(name=text, flow=text))
    change = StateChange(run, 2, StateType.FAILED, text, text, timestamp, cause=Cause("exception", text, text))

    event = json.loads(json.dumps(describe(change), ensure_ascii=False, allow_nan=False).encode("utf-8", "strict"))

    assert datetime.fromisoformat(event["timestamp"]).tzinfo == UTC


def test_huge_texts_are_shortened() -> None:
    """An exception message of many megabytes does not travel whole."""
    change = make_change(message="x" * 5_000_000, cause=Cause("exception", "ValueError", "x" * 5_000_000))

    assert len(json.dumps(describe(change))) < 30_000
