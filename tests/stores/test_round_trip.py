"""What is appended is what is read back, in every store alike."""

from __future__ import annotations

import math
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localflow.builtin.json_files import JsonStateStore
from localflow.builtin.memory import MemoryStateStore
from localflow.builtin.sqlite import SqliteStateStore
from localflow.interfaces import (
    CachedResult,
    CacheEntry,
    Cause,
    Execution,
    FlowRun,
    LogEntry,
    Payload,
    StateChange,
    StateType,
    TaskRun,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from localflow.interfaces import Claim, Record, StateStore

texts = st.text(st.characters() | st.sampled_from("\n$\udc00\ud800\x00"))
integers = st.integers() | st.integers(2**62, 2**66)
floats = st.floats()
plain = st.recursive(
    st.none() | st.booleans() | integers | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
text_tuples = st.lists(texts, max_size=3).map(tuple)
payloads = st.builds(Payload, st.sampled_from(["json", "pickle"]), st.binary() | st.binary(min_size=250, max_size=400))
types = st.sampled_from(StateType)
executions = st.builds(
    Execution,
    texts,
    st.none() | integers,
    st.none() | floats,
    st.none() | floats,
    st.none() | floats,
    st.none() | integers,
)
numbers = st.none() | integers
text_dicts = st.dictionaries(texts, texts, max_size=3)
causes = st.builds(Cause, texts, texts, texts, texts, numbers, numbers, numbers, texts, text_dicts)
cache_entries = st.builds(CacheEntry, texts, st.none() | floats)


def log_entries(run: FlowRun | TaskRun) -> st.SearchStrategy[LogEntry]:
    """Draw something a run has said."""
    return st.builds(LogEntry, st.just(run), integers, floats, integers, texts, texts)


@st.composite
def flow_trees(draw: st.DrawFn) -> list[list[Record]]:
    """Draw the records of a flow run and a subflow, in batches."""
    root_id = uuid.uuid4().hex[:20]
    root = draw(flow_runs(root_id, root_id, st.none()))
    child = draw(flow_runs(f"{root_id}-child", root_id, texts))
    records: list[Record] = [root, child]
    runs: list[FlowRun | TaskRun] = [root, child]
    for number, flow_run in enumerate(draw(st.lists(st.sampled_from([root, child]), max_size=3)), 1):
        task_run = draw(task_runs(flow_run, number))
        runs.append(task_run)
        records.append(task_run)
    sequences = dict.fromkeys(range(len(runs)), 0)
    for place in draw(st.lists(st.sampled_from(range(len(runs))), max_size=6)):
        sequences[place] += 1
        records.append(draw(changes(runs[place], sequences[place])))
    for place in draw(st.lists(st.sampled_from(range(len(runs))), max_size=4)):
        after = draw(st.integers(records.index(runs[place]) + 1, len(records)))
        records.insert(after, draw(log_entries(runs[place])))
    cut = draw(st.integers(1, len(records)))
    return [records[:cut], records[cut:]]


def task_runs(flow_run: FlowRun, number: int) -> st.SearchStrategy[TaskRun]:
    """Draw a task run of a flow run."""
    return st.builds(
        TaskRun,
        st.just(flow_run),
        st.just(number),
        texts,
        texts,
        integers,
        floats,
        text_tuples,
        text_tuples,
        texts,
        st.just(0) | integers,
        st.just(0) | integers,
        texts,
        texts,
    )


def flow_runs(id: str, root_id: str, parent_ids: st.SearchStrategy[str | None]) -> st.SearchStrategy[FlowRun]:
    """Draw a flow run."""
    return st.builds(
        FlowRun,
        st.just(id),
        texts,
        texts,
        floats,
        st.just(root_id),
        parent_ids,
        st.dictionaries(texts, plain, max_size=3),
        st.none() | payloads,
        texts,
        texts,
        text_dicts,
        texts,
        integers,
        text_tuples,
        texts,
        texts,
    )


def changes(run: FlowRun | TaskRun, sequence: int) -> st.SearchStrategy[StateChange]:
    """Draw a state change of a run."""
    return st.builds(
        StateChange,
        st.just(run),
        st.just(sequence),
        types,
        texts,
        texts,
        floats,
        texts,
        integers,
        st.none() | executions,
        st.none() | causes,
        st.none() | payloads,
        st.none() | cache_entries,
    )


def comparable(value: Any) -> Any:
    """Return a value in which NaN equals NaN."""
    if isinstance(value, (list, tuple)):
        return [type(value), *map(comparable, value)]
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def in_order(records: list[Record]) -> list[Record]:
    """Return records in the order of reading, with the changes of one run together."""
    rank: dict[type[Any], int] = {FlowRun: 0, TaskRun: 1}

    def key(record: Record) -> tuple[int, ...]:
        if isinstance(record, StateChange):
            return 2, record.run.number, record.sequence
        return rank[type(record)], record.number

    return sorted(records, key=key)


class ClaimingStore(SqliteStateStore):
    """Claims what it records, as engines do, so that all but flow runs goes through the spool."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._held: list[Claim] = []

    def close(self) -> None:
        """Let everything go first."""
        for claim in self._held:
            claim.release()
        super().close()

    def append(self, records: Sequence[Record]) -> None:
        """Add the flow runs, then the rest."""
        for record in records:
            if isinstance(record, FlowRun) and record.id == record.root_id:
                claim = self.claim(record.id)
                assert claim is not None
                self._held.append(claim)
        super().append([record for record in records if isinstance(record, FlowRun)])
        super().append([record for record in records if not isinstance(record, FlowRun)])


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[StateStore]]:
    """Open one store of each kind."""
    stores = [
        MemoryStateStore(),
        SqliteStateStore(tmp_path / "state.db"),
        ClaimingStore(tmp_path / "claimed.db"),
        JsonStateStore(tmp_path / "runs"),
    ]
    yield stores
    for store in stores:
        store.close()


@given(batches=flow_trees())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_records_are_given_back(stores: list[StateStore], batches: list[list[Record]]) -> None:
    """Every store gives back exactly what it was given, and keeps the results apart."""
    records = [record for batch in batches for record in batch]
    flow_runs = [record for record in records if isinstance(record, FlowRun)]
    for store in stores:
        for batch in batches:
            store.append(batch)

        for flow_run in flow_runs:
            said = [record for record in records if isinstance(record, LogEntry) and belongs(record, flow_run)]
            own = [record for record in records if belongs(record, flow_run) and not isinstance(record, LogEntry)]
            expected = [change._replace(result=None) if isinstance(change, StateChange) else change for change in own]
            read = list(store.read(flow_run.id))

            assert comparable(in_order(read)) == comparable(in_order(expected))
            for after in (0, 1):
                log = list(store.read_logs(flow_run.id, after))
                assert comparable(log) == comparable(list(enumerate(said, 1))[after:])
            for number in range(5):
                assert store.load_result(flow_run.id, number) == newest_result(own, number)


@given(data=st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cached_results_are_found(stores: list[StateStore], data: st.DataObject) -> None:
    """Of all that is recorded under a key, every store finds the newest result that is valid."""
    key, id = uuid.uuid4().hex + data.draw(texts), uuid.uuid4().hex[:20]
    flow_run = FlowRun(id, "a flow run", "flow", 0.0, id)
    runs = [TaskRun(flow_run, number, f"task-{number}", "task", 0, 0.0) for number in (1, 2)]
    recorded: list[tuple[StateChange, CacheEntry]] = []
    for sequence, entry in enumerate(data.draw(st.lists(brief_entries(key), max_size=6)), 1):
        run, type = data.draw(st.sampled_from(runs)), data.draw(st.just(StateType.COMPLETED) | types)
        result = data.draw(payloads | st.none())
        change = StateChange(run, sequence, type, "", "", float(sequence), result=result, cache=entry)
        recorded.append((change, entry))
    for store in stores:
        store.append([flow_run, *runs])
        for change, _ in recorded:
            store.append([change])

    for now in (-0.5, 0.0, 1.0, 1.5, 3.0):
        expected = None
        for change, entry in recorded:
            is_valid = entry.expires_at is None or entry.expires_at > now
            if change.type is StateType.COMPLETED and change.result is not None and is_valid:
                expected = CachedResult(
                    *(change.run.id, change.run.name, "a flow run"), change.timestamp, entry.expires_at, change.result
                )
        assert [store.find_cached(key, now) for store in stores] == [expected] * len(stores)


def brief_entries(key: str) -> st.SearchStrategy[CacheEntry]:
    """Draw a cache entry that is valid for a short time, for ever or, with no number as its time, never."""
    return st.builds(CacheEntry, st.just(key), st.none() | st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan]))


def belongs(record: Record, flow_run: FlowRun) -> bool:
    """Return whether a record is one of a flow run's own."""
    return (record.run if isinstance(record, (StateChange, LogEntry)) else record).flow_run is flow_run


def newest_result(records: list[Record], number: int) -> Payload | None:
    """Return what a run has last completed with, among records."""
    results = [
        record.result
        for record in records
        if isinstance(record, StateChange) and record.run.number == number and record.type is StateType.COMPLETED
    ]
    return results[-1] if results else None
