"""The engine: what it stores before it shows or hands over, and what it does when executors or the store misbehave."""

from __future__ import annotations

import contextlib
import inspect
import logging
import random
import sys
import threading
import types
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localflow import Completed, Failed, State, StateType, TaskFuture, flow, task
from localflow.builtin.memory import MemoryStateStore
from localflow.errors import LocalflowError, PluginError, StoreError, WorkerCrashedError
from localflow.interfaces import Call, Executor, Outcome, Record, StateChange, StateStore, TaskRun
from localflow.project import Project
from localflow.testing.stubs import ManualExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localflow.interfaces import Report

PATIENCE = 10.0
LONG = 5_000

pytestmark = pytest.mark.timeout(20)


class RecordingStore(MemoryStateStore):
    """Remembers what was appended, and lets the test look on, hold up or fail an append."""

    def __init__(self, before: Callable[[Sequence[Record]], None] = lambda records: None) -> None:
        super().__init__()
        self.batches: list[list[Record]] = []
        self.before = before

    @property
    def records(self) -> list[Record]:
        """Everything that is stored."""
        return [record for batch in self.batches for record in batch]

    def append(self, records: Sequence[Record]) -> None:
        """Keep the records, after the test had its say."""
        self.before(records)
        super().append(records)
        self.batches.append(list(records))

    def changes(self, name: str) -> list[str]:
        """Return the names of the stored states of a task run, or of the flow for its name."""
        return [
            change.name
            for change in self.records
            if isinstance(change, StateChange)
            and (change.run.name if isinstance(change.run, TaskRun) else change.run.flow) == name
        ]


class InlineExecutor(Executor):
    """Runs calls inside `submit` and reports them there, in one batch or one by one, so that news arrives early."""

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self.report: Report = lambda outcomes: None
        self.deepest = 0

    @property
    def capacity(self) -> int | None:
        """The capacity given to the constructor."""
        return self._capacity

    def start(self, report: Report) -> None:
        """Keep `report`."""
        self.report = report

    def submit(self, calls: Sequence[Call]) -> None:
        """Run and report the calls at once."""
        self.deepest = max(self.deepest, len(inspect.stack(0)))
        self.report([call.run() for call in calls])

    def shutdown(self) -> None:
        """Release nothing."""
        pass


class RefusingExecutor(Executor):
    """Takes no call."""

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity

    @property
    def capacity(self) -> int | None:
        """The capacity given to the constructor."""
        return self._capacity

    def start(self, report: Report) -> None:
        """Keep `report`."""
        pass

    def submit(self, calls: Sequence[Call]) -> None:
        """Refuse the calls."""
        raise OSError("no room")

    def shutdown(self) -> None:
        """Release nothing."""
        pass


class CallerExecutor(Executor):
    """Runs calls in the caller's thread; `after` happens between the call and its report."""

    runs_in_caller: ClassVar[bool] = True

    def __init__(self, after: Callable[[Outcome], None] = lambda outcome: None) -> None:
        self.after = after
        self.report: Report = lambda outcomes: None

    def start(self, report: Report) -> None:
        """Keep `report`."""
        self.report = report

    def submit(self, calls: Sequence[Call]) -> None:
        """Run the calls, and report each of them."""
        for call in calls:
            outcome = call.run("main")
            self.after(outcome)
            self.report([outcome])

    def shutdown(self) -> None:
        """Release nothing."""
        pass


@task
def give(value: object = None) -> Any:
    """Return what was given."""
    return value


@task
def increment(n: int) -> int:
    """Add one."""
    return n + 1


@pytest.fixture(autouse=True)
def memory_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep nothing on disk."""
    monkeypatch.setenv("LOCALFLOW_STORE", "memory")


def run(body: Callable[[], Any], executor: Executor | str, store: StateStore | None = None) -> State:
    """Run a body as a flow named `body` with this executor and store; its assertions count."""
    decorated = flow(name="body", executor=executor)(body)
    state = decorated.execute(Project.load(), store or MemoryStateStore(), {}).state
    if state.is_failed() and isinstance(state.result(raise_on_failure=False), AssertionError):
        state.result()
    return state


def ended(work: Callable[[], Any]) -> Any:
    """Do work in a thread and return its value, or its exception; fail if it hangs."""
    results: list[Any] = []

    def do() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert results, "it hangs"
    return results[0]


def in_background(work: Callable[[], Any]) -> threading.Thread:
    """Start work in a thread."""
    thread = threading.Thread(target=work)
    thread.start()
    return thread


# -- stored, then shown ----------------------------------------------------------------------------------------------


def test_the_start_of_a_run_is_stored_before_its_executor_gets_the_call() -> None:
    """Started is recorded first, for calls in every position."""
    store, missing = RecordingStore(), []

    class Watching(InlineExecutor):
        def submit(self, calls: Sequence[Call]) -> None:
            missing.extend(call.task_run.name for call in calls if store.changes(call.task_run.name) != ["Running"])
            super().submit(calls)

    state = run(lambda: [increment(increment(give(n))) for n in range(3)], Watching(), store)

    assert state.result() == [2, 3, 4]
    assert missing == []


def test_the_start_is_stored_before_a_call_runs_in_the_callers_thread() -> None:
    """The sequential executor keeps the same order."""
    store, seen = RecordingStore(), []

    @task
    def look() -> None:
        seen.append((store.changes("look-0"), store.changes("body")))

    run(lambda: look(), "sequential", store)

    assert seen == [(["Running"], ["Running"])]


def test_the_flow_is_stored_before_its_body_runs() -> None:
    """Its record and its start come first."""
    store, seen = RecordingStore(), []

    run(lambda: seen.append(len(store.records)), "sequential", store)

    assert seen == [2]
    assert type(store.records[0]).__name__ == "FlowRun"
    assert store.changes("body") == ["Running", "Completed"]


@pytest.mark.parametrize("ending", ["Completed", "Failed"])
def test_an_end_is_stored_before_it_is_shown(ending: str) -> None:
    """While the append is going on the future is not done, its waiters wait, its dependents have not started."""
    executor, observed, kept = ManualExecutor(), [], []
    appending, go_on = threading.Event(), threading.Event()

    def before(records: Sequence[Record]) -> None:
        if any(
            isinstance(record, StateChange) and record.name == ending and record.sequence == 2 for record in records
        ):
            if appending.is_set():
                return
            appending.set()
            assert go_on.wait(PATIENCE)

    def body() -> None:
        first = give(1)
        second = give(first)
        told = threading.Event()
        first.add_done_callback(lambda ended: told.set())
        kept.extend([first, second])
        (call,) = executor.wait_for_calls(1)
        end = (
            (lambda: executor.complete(call.id, 1))
            if ending == "Completed"
            else lambda: executor.fail(call.id, ValueError())
        )
        reporter = in_background(end)
        assert appending.wait(PATIENCE)
        observed.append(
            (first.done(), first.wait(0.05), first.state.name, second.done(), executor.calls, told.is_set())
        )
        go_on.set()
        reporter.join(PATIENCE)
        assert first.wait(PATIENCE) is not None
        if ending == "Completed":
            executor.complete(executor.wait_for_calls(1)[0].id)

    run(body, executor, RecordingStore(before))

    assert observed == [(False, None, "Running", False, [], False)]


def test_the_final_state_of_the_flow_is_stored_before_the_call_returns() -> None:
    """Whoever has the state can find it in the store."""
    store = RecordingStore()

    state = run(lambda: give(1), "sequential", store)

    last = store.records[-1]
    assert isinstance(last, StateChange)
    assert (last.type, last.message) == (state.type, state.message)


def test_every_record_is_stored_once_in_a_readable_order() -> None:
    """Runs come before their changes, and the changes of a run are numbered from 1 without gaps."""
    store = RecordingStore()

    def body() -> None:
        good, bad = give(1), give.with_options(name="bad")(State(StateType.FAILED))
        give([good, bad])
        flow(name="inner")(lambda: give(2))()

    run(body, "thread", store)

    known: set[str] = set()
    sequences: dict[str, int] = {}
    for record in store.records:
        if isinstance(record, StateChange):
            assert record.run.id in known
            sequences[record.run.id] = sequences.get(record.run.id, 0) + 1
            assert record.sequence == sequences[record.run.id]
        else:
            assert record.id not in known
            known.add(record.id)
    assert set(sequences) == known


def test_changes_name_the_state_before() -> None:
    """The history of a run can be read from its changes."""
    store = RecordingStore()

    def body() -> None:
        give(give(State(StateType.FAILED)))
        give(1)

    run(body, "sequential", store)

    history = [
        (change.run.name, change.previous, change.name)
        for change in store.records
        if isinstance(change, StateChange) and isinstance(change.run, TaskRun)
    ]
    assert history == [
        ("give-0", "Pending", "NotReady"),
        ("give-1", "Pending", "NotReady"),
        ("give-2", "Pending", "Running"),
        ("give-2", "Running", "Completed"),
    ]


def test_an_append_covers_many_runs() -> None:
    """What happened together is committed together."""
    executor, store = ManualExecutor(), RecordingStore()

    def body() -> None:
        source = give(0)
        for _ in range(100):
            give(source)
        (call,) = executor.wait_for_calls(1)
        before = len(store.batches)
        executor.complete(call.id)
        assert len(store.batches) == before + 1
        assert len(executor.calls) == 100
        for call in executor.calls:
            executor.complete(call.id)

    assert run(body, executor, store).is_completed()


class HoldingExecutor(InlineExecutor):
    """Keeps calls until the test has all of them run, and reported at once."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def submit(self, calls: Sequence[Call]) -> None:
        """Keep the calls."""
        self.calls.extend(calls)

    def run(self) -> None:
        """Run what it has, and report it."""
        calls, self.calls = self.calls, []
        self.report([call.run() for call in calls])


def test_of_many_outcomes_some_are_taken_in_each_turn() -> None:
    """What waits for the first of many outcomes does not wait until all of them are taken."""
    executor, store = HoldingExecutor(), RecordingStore()
    batches: list[list[Record]] = []

    def body() -> None:
        first, *_ = [give(number) for number in range(3_000)]
        give(first)
        before = len(store.batches)
        executor.run()
        batches.extend(store.batches[before:])
        executor.run()

    assert run(body, executor, store).is_completed()
    assert max(map(len, batches)) < 1_000
    assert [record.name for record in batches[0] if isinstance(record, StateChange)].count("Running") == 1


# -- a store that fails ----------------------------------------------------------------------------------------------


class FailingStore(RecordingStore):
    """Fails every append from the first one on that holds a certain state of a certain run."""

    def __init__(self, run: str, state: str, error: BaseException | None = None) -> None:
        super().__init__(self._check)
        self.run, self.state = run, state
        self.error = error or StoreError("disk full")
        self.failed = threading.Event()

    def _check(self, records: Sequence[Record]) -> None:
        for record in records:
            if isinstance(record, StateChange):
                run = record.run.name if isinstance(record.run, TaskRun) else record.run.flow
                if (run, record.name) == (self.run, self.state):
                    self.failed.set()
        if self.failed.is_set():
            raise self.error


@pytest.mark.parametrize("executor", ["sequential", "thread"])
@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("body", "Running"),
        ("body", "Completed"),
        ("give-0", "Running"),
        ("give-0", "Completed"),
        ("increment-0", "Running"),
        ("increment-0", "Completed"),
        ("blocked-0", "NotReady"),
    ],
)
def test_a_store_that_fails_breaks_the_run_loudly(executor: str, name: str, state: str) -> None:
    """The flow call raises the store's error, whichever state could not be stored; nothing hangs."""
    store = FailingStore(name, state)

    def body() -> str:
        increment(give(1))
        give.with_options(name="blocked")(1, wait_for=[Failed()])
        return "value"

    error = ended(lambda: run(body, executor, store))

    assert isinstance(error, StoreError)
    assert str(error) == "disk full"
    assert store.failed.is_set()


@pytest.mark.parametrize("executor", ["sequential", "thread"])
def test_nothing_starts_after_the_store_has_failed(executor: str) -> None:
    """No task body runs whose start could not be recorded, and none after it."""
    ran: list[int] = []
    note = task(name="note")(ran.append)

    def body() -> None:
        note(1).wait(PATIENCE)
        note(2)
        note(3)

    error = ended(lambda: run(body, executor, FailingStore("note-1", "Running")))

    assert isinstance(error, StoreError)
    assert ran == [1]


@pytest.mark.parametrize("executor", ["sequential", "thread"])
@pytest.mark.parametrize("state", ["Running", "Completed"])
def test_waiting_futures_raise_the_stores_error(executor: str, state: str) -> None:
    """Who waits for a run that can no longer be recorded gets the error, not a state and not silence."""
    seen: list[Any] = []

    def body() -> None:
        future = give(1)
        for ask in (future.wait, future.result):
            with pytest.raises(StoreError):
                ask(PATIENCE / 4)
            seen.append(future.done())

    def tolerant() -> None:
        try:
            body()
        except StoreError:
            seen.append("raised at the call")

    error = ended(lambda: run(tolerant, executor, FailingStore("give-0", state)))

    assert isinstance(error, StoreError)
    assert seen in ([False, False], ["raised at the call"])


def test_every_waiter_of_every_open_run_is_woken() -> None:
    """Runs at work, in the queue and in the graph: all of their waiters get the error."""
    executor, errors = ManualExecutor(capacity=2), []
    store = FailingStore("give-0", "Completed")

    def body() -> None:
        futures = [give(n) for n in range(4)]
        futures += [give([future]) for future in futures]

        def ask(future: TaskFuture[Any]) -> None:
            try:
                future.result(PATIENCE / 4)
            except BaseException as error:
                errors.append(error)

        waiters = [in_background(lambda future=future: ask(future)) for future in futures]
        executor.complete(executor.wait_for_calls(2)[0].id)
        for waiter in waiters:
            waiter.join(PATIENCE)

    with pytest.raises(StoreError):
        run(body, executor, store)

    assert [type(error) for error in errors] == [StoreError] * 8


def test_calls_made_while_the_store_fails_do_not_hang() -> None:
    """A task called at the very moment of the failure raises, or its future does."""
    executor, errors = ManualExecutor(), []
    appending, go_on = threading.Event(), threading.Event()

    def before(records: Sequence[Record]) -> None:
        if any(isinstance(record, StateChange) and record.name == "Completed" for record in records):
            appending.set()
            assert go_on.wait(PATIENCE)
            raise StoreError("disk full")

    def body() -> None:
        give(1)
        (call,) = executor.wait_for_calls(1)
        reporter = in_background(lambda: executor.complete(call.id))
        assert appending.wait(PATIENCE)
        try:
            late = give(2)
            go_on.set()
            late.result(PATIENCE / 4)
        except BaseException as error:
            errors.append(error)
        go_on.set()
        reporter.join(PATIENCE)

    with pytest.raises(StoreError):
        run(body, executor, RecordingStore(before))

    assert [type(error) for error in errors] == [StoreError]


def test_a_body_that_swallows_the_error_does_not_complete() -> None:
    """The error of the store is not the body's to catch."""

    def body() -> str:
        with contextlib.suppress(StoreError):
            give(1).result(PATIENCE)
        return "as if nothing had happened"

    with pytest.raises(StoreError):
        run(body, "thread", FailingStore("give-0", "Completed"))


def test_a_body_that_raises_something_else_gives_the_stores_error() -> None:
    """The cause that matters comes out."""

    def body() -> None:
        try:
            give(1).result(PATIENCE)
        except StoreError as error:
            raise ValueError("hidden") from error

    with pytest.raises(StoreError):
        run(body, "thread", FailingStore("give-0", "Completed"))


@pytest.mark.parametrize("executor", ["sequential", "thread"])
@pytest.mark.parametrize("state", ["Running", "Completed"])
def test_a_store_that_raises_something_unexpected_breaks_the_run_too(
    executor: str, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A store plugin's bug is as loud as a full disk, and names the store."""
    store = FailingStore("give-0", state, ZeroDivisionError("bug"))

    error = ended(lambda: run(lambda: give(1).result(PATIENCE / 2), executor, store))

    assert isinstance(error, StoreError)
    assert str(error).endswith("FailingStore failed: ZeroDivisionError: bug")


def test_a_store_that_exits_breaks_the_run_too() -> None:
    """`sys.exit()` in a store ends neither the thread nor the program as if all were well."""
    store = FailingStore("give-0", "Completed", SystemExit(0))

    error = ended(lambda: run(lambda: give(1).result(PATIENCE / 2), "thread", store))

    assert isinstance(error, StoreError)


def test_a_subflow_whose_state_cannot_be_stored_breaks_the_whole_run() -> None:
    """The error goes through the parent's body to the outermost call."""
    reached: list[str] = []

    def body() -> None:
        flow(name="inner")(lambda: 1)()
        reached.append("after the subflow")

    with pytest.raises(StoreError):
        run(body, "sequential", FailingStore("inner", "Completed"))

    assert reached == []


# -- executors -------------------------------------------------------------------------------------------------------


def test_calls_carry_resolved_arguments_only() -> None:
    """What leaves the engine is ready to run: no future is left in it."""
    executor = ManualExecutor()

    def body() -> None:
        downstream = give({"k": [give(1)]})
        (first,) = executor.wait_for_calls(1)
        assert (first.task_run.name, first.args, first.attempt) == ("give-0", (1,), 1)
        executor.complete(first.id, "data")
        (second,) = executor.wait_for_calls(1)
        assert second.args == ({"k": ["data"]},)
        executor.run(second.id)
        assert downstream.result(PATIENCE) == {"k": ["data"]}

    assert run(body, executor).is_completed()


def test_only_ready_calls_are_handed_over() -> None:
    """A waiting task never holds a place in an executor."""
    executor = ManualExecutor()

    def body() -> None:
        source = give(1)
        for _ in range(10):
            source = give(source)
        for _ in range(11):
            (call,) = executor.wait_for_calls(1)
            executor.complete(call.id)

    assert run(body, executor).is_completed()


@pytest.mark.parametrize("capacity", [1, 3])
def test_the_capacity_is_respected(capacity: int) -> None:
    """Never more calls in hand than the executor wants; each end makes room for the oldest that waits."""
    executor = ManualExecutor(capacity)
    order: list[str] = []

    def body() -> None:
        for n in range(10):
            give(n)
        while len(order) < 10:
            calls = executor.wait_for_calls(min(capacity, 10 - len(order)))
            assert len(calls) <= capacity
            order.append(calls[0].task_run.name)
            executor.complete(calls[0].id)

    assert run(body, executor).is_completed()
    assert order == [f"give-{n}" for n in range(10)]


def test_a_queued_run_is_pending_until_it_is_handed_over() -> None:
    """Nothing is recorded as started while it waits for room."""
    executor, store = ManualExecutor(capacity=1), RecordingStore()

    def body() -> None:
        _, second = give(1), give(2)
        (call,) = executor.wait_for_calls(1)
        assert second.state.name == "Pending"
        assert store.changes("give-1") == []
        executor.complete(call.id)
        (call,) = executor.wait_for_calls(1)
        assert second.state.name == "Running"
        executor.complete(call.id)

    assert run(body, executor, store).is_completed()


def test_unknown_and_repeated_outcomes_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """An executor that answers twice, or answers what it was never asked, harms nobody."""
    executor = ManualExecutor()

    def body() -> object:
        future, other = give(1), give(2)
        first, second = executor.wait_for_calls(2)
        report = executor._report  # type: ignore[attr-defined]
        report([Outcome(10**6, Completed()), Outcome(-1, Failed())])
        executor.complete(first.id, "once")
        report([Outcome(first.id, Failed("twice")), Outcome(first.id, Completed(data="thrice"))])
        executor.complete(second.id, "other")
        return [future, other]

    with caplog.at_level(logging.WARNING, logger="localflow"):
        state = run(body, executor)

    assert state.result() == ["once", "other"]
    assert "ignored" in caplog.text


def test_an_outcome_for_a_call_that_was_not_handed_over_is_ignored() -> None:
    """A run that waits, in the graph or for room, cannot have ended."""
    executor, ran = ManualExecutor(capacity=1), []

    def body() -> object:
        first, queued = give(1), give(2)
        waiting = give([first])
        (call,) = executor.wait_for_calls(1)
        executor._report([Outcome(n, Completed(data="invented")) for n in range(call.id + 1, call.id + 3)])  # type: ignore[attr-defined,misc]
        assert not queued.done()
        assert not waiting.done()
        for _ in range(3):
            (call,) = executor.wait_for_calls(1)
            ran.append(call.task_run.name)
            executor.run(call.id)
        return [first, queued, waiting]

    assert run(body, executor).result() == [1, 2, [1]]
    assert sorted(ran) == ["give-0", "give-1", "give-2"]


@pytest.mark.parametrize("capacity", [None, 1])
def test_an_executor_that_refuses_calls_makes_them_crashed(
    capacity: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The state says which executor and why; what depends on them is NotReady."""

    def body() -> object:
        first = give(1)
        return [first, give(2), give(first)]

    state = run(body, RefusingExecutor(capacity))

    first, second, third = state.result(raise_on_failure=False)
    assert state.message == "2/3 states failed."
    for crashed in (first, second):
        assert crashed.type is StateType.CRASHED
        assert "RefusingExecutor" in crashed.message
        assert "no room" in crashed.message
    assert third.name == "NotReady"
    with pytest.raises(WorkerCrashedError, match="no room"):
        state.result()


def test_a_crashed_call_blocks_its_downstream() -> None:
    """CRASHED is not COMPLETED."""
    executor = ManualExecutor()

    def body() -> object:
        first = give(1)
        downstream = give(first)
        executor.crash(executor.wait_for_calls(1)[0].id, "worker died")
        return [first, downstream]

    crashed, blocked = run(body, executor).result(raise_on_failure=False)

    assert (crashed.type, crashed.message) == (StateType.CRASHED, "worker died")
    assert blocked.message == "Upstream task run 'give-0' did not reach a 'COMPLETED' state."


@pytest.mark.usefixtures("caplog")
@pytest.mark.parametrize("kind", ["refusing", "inline"])
@pytest.mark.parametrize("capacity", [1, None])
@pytest.mark.parametrize("shape", ["chain", "fan-out"])
def test_an_executor_that_answers_inside_submit_does_not_recurse(kind: str, capacity: int | None, shape: str) -> None:
    """However many calls follow from one another, the stack stays flat."""
    executor = RefusingExecutor(capacity) if kind == "refusing" else InlineExecutor(capacity)
    gate = ManualExecutor()
    logging.getLogger("localflow").setLevel(logging.CRITICAL)

    def body() -> object:
        source = give.with_options(executor=gate)(0)
        future = source
        futures = []
        for _ in range(LONG):
            future = increment(future if shape == "chain" else source)
            futures.append(future)
        gate.run(gate.wait_for_calls(1)[0].id)
        return futures

    try:
        state = run(body, executor)
    finally:
        logging.getLogger("localflow").setLevel(logging.NOTSET)

    if kind == "inline":
        assert isinstance(executor, InlineExecutor)
        assert state.result() == ([*range(1, LONG + 1)] if shape == "chain" else [1] * LONG)
        assert executor.deepest < sys.getrecursionlimit() / 2
    else:
        crashed = 1 if shape == "chain" else LONG
        assert state.message == f"{crashed}/{LONG} states failed."


def test_outcomes_from_many_threads() -> None:
    """Whoever brings news, in whatever batches, nothing is lost or counted twice."""
    chance = random.Random(7)
    workers = 8

    class Scattering(Executor):
        """Reports from many threads, in batches of random size and order."""

        def start(self, report: Report) -> None:
            self.report = report
            self.changed = threading.Condition()
            self.pending: list[Call] = []
            self.stopped = False
            self.threads = [in_background(self.work) for _ in range(workers)]

        def submit(self, calls: Sequence[Call]) -> None:
            with self.changed:
                self.pending.extend(calls)
                self.changed.notify_all()

        def work(self) -> None:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.pending or self.stopped)
                    if self.stopped:
                        return
                    chance.shuffle(self.pending)
                    size = chance.randint(1, 20)
                    mine, self.pending = self.pending[:size], self.pending[size:]
                self.report([call.run() for call in mine])

        def shutdown(self) -> None:
            with self.changed:
                self.stopped = True
                self.changed.notify_all()
            for thread in self.threads:
                thread.join(PATIENCE)

    store = RecordingStore()

    def body() -> object:
        layer = [give(0) for _ in range(50)]
        for _ in range(20):
            layer = [increment(future) for future in layer]
        return layer

    state = run(body, Scattering(), store)

    assert state.result() == [20] * 50
    ends = [record for record in store.records if isinstance(record, StateChange) and record.name == "Completed"]
    assert len(ends) == 50 * 21 + 1


def test_the_caller_of_a_call_runs_it_himself() -> None:
    """An executor that runs in the caller's thread is handed a call by the thread that made it, never by another."""
    threads: list[tuple[str, threading.Thread]] = []

    class Watching(CallerExecutor):
        def submit(self, calls: Sequence[Call]) -> None:
            threads.extend((call.task_run.name, threading.current_thread()) for call in calls)
            super().submit(calls)

    here = give.with_options(executor=Watching())

    def body() -> object:
        return [here(give(1)), here(here(give(2)))]

    assert run(body, "thread").result() == [1, 2]
    assert {thread for _, thread in threads} == {threading.main_thread()}
    assert [name for name, _ in threads] == ["give-1", "give-3", "give-4"]


def test_executors_are_started_once_and_shut_down_once() -> None:
    """One lane per executor, however many tasks name it; a failing shutdown changes nothing."""
    events: list[str] = []

    class Counting(InlineExecutor):
        def start(self, report: Report) -> None:
            events.append("start")
            super().start(report)

        def shutdown(self) -> None:
            events.append("shutdown")
            raise RuntimeError("cannot stop")

    executor = Counting()
    own = give.with_options(executor=executor)

    def body() -> object:
        return [own(1), give(2), flow(executor=executor)(lambda: own(3))()]

    logging.getLogger("localflow.engine").setLevel(logging.CRITICAL)
    try:
        state = run(body, executor)
    finally:
        logging.getLogger("localflow.engine").setLevel(logging.NOTSET)

    assert state.result() == [1, 2, 3]
    assert events == ["start", "shutdown"]


def test_executors_are_shut_down_when_the_body_raises() -> None:
    """Also then nothing is left behind."""
    executor = ManualExecutor()

    def body() -> None:
        raise ValueError("boom")

    run(body, executor)

    assert not executor.is_started


def test_an_executor_that_cannot_start_is_the_callers_error() -> None:
    """The flow's own executor is needed before anything runs."""

    class Broken(InlineExecutor):
        def start(self, report: Report) -> None:
            raise OSError("no threads")

    store = RecordingStore()
    with pytest.raises(PluginError, match=r"executor 'Broken' \(.*\) cannot start: OSError: no threads"):
        run(lambda: give(1), Broken(), store)

    assert store.records == []


def test_a_tasks_executor_that_cannot_start_fails_at_the_call() -> None:
    """The body may catch it; otherwise it is the flow's failure."""

    class Broken(InlineExecutor):
        def start(self, report: Report) -> None:
            raise OSError("no threads")

    state = run(lambda: give.with_options(executor=Broken())(1), "sequential")

    assert state.message.startswith("Flow run encountered an exception: PluginError: executor 'Broken' (")
    assert state.message.endswith(") cannot start: OSError: no threads")


def test_an_executor_that_exits_in_submit_does_not_hang_the_run() -> None:
    """`sys.exit()` of an executor crashes its calls, by name."""

    class Leaving(InlineExecutor):
        def submit(self, calls: Sequence[Call]) -> None:
            sys.exit(0)

    state = run(lambda: [give(1)], Leaving())

    assert state.message == "1/1 states failed."
    (crashed,) = state.result(raise_on_failure=False)
    assert crashed.message.endswith(") failed to take the call: SystemExit: 0")


def test_what_is_no_outcome_is_ignored() -> None:
    """An executor that reports nonsense beside its outcomes harms nobody."""

    class Confused(InlineExecutor):
        def submit(self, calls: Sequence[Call]) -> None:
            for call in calls:
                self.report([42, call.run()._replace(state="done"), call.run()])

    assert run(lambda: give(1), Confused()).result() == 1


def test_an_outcome_without_details_is_enough() -> None:
    """An executor need not tell more than the state."""
    executor = ManualExecutor()

    def body() -> object:
        future = give(1)
        (call,) = executor.wait_for_calls(1)
        executor._report([Outcome(call.id, Completed(data="bare"))])  # type: ignore[attr-defined,misc]
        return future

    assert run(body, executor).result() == "bare"


def test_records_that_travel_with_an_outcome_are_stored_before_its_end() -> None:
    """What flows inside a task recorded is committed with the task's own state."""
    store = RecordingStore()

    @task
    def outer() -> Any:
        return flow(name="inner")(lambda: give(1))().result()

    assert run(lambda: outer(), "thread", store).result() == 1

    names = [type(record).__name__ for record in store.records]
    batch = next(batch for batch in store.batches if any(getattr(record, "flow", "") == "inner" for record in batch))
    assert names.count("FlowRun") == 2
    last = batch[-1]
    assert isinstance(last, StateChange)
    assert (last.run.name, last.name) == ("outer-0", "Completed")


# -- notifications ---------------------------------------------------------------------------------------------------


def test_notifiers_are_told_after_the_store() -> None:
    """A change that is published can be found in the store."""
    store, early = RecordingStore(), []

    class Watching:
        def wants(self, name: str, type: StateType) -> bool:
            return True

        def publish(self, changes: Sequence[StateChange]) -> None:
            early.extend(change for change in changes if change not in store.records)
            told.extend(f"{change.run.name}:{change.name}" for change in changes if isinstance(change.run, TaskRun))

        def close(self) -> int:
            return 0

    told: list[str] = []

    class Stub:
        """Stands for a project with a notifier of the test's own."""

        settings = types.SimpleNamespace(limits={}, retention={})
        executor = "sequential"
        choose = staticmethod(Project.load().choose)
        make_notifications = staticmethod(Watching)
        limits_of = staticmethod(lambda: None)
        discreet = staticmethod(str)
        state_directory = None

    flow(name="body")(lambda: give(give(1))).execute(Stub(), store, {})  # type: ignore[arg-type]

    assert early == []
    assert told == ["give-0:Running", "give-0:Completed", "give-1:Running", "give-1:Completed"]


# -- any order of events ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), size=st.integers(1, 25), capacity=st.sampled_from([None, 1, 2, 5]))
def test_any_order_of_ends_gives_the_same_states(seed: int, size: int, capacity: int | None) -> None:
    """Whichever call an executor ends next, and however, each run ends as its upstreams say, stored before shown."""
    chance = random.Random(seed)
    upstreams = [[k for k in range(n) if chance.random() < 0.3] for n in range(size)]
    verdicts = [chance.choices(["complete", "fail", "crash"], [8, 1, 1])[0] for _ in range(size)]
    executor, store = ManualExecutor(capacity), RecordingStore()
    futures: list[TaskFuture[Any]] = []

    def body() -> None:
        for n in range(size):
            futures.append(give(n, wait_for=[futures[k] for k in upstreams[n]]))
            while executor.calls and chance.random() < 0.3:
                end_one()
        while executor.calls:
            end_one()

    def end_one() -> None:
        call = chance.choice(executor.calls)
        assert capacity is None or len(executor.calls) <= capacity
        assert store.changes(call.task_run.name) == ["Running"]
        number = call.task_run.number - 1
        match verdicts[number]:
            case "complete":
                executor.complete(call.id, number)
            case "fail":
                executor.fail(call.id, ValueError(number))
            case "crash":
                executor.crash(call.id)

    run(body, executor, store)

    expected: list[str] = []
    for n in range(size):
        if any(expected[k] != "Completed" for k in upstreams[n]):
            expected.append("NotReady")
        else:
            expected.append({"complete": "Completed", "fail": "Failed", "crash": "WorkerLost"}[verdicts[n]])
    assert [future.state.name for future in futures] == expected
    for n, name in enumerate(expected):
        stored = store.changes(f"give-{n}")
        assert stored == (["NotReady"] if name == "NotReady" else ["Running", name])


def test_a_misuse_error_is_one_of_ours() -> None:
    """Everything raised on purpose has one root."""
    assert issubclass(StoreError, LocalflowError)
