"""The contract of a state store: runs that are recorded again, found, claimed and removed."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from localflow.errors import StoreError
from localflow.interfaces import CacheEntry, FlowRunSummary, Payload, StateType
from localflow.testing.promises import belongs_to
from localflow.testing.store_processes import fork
from localflow.testing.store_records import (
    StoreFixtures,
    make_completed,
    make_flow_run,
    make_log_entry,
    make_running,
    make_task_run,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.interfaces import FlowRun, StateStore, TaskRun

LARGE = Payload("pickle", bytes(range(256)) * 400)


@belongs_to("records")
class RunContract(StoreFixtures):
    """How a store keeps flow runs over time."""

    # -- runs that are recorded again -------------------------------------------------------------------------------

    def test_flow_run_recorded_again_takes_the_place(self, store: StateStore) -> None:
        """The newer record of a flow run counts, for all that belongs to it, and everything else stays."""
        flow_run = make_flow_run(pid=1, code="old", parameters={"day": 1})
        task_run = make_task_run(flow_run)
        other = make_flow_run(created_at=flow_run.created_at + 1)
        store.append([flow_run, task_run, make_running(flow_run), make_completed(task_run), make_log_entry(task_run)])
        store.append([other])
        again = flow_run._replace(pid=2, code="new", host="elsewhere", parameters={"day": 2})
        task_again = task_run._replace(flow_run=again)

        store.append([again, make_running(again, 2, name="Retrying", attempt=2)])

        retrying = make_running(again, 2, name="Retrying", attempt=2)
        changes = [make_running(again), make_completed(task_again)._replace(result=None), retrying]
        records = list(store.read(flow_run.id))
        assert records[:2] == [again, task_again]
        assert sorted(records[2:], key=repr) == sorted(changes, key=repr)
        assert [summary.flow_run for summary in store.list_flow_runs()] == [other, again]
        assert store.list_flow_runs()[1].change == retrying
        assert store.load_result(flow_run.id, 1) == make_completed(task_run).result
        assert list(store.read_logs(flow_run.id)) == [(1, make_log_entry(task_again))]

    def test_task_run_recorded_again_takes_the_place(self, store: StateStore) -> None:
        """The newer record of a task run counts, and its state changes, its result and its log stay."""
        flow_run = make_flow_run()
        task_run, other = make_task_run(flow_run), make_task_run(flow_run, 2)
        store.append([flow_run, task_run, other, make_completed(task_run, 1), make_log_entry(task_run)])
        again = task_run._replace(code="new", inputs="3f", upstreams=(other.id,), tags=("late",))

        store.append([again, make_running(again, 2)])

        changes = [make_completed(again, 1)._replace(result=None), make_running(again, 2)]
        assert list(store.read(flow_run.id)) == [flow_run, again, other, *changes]
        assert store.load_result(flow_run.id, 1) == make_completed(task_run).result
        assert list(store.read_logs(flow_run.id)) == [(1, make_log_entry(again))]

    def test_flow_run_recorded_again_stays_as_finished_as_it_was(self, store: StateStore) -> None:
        """A record of a flow run implies its first state only where there is no other."""
        flow_run = make_flow_run()
        store.append([flow_run, make_completed(flow_run, 1)])

        store.append([flow_run._replace(pid=2)])

        assert store.list_flow_runs(unfinished=True) == []
        assert [summary.change is None for summary in store.list_flow_runs()] == [False]

    @belongs_to("survives")
    def test_runs_recorded_again_are_there_after_closing(self, open_store: Callable[[], StateStore]) -> None:
        """Another opening of the store may replace a record, and a third one reads it."""
        flow_run = make_flow_run()
        child = make_flow_run(root_id=flow_run.id, parent_id=flow_run.id)
        store = open_store()
        store.append([flow_run, child, make_task_run(child)])
        store.close()
        again, child_again = flow_run._replace(pid=2), child._replace(pid=2)

        open_store().append([again, child_again, make_running(again)])

        store = open_store()
        assert list(store.read(flow_run.id)) == [again, make_running(again)]
        assert list(store.read(child.id)) == [child_again, make_task_run(child_again)]

    # -- state changes are recorded once ----------------------------------------------------------------------------

    @belongs_to("atomic")
    def test_second_change_of_a_sequence_is_refused(self, store: StateStore) -> None:
        """A state change with the sequence of another one of its run is refused with all that comes with it."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        store.append([flow_run, task_run, make_running(task_run), make_completed(task_run)])
        before = list(store.read(flow_run.id))

        for sequence in (1, 2):
            late = make_completed(task_run, sequence, result=LARGE)
            with pytest.raises(StoreError):
                store.append([make_running(flow_run), late, make_log_entry(task_run)])
        with pytest.raises(StoreError):
            store.append([make_running(flow_run), make_running(flow_run)])

        assert list(store.read(flow_run.id)) == before
        assert store.load_result(flow_run.id, 1) == make_completed(task_run).result
        assert list(store.read_logs(flow_run.id)) == []
        store.append([make_running(flow_run), make_running(task_run, 3)])

    @belongs_to("survives")
    def test_second_change_of_a_sequence_is_refused_whoever_comes(self, open_store: Callable[[], StateStore]) -> None:
        """Of two that have opened the store and go on with one run the second is refused."""
        one, other = open_store(), open_store()
        flow_run = make_flow_run()
        one.append([flow_run])
        other.append([make_running(flow_run, message="by the other")])

        with pytest.raises(StoreError):
            one.append([make_running(flow_run)])

        assert list(one.read(flow_run.id)) == [flow_run, make_running(flow_run, message="by the other")]

    # -- some flow runs are listed ----------------------------------------------------------------------------------

    @belongs_to("listing")
    def test_tree_is_listed_by_the_id_at_its_top(self, store: StateStore) -> None:
        """With `root_id` the flow run of that id and all below it are listed, at any depth, and no others."""
        top = make_flow_run(created_at=1700000000.0)
        child = make_flow_run(created_at=1700000001.0, root_id=top.id, parent_id=f"{top.id}-1")
        grandchild = make_flow_run(created_at=1700000002.0, root_id=top.id, parent_id=child.id)
        store.append([top, child, grandchild, make_completed(child, 1)])
        store.append([make_flow_run()])

        listed = [summary.flow_run for summary in store.list_flow_runs(root_id=top.id)]
        assert listed == [grandchild, child, top]
        assert [summary.flow_run for summary in store.list_flow_runs(2, root_id=top.id)] == [grandchild, child]
        unfinished = [summary.flow_run for summary in store.list_flow_runs(root_id=top.id, unfinished=True)]
        assert unfinished == [grandchild, top]
        assert store.list_flow_runs(root_id="no-such-run") == []

    @belongs_to("listing")
    def test_unfinished_flow_runs_are_listed(self, store: StateStore) -> None:
        """With `unfinished` those are listed whose newest state is not final: PENDING, RUNNING, or run once more."""
        runs = [make_flow_run(created_at=1700000000.0 + number) for number in range(5)]
        pending, running, failed, completed, resumed = runs
        for run in runs:
            store.append([run])
        store.append([make_running(running)])
        store.append([make_completed(failed, 1, type=StateType.FAILED, name="Failed", result=None)])
        store.append([make_running(completed), make_completed(completed)])
        store.append([make_running(resumed), make_completed(resumed, type=StateType.CRASHED, result=None)])
        store.append([make_running(resumed, 3, name="Retrying")])

        found = store.list_flow_runs(unfinished=True)
        assert [summary.flow_run for summary in found] == [resumed, running, pending]
        assert found[1:] == [
            FlowRunSummary(running, make_running(running), started_at=1700000002.125),
            FlowRunSummary(pending, None),
        ]
        assert store.list_flow_runs(1, unfinished=True) == found[:1]

        store.append([make_completed(resumed, 4), make_completed(running), make_completed(pending, 1)])

        assert store.list_flow_runs(unfinished=True) == []

    @belongs_to("listing")
    def test_unfinished_subflow_is_listed(self, store: StateStore) -> None:
        """A flow run is finished or not whatever those above and below it are."""
        top = make_flow_run()
        child = make_flow_run(root_id=top.id, parent_id=top.id, created_at=top.created_at + 1)
        store.append([top, child, make_running(top), make_running(child)])

        store.append([make_completed(top)])
        assert [summary.flow_run for summary in store.list_flow_runs(unfinished=True)] == [child]
        store.append([make_completed(child), make_running(top, 3)])
        assert [summary.flow_run for summary in store.list_flow_runs(unfinished=True)] == [top]

    @belongs_to("survives")
    def test_unfinished_flow_run_of_another_opening_is_listed(self, open_store: Callable[[], StateStore]) -> None:
        """What one has begun, another finds unfinished, ends, and the first finds it ended."""
        one, other = open_store(), open_store()
        flow_run = make_flow_run()
        one.append([flow_run, make_running(flow_run)])

        assert [summary.flow_run for summary in other.list_flow_runs(unfinished=True)] == [flow_run]
        other.append([make_completed(flow_run)])

        assert one.list_flow_runs(unfinished=True) == other.list_flow_runs(unfinished=True) == []

    # -- claims -----------------------------------------------------------------------------------------------------

    @belongs_to("claims")
    def test_flow_run_is_claimed_by_one_at_a_time(self, store: StateStore) -> None:
        """A second claim is to be had when the first is released, and claims of other flow runs do not matter."""
        flow_run = make_flow_run()

        first = store.claim(flow_run.id)
        assert first is not None
        assert store.claim(flow_run.id) is None
        store.append([flow_run])
        assert store.claim(flow_run.id) is None
        other = store.claim(make_flow_run().id)
        assert other is not None
        first.release()
        second = store.claim(flow_run.id)
        assert second is not None
        first.release()
        assert store.claim(flow_run.id) is None

        second.release()
        other.release()

    @belongs_to("liveness")
    def test_claim_is_known_to_other_openings(self, open_store: Callable[[], StateStore]) -> None:
        """A claim is one for the whole store, however often it is open."""
        one, other = open_store(), open_store()
        claim = one.claim("run")
        assert claim is not None

        assert other.claim("run") is None
        claim.release()
        claim = other.claim("run")
        assert claim is not None
        assert one.claim("run") is None
        claim.release()

    @belongs_to("liveness")
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="the holder of the claim is a fork")
    def test_claim_ends_with_its_process(
        self, store: StateStore, make_store: Callable[[], StateStore], open_store: Callable[[], StateStore]
    ) -> None:
        """A process that is killed holds no claim any more, at once, even if a child of it lives on."""
        with _holder_of_a_claim(make_store, "run") as kill:
            assert store.claim("run") is None

            kill()

            claim = store.claim("run")
            assert claim is not None
            claim.release()

    @belongs_to("claims")
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="the child is a fork")
    def test_claim_is_not_released_by_a_child(self, store: StateStore) -> None:
        """A child that inherits a claim can neither release it nor end it by its own end."""
        claim = store.claim("run")
        assert claim is not None

        child = fork()
        if child == 0:
            try:
                claim.release()
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        assert store.claim("run") is None
        claim.release()

    # -- removing ---------------------------------------------------------------------------------------------------

    @belongs_to("remove")
    def test_removed_tree_is_gone(self, store: StateStore) -> None:
        """Nothing is left of a flow run that was removed, nor of those below it, and the others are as they were."""
        top, child = _record_tree(store, "gone")
        kept, kept_child = _record_tree(store, "kept")
        before = [list(store.read(run.id)) for run in (kept, kept_child)]

        store.remove([top.id, "no-such-run"])
        store.remove([top.id])

        for run in (top, child):
            assert list(store.read(run.id)) == []
            assert list(store.read_logs(run.id)) == []
            assert store.load_result(run.id, 1) is None
        assert store.find_cached("gone", 0.0) is None
        assert [summary.flow_run for summary in store.list_flow_runs()] == [kept_child, kept]
        assert [summary.flow_run for summary in store.list_flow_runs(unfinished=True)] == [kept]
        assert store.list_flow_runs(root_id=top.id) == []
        assert [list(store.read(run.id)) for run in (kept, kept_child)] == before
        assert store.find_cached("kept", 0.0) is not None
        assert store.load_result(kept_child.id, 1) == LARGE
        assert len(list(store.read_logs(kept.id))) == 1
        with pytest.raises(StoreError):
            store.append([make_running(top, 9)])
        assert store.check() == []

    @belongs_to("remove")
    def test_only_whole_trees_are_removed(self, store: StateStore) -> None:
        """The id of a flow run that another one called removes nothing."""
        top, child = _record_tree(store, "key")

        store.remove([child.id])

        assert [summary.flow_run for summary in store.list_flow_runs()] == [child, top]
        assert store.load_result(child.id, 1) == LARGE

    @belongs_to("remove")
    def test_results_are_removed_alone(self, store: StateStore) -> None:
        """With `results_only` the records and logs stay, the results go, and the flow run can go on."""
        top, child = _record_tree(store, "gone")
        kept, kept_child = _record_tree(store, "kept")
        before = [(list(store.read(run.id)), list(store.read_logs(run.id))) for run in (top, child)]

        store.remove([top.id], results_only=True)

        assert [(list(store.read(run.id)), list(store.read_logs(run.id))) for run in (top, child)] == before
        assert [store.load_result(run.id, 1) for run in (top, child)] == [None, None]
        assert store.find_cached("gone", 0.0) is None
        assert store.find_cached("kept", 0.0) is not None
        assert store.load_result(kept.id, 1) == store.load_result(kept_child.id, 1) == LARGE
        assert store.check() == []
        store.append([make_completed(make_task_run(child), 3, result=LARGE), make_log_entry(top, "more")])
        assert store.load_result(child.id, 1) == LARGE
        assert [entry.message for _, entry in store.read_logs(top.id)] == ["loading", "more"]

    @belongs_to("remove")
    def test_removal_is_seen_by_other_openings(self, open_store: Callable[[], StateStore]) -> None:
        """Whoever has the store open, too, meets neither what was removed nor anything wrong."""
        one, other = open_store(), open_store()
        top, child = _record_tree(one, "gone")
        emptied, _ = _record_tree(one, "emptied")
        for run in (top, child, emptied):
            assert other.load_result(run.id, 1) == LARGE
            assert list(other.read_logs(run.id))
        log = list(other.read_logs(emptied.id))

        one.remove([emptied.id], results_only=True)
        one.remove([top.id])

        assert list(other.read(top.id)) == list(other.read(child.id)) == []
        assert other.load_result(top.id, 1) is other.load_result(emptied.id, 1) is None
        assert list(other.read_logs(emptied.id)) == log
        assert top not in [summary.flow_run for summary in other.list_flow_runs()]
        assert other.find_cached("gone", 0.0) is other.find_cached("emptied", 0.0) is None
        with pytest.raises(StoreError):
            other.append([make_running(top, 9)])

    # -- looking at everything --------------------------------------------------------------------------------------

    def test_nothing_is_wrong_with_a_sound_store(self, store: StateStore) -> None:
        """A store in which runs began, ended, were recorded again and refused passes its own check."""
        top, child = _record_tree(store, "key")
        again = top._replace(pid=2)
        store.append([again, make_running(again, 2), make_log_entry(again)])
        with pytest.raises(StoreError):
            store.append([make_running(child, 1), make_completed(again, 3, result=LARGE), make_log_entry(child)])

        assert store.check() == []

    @belongs_to("closing")
    def test_closed_store_claims_and_removes_nothing(self, store: StateStore) -> None:
        """After closing there is nothing to hold and nothing to remove."""
        store.close()

        with pytest.raises(StoreError):
            store.claim("run")
        with pytest.raises(StoreError):
            store.remove(["run"])


def _record_tree(store: StateStore, key: str) -> tuple[FlowRun, FlowRun]:
    """Record a flow run that is unfinished and has called another, each with a log and a large result of a task."""
    top = make_flow_run()
    child = make_flow_run(root_id=top.id, parent_id=f"{top.id}-1", created_at=top.created_at + 1)
    tasks: list[TaskRun] = [make_task_run(top), make_task_run(child)]
    store.append([top, make_running(top), tasks[0], make_running(tasks[0])])
    store.append([child, make_running(child), tasks[1], make_running(tasks[1]), make_log_entry(tasks[1])])
    store.append([make_completed(tasks[1], result=LARGE), make_completed(child)])
    store.append([make_completed(tasks[0], result=LARGE, cache=CacheEntry(key)), make_log_entry(tasks[0])])
    return top, child


@contextmanager
def _holder_of_a_claim(make_store: Callable[[], StateStore], flow_run_id: str) -> Iterator[Callable[[], None]]:
    """Have another process hold a claim, which has a child; gives what kills it, but not the child."""
    here, there = os.pipe()
    stay, go = os.pipe()
    holder = fork()
    if holder == 0:
        try:
            os.close(go)
            claim = make_store().claim(flow_run_id)
            if fork() == 0:  # who says so has let go of the claim by then: in the moment of a fork both have it
                os.write(there, b"1" if claim is not None else b"0")
            os.read(stay, 1)  # until the test is over
        finally:
            os._exit(0)
    os.close(there)
    os.close(stay)
    is_reaped = False

    def kill() -> None:
        nonlocal is_reaped
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        is_reaped = True

    try:
        assert os.read(here, 1) == b"1"
        yield kill
    finally:
        os.close(go)
        if not is_reaped:
            os.waitpid(holder, 0)
        os.read(here, 1)  # until the child has ended, too
        os.close(here)
