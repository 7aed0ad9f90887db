"""The contract of a state store: reading a part of a flow run, and how its task runs stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from localflow.errors import StoreError
from localflow.interfaces import Execution, Standing, StateType
from localflow.standings import standings_of
from localflow.testing.promises import belongs_to
from localflow.testing.store_records import (
    ODD_TEXTS,
    StoreFixtures,
    make_completed,
    make_flow_run,
    make_log_entry,
    make_running,
    make_task_run,
)

if TYPE_CHECKING:
    from localflow.interfaces import Record, StateStore


@belongs_to("choice")
class ChoiceContract(StoreFixtures):
    """What a store must do of which it has a default that reads everything."""

    def test_runs_are_read_by_their_numbers(self, store: StateStore) -> None:
        """What is read are the runs with these numbers, 0 for the flow run, and their changes; no number is wrong."""
        flow_run = make_flow_run()
        first, second, third, ninth = (make_task_run(flow_run, number) for number in (1, 2, 3, 9))
        changes = [make_running(run) for run in (flow_run, first, second, third, ninth)]
        store.append([flow_run, ninth, third, second, first, *changes, make_log_entry(second)])

        assert list(store.read_chosen(flow_run.id)) == []
        assert list(store.read_chosen(flow_run.id, [0])) == [flow_run, changes[0]]
        assert list(store.read_chosen(flow_run.id, [3, 9, 2, 3, 7, -1, 10**30])) == [second, third, ninth, *changes[2:]]
        assert list(store.read_chosen(flow_run.id, range(10))) == list(store.read(flow_run.id))

    def test_task_runs_are_read_by_their_name_and_task(self, store: StateStore) -> None:
        """What is read beside the numbers are the task runs of this name and those of the task of this name."""
        flow_run = make_flow_run()
        task_runs = [
            make_task_run(flow_run, 1, name="fetch-1", task="fetch"),
            make_task_run(flow_run, 2, name="fetch", task="load"),
            make_task_run(flow_run, 3, name="fetching", task="load"),
            make_task_run(flow_run, 4, name="load", task="load"),
        ]
        store.append([flow_run, *task_runs, *map(make_completed, task_runs)])
        changes = [make_completed(task_run, result=None) for task_run in task_runs]

        assert list(store.read_chosen(flow_run.id, called="fetch")) == [*task_runs[:2], *changes[:2]]
        assert list(store.read_chosen(flow_run.id, [4], called="fetching")) == [*task_runs[2:], *changes[2:]]
        assert list(store.read_chosen(flow_run.id, called="fet")) == []

    def test_task_runs_are_read_by_any_text(self, store: StateStore) -> None:
        """The name may be any text at all."""
        flow_run = make_flow_run()
        task_runs = [make_task_run(flow_run, number, name=text) for number, text in enumerate(ODD_TEXTS, 1)]
        store.append([flow_run, *task_runs])

        for task_run in task_runs:
            assert list(store.read_chosen(flow_run.id, called=task_run.name)) == [task_run]

    def test_runs_are_read_as_they_were_recorded_last(self, store: StateStore) -> None:
        """A run that was recorded again is read as it is now, its flow run too."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        again = flow_run._replace(pid=99)
        task_run_again = make_task_run(again, version="2")
        store.append([flow_run, task_run, make_running(task_run)])
        store.append([again, task_run_again])

        assert list(store.read_chosen(flow_run.id, [1])) == [task_run_again, make_running(task_run_again)]

    def test_standings_tell_task_runs_by_state_and_map(self, store: StateStore) -> None:
        """Task runs in one state stand together, those of each `map` call for themselves, by their first number."""
        flow_run = make_flow_run()
        alone = [make_task_run(flow_run, number) for number in (1, 2, 3, 6)]
        mapped = [make_task_run(flow_run, number, map_number=1, map_index=number - 4) for number in (4, 5)]
        late = make_completed(
            alone[2], execution=Execution("main", 1, 1700000100.0, 1700000200.0), timestamp=1700000201.0
        )
        failed = make_completed(
            mapped[0], type=StateType.FAILED, name="TimedOut", execution=None, timestamp=1700000300.0, result=None
        )
        store.append([flow_run, make_running(flow_run), *alone, *mapped, make_running(alone[0])])
        store.append([make_completed(alone[0]), make_running(mapped[0]), failed, make_completed(alone[3], 1), late])

        completed = (range(1, 2), range(3, 4), range(6, 7))
        assert store.read_standings(flow_run.id) == [
            Standing(0, StateType.COMPLETED, "Completed", completed, 1700000002.1, 1700000200.0),
            Standing(0, StateType.PENDING, "Pending", (range(2, 3),)),
            Standing(1, StateType.FAILED, "TimedOut", (range(4, 5),), 1700000002.125, 1700000300.0),
            Standing(1, StateType.PENDING, "Pending", (range(5, 6),)),
        ]
        assert [standing.size for standing in store.read_standings(flow_run.id)] == [3, 1, 1, 1]

    def test_standings_follow_what_is_recorded(self, store: StateStore) -> None:
        """They are those of the newest states at any time, also after the flow run has ended once."""
        flow_run = make_flow_run()
        task_runs = [make_task_run(flow_run, number) for number in (1, 2)]
        crashed = make_completed(flow_run, 2, type=StateType.CRASHED, name="EngineLost", result=None)
        steps: list[list[Record]] = [
            [flow_run, make_running(flow_run), *task_runs],
            [make_running(task_runs[0])],
            [make_completed(task_runs[0]), crashed],
            [make_running(task_runs[1], name=ODD_TEXTS[3])],
            [task_runs[1]._replace(map_number=1)],
            [make_running(flow_run, 3), make_completed(task_runs[1]), make_completed(flow_run, 4)],
            [make_running(task_runs[0], 3)],
            [make_task_run(flow_run, 3)],
        ]
        for records in steps:
            store.append(records)

            assert store.read_standings(flow_run.id) == standings_of(store.read(flow_run.id))

    def test_nothing_is_chosen_of_an_unknown_flow_run(self, store: StateStore) -> None:
        """An unknown id, and a flow run without task runs, are no errors."""
        flow_run = make_flow_run()
        store.append([flow_run, make_running(flow_run)])

        assert list(store.read_chosen("no-such-run", [0, 1], called="load")) == []
        assert store.read_standings("no-such-run") == store.read_standings(flow_run.id) == []

    @belongs_to("closing")
    def test_closed_store_chooses_nothing(self, store: StateStore) -> None:
        """After closing, reading a part raises StoreError as well."""
        flow_run = make_flow_run()
        store.append([flow_run])
        store.close()

        with pytest.raises(StoreError):
            list(store.read_chosen(flow_run.id, [0]))
        with pytest.raises(StoreError):
            store.read_standings(flow_run.id)
