"""Flows in flows and flows in tasks: runs of their own, with a parent, counted as one state."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from localflow import Completed, Failed, State, StateType, TaskFuture, ThreadExecutor, flow, task
from localflow.builtin.memory import MemoryStateStore
from localflow.errors import FlowDepthError, UpstreamFailedError
from localflow.interfaces import Call, Executor, FlowRun, Report
from localflow.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PATIENCE = 10.0
EXECUTORS = pytest.mark.parametrize("executor", ["sequential", "thread"])


@pytest.fixture(autouse=True)
def memory_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep nothing on disk."""
    monkeypatch.setenv("LOCALFLOW_STORE", "memory")


@task
def give(value: object = None) -> Any:
    """Return what was given."""
    return value


@task
def fail() -> None:
    """Raise."""
    raise ValueError("boom")


@flow
def child(value: object = 1) -> Any:
    """Call one task."""
    return give(value)


@flow
def failing_child() -> None:
    """Call a task that fails."""
    give(1)
    fail()


def run(body: Callable[[], Any], executor: str | Executor | None = None) -> State:
    """Run a body as a flow named `parent`."""
    return flow(name="parent", executor=executor)(body)()


def recorded(
    body: Callable[[], Any], executor: str | None = None
) -> tuple[State, dict[str, FlowRun], MemoryStateStore]:
    """Run a body as a flow and return its state, the recorded flow runs by flow name, and the store."""
    store = MemoryStateStore()
    state = flow(name="parent", executor=executor)(body).execute(Project.load(), store, {}).state
    return state, {summary.flow_run.flow: summary.flow_run for summary in store.list_flow_runs()}, store


class CountingExecutor(Executor):
    """Runs calls in the caller's thread and remembers them and its starts."""

    runs_in_caller: ClassVar[bool] = True

    def __init__(self) -> None:
        self.starts = 0
        self.names: list[str] = []
        self.report: Report = lambda outcomes: None

    def start(self, report: Report) -> None:
        """Keep `report`."""
        self.starts += 1
        self.report = report

    def submit(self, calls: Sequence[Call]) -> None:
        """Run the calls and remember them."""
        for call in calls:
            self.names.append(call.task_run.name)
            self.report([call.run("main")])

    def shutdown(self) -> None:
        """Release nothing."""
        pass


# -- in a flow -------------------------------------------------------------------------------------------------------


@EXECUTORS
def test_a_subflow_runs_now_and_returns_its_state(executor: str) -> None:
    """The call in the parent's body blocks and gives a State, not a future."""
    seen: list[Any] = []

    def body() -> str:
        state = child(5)
        seen.append(state)
        return "value"

    state = run(body, executor)

    assert isinstance(seen[0], State)
    assert seen[0].message == "All states completed."
    assert seen[0].result() == 5
    assert state.result() == "value"


@EXECUTORS
def test_a_subflow_counts_as_one_state(executor: str) -> None:
    """All task runs come first, then all subflows, whatever the order of the calls."""

    def body() -> None:
        failing_child()
        give(1)
        child()

    state = run(body, executor)

    assert state.message == "1/3 states failed."
    assert [s.message for s in state.result(raise_on_failure=False)] == [
        "",
        "1/2 states failed.",
        "All states completed.",
    ]


def test_subflows_alone_decide_a_parent_without_tasks() -> None:
    """A parent that calls nothing but flows is their aggregate."""
    assert run(lambda: child() and None).message == "All states completed."
    assert run(lambda: failing_child() and None).message == "1/1 states failed."


def test_the_failure_of_a_subflow_does_not_escape() -> None:
    """The parent looks at the state, or asks for the result."""

    def body() -> object:
        state = failing_child()
        assert state.is_failed()
        with pytest.raises(ValueError, match="boom"):
            state.result()
        return "went on"

    assert run(body).result() == "went on"
    assert run(lambda: failing_child().result()).message == "Flow run encountered an exception: ValueError: boom"


def test_a_returned_state_of_a_subflow_is_the_parents() -> None:
    """It is a State like any other."""
    kept: list[State] = []

    def body() -> State:
        kept.append(child())
        return kept[0]

    assert run(body) is kept[0]


def test_states_of_subflows_in_containers() -> None:
    """They are aggregated with the futures beside them."""
    state = run(lambda: {"flow": child(1), "task": give(2), "bad": [failing_child()]})

    assert state.message == "1/3 states failed."
    assert run(lambda: [child(1), give(2)]).result() == [1, 2]


@EXECUTORS
def test_the_state_of_a_subflow_as_an_argument(executor: str) -> None:
    """It is resolved like a future; a failed one blocks and is named."""

    def body() -> object:
        return [give([child(1)]), give(failing_child()), give(2, wait_for=[failing_child()])]

    good, *blocked = run(body, executor).result(raise_on_failure=False)

    assert good.result() == [1]
    for state in blocked:
        assert state.name == "NotReady"
        assert state.message.startswith("Upstream flow run '")
        assert state.message.endswith("' did not reach a 'COMPLETED' state.")
        with pytest.raises(UpstreamFailedError) as caught:
            state.result()
        assert isinstance(caught.value.__cause__, ValueError)


@EXECUTORS
def test_futures_as_arguments_of_a_subflow(executor: str) -> None:
    """They are waited for and replaced before the subflow's body runs."""
    seen: list[Any] = []

    @flow
    def look(value: Any, *, nested: Any) -> None:
        seen.extend([value, nested])

    run(lambda: look(give(1), nested=[{"k": give(2)}]), executor)

    assert seen == [1, [{"k": 2}]]


@EXECUTORS
@pytest.mark.parametrize("by", ["argument", "nested argument", "wait_for"])
def test_a_subflow_with_a_failed_input_is_not_ready(executor: str, by: str) -> None:
    """Its body never runs; its state is NotReady and counts in the parent."""
    ran: list[object] = []
    look = flow(name="look")(lambda value=None: ran.append(value))
    seen: list[State] = []

    def body() -> None:
        bad = fail()
        if by == "wait_for":
            seen.append(look(wait_for={"k": [bad]}))
        else:
            seen.append(look(bad if by == "argument" else [{"k": bad}]))

    state = run(body, executor)

    assert ran == []
    assert (seen[0].type, seen[0].name) == (StateType.PENDING, "NotReady")
    assert seen[0].message == "Upstream task run 'fail-0' did not reach a 'COMPLETED' state."
    assert state.message == "1/2 states failed."


@EXECUTORS
def test_a_subflow_waits_for_its_wait_for(executor: str) -> None:
    """The body starts only when they have completed."""
    order: list[str] = []

    @task
    def first() -> None:
        order.append("first")

    @flow
    def second() -> None:
        order.append("second")

    run(lambda: second(wait_for=first()), executor)

    assert order == ["first", "second"]


@EXECUTORS
def test_a_subflow_waits_for_what_it_started_only(executor: str) -> None:
    """Its state is final when its own tasks have ended; the parent's go on."""
    go = threading.Event()
    seen: list[Any] = []

    @task(executor="thread")
    def slow() -> str:
        assert go.wait(PATIENCE)
        return "slow"

    def body() -> object:
        mine = slow()
        seen.append(child(1).result())
        seen.append(mine.done())
        go.set()
        return mine

    assert run(body, executor).result() == "slow"
    assert seen == [1, False]


def test_names_are_counted_in_each_flow_run() -> None:
    """The first run of a task in a subflow is number 0 again."""
    names: list[str] = []

    @flow
    def inner() -> None:
        names.append(give(1).name)

    def body() -> None:
        names.append(give(1).name)
        inner()
        names.append(give(1).name)

    run(body)

    assert names == ["give-0", "give-0", "give-1"]


def test_futures_of_the_parent_in_the_subflow_and_back() -> None:
    """All runs of a tree share one engine, so futures may cross."""
    kept: list[TaskFuture[Any]] = []

    @flow
    def inner() -> None:
        kept.append(give([kept[0]]))

    def body() -> object:
        kept.append(give(1))
        inner()
        return give(kept[1])

    assert run(body, "thread").result() == [1]


@pytest.mark.timeout(20)
def test_a_subflow_may_return_a_future_of_its_parent() -> None:
    """A returned future is waited for, whoever started it."""
    go = threading.Event()
    kept: list[TaskFuture[Any]] = []

    @task
    def slow() -> str:
        assert go.wait(PATIENCE)
        return "late"

    @flow
    def inner() -> object:
        threading.Timer(0.05, go.set).start()
        return kept[0]

    def body() -> object:
        kept.append(slow())
        return inner()

    assert run(body, "thread").result() == "late"


def test_tasks_called_after_a_subflow_belong_to_the_parent() -> None:
    """The context is the parent's again, also after a subflow that raised."""

    @flow
    def raising() -> None:
        raise ValueError("boom")

    def body() -> None:
        raising()
        give(1)

    assert len(run(body).result(raise_on_failure=False)) == 2


# -- executors -------------------------------------------------------------------------------------------------------


def test_a_subflow_uses_the_parents_executor() -> None:
    """The very instance, started once."""
    executor = CountingExecutor()

    @flow
    def inner() -> None:
        give(2)

    def body() -> None:
        give(1)
        inner()

    run(body, executor)

    assert executor.starts == 1
    assert executor.names == ["give-0", "give-0"]


def test_a_subflow_may_name_its_own_executor() -> None:
    """Its tasks run there, the parent's do not."""
    outer, own = CountingExecutor(), CountingExecutor()
    inner = flow(name="inner", executor=own)(lambda: give(2))

    def body() -> object:
        return [give(1), inner(), inner()]

    assert run(body, outer).result() == [1, 2, 2]
    assert (outer.names, own.names, own.starts) == (["give-0"], ["give-0", "give-0"], 1)


@pytest.mark.parametrize("other", ["sequential", "thread"])
@EXECUTORS
def test_a_subflow_on_another_executor_by_name(executor: str, other: str) -> None:
    """Futures cross from one executor to the other."""
    inner = flow(name="inner", executor=other)(lambda value: give([value]))

    assert run(lambda: give([inner(give(1))]), executor).result() == [[1]]


# -- what is recorded ------------------------------------------------------------------------------------------------


def test_a_subflow_is_a_flow_run_with_a_parent() -> None:
    """Parent and root lead from any run to the top."""

    @flow(name="grandchild")
    def grandchild() -> None: ...

    @flow(name="inner")
    def inner() -> None:
        grandchild()

    _, runs, _ = recorded(lambda: inner())

    assert runs["inner"].parent_id == runs["parent"].id
    assert runs["grandchild"].parent_id == runs["inner"].id
    assert {run.root_id for run in runs.values()} == {runs["parent"].id}


@EXECUTORS
def test_a_flow_in_a_task_is_a_flow_run_with_that_task_run_as_parent(executor: str) -> None:
    """Its records are in the store like all others."""

    @task
    def outer() -> Any:
        return child(7).result()

    state, runs, store = recorded(lambda: outer(), executor)

    assert state.result() == 7
    assert runs["child"].parent_id == f"{runs['parent'].id}-1"
    assert runs["child"].root_id == runs["parent"].id
    changes = [getattr(record, "name", "") for record in store.read(runs["child"].id) if hasattr(record, "sequence")]
    assert changes == ["Running", "Completed", "Running", "Completed"] or sorted(changes) == [
        "Completed",
        "Completed",
        "Running",
        "Running",
    ]


def test_a_blocked_subflow_is_recorded() -> None:
    """What did not run can be seen, with the reason."""
    state, runs, store = recorded(lambda: child(fail()) and None)

    changes = [record for record in store.read(runs["child"].id) if hasattr(record, "sequence")]
    assert [change.name for change in changes] == ["NotReady"]  # type: ignore[union-attr]
    assert state.message == "1/2 states failed."


# -- in a task -------------------------------------------------------------------------------------------------------


@EXECUTORS
def test_a_flow_in_a_task_runs_in_sequence(executor: str) -> None:
    """In the task's own thread, whatever the flow names."""
    threads: list[threading.Thread] = []

    @task
    def here() -> None:
        threads.append(threading.current_thread())

    inner = flow(name="inner", executor="thread")(lambda: here())

    @task
    def outer() -> str:
        threads.append(threading.current_thread())
        return inner().name

    assert run(lambda: outer(), executor).result() == "Completed"
    assert threads[0] is threads[1]


def test_a_task_with_its_own_executor_in_a_flow_in_a_task() -> None:
    """An executor object that the outer run uses is not taken from it."""
    executor = ThreadExecutor(workers=2)
    leaf = give.with_options(executor=executor)
    inner = flow(name="inner")(lambda: leaf("inner"))

    @task(executor=executor)
    def outer() -> Any:
        return inner().result()

    assert run(lambda: [outer(), leaf("outer"), outer()]).result() == ["inner", "outer", "inner"]


@EXECUTORS
def test_a_flow_in_a_task_that_fails_gives_its_state(executor: str) -> None:
    """The task may return it, and then it is the task's own."""

    @task
    def outer() -> State:
        return failing_child()

    state = run(lambda: outer(), executor)

    assert state.message == "1/1 states failed."
    with pytest.raises(ValueError, match="boom"):
        state.result()


@EXECUTORS
@pytest.mark.parametrize("by", ["argument", "wait_for"])
def test_inputs_of_a_flow_in_a_task(executor: str, by: str) -> None:
    """States are resolved there too, and a failed one blocks."""
    ran: list[object] = []
    look = flow(name="look")(lambda value=None: ran.append(value))

    @task
    def outer() -> str:
        look([Completed(data=1)])
        bad = Failed("no")
        state = look(bad) if by == "argument" else look(wait_for=[bad])
        return state.name

    assert run(lambda: outer(), executor).result() == "NotReady"
    assert ran == [[1]]


@EXECUTORS
def test_three_levels_of_flows_and_tasks(executor: str) -> None:
    """A task in a flow in a task in a flow in a task."""

    @task
    def bottom() -> str:
        return child("deep").result()

    @task
    def middle() -> Any:
        return flow(name="middle-flow")(lambda: bottom())().result()

    state, runs, _ = recorded(lambda: middle(), executor)

    assert state.result() == "deep"
    assert set(runs) == {"parent", "middle-flow", "child"}
    assert {run.root_id for run in runs.values()} == {runs["parent"].id}


# -- depth -----------------------------------------------------------------------------------------------------------


def test_a_flow_that_calls_itself_without_end_fails() -> None:
    """The depth is bounded, and the message names the flow."""

    @flow
    def endless() -> object:
        return endless().result()

    state = endless()

    assert state.is_failed()
    with pytest.raises(FlowDepthError, match="'endless'"):
        state.result()


def test_a_flow_may_call_itself_with_an_end() -> None:
    """Recursion within the bound is fine."""

    @flow
    def countdown(n: int) -> Any:
        return [n, *countdown(n - 1).result()] if n else [0]

    assert countdown(9).result() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("stop", [KeyboardInterrupt])
def test_a_parent_that_catches_an_interrupt_of_its_subflow_ends(stop: type[BaseException]) -> None:
    """After a Ctrl-C nothing more can be called, and nothing hangs."""
    seen: list[str] = []

    @flow
    def interrupted() -> None:
        raise stop

    def body() -> None:
        try:
            interrupted()
        except stop:
            seen.append("caught")
        try:
            give(1)
        except Exception as error:
            seen.append(type(error).__name__)

    ended = threading.Event()
    states: list[Any] = []

    def work() -> None:
        try:
            states.append(run(body))
        except BaseException as error:
            states.append(error)
        ended.set()

    threading.Thread(target=work, daemon=True).start()

    assert ended.wait(PATIENCE), "it hangs"
    assert seen == ["caught", "RunCancelledError"]
