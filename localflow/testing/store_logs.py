"""The contract of a state store: what runs have said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from localflow.errors import StoreError
from localflow.testing.promises import belongs_to
from localflow.testing.store_records import (
    ODD_TEXTS,
    StoreFixtures,
    make_completed,
    make_flow_run,
    make_log_entry,
    make_running,
    make_task_run,
    run_in_threads,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from localflow.interfaces import FlowRun, LogEntry, Record, StateStore, TaskRun


@belongs_to("logs")
class LogContract(StoreFixtures):
    """How a store keeps the logs of flow runs."""

    # -- what was said is read back ---------------------------------------------------------------------------------

    def test_unknown_flow_run_has_no_log(self, store: StateStore) -> None:
        """Reading the log of an unknown flow run, or of one that has said nothing, yields nothing."""
        flow_run = make_flow_run()
        store.append([flow_run, make_running(flow_run)])

        assert list(store.read_logs("no-such-run")) == []
        assert list(store.read_logs(flow_run.id)) == []

    def test_log_entries_are_read_in_the_order_they_were_appended(self, store: StateStore) -> None:
        """Every field is kept, and positions are counted from 1, whoever spoke and whatever the clock said."""
        flow_run = make_flow_run()
        first, second = make_task_run(flow_run, 1), make_task_run(flow_run, 2)
        entries = [
            make_log_entry(second, "late", attempt=3, timestamp=1700000009.25, level=40, source="stderr"),
            make_log_entry(flow_run, "early", timestamp=1700000000.0),
            make_log_entry(first, "early"),
            make_log_entry(second, "late again", level=10),
            make_log_entry(first, "early"),
        ]

        store.append([flow_run, first, second])
        store.append(entries[:3])
        store.append(entries[3:])

        assert list(store.read_logs(flow_run.id)) == list(enumerate(entries, 1))

    def test_log_entries_stand_among_other_records(self, store: StateStore) -> None:
        """Log entries are appended in one batch with what they belong to, and are no part of what `read` yields."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        entries = [make_log_entry(flow_run, "one"), make_log_entry(task_run, "two"), make_log_entry(task_run, "three")]
        changes = [make_running(task_run), make_completed(task_run)]

        store.append([flow_run, entries[0], task_run, entries[1], changes[0]])
        store.append([entries[2], changes[1]])

        assert list(store.read_logs(flow_run.id)) == list(enumerate(entries, 1))
        assert list(store.read(flow_run.id)) == [flow_run, task_run, changes[0], changes[1]._replace(result=None)]
        assert store.load_result(flow_run.id, 1) == changes[1].result

    def test_log_of_a_flow_run_is_its_own(self, store: StateStore) -> None:
        """The log of a flow run has what it and its task runs said, not what others or its subflows did."""
        parent, other = make_flow_run(), make_flow_run()
        task_run = make_task_run(parent)
        child = make_flow_run(root_id=parent.id, parent_id=task_run.id)
        child_task = make_task_run(child)
        runs: list[FlowRun | TaskRun] = [parent, task_run, child, child_task, other]
        store.append(runs)
        for number in range(3):
            store.append([make_log_entry(run, f"{run.name} {number}") for run in runs])

        def said(*speakers: Any) -> list[tuple[int, LogEntry]]:
            entries = [make_log_entry(run, f"{run.name} {number}") for number in range(3) for run in speakers]
            return list(enumerate(entries, 1))

        assert list(store.read_logs(parent.id)) == said(parent, task_run)
        assert list(store.read_logs(child.id)) == said(child, child_task)
        assert list(store.read_logs(child.id, 4)) == said(child, child_task)[4:]
        assert list(store.read_logs(other.id)) == said(other)

    def test_anything_said_is_read_back(self, store: StateStore) -> None:
        """Messages and sources may be any text, numbers may be out of the ordinary."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        entries = [make_log_entry(task_run, text, source=text) for text in ODD_TEXTS]
        entries += [make_log_entry(flow_run, level=level) for level in (-5, 0, 2**70)]
        entries += [make_log_entry(flow_run, timestamp=instant) for instant in (-0.5, float("inf"), float("nan"))]
        entries += [make_log_entry(flow_run, attempt=2**65)]
        store.append([flow_run, task_run])
        for entry in entries:
            store.append([entry])

        expected = list(enumerate(entries, 1))
        assert repr(list(store.read_logs(flow_run.id))) == repr(expected)  # for NaN does not equal NaN
        assert repr(list(store.read_logs(flow_run.id, 5))) == repr(expected[5:])

    # -- following --------------------------------------------------------------------------------------------------

    def test_log_is_read_after_a_position(self, store: StateStore) -> None:
        """Only what comes after the position is read; after the last one there is nothing."""
        flow_run = make_flow_run()
        entries = [make_log_entry(flow_run, f"line {number}") for number in range(10)]
        store.append([flow_run, *entries[:4]])
        store.append(entries[4:])
        whole = list(enumerate(entries, 1))

        for after in (0, 3, 4, 9, 2, 10, 1000, 1):
            assert list(store.read_logs(flow_run.id, after)) == whole[after:]

    def test_log_is_followed(self, store: StateStore) -> None:
        """Asking again and again for what is new tells every entry once, also those of runs that come later."""
        flow_run = make_flow_run()
        store.append([flow_run])
        told: list[tuple[int, LogEntry]] = []
        entries: list[LogEntry] = []
        for number in range(1, 21):
            task_run = make_task_run(flow_run, number)
            new = [make_log_entry(task_run, f"line {line}") for line in range(number % 3)]
            entries += new
            store.append([task_run, *new] if number % 2 else [task_run, *new, make_running(task_run)])

            told += store.read_logs(flow_run.id, told[-1][0] if told else 0)

        assert told == list(enumerate(entries, 1))

    def test_log_is_read_while_it_grows(self, store: StateStore) -> None:
        """A reader in the middle of a log does not keep the same thread from adding to it, nor misses a line."""
        flow_run = make_flow_run()
        store.append([flow_run, *(make_log_entry(flow_run, str(number)) for number in range(50))])

        for _, entry in store.read_logs(flow_run.id):
            store.append([make_log_entry(flow_run, entry.message)])

        messages = [entry.message for _, entry in store.read_logs(flow_run.id)]
        assert messages[:100] == [str(number) for number in range(50)] * 2

    def test_long_log_is_kept(self, store: StateStore) -> None:
        """A batch may hold thousands of entries."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        entries = [make_log_entry(task_run, f"line {number}") for number in range(5_000)]
        store.append([flow_run, task_run, *entries])
        store.append(entries)

        assert list(store.read_logs(flow_run.id)) == list(enumerate(entries * 2, 1))
        assert list(store.read_logs(flow_run.id, 9_998)) == [(9_999, entries[-2]), (10_000, entries[-1])]

    # -- all or none ------------------------------------------------------------------------------------------------

    @belongs_to("atomic")
    def test_log_entry_of_an_unrecorded_flow_run_is_refused(self, store: StateStore) -> None:
        """A flow run must be recorded before it says something, and what was refused with it is not there."""
        recorded, unrecorded = make_flow_run(), make_flow_run()
        store.append([recorded, make_log_entry(recorded, "kept")])
        batches: list[list[Record]] = [
            [make_log_entry(recorded), make_log_entry(make_task_run(unrecorded))],
            [make_running(recorded), make_log_entry(recorded), make_log_entry(unrecorded)],
            [make_log_entry(unrecorded), unrecorded],
        ]
        for batch in batches:
            with pytest.raises(StoreError, match=unrecorded.id):
                store.append(batch)

        assert list(store.read_logs(recorded.id)) == [(1, make_log_entry(recorded, "kept"))]
        assert list(store.read(recorded.id)) == [recorded]
        assert list(store.read_logs(unrecorded.id)) == []

    @belongs_to("atomic")
    def test_log_goes_on_after_a_refused_batch(self, store: StateStore) -> None:
        """What a refused batch said may be appended again, and takes the positions that come next."""
        flow_run = make_flow_run()
        store.append([flow_run, make_log_entry(flow_run, "one")])
        stranger: Any = "not a record"
        with pytest.raises(StoreError):
            store.append([make_log_entry(flow_run, "two"), make_running(flow_run), stranger])

        store.append([make_log_entry(flow_run, "two"), make_running(flow_run)])

        entries = [make_log_entry(flow_run, text) for text in ("one", "two")]
        assert list(store.read_logs(flow_run.id)) == list(enumerate(entries, 1))

    # -- several at once --------------------------------------------------------------------------------------------

    @belongs_to("threads")
    def test_threads_log_at_once(self, store: StateStore) -> None:
        """Several threads add to one log while others follow it: nothing is lost, doubled or out of order."""
        flow_run = make_flow_run()
        tasks = [make_task_run(flow_run, number) for number in (1, 2)]
        store.append([flow_run, *tasks])
        told: dict[int, list[tuple[int, LogEntry]]] = {2: [], 3: []}

        def work(thread: int) -> None:
            if thread < 2:
                for number in range(0, 60, 2):
                    pair = [make_log_entry(tasks[thread], str(number + offset)) for offset in range(2)]
                    store.append([*pair, make_running(tasks[thread], number + 1)] if number % 3 else pair)
            else:
                heard = told[thread]
                while len(heard) < 120:
                    heard += store.read_logs(flow_run.id, heard[-1][0] if heard else 0)

        run_in_threads(work, 4)

        whole = list(store.read_logs(flow_run.id))
        assert [position for position, _ in whole] == list(range(1, 121))
        for task_run in tasks:
            assert [entry.message for _, entry in whole if entry.run == task_run] == [
                str(number) for number in range(60)
            ]
        assert told == {2: whole, 3: whole}

    @belongs_to("survives")
    def test_two_stores_share_a_log(self, open_store: Callable[[], StateStore]) -> None:
        """Each opening goes on where the other has stopped, and both read the whole log."""
        one, other = open_store(), open_store()
        flow_run = make_flow_run()
        entries = [make_log_entry(flow_run, f"line {number}") for number in range(6)]
        one.append([flow_run, entries[0]])
        for number, entry in enumerate(entries[1:], 1):
            (other if number % 2 else one).append([entry])
            assert list(one.read_logs(flow_run.id, number)) == [(number + 1, entry)]

        whole = list(enumerate(entries, 1))
        assert list(one.read_logs(flow_run.id)) == list(other.read_logs(flow_run.id)) == whole
        assert list(open_store().read_logs(flow_run.id, 2)) == whole[2:]

    @belongs_to("survives")
    def test_log_of_a_closed_store_is_continued(self, open_store: Callable[[], StateStore]) -> None:
        """The log is there again after closing, and is added to."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        store = open_store()
        store.append([flow_run, task_run, make_log_entry(task_run, "before")])
        store.close()

        store = open_store()
        store.append([make_log_entry(task_run, "after")])

        assert [entry.message for _, entry in store.read_logs(flow_run.id)] == ["before", "after"]
