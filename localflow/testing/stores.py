"""The contract of a state store, as a test class.

    class TestShoeboxStateStore(StateStoreContract):
        @pytest.fixture
        def make_store(self, tmp_path):
            return lambda: ShoeboxStateStore(tmp_path / "shoebox")

`make_store()` opens the same store again each time it is called. A store that keeps nothing when it is closed says
`survives = False`, and the tests that open it again are skipped.
"""

from __future__ import annotations

import threading
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from localflow.errors import StoreError
from localflow.interfaces import (
    CacheEntry,
    Cause,
    Execution,
    FlowRun,
    FlowRunSummary,
    Payload,
    StateChange,
    StateStore,
    StateType,
    TaskRun,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.interfaces import Record

ODD_TEXTS = (
    "",
    "\x00",
    "a\x00b",
    "\udcff",
    "caf\udce9",
    "\ud83d\ude00",
    "\U0001f600",
    "line\nbreak\r\n\u2028",
    "'); DROP TABLE flow_runs; --",
    "\x1b[31m",
    '{"$text": "x"}',
    "\\udcff",
    "x" * 200_000,
)

ODD_VALUES: tuple[object, ...] = (
    *ODD_TEXTS,
    None,
    True,
    0,
    -1,
    2**53 + 1,
    2**63,
    -(2**63) - 1,
    10**5000,
    0.1,
    -0.0,
    1e308,
    5e-324,
    float("inf"),
    float("-inf"),
    [],
    {},
    {"": [{}]},
    {"$float": "nan"},
    {"\udcff": 1},
    [[[[["deep"]]]]],
)


def make_flow_run(**fields: Any) -> FlowRun:
    """Return a flow run with an id of its own; `fields` say what is special about it."""
    id = fields.setdefault("id", uuid.uuid4().hex[:20])
    defaults: dict[str, Any] = {"name": "brave-otter", "flow": "etl", "created_at": 1700000000.25, "root_id": id}
    return FlowRun(**defaults | fields)


def make_task_run(flow_run: FlowRun, number: int = 1, **fields: Any) -> TaskRun:
    """Return a task run of a flow run; `fields` say what is special about it."""
    defaults: dict[str, Any] = {
        "name": f"load-{number}",
        "task": "load",
        "ordinal": number - 1,
        "created_at": 1700000001.5,
    }
    return TaskRun(flow_run, number, **defaults | fields)


def make_running(run: FlowRun | TaskRun, sequence: int = 1, **fields: Any) -> StateChange:
    """Return the change of a run to RUNNING."""
    defaults: dict[str, Any] = {
        "type": StateType.RUNNING,
        "name": "Running",
        "message": "",
        "timestamp": 1700000002.125,
    }
    return StateChange(run, sequence, **defaults | fields)


def make_completed(run: FlowRun | TaskRun, sequence: int = 2, **fields: Any) -> StateChange:
    """Return the change of a run to COMPLETED, executed and with a result."""
    defaults: dict[str, Any] = {
        "type": StateType.COMPLETED,
        "name": "Completed",
        "message": "",
        "timestamp": 1700000003.0625,
        "previous": "Running",
        "execution": Execution("pid 1234", 1234, 1700000002.1, 1700000003.05, 0.75, 50 << 20),
        "result": Payload("json", b'{"rows": 3}'),
    }
    return StateChange(run, sequence, **defaults | fields)


class StateStoreContract:
    """What every state store must do; a plugin's test subclasses it and gives the fixture `make_store`."""

    survives: ClassVar[bool] = True
    """What is recorded is there again when the store is opened once more."""

    @pytest.fixture
    def make_store(self) -> Callable[[], StateStore]:
        """Return a callable that opens the same store each time it is called."""
        raise NotImplementedError("give the test class a fixture `make_store` that returns a callable")

    @pytest.fixture
    def open_store(self, make_store: Callable[[], StateStore]) -> Iterator[Callable[[], StateStore]]:
        """Open the store like `make_store`, and close what was opened at the end of the test."""
        opened: list[StateStore] = []

        def open_store() -> StateStore:
            if opened and not self.survives:
                pytest.skip("the store keeps nothing for another opening")
            opened.append(make_store())
            return opened[-1]

        yield open_store
        for store in opened:
            store.close()

    @pytest.fixture
    def store(self, open_store: Callable[[], StateStore]) -> StateStore:
        """Open the store once."""
        return open_store()

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
        )

        store.append([flow_run])

        assert list(store.read(flow_run.id)) == [flow_run]

    def test_task_runs_are_read_by_number(self, store: StateStore) -> None:
        """Every field of a task run is kept, and task runs come in the order of their numbers."""
        flow_run = make_flow_run()
        first = make_task_run(flow_run, 1, version="2", tags=("database", "slow"))
        second = make_task_run(flow_run, 2, upstreams=(first.id, "another-run-7"))
        tenth = make_task_run(flow_run, 10, upstreams=("",), tags=("two\nlines",))
        mapped = make_task_run(flow_run, 11, map_number=2, map_index=7)

        store.append([flow_run, mapped, tenth])
        store.append([second, first])

        assert list(store.read(flow_run.id)) == [flow_run, first, second, tenth, mapped]

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

    def test_batch_with_a_stranger_adds_nothing(self, store: StateStore) -> None:
        """A batch that cannot be added as a whole leaves no part of itself."""
        flow_run, other = make_flow_run(), make_flow_run()
        store.append([flow_run])
        stranger: Any = "not a record"

        with pytest.raises(StoreError):
            store.append([other, make_running(flow_run), stranger])

        assert list(store.read(flow_run.id)) == [flow_run]
        assert list(store.read(other.id)) == []

    def test_records_of_an_unrecorded_flow_run_are_refused(self, store: StateStore) -> None:
        """A flow run must be recorded before, or earlier in the same batch."""
        recorded, unrecorded = make_flow_run(), make_flow_run()
        store.append([recorded])

        with pytest.raises(StoreError, match=unrecorded.id):
            store.append([make_running(recorded), make_task_run(unrecorded)])

        assert list(store.read(recorded.id)) == [recorded]
        assert [summary.flow_run for summary in store.list_flow_runs()] == [recorded]

    def test_store_goes_on_after_a_refused_batch(self, store: StateStore) -> None:
        """A refused batch may be appended again in a form that fits."""
        flow_run = make_flow_run()
        with pytest.raises(StoreError):
            store.append([make_running(flow_run), flow_run])

        store.append([flow_run, make_running(flow_run)])

        assert list(store.read(flow_run.id)) == [flow_run, make_running(flow_run)]

    def test_flow_run_of_a_refused_batch_is_not_recorded(self, store: StateStore) -> None:
        """A flow run that came in a refused batch is unknown afterwards."""
        flow_run = make_flow_run()
        stranger: Any = None
        with pytest.raises(StoreError):
            store.append([flow_run, stranger])

        with pytest.raises(StoreError, match=flow_run.id):
            store.append([make_running(flow_run)])

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

    # -- results ----------------------------------------------------------------------------------------------------

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

    def test_result_as_json_is_loaded_byte_for_byte(self, store: StateStore) -> None:
        """A payload that says it is JSON comes back as the very bytes, white space and mistakes included."""
        flow_run = make_flow_run()
        store.append([flow_run])
        payloads = (b"null", b"", b'{"a": 1}\n', '"\u00e9\\udcff"'.encode(), b"\xff\x00", b"1" * 70_000)
        for sequence, data in enumerate(payloads, 1):
            store.append([make_completed(flow_run, sequence, result=Payload("json", data))])

            assert store.load_result(flow_run.id, 0) == Payload("json", data)

    def test_newest_result_is_loaded(self, store: StateStore) -> None:
        """Of several results of a run the newest counts; a later change without one leaves it."""
        flow_run = make_flow_run()
        task_run = make_task_run(flow_run)
        store.append([flow_run, task_run, make_completed(task_run, 1, result=Payload("pickle", b"old" * 100_000))])
        first = store.load_result(flow_run.id, 1)

        store.append([make_completed(task_run, 2, result=Payload("json", b'"new"')), make_running(task_run, 3)])

        assert first == Payload("pickle", b"old" * 100_000)
        assert store.load_result(flow_run.id, 1) == Payload("json", b'"new"')

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

    # -- several at once --------------------------------------------------------------------------------------------

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

    def test_unclosed_store_is_opened_again(self, open_store: Callable[[], StateStore]) -> None:
        """What `append` has returned from is there for others although nobody has closed anything."""
        flow_run = make_flow_run()
        open_store().append([flow_run])

        assert list(open_store().read(flow_run.id)) == [flow_run]

    def test_closing_twice_is_harmless(self, store: StateStore) -> None:
        """A store may be closed again."""
        store.close()
        store.close()

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


def changes_of(records: list[Record], run: FlowRun | TaskRun | None = None) -> list[StateChange]:
    """Return the state changes among records, those of one run if it is given."""
    return [record for record in records if isinstance(record, StateChange) and run in (None, record.run)]


def run_in_threads(work: Callable[[int], None], count: int) -> None:
    """Call `work` with 0, 1, ... in threads of their own and raise the first exception of any of them."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
