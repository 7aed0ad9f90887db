"""The contract of a state store, as a test class.

    class TestShoeboxStateStore(StateStoreContract):
        @pytest.fixture
        def make_store(self, tmp_path):
            return lambda: ShoeboxStateStore(tmp_path / "shoebox")

`make_store()` opens the same store again each time it is called, also in a forked child. Each test belongs to a
capability (see `localflow/capabilities.py`): what a store does not promise is skipped, such as opening it again where
`survives = False`, and removing where there is no `remove`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from localflow.errors import StoreError
from localflow.interfaces import FlowRunSummary, StateType
from localflow.testing.promises import belongs_to
from localflow.testing.store_choice import ChoiceContract
from localflow.testing.store_logs import LogContract
from localflow.testing.store_model import ModelContract
from localflow.testing.store_processes import ProcessContract
from localflow.testing.store_records import (
    changes_of,
    make_completed,
    make_flow_run,
    make_running,
    make_task_run,
    run_in_threads,
)
from localflow.testing.store_results import ResultContract
from localflow.testing.store_round_trips import RoundTripContract
from localflow.testing.store_runs import RunContract
from localflow.testing.store_values import ValueContract

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.interfaces import StateStore


@belongs_to("listing")
class StateStoreContract(
    RoundTripContract,
    ResultContract,
    LogContract,
    RunContract,
    ChoiceContract,
    ValueContract,
    ProcessContract,
    ModelContract,
):
    """What every state store must do; a plugin's test subclasses it and gives the fixture `make_store`."""

    # -- the list of flow runs --------------------------------------------------------------------------------------

    def test_flow_runs_are_listed_newest_first(self, store: StateStore) -> None:
        """Flow runs are listed from the newest to the oldest, at most as many as asked for."""
        runs = [make_flow_run(created_at=1700000000.0 + number) for number in range(5)]
        for run in runs:
            store.append([run])

        assert [summary.flow_run for summary in store.list_flow_runs()] == runs[::-1]
        assert [summary.flow_run for summary in store.list_flow_runs(2)] == runs[:-3:-1]
        assert store.list_flow_runs(0) == []

    def test_pending_flow_run_has_no_change(self, store: StateStore) -> None:
        """A flow run that has only been recorded is listed without a change."""
        flow_run = make_flow_run(parameters={"x": 1})
        store.append([flow_run, make_task_run(flow_run), make_running(make_task_run(flow_run))])

        assert store.list_flow_runs() == [FlowRunSummary(flow_run, None)]

    def test_running_flow_run_has_started(self, store: StateStore) -> None:
        """A running flow run is listed with its change and the instant it started."""
        flow_run = make_flow_run()
        running = make_running(flow_run, timestamp=1700000009.5)
        store.append([flow_run, running])

        assert store.list_flow_runs() == [FlowRunSummary(flow_run, running, started_at=1700000009.5)]

    def test_ended_flow_run_has_its_last_change(self, store: StateStore) -> None:
        """A flow run that was run twice has the instants of its first start and of its last end."""
        flow_run = make_flow_run()
        crashed = make_completed(flow_run, 2, type=StateType.CRASHED, name="EngineLost", result=None)
        again = make_running(flow_run, 3, name="Retrying", timestamp=1700000008.0, attempt=2)
        completed = make_completed(flow_run, 4, timestamp=1700000009.0, attempt=2)
        store.append([flow_run, make_running(flow_run, timestamp=1700000001.0), crashed])
        store.append([again, completed])

        (summary,) = store.list_flow_runs()

        expected = completed._replace(result=None)
        assert summary == FlowRunSummary(flow_run, expected, started_at=1700000001.0, ended_at=1700000009.0)

    def test_list_follows_the_changes(self, store: StateStore) -> None:
        """The list tells the state of this moment each time it is asked for."""
        flow_run = make_flow_run()
        store.append([flow_run])
        pending = store.list_flow_runs()

        store.append([make_running(flow_run)])

        assert pending == [FlowRunSummary(flow_run, None)]
        assert [summary.change for summary in store.list_flow_runs()] == [make_running(flow_run)]

    def test_subflows_are_listed(self, store: StateStore) -> None:
        """A subflow is listed like any flow run, with its own state."""
        parent = make_flow_run(created_at=1700000000.0)
        child = make_flow_run(created_at=1700000001.0, root_id=parent.id, parent_id=parent.id)
        store.append([parent, make_running(parent), child, make_running(child)])
        store.append([make_completed(child)])

        newest, oldest = store.list_flow_runs()

        assert (newest.flow_run, newest.change) == (child, make_completed(child)._replace(result=None))
        assert (oldest.flow_run, oldest.change) == (parent, make_running(parent))

    # -- several at once --------------------------------------------------------------------------------------------

    @belongs_to("threads")
    def test_threads_append_at_once(self, store: StateStore) -> None:
        """Several threads append to one store, to the same and to different flow runs, and nothing is lost."""
        shared = make_flow_run()
        store.append([shared])

        def work(thread: int) -> None:
            own = make_flow_run(id=f"own-{thread}")
            store.append([own])
            for number in range(1, 31):
                task_run = make_task_run(shared, 100 * thread + number)
                store.append([task_run, make_running(task_run), make_running(own, number)])

        run_in_threads(work, 4)

        assert len(list(store.read(shared.id))) == 1 + 4 * 30 * 2
        for thread in range(4):
            assert [change.sequence for change in changes_of(list(store.read(f"own-{thread}")))] == list(range(1, 31))

    @belongs_to("threads")
    def test_readers_see_whole_batches(self, store: StateStore) -> None:
        """Whoever reads while others write sees all records of a batch or none, and no later batch without it."""
        flow_run = make_flow_run()
        store.append([flow_run])
        written = threading.Event()
        seen: list[list[int]] = []

        def work(thread: int) -> None:
            if thread == 0:
                for sequence in range(1, 100, 3):
                    store.append([make_running(flow_run, sequence + offset) for offset in range(3)])
                written.set()
            while not written.is_set():
                seen.append([change.sequence for change in changes_of(list(store.read(flow_run.id)))])

        run_in_threads(work, 3)

        for sequences in seen:
            assert sequences == list(range(1, len(sequences) + 1))
            assert len(sequences) % 3 == 0

    @belongs_to("survives")
    def test_two_stores_share_the_records(self, open_store: Callable[[], StateStore]) -> None:
        """What one opening appends, another that is open too reads at once and may go on with."""
        one, other = open_store(), open_store()
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)

        one.append([flow_run, task_run])
        other.append([make_running(task_run)])
        one.append([make_completed(task_run)])

        expected = [flow_run, task_run, make_running(task_run), make_completed(task_run)._replace(result=None)]
        assert list(one.read(flow_run.id)) == list(other.read(flow_run.id)) == expected
        assert one.list_flow_runs() == other.list_flow_runs() == [FlowRunSummary(flow_run, None)]
        assert other.load_result(flow_run.id, 1) == make_completed(task_run).result

    # -- closing and opening again ----------------------------------------------------------------------------------

    @belongs_to("survives")
    def test_closed_store_is_opened_again(self, open_store: Callable[[], StateStore]) -> None:
        """Everything is there again after closing, and is added to."""
        flow_run = make_flow_run()
        child = make_flow_run(root_id=flow_run.id, parent_id=flow_run.id)
        task_run = make_task_run(child)
        store = open_store()
        store.append([flow_run, make_running(flow_run), child, task_run, make_completed(task_run, 1)])
        store.close()

        store = open_store()
        store.append([make_completed(flow_run, 2), make_running(task_run, 2)])

        assert len(list(store.read(flow_run.id))) == 3
        assert [change.sequence for change in changes_of(list(store.read(child.id)))] == [1, 2]
        assert store.load_result(child.id, 1) == make_completed(task_run).result

    @belongs_to("survives")
    def test_unclosed_store_is_opened_again(self, open_store: Callable[[], StateStore]) -> None:
        """What `append` has returned from is there for others although nobody has closed anything."""
        flow_run = make_flow_run()
        open_store().append([flow_run])

        assert list(open_store().read(flow_run.id)) == [flow_run]

    @belongs_to("closing")
    def test_closing_twice_is_harmless(self, store: StateStore) -> None:
        """A store may be closed again."""
        store.close()
        store.close()

    @belongs_to("closing")
    def test_closed_store_refuses_to_work(self, store: StateStore) -> None:
        """After closing, writing and reading raise StoreError."""
        flow_run = make_flow_run()
        store.append([flow_run])
        store.close()

        with pytest.raises(StoreError):
            store.append([make_running(flow_run)])
        with pytest.raises(StoreError):
            store.list_flow_runs()
        with pytest.raises(StoreError):
            list(store.read(flow_run.id))
        with pytest.raises(StoreError):
            store.load_result(flow_run.id, 0)
        with pytest.raises(StoreError):
            store.find_cached("key", 0.0)
        with pytest.raises(StoreError):
            list(store.read_logs(flow_run.id))
