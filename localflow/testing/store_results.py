"""The contract of a state store: results, by the run they are of and by cache key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from localflow.errors import StoreError
from localflow.interfaces import CachedResult, CacheEntry, Payload, StateType
from localflow.testing.promises import belongs_to
from localflow.testing.store_records import (
    ODD_TEXTS,
    StoreFixtures,
    make_completed,
    make_flow_run,
    make_running,
    make_task_run,
    run_in_threads,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from localflow.interfaces import StateChange, StateStore, TaskRun

NOW = 1700000100.0


@belongs_to("cache")
class ResultContract(StoreFixtures):
    """How a store gives results."""

    # -- results ----------------------------------------------------------------------------------------------------

    @belongs_to("results")
    def test_result_is_loaded(self, store: StateStore) -> None:
        """A result is any bytes, of any size."""
        flow_run = make_flow_run()
        store.append([flow_run])
        sizes = (0, 1, 200, 201, 4096, 2**16, 2**16 + 1, 3_000_000)
        for number, size in enumerate(sizes, 1):
            task_run = make_task_run(flow_run, number)
            payload = Payload("pickle", (bytes(range(256)) * (size // 256 + 1))[:size])

            store.append([task_run, make_running(task_run), make_completed(task_run, result=payload)])

            assert store.load_result(flow_run.id, number) == payload

    @belongs_to("results")
    def test_result_as_json_is_loaded_byte_for_byte(self, store: StateStore) -> None:
        """A payload that says it is JSON comes back as the very bytes, white space and mistakes included."""
        flow_run = make_flow_run()
        store.append([flow_run])
        payloads = (b"null", b"", b'{"a": 1}\n', '"\u00e9\\udcff"'.encode(), b"\xff\x00", b"1" * 70_000)
        for sequence, data in enumerate(payloads, 1):
            store.append([make_completed(flow_run, sequence, result=Payload("json", data))])

            assert store.load_result(flow_run.id, 0) == Payload("json", data)

    @belongs_to("results")
    def test_newest_result_is_loaded(self, store: StateStore) -> None:
        """Of several results of a run the newest counts; a later change without one leaves it."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        store.append([flow_run, task_run, make_completed(task_run, 1, result=Payload("pickle", b"old" * 100_000))])
        first = store.load_result(flow_run.id, 1)

        store.append([make_completed(task_run, 2, result=Payload("json", b'"new"')), make_running(task_run, 3)])

        assert first == Payload("pickle", b"old" * 100_000)
        assert store.load_result(flow_run.id, 1) == Payload("json", b'"new"')

    @belongs_to("results")
    def test_a_completion_without_a_result_has_none(self, store: StateStore) -> None:
        """What the run had completed with before, in an earlier attempt, is not its result."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        store.append([flow_run, task_run, make_completed(task_run, 1, result=Payload("json", b"1"))])
        store.append([make_running(task_run, 2), make_completed(task_run, 3, result=None)])

        assert store.load_result(flow_run.id, 1) is None

    @belongs_to("results")
    def test_results_belong_to_their_run(self, store: StateStore) -> None:
        """Each task run and the flow run itself have results of their own, or none."""
        flow_run = make_flow_run()
        child = make_flow_run(root_id=flow_run.id, parent_id=flow_run.id)
        tasks = [make_task_run(flow_run, number) for number in (1, 2, 3)]
        results = [make_completed(task, 1, result=Payload("json", b"%d" % task.number)) for task in tasks[:2]]
        store.append([flow_run, child, *tasks, *results, make_completed(tasks[2], 1, result=None)])
        store.append([make_completed(child, 1, result=Payload("json", b'"child"'))])

        loaded = [store.load_result(flow_run.id, number) for number in range(5)]

        assert loaded == [None, Payload("json", b"1"), Payload("json", b"2"), None, None]
        assert store.load_result(child.id, 0) == Payload("json", b'"child"')

    # -- by cache key -----------------------------------------------------------------------------------------------

    def test_unknown_cache_key_is_a_miss(self, store: StateStore) -> None:
        """Nothing is found under a key that no result was recorded with."""
        flow_run = make_flow_run()
        store.append([flow_run, make_task_run(flow_run), make_completed(make_task_run(flow_run))])

        assert store.find_cached("load-v1", NOW) is None

    def test_result_is_found_by_its_cache_key(self, store: StateStore) -> None:
        """What is found tells the result, the runs it comes from, and since and until when it is valid."""
        flow_run = make_flow_run(name="calm-heron")
        task_run = make_task_run(flow_run, 3, name="load-[2]")
        completed = make_completed(task_run, cache=CacheEntry("load-v1", NOW + 0.5))
        store.append([flow_run, task_run, make_running(task_run)])
        store.append([completed])

        found = store.find_cached("load-v1", NOW)

        assert found == CachedResult(
            *(task_run.id, "load-[2]", "calm-heron"), completed.timestamp, NOW + 0.5, Payload("json", b'{"rows": 3}')
        )

    def test_any_text_is_a_cache_key(self, store: StateStore) -> None:
        """A key may be any text, and each finds its own results only."""
        flow_run = make_flow_run()
        store.append([flow_run])
        for number, key in enumerate(ODD_TEXTS, 1):
            task_run = make_task_run(flow_run, number, name=key)
            assert store.find_cached(key, NOW) is None

            store.append([task_run, cached(task_run, key, b"%d" % number)])

        for number, key in enumerate(ODD_TEXTS, 1):
            found = store.find_cached(key, NOW)
            assert found is not None
            assert (found.task_run, found.result) == (key, Payload("json", b"%d" % number))

    def test_newest_cached_result_is_found(self, store: StateStore) -> None:
        """Of several results under one key the one recorded last counts, whichever flow run it is of."""
        flow_runs = [make_flow_run() for _ in range(3)]
        tasks = [make_task_run(flow_run) for flow_run in flow_runs]
        store.append([*flow_runs, *tasks])
        for place in (1, 2, 0, 1):
            sequence = 1 + place * 10 + (store.find_cached("key", NOW) is not None)
            store.append([cached(tasks[place], "key", b"%d" % place, sequence=sequence)])

            found = store.find_cached("key", NOW)

            assert found is not None
            assert (found.task_run_id, found.result.data) == (tasks[place].id, b"%d" % place)

    def test_expired_result_is_not_found(self, store: StateStore) -> None:
        """A result is valid until just before its time; None is for ever, and what is no number is never."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        times = (("hourly", NOW), ("kept", None), ("never", float("nan")))
        store.append([flow_run, task_run])
        store.append([cached(task_run, key, b"1", until, sequence) for sequence, (key, until) in enumerate(times, 1)])

        assert store.find_cached("hourly", NOW - 0.001) is not None
        assert store.find_cached("hourly", NOW) is None
        assert store.find_cached("hourly", NOW + 1) is None
        assert store.find_cached("kept", NOW + 1e12) is not None
        assert store.find_cached("never", NOW) is None

    def test_older_result_that_is_still_valid_is_found(self, store: StateStore) -> None:
        """When the newest result has expired, an older one that is valid for longer is found again."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        store.append([flow_run, task_run])
        for sequence, lifetime in enumerate((None, 20.0, 30.0, 10.0), 1):
            expires_at = None if lifetime is None else NOW + lifetime
            store.append([cached(task_run, "key", b"%d" % sequence, expires_at, sequence)])

        found = [store.find_cached("key", NOW + seconds) for seconds in (9.0, 10.0, 29.0, 30.0)]

        assert [item and item.result.data for item in found] == [b"4", b"3", b"3", b"1"]

    def test_only_results_of_completed_runs_are_found(self, store: StateStore) -> None:
        """A state that is not COMPLETED, or has no result, does not stand in the way of an older one that has."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        others: list[dict[str, Any]] = [
            {"type": StateType.FAILED, "name": "Failed"},
            {"type": StateType.RUNNING, "name": "Running"},
            {"result": None},
        ]
        store.append([flow_run, task_run, cached(task_run, "key", b"1", None, 1)])
        for sequence, fields in enumerate(others, 2):
            change = make_completed(task_run, sequence, **{"cache": CacheEntry("key"), **fields})
            store.append([change, change._replace(sequence=sequence + 10, cache=CacheEntry("other"))])

        found = store.find_cached("key", NOW)

        assert found is not None
        assert found.result.data == b"1"
        assert store.find_cached("other", NOW) is None

    def test_result_found_is_the_one_recorded_with_the_key(self, store: StateStore) -> None:
        """A later result of the same run under another key, or none, is not taken for it."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        store.append(
            [flow_run, task_run, cached(task_run, "old", b"1", None, 1), cached(task_run, "new", b"2", None, 2)]
        )
        store.append([make_completed(task_run, 3, result=Payload("json", b"3"))])

        found = [store.find_cached(key, NOW) for key in ("old", "new")]

        assert [item and item.result.data for item in found] == [b"1", b"2"]
        assert store.load_result(flow_run.id, 1) == Payload("json", b"3")

    def test_cached_result_of_any_size_is_found(self, store: StateStore) -> None:
        """A cached result is any bytes, also of a task in a subflow."""
        parent = make_flow_run()
        child = make_flow_run(root_id=parent.id, parent_id=parent.id, name="small-wren")
        store.append([parent, child])
        for number, size in enumerate((0, 200, 201, 2**16, 2**16 + 1, 3_000_000), 1):
            task_run = make_task_run(child, number)
            result = Payload("pickle", (bytes(range(256)) * (size // 256 + 1))[:size])
            store.append([task_run, make_completed(task_run, 1, result=result, cache=CacheEntry(f"size {size}"))])

            found = store.find_cached(f"size {size}", NOW)

            assert found is not None
            assert (found.task_run_id, found.flow_run, found.result) == (task_run.id, "small-wren", result)

    def test_refused_batch_is_no_hit(self, store: StateStore) -> None:
        """A result whose batch was refused is not found."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        store.append([flow_run, task_run])

        with pytest.raises(StoreError):
            store.append([cached(task_run, "key", b"1"), make_running(make_flow_run())])

        assert store.find_cached("key", NOW) is None

    @belongs_to("survives")
    def test_cached_result_is_found_by_another_opening(self, open_store: Callable[[], StateStore]) -> None:
        """What one opening appends, another that is open finds at once, and one that comes later does too."""
        one, other = open_store(), open_store()
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        assert other.find_cached("key", NOW) is None

        one.append([flow_run, task_run, cached(task_run, "key", b"1")])
        first = other.find_cached("key", NOW)
        other.append([cached(task_run, "key", b"2", sequence=2)])
        one.close()
        second = open_store().find_cached("key", NOW)

        assert first is not None
        assert second is not None
        assert (first.result.data, second.result.data) == (b"1", b"2")

    @belongs_to("threads")
    def test_cached_result_is_whole_whoever_writes(self, store: StateStore) -> None:
        """While several threads record results under one key, a reader always finds one of them as a whole."""
        flow_run = make_flow_run()
        tasks = [make_task_run(flow_run, number) for number in (1, 2)]
        store.append([flow_run, *tasks, cached(tasks[0], "key", b"1" * 5000)])

        def work(thread: int) -> None:
            for sequence in range(2, 42):
                if thread < 2:
                    store.append([cached(tasks[thread], "key", b"%d" % (thread + 1) * 5000, sequence=sequence)])
                else:
                    found = store.find_cached("key", NOW)
                    assert found is not None
                    assert found.result.data == found.task_run_id[-1:].encode() * 5000

        run_in_threads(work, 4)


def cached(run: TaskRun, key: str, data: bytes, expires_at: float | None = None, sequence: int = 1) -> StateChange:
    """Return the change of a task run to COMPLETED, with a result to be found under a key."""
    return make_completed(run, sequence, result=Payload("json", data), cache=CacheEntry(key, expires_at))
