"""@flow and Flow: what a flow call runs, waits for, returns and records."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import pickle
import sys
import threading
import time
from collections import OrderedDict, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle
import pytest

from localflow import (
    Cancelled,
    Completed,
    Crashed,
    Failed,
    Flow,
    Pending,
    Running,
    Scheduled,
    State,
    StateType,
    TaskFuture,
    ThreadExecutor,
    flow,
    quote,
    task,
)
from localflow.builtin.memory import MemoryStateStore
from localflow.errors import ForeignFutureError, ReservedArgumentError, TaskFailedError, UpstreamFailedError
from localflow.interfaces import TaskRun
from localflow.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow.interfaces import FlowRun

PATIENCE = 10.0
LONG = 10_000
EXECUTORS = pytest.mark.parametrize("executor", ["sequential", "thread"])


@pytest.fixture(autouse=True)
def memory_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep nothing on disk."""
    monkeypatch.setenv("LOCALFLOW_STORE", "memory")


@pytest.fixture
def low_recursion_limit() -> Iterator[None]:
    """Leave room for an ordinary call and not much else, so that recursion over a chain shows."""
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 150)
    yield
    sys.setrecursionlimit(usual)


@task
def give(value: object = None) -> Any:
    """Return what was given."""
    return value


@task
def fail(text: str = "boom", *inputs: object) -> None:
    """Raise."""
    raise ValueError(text)


@task
def increment(n: int) -> int:
    """Add one."""
    return n + 1


def run(body: Any, *args: object, executor: str | None = None, **kwargs: object) -> State:
    """Run `body` as a flow."""
    return flow(name="body", executor=executor)(body)(*args, **kwargs)


def texts(states: list[State]) -> list[tuple[str, str]]:
    """Return name and message of each state."""
    return [(state.name, state.message) for state in states]


def not_ready(upstream: str) -> tuple[str, str]:
    """Return name and message of a run blocked by `upstream`."""
    return "NotReady", f"Upstream task run '{upstream}' did not reach a 'COMPLETED' state."


# -- options ---------------------------------------------------------------------------------------------------------


@flow
def importable_flow(a: int, b: int = 1) -> int:
    """Add numbers in a flow."""
    return a + b


def test_a_bare_decorator_takes_everything_from_the_function() -> None:
    """The name is the function's, with dashes."""
    assert isinstance(importable_flow, Flow)
    assert importable_flow.name == "importable-flow"
    assert importable_flow.description == "Add numbers in a flow."
    assert (importable_flow.version, importable_flow.executor) == (None, None)
    assert importable_flow.__name__ == "importable_flow"
    assert importable_flow.fn(1, 2) == 3
    assert inspect.signature(importable_flow) == inspect.signature(importable_flow.fn)


def test_options_are_kept() -> None:
    """Every option of the decorator can be read back."""
    decorated = flow(name="A flow", description="d", version="3", executor="thread")(lambda: None)

    assert (decorated.name, decorated.description, decorated.version, decorated.executor) == (
        "A flow",
        "d",
        "3",
        "thread",
    )


def test_with_options_changes_a_copy_only() -> None:
    """The original stays, what is not named is kept."""
    executor = ThreadExecutor(workers=1)
    first = importable_flow.with_options(name="first", executor=executor, version="1")
    second = first.with_options(name="second")

    assert (first.name, second.name, importable_flow.name) == ("first", "second", "importable-flow")
    assert second.executor is executor
    assert second.version == "1"
    assert importable_flow.executor is None
    assert second(1, 2).result() == 3


@pytest.mark.parametrize(
    "options",
    [{"nonsense": 1}, {"tags": ["a"]}, {"name": ""}, {"name": 5}, {"description": 5}, {"version": 2}, {"executor": 5}],
    ids=str,
)
def test_wrong_options_are_type_errors_at_decoration(options: Any) -> None:
    """A mistake in an option shows where it is made."""
    (option,) = options

    with pytest.raises(TypeError, match=option):
        flow(**options)(lambda: None)
    with pytest.raises(TypeError, match=option):
        flow(lambda: None).with_options(**options)


@pytest.mark.parametrize("wrong", [None, "name", 5])
def test_what_is_no_function_cannot_be_decorated(wrong: Any) -> None:
    """`@flow("name")` is a common slip."""
    with pytest.raises(TypeError, match="function"):
        flow(name="x")(wrong)


def test_a_parameter_named_wait_for_is_reserved() -> None:
    """A flow cannot have a parameter that localflow takes at every call."""
    with pytest.raises(ReservedArgumentError):
        flow(lambda wait_for: None)


def test_an_unknown_executor_is_an_error_before_anything_runs() -> None:
    """A configuration error is no failure of the flow."""
    ran: list[int] = []

    with pytest.raises(Exception, match="nonsense"):
        flow(executor="nonsense")(lambda: ran.append(1))()

    assert ran == []


@pytest.mark.parametrize(
    "decorated",
    [importable_flow, importable_flow.with_options(name="other"), flow(lambda a, b=1: a + b)],
    ids=["importable", "changed", "lambda"],
)
def test_flows_can_be_pickled(decorated: Any) -> None:
    """By reference where the module can be imported, by value otherwise."""
    twin = cloudpickle.loads(cloudpickle.dumps(decorated))

    assert twin.name == decorated.name
    assert twin(1, b=2).result() == 3


def test_an_importable_flow_is_pickled_by_reference() -> None:
    """Its pickle gives the very flow."""
    assert pickle.loads(pickle.dumps(importable_flow)) is importable_flow


@pytest.mark.parametrize("made", ["partial", "callable", "method"])
def test_whatever_can_be_called_can_be_a_flow(made: str) -> None:
    """Objects without a name of their own, too."""

    class Adder:
        def __call__(self, a: int, b: int) -> int:
            return a + b

        def method(self, a: int, b: int) -> int:
            return a + b

    function: Any = {"partial": functools.partial(Adder(), 1), "callable": Adder(), "method": Adder().method}[made]

    assert flow(function)(*([2] if made == "partial" else [1, 2])).result() == 3
    with pytest.raises(TypeError):
        flow(function)()


# -- the call --------------------------------------------------------------------------------------------------------


def test_a_flow_runs_now_and_returns_its_state() -> None:
    """The call blocks until the body has returned."""
    ran: list[int] = []

    state = run(lambda: ran.append(1))

    assert ran == [1]
    assert isinstance(state, State)
    assert repr(state) == "State(name='Completed', type=StateType.COMPLETED)"


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"c": 1}), ((1,), {"a": 1})])
def test_wrong_arguments_are_a_type_error_at_the_call(args: Any, kwargs: Any) -> None:
    """The mistake is the caller's, not the flow's."""
    with pytest.raises(TypeError, match="importable_flow"):
        importable_flow(*args, **kwargs)


def test_every_kind_of_parameter() -> None:
    """Parameters arrive as for the plain function."""

    def body(a: Any, /, b: Any, *rest: Any, c: Any, d: Any = "d", **more: Any) -> Any:
        return a, b, rest, c, d, more

    assert run(body, 1, 2, 3, c=4, e=5, a=6).result() == (1, 2, (3,), 4, "d", {"e": 5, "a": 6})


def test_parameters_with_the_names_of_ours() -> None:
    """A user's parameter may be called self, project or store."""

    @flow
    def odd(self: Any, project: Any, store: Any, args: Any, kwargs: Any) -> Any:
        return self, project, store, args, kwargs

    assert odd(self=1, project=2, store=3, args=4, kwargs=5).result() == (1, 2, 3, 4, 5)


def test_an_exception_in_the_body_does_not_escape() -> None:
    """It is in the state, and `result()` raises the very object."""
    error = ValueError("boom")

    def body() -> None:
        raise error

    state = run(body)

    assert repr(state) == (
        "State(name='Failed', type=StateType.FAILED, message='Flow run encountered an exception: ValueError: boom')"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match="boom") as caught:
            state.result()
        assert caught.value is error
    assert state.result(raise_on_failure=False) is error


@pytest.mark.parametrize("stop", [SystemExit(0), SystemExit("bye"), GeneratorExit()])
def test_an_exit_in_the_body_fails_the_flow(stop: BaseException) -> None:
    """sys.exit() in a flow is its failure; its result does not end the program either."""

    def body() -> None:
        raise stop

    state = run(body)

    assert state.is_failed()
    assert state.message.startswith(f"Flow run encountered an exception: {type(stop).__name__}")
    with pytest.raises(TaskFailedError):
        state.result()


def test_an_exception_that_cannot_be_printed_fails_the_flow() -> None:
    """An exception whose str() raises is reported by its type."""

    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def body() -> None:
        raise OddError

    state = run(body)

    assert state.message.startswith("Flow run encountered an exception: OddError")
    with pytest.raises(OddError):
        state.result()


def test_a_task_result_asked_for_in_the_body_fails_it() -> None:
    """An exception that the body does not catch is the flow's."""
    state = run(lambda: fail().result())

    assert state.message == "Flow run encountered an exception: ValueError: boom"


# -- the final state -------------------------------------------------------------------------------------------------


@EXECUTORS
def test_the_tutorial(executor: str) -> None:
    """One of four states failed."""
    added: list[str] = []

    @task
    def create_tables() -> str:
        return "tables"

    @task
    def add_project(name: str) -> None:
        if len(name) < 4:
            raise RuntimeError("CHECK constraint failed: projects")
        added.append(name)

    @flow(name="Add Projects to DB", executor=executor)
    def main(names: list[str]) -> None:
        table_task = create_tables()
        for name in names:
            add_project(name, wait_for=[table_task])

    state = main(["orion", "", "critically-important"])

    assert repr(state) == "State(name='Failed', type=StateType.FAILED, message='1/4 states failed.')"
    assert str(state) == repr(state)
    assert sorted(added) == ["critically-important", "orion"]
    assert main.name == "Add Projects to DB"
    with pytest.raises(RuntimeError, match="CHECK constraint"):
        state.result()
    assert [s.type.name for s in state.result(raise_on_failure=False)] == [
        "COMPLETED",
        "COMPLETED",
        "FAILED",
        "COMPLETED",
    ]


@EXECUTORS
def test_none_aggregates_all_task_runs_in_call_order(executor: str) -> None:
    """The list of states is in the order of the calls, whichever ended first."""

    def body() -> None:
        first = give(1)
        fail()
        give(first)

    state = run(body, executor=executor)

    assert state.message == "1/3 states failed."
    assert [s.name for s in state.result(raise_on_failure=False)] == ["Completed", "Failed", "Completed"]


@EXECUTORS
def test_blocked_runs_count_in_the_total_only(executor: str) -> None:
    """NotReady is no failure of its own."""

    def body() -> None:
        bad = fail()
        give(give(bad))
        give(1)

    state = run(body, executor=executor)

    assert state.message == "1/4 states failed."
    assert texts(state.result(raise_on_failure=False))[1:3] == [not_ready("fail-0"), not_ready("give-0")]


@pytest.mark.parametrize(
    "returned",
    [
        Completed("by hand", data=1),
        Failed("no"),
        Failed("no", name="Mine"),
        Cancelled(),
        Crashed("gone"),
        Pending(),
        Running(),
        Scheduled(),
    ],
    ids=repr,
)
def test_a_returned_state_is_used_unaltered(returned: State) -> None:
    """Whatever the tasks did, the state that the body returned is the flow's."""

    def body() -> State:
        fail()
        return returned

    assert run(body) is returned


@EXECUTORS
def test_a_returned_future_decides(executor: str) -> None:
    """Other runs do not count; the result is its data."""

    def body() -> object:
        fail()
        return increment(1)

    state = run(body, executor=executor)

    assert repr(state) == "State(name='Completed', type=StateType.COMPLETED, message='All states completed.')"
    assert state.result() == 2
    assert isinstance(state.result(raise_on_failure=False), State)
    assert state.result(raise_on_failure=False).result() == 2


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any


class Named(NamedTuple):
    left: Any
    right: Any


@EXECUTORS
@pytest.mark.parametrize(
    ("wrap", "data"),
    [
        (lambda a, b: [a, b], [1, 2]),
        (lambda a, b: (a, b), (1, 2)),
        (lambda a, b: {a, b}, {1, 2}),
        (lambda a, b: {"a": a, "b": [b]}, {"a": 1, "b": [2]}),
        (lambda a, b: Pair(a, (b,)), Pair(1, (2,))),
        (lambda a, b: Named(a, b), Named(1, 2)),
        (lambda a, b: [a, "between", {"deep": [[b]]}], [1, "between", {"deep": [[2]]}]),
        (lambda a, b: [a, b.wait()], [1, 2]),
    ],
)
def test_returned_containers_of_futures(executor: str, wrap: Any, data: object) -> None:
    """Futures and states in any nesting are aggregated; the result has their data in place."""
    state = run(lambda: wrap(give(1), give(2)), executor=executor)

    assert state.message == "All states completed."
    assert state.result() == data


@EXECUTORS
def test_returned_futures_that_failed(executor: str) -> None:
    """The result raises the first failure, or gives the states in place of the futures."""

    def body() -> object:
        bad = fail("first")
        return {"blocked": give(bad), "bad": bad, "good": give(1), "other": fail("second")}

    state = run(body, executor=executor)

    assert state.message == "2/4 states failed."
    with pytest.raises(ValueError, match="first"):
        state.result()
    shown = state.result(raise_on_failure=False)
    assert {key: value.name for key, value in shown.items()} == {
        "blocked": "NotReady",
        "bad": "Failed",
        "good": "Completed",
        "other": "Failed",
    }


def test_only_a_blocked_future_returned() -> None:
    """A flow that returns a run that never started did not complete."""
    state = run(lambda: give(fail()))

    assert repr(state) == "State(name='Failed', type=StateType.FAILED, message='1/1 states are not final.')"
    with pytest.raises(UpstreamFailedError) as caught:
        state.result()
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([Cancelled()], "1/1 states cancelled."),
        ([Cancelled(), Completed()], "1/2 states cancelled."),
        ([Cancelled(), Crashed(), Failed()], "2/3 states failed."),
        ([Scheduled(), Completed()], "1/2 states are not final."),
        ([Running()], "1/1 states are not final."),
        ([Completed()], "All states completed."),
    ],
    ids=str,
)
def test_states_that_tasks_returned_are_aggregated(states: list[State], message: str) -> None:
    """A returned state counts as what it says."""

    def body() -> None:
        for state in states:
            give(quote(state))

    assert run(body).message == message


@pytest.mark.parametrize("value", [0, "", [], {}, False, [1, {"a": 2}], "text", (None,), StateType.FAILED])
def test_any_other_value_is_the_result(value: object) -> None:
    """COMPLETED with the value, even if a task failed."""

    def body() -> object:
        fail()
        return value

    state = run(body)

    assert repr(state) == "State(name='Completed', type=StateType.COMPLETED)"
    assert state.result() is value


def test_a_flow_that_raises_waits_for_what_it_started() -> None:
    """The exception decides the state, after everything has ended."""
    ended = threading.Event()
    started = threading.Event()
    go = threading.Event()

    @task
    def slow() -> None:
        started.set()
        assert go.wait(PATIENCE)
        ended.set()

    def body() -> None:
        slow()
        assert started.wait(PATIENCE)
        threading.Timer(0.05, go.set).start()
        raise ValueError("boom")

    state = run(body, executor="thread")

    assert ended.is_set()
    assert state.message == "Flow run encountered an exception: ValueError: boom"


def test_a_flow_waits_for_runs_whose_futures_were_dropped() -> None:
    """Nothing started is ever lost, also not what waits for something that is still running."""
    seen: list[int] = []
    go = threading.Event()

    @task
    def slow(n: int) -> int:
        assert go.wait(PATIENCE)
        seen.append(n)
        return n

    def body() -> str:
        for n in range(20):
            slow(slow(n))
        threading.Timer(0.05, go.set).start()
        return "value"

    state = run(body, executor="thread")

    assert state.result() == "value"
    assert len(seen) == 40


@pytest.mark.timeout(20)
def test_tasks_called_by_callbacks_are_waited_for() -> None:
    """A callback that calls a task extends the flow."""
    seen: list[object] = []
    go = threading.Event()

    @task
    def slow() -> str:
        assert go.wait(PATIENCE)
        return "first"

    @task
    def second(value: object) -> None:
        seen.append(value)

    def body() -> None:
        slow().add_done_callback(lambda ended: second(ended))
        threading.Timer(0.05, go.set).start()

    state = run(body, executor="thread")

    assert seen == ["first"]
    assert len(state.result()) == 2


# -- arguments of tasks ----------------------------------------------------------------------------------------------


@EXECUTORS
@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        lambda f: [f],
        lambda f: (f, [f]),
        lambda f: {f},
        lambda f: {"k": {"l": (f,)}},
        lambda f: {f: "v"},
        lambda f: Pair(f, Pair([f], None)),
        lambda f: Named(1, f),
        lambda f: defaultdict(list, k=f),
        lambda f: OrderedDict(k=[f]),
        lambda f: [[[[[[f]]]]]],
    ],
)
@pytest.mark.parametrize("made", ["future", "state"])
def test_futures_and_states_as_arguments(executor: str, wrap: Any, made: str) -> None:
    """At any depth of any container, positional or by keyword, they are replaced by their data."""

    def body() -> object:
        upstream = give("data")
        marker = upstream if made == "future" else upstream.wait()
        return [give(wrap(marker)), give(value=wrap(marker))]

    assert run(body, executor=executor).result() == [wrap("data"), wrap("data")]


@EXECUTORS
def test_only_containers_that_hold_a_future_are_copied(executor: str) -> None:
    """Everything else arrives as the very same object."""
    untouched, connection = {"rows": [1]}, object()
    seen: list[Any] = []

    @task
    def look(value: Any) -> None:
        seen.append(value)

    def body() -> None:
        look({"a": untouched, "f": [give(1)], "c": connection})

    run(body, executor=executor).result()

    assert seen[0] == {"a": untouched, "f": [1], "c": connection}
    assert seen[0]["a"] is untouched
    assert seen[0]["c"] is connection


@EXECUTORS
def test_data_arrive_as_the_very_object(executor: str) -> None:
    """What one task returned is what the next receives."""
    data = object()

    assert run(lambda: give(give(data)), executor=executor).result() is data


@EXECUTORS
def test_data_that_hold_futures_are_not_looked_into(executor: str) -> None:
    """A task may return what it likes."""
    kept: list[Any] = []

    def body() -> object:
        future = give(1)
        kept.append(future)
        return give(give([quote(future)]))

    assert run(body, executor=executor).result()[0] is kept[0]


def test_a_quoted_future_arrives_itself() -> None:
    """Nothing inside a quote is looked at: no wait, no data, no dependency."""
    go = threading.Event()
    seen: list[Any] = []

    @task
    def slow() -> str:
        assert go.wait(PATIENCE)
        return "late"

    @task
    def look(value: Any, nested: Any) -> None:
        seen.extend([value, nested, value.done()])
        go.set()

    def body() -> None:
        future = slow()
        look(quote(future), [quote({"f": future})])

    run(body, executor="thread").result()

    assert isinstance(seen[0], TaskFuture)
    assert seen[1] == [{"f": seen[0]}]
    assert seen[2] is False


def test_a_quoted_failed_future_does_not_block() -> None:
    """A task may look at the failure of another one."""

    @task
    def look(future: TaskFuture[Any]) -> str:
        return future.get_state().name

    assert run(lambda: look(quote(fail()))).result() == "Failed"


@EXECUTORS
@pytest.mark.parametrize("state", [Failed("no"), Pending(), Cancelled(), Crashed(), Running()], ids=str)
def test_a_state_that_did_not_complete_blocks(executor: str, state: State) -> None:
    """As an argument or in `wait_for`, at any depth."""
    ran: list[object] = []
    note = task(name="note")(ran.append)

    def body() -> object:
        return [note([state]), note(1, wait_for=state), note(2, wait_for=[{"k": state}])]

    shown = run(body, executor=executor).result(raise_on_failure=False)

    assert [s.name for s in shown] == ["NotReady"] * 3
    assert all("did not reach a 'COMPLETED' state." in s.message for s in shown)
    assert ran == []


def test_a_list_changed_after_the_call_does_not_change_the_call() -> None:
    """A future put into an argument later neither breaks the run nor goes unnoticed as an internal error."""
    first, second = threading.Event(), threading.Event()

    @task
    def slow(n: int, gate: threading.Event) -> int:
        assert gate.wait(PATIENCE)
        return n

    def body() -> object:
        items: list[Any] = [slow(1, first)]
        total = give(items)
        items.append(slow(2, second))
        first.set()
        total.wait(PATIENCE / 5)
        second.set()
        return total

    state = run(body, executor="thread")

    assert state.is_completed()
    assert state.result()[0] == 1


def test_unhashable_data_in_a_set_fails_that_task() -> None:
    """A list cannot take the place of a future in a set."""
    state = run(lambda: [give({give([1])}), give(1)])

    bad, good = state.result(raise_on_failure=False)
    assert bad.message == "Task run encountered an exception: TypeError: unhashable type: 'list'"
    assert good.is_completed()


# -- wait_for --------------------------------------------------------------------------------------------------------


@EXECUTORS
@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        lambda f: [f],
        lambda f: (f,),
        lambda f: {f},
        lambda f: frozenset({f}),
        lambda f: {"k": f},
        lambda f: [[], ((f,), {"k": [f]})],
        lambda f: f.wait(),
        lambda f: [f, f.wait()],
        lambda f: Named(f, [f]),
    ],
)
def test_wait_for_takes_any_nesting(executor: str, wrap: Any) -> None:
    """The task does not start when an upstream did not complete, and starts after it when it did."""
    order: list[str] = []

    @task
    def note(name: str) -> str:
        order.append(name)
        return name

    def body() -> object:
        return [note("second", wait_for=wrap(note("first"))), note("never", wait_for=wrap(fail()))]

    shown = run(body, executor=executor).result(raise_on_failure=False)

    assert order == ["first", "second"]
    assert texts(shown)[1] == not_ready("fail-0")


@EXECUTORS
@pytest.mark.parametrize("call", ["map", "calls"])
def test_many_may_wait_for_the_same_many(executor: str, call: str) -> None:
    """They start when all of these have completed; of those that did not, each names the first."""
    order: list[tuple[str, int]] = []

    @task
    def first(number: int) -> None:
        order.append(("first", number))

    @task
    def second(number: int) -> None:
        order.append(("second", number))

    @task
    def failing(number: int) -> None:
        assert number not in (7, 20)

    def after(futures: list[TaskFuture[Any]]) -> list[TaskFuture[Any]]:
        if call == "map":
            return second.map(range(30), wait_for=futures)
        return [second(number, wait_for=futures) for number in range(30)]

    def body() -> object:
        return [*after(first.map(range(30))), *after(failing.map(range(30)))]

    shown = run(body, executor=executor).result(raise_on_failure=False)

    assert [name for name, _ in order] == ["first"] * 30 + ["second"] * 30
    assert texts(shown)[30:] == [not_ready("failing-7")] * 30


def test_what_waits_for_many_is_recorded_with_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though that takes no more room than one: thousands may wait for the same thousands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCALFLOW_STORE", "sqlite")

    def body() -> object:
        return give.map(range(400), wait_for=give.map(range(400)))

    assert flow(body)().is_completed()
    project = Project.load()
    with project.opened_store() as store:
        run_id = store.list_flow_runs()[0].flow_run.id
        waiting = [run for run in store.read(run_id) if isinstance(run, TaskRun)][400:]

    assert {run.upstreams for run in waiting} == {tuple(f"{run_id}-{number}" for number in range(1, 401))}
    assert (tmp_path / ".localflow" / "localflow.db").stat().st_size < 2_000_000


@pytest.mark.parametrize("nothing", [None, [], (), {}, [[], ()], set()])
def test_wait_for_nothing(nothing: object) -> None:
    """An empty `wait_for` waits for nothing."""
    assert run(lambda: give(1, wait_for=nothing)).result() == 1


@pytest.mark.parametrize("wrong", [5, "text", [None], [1], {"k": "v"}, object(), give, (n for n in range(3))])
def test_wait_for_something_else_is_a_type_error(wrong: object) -> None:
    """Waiting for what cannot be waited for must not pass silently."""

    def body() -> str:
        for call in (give, give.submit):
            with pytest.raises(TypeError, match="wait_for"):
                call(1, wait_for=wrong)
        with pytest.raises(TypeError, match="wait_for"):
            importable_flow(1, wait_for=wrong)
        return "reached"

    assert run(body).result() == "reached"
    with pytest.raises(TypeError, match="wait_for"):
        importable_flow(1, wait_for=wrong)


@pytest.mark.timeout(20)
def test_wait_for_a_container_that_holds_itself() -> None:
    """A cycle in `wait_for` ends the search, not the program."""

    def body() -> object:
        loop: list[Any] = [give(1)]
        loop.append(loop)
        return give(2, wait_for=loop)

    assert run(body).result() == 2


def test_wait_for_keys_of_a_dict() -> None:
    """A future that is a key is waited for, or refused; never ignored."""
    ran: list[int] = []
    note = task(name="note")(ran.append)

    def body() -> None:
        note(1, wait_for={fail(): give(1)})

    run(body)

    assert ran == []


def test_wait_for_does_not_reach_the_function() -> None:
    """A task with **kwargs never sees it."""

    @task
    def collect(**kwargs: object) -> object:
        return kwargs

    assert run(lambda: collect(a=1, wait_for=[give(1)])).result() == {"a": 1}


@EXECUTORS
def test_a_failure_chains_downstream(executor: str) -> None:
    """Each blocked run names its own upstream, and all results lead to the root."""

    def body() -> object:
        a = fail()
        b = give(a)
        c = give(wait_for=[b])
        d = give([c], wait_for=[give(1)])
        return [a, b, c, d]

    state = run(body, executor=executor)
    shown = state.result(raise_on_failure=False)

    assert texts(shown)[1:] == [not_ready("fail-0"), not_ready("give-0"), not_ready("give-1")]
    for blocked in shown[1:]:
        with pytest.raises(UpstreamFailedError) as caught:
            blocked.result()
        assert caught.value.__cause__ is shown[0].data


@pytest.mark.parametrize("kind", ["state of a flow in the task", "one state object for all"])
def test_a_blocked_run_names_the_task_run_it_depends_on(kind: str) -> None:
    """Also when the task returned a state that has been somebody else's."""
    shared = Failed("no")

    @task
    def inner() -> Any:
        if kind == "state of a flow in the task":
            return flow(lambda: fail())()
        return shared

    def body() -> object:
        inner()
        return give(inner())

    blocked = run(body).result(raise_on_failure=False)

    assert texts([blocked]) == [not_ready("inner-1")]


def test_futures_of_an_ended_flow_are_values() -> None:
    """Its data are used, its failure blocks."""
    kept: list[TaskFuture[Any]] = []
    run(lambda: kept.extend([give(1), fail()]))
    good, bad = kept

    shown = run(lambda: [increment(good), increment(bad), give(2, wait_for=[good])]).result(raise_on_failure=False)

    assert shown[0].result() == 2
    assert texts(shown)[1] == not_ready("fail-0")
    assert shown[2].result() == 2


def test_a_future_of_a_running_flow_is_refused_elsewhere() -> None:
    """The error names both runs, and nobody hangs."""
    started, done = threading.Event(), threading.Event()
    kept: list[TaskFuture[Any]] = []

    @task
    def slow() -> None:
        assert done.wait(PATIENCE)

    def first() -> None:
        kept.append(slow())
        started.set()

    thread = threading.Thread(target=lambda: run(first, executor="thread"))
    thread.start()
    assert started.wait(PATIENCE)

    def second() -> str:
        with pytest.raises(ForeignFutureError, match="slow-0"):
            give(kept[0])
        with pytest.raises(ForeignFutureError):
            give(1, wait_for=[kept[0]])
        return "reached"

    state = run(second)
    done.set()
    thread.join(PATIENCE)

    assert state.result() == "reached"


# -- arguments of flows ----------------------------------------------------------------------------------------------


def test_states_as_arguments_of_a_flow() -> None:
    """A State given to a flow is resolved as for a task, outside of any flow too."""
    good = run(lambda: give([1]))

    state = flow(lambda value, nested: (value, nested))(good, nested={"k": [good]})

    assert state.result() == ([1], {"k": [[1]]})


def test_a_quoted_argument_of_a_flow_arrives_itself() -> None:
    """A quote keeps its content untouched and goes away."""
    state = Failed("no")

    assert flow(lambda value: value is state)(quote(state)).result() is True


@pytest.mark.parametrize("by", ["argument", "wait_for"])
def test_a_flow_with_a_failed_input_does_not_run(by: str) -> None:
    """It is left NotReady, and its body never runs."""
    ran: list[object] = []
    body = flow(lambda value=None: ran.append(value))
    bad = run(lambda: fail())

    state = body([bad]) if by == "argument" else body(wait_for=[bad])

    assert (state.type, state.name) == (StateType.PENDING, "NotReady")
    assert "did not reach a 'COMPLETED' state." in state.message
    assert ran == []


# -- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(30)
@pytest.mark.parametrize("given", ["sequential", "thread", "instance"])
def test_one_flow_may_be_called_in_many_threads(given: str) -> None:
    """Runs of one flow at the same time do not disturb each other, even with one executor object."""
    executor: Any = ThreadExecutor(workers=2) if given == "instance" else given
    together = threading.Barrier(4)

    @flow(executor=executor)
    def body(n: int) -> object:
        together.wait(PATIENCE)
        return [increment(increment(n + k)) for k in range(10)]

    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(body, range(4)))

    assert [state.result() for state in states] == [[n + k + 2 for k in range(10)] for n in range(4)]


def test_a_flow_called_in_a_thread_of_a_body_is_a_run_of_its_own() -> None:
    """A thread is outside of the flow that started it."""
    states: list[State] = []

    def body() -> int:
        thread = threading.Thread(target=lambda: states.append(run(lambda: give(1))))
        thread.start()
        thread.join(PATIENCE)
        return 5

    assert run(body).result() == 5
    assert states[0].result() == 1


def test_the_context_of_the_caller_is_restored() -> None:
    """After a flow, also one that failed, task calls are plain calls again."""
    run(lambda: fail())
    run(lambda: 1 / 0)

    assert give(3) == 3


# -- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["sequential", "thread"])
@pytest.mark.parametrize("limit", ["default", "low"])
def test_a_chain_of_ten_thousand(executor: str, limit: str, request: pytest.FixtureRequest) -> None:
    """Each task waits for the one before; nothing recurses."""
    if limit == "low":
        request.getfixturevalue("low_recursion_limit")

    def body() -> object:
        future = increment(0)
        for _ in range(LONG - 1):
            future = increment(future)
        return future

    assert run(body, executor=executor).result() == LONG


@pytest.mark.parametrize("executor", ["sequential", "thread"])
def test_a_chain_of_ten_thousand_behind_a_gate(executor: str) -> None:
    """The whole chain is known before its first task ends, and then runs in one go."""
    go = threading.Event()

    @task(executor="thread")
    def gate() -> int:
        assert go.wait(PATIENCE)
        return 0

    def body() -> object:
        future = gate()
        if executor == "sequential":
            go.set()
        for _ in range(LONG):
            future = increment(future)
        go.set()
        return future

    assert run(body, executor=executor).result() == LONG


@EXECUTORS
@pytest.mark.usefixtures("low_recursion_limit")
def test_a_failed_root_blocks_ten_thousand(executor: str) -> None:
    """Every run of the chain is left NotReady, and the last one's result leads to the root."""
    kept: list[TaskFuture[Any]] = []

    def body() -> None:
        future = fail()
        for _ in range(LONG - 1):
            future = give(future)
        kept.append(future)

    began = time.monotonic()
    state = run(body, executor=executor)

    assert state.message == f"1/{LONG} states failed."
    with pytest.raises(UpstreamFailedError) as caught:
        kept[0].result()
    assert isinstance(caught.value.__cause__, ValueError)
    assert time.monotonic() - began < 30


@EXECUTORS
@pytest.mark.usefixtures("low_recursion_limit")
def test_a_fan_out_and_fan_in_of_ten_thousand(executor: str) -> None:
    """One source, ten thousand tasks, one sink."""

    @task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    def body() -> object:
        source = give(1)
        return total([increment(source) for _ in range(LONG)])

    assert run(body, executor=executor).result() == 2 * LONG


# -- what is recorded ------------------------------------------------------------------------------------------------


def recorded(decorated: Any, **parameters: object) -> tuple[MemoryStateStore, FlowRun, State]:
    """Run a flow as the command line does, and return its store, its record and its state."""
    store = MemoryStateStore()
    finished = decorated.execute(Project.load(), store, parameters)
    return store, finished.flow_run, finished.state


def test_execute_records_in_the_given_store() -> None:
    """The store is the caller's, who finds the run in it and closes it."""
    store, flow_run, state = recorded(importable_flow, a=1, b=2)

    (summary,) = store.list_flow_runs()
    assert state.result() == 3
    assert summary.flow_run == flow_run
    assert summary.change is not None
    assert summary.change.type is StateType.COMPLETED
    store.close()


def test_the_record_of_a_flow_run() -> None:
    """Name, flow, parameters with defaults, entry point, versions, host and process."""
    import os

    _, flow_run, _ = recorded(importable_flow.with_options(version="v9"), a=1)

    assert flow_run.flow == "importable-flow"
    assert flow_run.name.count("-") == 1
    assert flow_run.parameters == {"a": 1, "b": 1}
    assert flow_run.entry_point == f"{Path(__file__)}:importable_flow"
    assert flow_run.versions["flow"] == "v9"
    assert {"localflow", "python"} <= set(flow_run.versions)
    assert flow_run.pid == os.getpid()
    assert flow_run.executor == "sequential"
    assert (flow_run.root_id, flow_run.parent_id) == (flow_run.id, None)


def test_parameters_are_recorded_as_json_for_readers() -> None:
    """What JSON cannot hold is there as its bounded repr, and nothing breaks the run."""

    class Unprintable:
        def __repr__(self) -> str:
            raise RuntimeError

    loop: list[Any] = []
    loop.append(loop)
    values = [object(), Unprintable(), loop, {1: 2}, (1, "a"), "x" * 10, math.nan, b"bytes", {"k": [None, True]}]

    _, flow_run, state = recorded(flow(lambda values: len(values)), values=values)

    assert state.result() == len(values)
    json.dumps(flow_run.parameters, allow_nan=False)
    assert flow_run.parameters["values"][8] == {"k": [None, True]}  # type: ignore[index]


def test_wrong_parameters_of_execute_are_a_type_error() -> None:
    """The command line tells them like a call would."""
    with pytest.raises(TypeError, match="importable_flow"):
        recorded(importable_flow, c=1)


def test_records_of_task_runs() -> None:
    """Names, ordinals, upstreams, tags and versions."""

    @flow
    def body() -> None:
        first = give(1)
        increment.with_options(tags=["b", "a"], version="2")([first, first], wait_for=[fail()])

    store, flow_run, _ = recorded(body)
    runs = [record for record in store.read(flow_run.id) if type(record).__name__ == "TaskRun"]

    assert [(run.number, run.name, run.task, run.ordinal) for run in runs] == [  # type: ignore[union-attr]
        (1, "give-0", "give", 0),
        (2, "fail-0", "fail", 0),
        (3, "increment-0", "increment", 0),
    ]
    assert runs[2].upstreams == (runs[0].id, runs[1].id)  # type: ignore[union-attr]
    assert set(runs[2].tags) == {"a", "b"}  # type: ignore[union-attr]
    assert runs[2].version == "2"  # type: ignore[union-attr]


def test_results_are_recorded_where_they_can_be() -> None:
    """A value that cannot be pickled never fails its task."""
    from localflow.payloads import unpack

    store, flow_run, state = recorded(flow(lambda: [give([1]), give(threading.Lock()), give((1,))]))

    first, second, third = (store.load_result(flow_run.id, number) for number in (1, 2, 3))
    assert state.is_completed()
    assert first is not None
    assert unpack(first) == [1]
    assert second is None
    assert third is not None
    assert unpack(third) == (1,)


@EXECUTORS
def test_a_value_that_is_deeply_nested_does_not_fail_its_task(executor: str) -> None:
    """Neither the task's nor the flow's result stops a run because it cannot be recorded."""

    def deep() -> list[Any]:
        value: list[Any] = []
        for _ in range(5 * sys.getrecursionlimit()):
            value = [value]
        return value

    def nearly_deep() -> list[Any]:
        value: list[Any] = []
        for _ in range(sys.getrecursionlimit() - 20):
            value = [value]
        return value

    for make in (deep, nearly_deep):
        assert run(lambda make=make: task(make)(), executor=executor).is_completed()
        assert run(make, executor=executor).is_completed()


def test_flow_run_names_and_ids_differ() -> None:
    """Each call is a run of its own."""
    runs = [recorded(importable_flow, a=1)[1] for _ in range(5)]

    assert len({run.id for run in runs}) == 5


def test_a_flow_is_a_method_where_it_is_defined_as_one() -> None:
    """Called on an instance, a flow gets it as `self`, like any function."""

    class Store:
        rate = 3

        @flow
        def price(self, amount: int) -> int:
            return self.rate * amount

    assert Store().price(2).result() == 6


def test_an_unknown_option_of_the_decorator_is_refused_with_those_there_are() -> None:
    """A misspelt option names the one that was meant."""
    with pytest.raises(TypeError, match="@flow has no option 'exekutor'; did you mean 'executor'"):
        flow(exekutor="thread")  # type: ignore[call-overload]
