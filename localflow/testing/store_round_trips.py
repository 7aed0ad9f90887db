"""The contract of a state store: what is appended is read back, and a batch is added as a whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from localflow.errors import StoreError
from localflow.interfaces import CacheEntry, Cause, Execution, FlowRun, Payload, StateType
from localflow.testing.promises import belongs_to
from localflow.testing.store_records import (
    ODD_TEXTS,
    ODD_VALUES,
    StoreFixtures,
    changes_of,
    make_completed,
    make_flow_run,
    make_running,
    make_task_run,
)

if TYPE_CHECKING:
    from localflow.interfaces import Record, StateStore


@belongs_to("records")
class RoundTripContract(StoreFixtures):
    """What a store does with flow runs, task runs and state changes."""

    # -- what is appended is read back ----------------------------------------------------------------------------

    def test_location_says_where_the_records_are(self, store: StateStore) -> None:
        """The location is a text for messages."""
        location = store.location

        assert isinstance(location, str)
        assert location

    def test_new_store_is_empty(self, store: StateStore) -> None:
        """A new store lists no flow runs."""
        assert store.list_flow_runs() == []

    def test_unknown_flow_run_has_no_records(self, store: StateStore) -> None:
        """Reading an unknown flow run yields nothing, and it has no result."""
        assert list(store.read("no-such-run")) == []
        assert store.load_result("no-such-run", 0) is None

    def test_empty_batch_changes_nothing(self, store: StateStore) -> None:
        """Appending no records is harmless."""
        store.append([])

        assert store.list_flow_runs() == []

    def test_flow_run_is_read_back(self, store: StateStore) -> None:
        """Every field of a flow run is kept."""
        flow_run = make_flow_run(
            parameters={"names": ["orion", "", None], "limit": 3, "ratio": 0.1, "deep": {"er": [True, {}]}},
            arguments=Payload("pickle", bytes(range(256))),
            entry_point="/home/me/etl.py:main",
            executor="process",
            versions={"localflow": "0.1.0", "python": "3.11.7"},
            host="here",
            pid=4321,
            tags=("nightly", "", "two\nlines"),
            code="5e1f",
            inputs="caf\u00e9",
        )

        store.append([flow_run])

        assert list(store.read(flow_run.id)) == [flow_run]

    def test_task_runs_are_read_by_number(self, store: StateStore) -> None:
        """Every field of a task run is kept, and task runs come in the order of their numbers."""
        flow_run = make_flow_run()
        first = make_task_run(flow_run, 1, version="2", tags=("database", "slow"))
        second = make_task_run(flow_run, 2, upstreams=(first.id, "another-run-7"))
        tenth = make_task_run(flow_run, 10, upstreams=("",), tags=("two\nlines",), inputs="3f")
        mapped = [make_task_run(flow_run, 11 + index, map_number=2, map_index=index) for index in range(3)]

        store.append([flow_run, *mapped, tenth])
        store.append([second, first])

        assert list(store.read(flow_run.id)) == [flow_run, first, second, tenth, *mapped]

    def test_many_upstreams_are_read_back(self, store: StateStore) -> None:
        """Task runs may wait for hundreds of others, one after the other, with gaps between them, or of another run."""
        flow_run = make_flow_run()
        first = [make_task_run(flow_run, number) for number in range(1, 101)]
        ids = tuple(run.id for run in first)
        after = [make_task_run(flow_run, 200 + number, upstreams=ids) for number in range(3)]
        others = make_task_run(flow_run, 300, upstreams=(*ids[::-1], *ids[3:50], "another-run-7", "another-run-08", ""))

        store.append([flow_run, *first])
        store.append([*after, others])

        assert list(store.read(flow_run.id)) == [flow_run, *first, *after, others]

    def test_state_changes_are_read_in_sequence_after_the_runs(self, store: StateStore) -> None:
        """Every field of a state change is kept but the result; the changes of a run come in their sequence."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        changes = [
            make_running(flow_run, cache=CacheEntry("never")),
            make_running(task_run),
            make_completed(task_run, execution=Execution(), cache=CacheEntry("load-v1", 1700000060.5)),
            make_completed(task_run, 3, type=StateType.FAILED, name="TimedOut", attempt=2, cause=Cause("exception")),
        ]
        cause = Cause(
            *("worker", "ValueError", "boom", "Traceback:\n  boom"),
            signal=9,
            exit_code=-9,
            pid=77,
            full_traceback_text="Traceback:\n  engine\n  boom",
            arguments={"rows": "[1, 2, ...]", "": "None"},
        )
        failed = make_completed(
            flow_run, type=StateType.FAILED, name="Failed", message="1/1 states failed.", cause=cause
        )

        store.append([flow_run, task_run, *changes[:2]])
        store.append([*changes[2:], failed])

        records = list(store.read(flow_run.id))
        assert records[:2] == [flow_run, task_run]
        assert changes_of(records, task_run) == [change._replace(result=None) for change in changes[1:]]
        assert changes_of(records, flow_run) == [changes[0], failed._replace(result=None)]
        assert len(records) == 7

    def test_flow_runs_are_kept_apart(self, store: StateStore) -> None:
        """Reading one flow run yields its own records only."""
        one, other = make_flow_run(), make_flow_run()
        one_task, other_task = make_task_run(one), make_task_run(other)

        store.append([one, one_task, make_running(one_task)])
        store.append([other, other_task, make_running(other_task)])

        assert list(store.read(one.id)) == [one, one_task, make_running(one_task)]
        assert list(store.read(other.id)) == [other, other_task, make_running(other_task)]

    def test_subflow_is_a_flow_run_of_its_own(self, store: StateStore) -> None:
        """A subflow's records are appended together with its parent's and read by its own id."""
        parent = make_flow_run()
        task_run = make_task_run(parent)
        child = make_flow_run(root_id=parent.id, parent_id=task_run.id)
        child_task = make_task_run(child)

        store.append([parent, task_run, child, child_task, make_running(child_task), make_running(task_run)])

        assert list(store.read(parent.id)) == [parent, task_run, make_running(task_run)]
        assert list(store.read(child.id)) == [child, child_task, make_running(child_task)]

    def test_any_text_is_read_back(self, store: StateStore) -> None:
        """Names, messages and whatever else is text may be any text at all."""
        for text in ODD_TEXTS:
            flow_run = make_flow_run(
                name=text, flow=text, entry_point=text, host=text, versions={text: text}, tags=(text, text)
            )
            task_run = make_task_run(flow_run, name=text, task=text, upstreams=(text,), tags=(text, text), version=text)
            cause = Cause("exception", text, text, text, full_traceback_text=text, arguments={text: text})
            odd: dict[str, Any] = {
                "name": text,
                "message": text,
                "previous": text,
                "cause": cause,
                "execution": Execution(text),
                "cache": CacheEntry(text),
            }
            change = make_running(task_run, **odd)

            store.append([flow_run, task_run, change])

            assert list(store.read(flow_run.id)) == [flow_run, task_run, change]

    def test_any_parameter_is_read_back(self, store: StateStore) -> None:
        """Parameters may hold any value that dicts, lists and plain values can build."""
        for value in ODD_VALUES:
            flow_run = make_flow_run(parameters={"value": value, "list": [value]})

            store.append([flow_run])

            (read,) = store.read(flow_run.id)
            assert isinstance(read, FlowRun)
            assert read == flow_run
            assert type(read.parameters["value"]) is type(value)

    def test_numbers_out_of_the_ordinary_are_read_back(self, store: StateStore) -> None:
        """Instants and counts may be infinite, negative or beyond 64 bits."""
        flow_run = make_flow_run(created_at=float("inf"), pid=2**64)
        execution = Execution("main", 2**70, float("-inf"), -1.5, 1e-300, -(2**80))
        change = make_running(flow_run, timestamp=-0.5, attempt=2**65, execution=execution)

        store.append([flow_run, change])

        assert list(store.read(flow_run.id)) == [flow_run, change]

    def test_not_a_number_is_read_back(self, store: StateStore) -> None:
        """NaN is kept apart from None wherever a number may stand."""
        nan = float("nan")
        flow_run = make_flow_run(created_at=nan, parameters={"ratio": nan})
        task_run = make_task_run(flow_run, created_at=nan)
        executions = [Execution("main", 1, nan), Execution("main", 1, None, nan), Execution("main", 1, None, None, nan)]
        changes = [make_running(task_run, number, execution=item) for number, item in enumerate(executions, 1)]
        cached = make_running(task_run, 5, cache=CacheEntry("key", nan))
        records: list[Record] = [flow_run, task_run, *changes, make_running(task_run, 4, timestamp=nan), cached]

        for record in records:
            store.append([record])

        assert repr(list(store.read(flow_run.id))) == repr(records)  # for NaN does not equal NaN

    def test_reading_goes_on_while_records_are_added(self, store: StateStore) -> None:
        """A reader in the middle of a run does not keep the same thread from writing."""
        flow_run = make_flow_run()
        tasks = [make_task_run(flow_run, number) for number in range(1, 51)]
        store.append([flow_run, *tasks])

        for sequence, _ in enumerate(store.read(flow_run.id), 1):
            store.append([make_running(flow_run, sequence)])

        changes = changes_of(list(store.read(flow_run.id)), flow_run)
        assert [change.sequence for change in changes[:51]] == list(range(1, 52))

    # -- all or none ------------------------------------------------------------------------------------------------

    @belongs_to("atomic")
    def test_batch_with_a_stranger_adds_nothing(self, store: StateStore) -> None:
        """A batch that cannot be added as a whole leaves no part of itself."""
        flow_run, other = make_flow_run(), make_flow_run()
        store.append([flow_run])
        stranger: Any = "not a record"

        with pytest.raises(StoreError):
            store.append([other, make_running(flow_run), stranger])

        assert list(store.read(flow_run.id)) == [flow_run]
        assert list(store.read(other.id)) == []

    @belongs_to("atomic")
    def test_records_of_an_unrecorded_flow_run_are_refused(self, store: StateStore) -> None:
        """A flow run must be recorded before, or earlier in the same batch."""
        recorded, unrecorded = make_flow_run(), make_flow_run()
        store.append([recorded])

        with pytest.raises(StoreError, match=unrecorded.id):
            store.append([make_running(recorded), make_task_run(unrecorded)])

        assert list(store.read(recorded.id)) == [recorded]
        assert [summary.flow_run for summary in store.list_flow_runs()] == [recorded]

    @belongs_to("atomic")
    def test_store_goes_on_after_a_refused_batch(self, store: StateStore) -> None:
        """A refused batch may be appended again in a form that fits."""
        flow_run = make_flow_run()
        with pytest.raises(StoreError):
            store.append([make_running(flow_run), flow_run])

        store.append([flow_run, make_running(flow_run)])

        assert list(store.read(flow_run.id)) == [flow_run, make_running(flow_run)]

    @belongs_to("atomic")
    def test_flow_run_of_a_refused_batch_is_not_recorded(self, store: StateStore) -> None:
        """A flow run that came in a refused batch is unknown afterwards."""
        flow_run = make_flow_run()
        stranger: Any = None
        with pytest.raises(StoreError):
            store.append([flow_run, stranger])

        with pytest.raises(StoreError, match=flow_run.id):
            store.append([make_running(flow_run)])
