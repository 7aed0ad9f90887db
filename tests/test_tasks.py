"""@task and Task: options, what can be decorated, and what a call does inside and outside a flow."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from localflow import (
    SequentialExecutor,
    State,
    StateType,
    Task,
    TaskFuture,
    ThreadExecutor,
    flow,
    quote,
    task,
)
from localflow.errors import LocalflowError, OutsideFlowError, ReservedArgumentError


@pytest.fixture(autouse=True)
def memory_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep nothing on disk."""
    monkeypatch.setenv("LOCALFLOW_STORE", "memory")


@task
def add(a: int, b: int = 1, *, c: int = 0) -> int:
    """Add numbers.

    More about it.
    """
    return a + b + c


@task(name="Nice name", description="What it does", version="7", tags=["b", "a"], executor="thread")
def full(x: object) -> object:
    """Do something else."""
    return x


@task(executor=ThreadExecutor(workers=1))
def importable() -> None:
    """Have an executor that no pickle could carry."""


def in_flow(body: Any, executor: str | None = None) -> Any:
    """Run `body` as a flow and return the data of what it returns."""
    return flow(name="body", executor=executor)(body)().result()


# -- options ---------------------------------------------------------------------------------------------------------


def test_a_bare_decorator_takes_everything_from_the_function() -> None:
    """Name and description come from the function."""
    assert isinstance(add, Task)
    assert (add.name, add.version, add.tags, add.executor) == ("add", None, (), None)
    assert add.description.startswith("Add numbers.")
    assert add.__name__ == "add"
    assert add.__doc__ is not None
    assert add.__module__ == __name__
    assert inspect.signature(add) == inspect.signature(add.fn)


def test_options_are_kept() -> None:
    """Every option of the decorator can be read back."""
    assert (full.name, full.description, full.version, full.executor) == ("Nice name", "What it does", "7", "thread")
    assert set(full.tags) == {"a", "b"}


def test_an_empty_pair_of_parentheses_is_the_bare_decorator() -> None:
    """`@task()` works like `@task`."""

    @task()
    def f() -> int:
        return 1

    assert isinstance(f, Task)
    assert f.name == "f"
    assert f() == 1


def test_the_decorator_can_be_called() -> None:
    """`task(fn, ...)`'s other spelling, with options first."""
    assert task(name="x")(len).name == "x"
    assert task(len)([1, 2]) == 2


@pytest.mark.parametrize("wrong", [None, 5, "name", []])
def test_what_is_no_function_cannot_be_decorated(wrong: Any) -> None:
    """A decorator misused says so at once."""
    with pytest.raises(TypeError):
        task(name="x")(wrong)


@pytest.mark.parametrize("wrong", ["name", 5, ["tags"]])
def test_a_positional_argument_that_is_no_function(wrong: Any) -> None:
    """`@task("name")` is a common slip."""
    with pytest.raises(TypeError, match="function"):
        task(wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"nonsense": 1},
        {"name": ""},
        {"name": 5},
        {"description": 5},
        {"version": 1.5},
        {"tags": "database"},
        {"tags": 5},
        {"tags": [1, 2]},
        {"executor": 5},
        {"executor": ""},
        {"executor": ThreadExecutor},
    ],
    ids=str,
)
def test_wrong_options_are_type_errors_at_decoration(options: Any) -> None:
    """A mistake in an option shows where it is made, for the decorator and for `with_options`."""
    (option,) = options

    with pytest.raises(TypeError, match=option):
        task(**options)(len)
    with pytest.raises(TypeError, match=option):
        task(len).with_options(**options)


def test_a_parameter_named_wait_for_is_reserved() -> None:
    """A task cannot have a parameter that localflow takes at every call."""
    with pytest.raises(ReservedArgumentError, match=r"'clash'.*'wait_for'") as caught:

        @task
        def clash(x: int, wait_for: object = None) -> None: ...

    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, LocalflowError)


def test_a_generator_cannot_be_a_flow() -> None:
    """A flow that is a generator is refused at decoration, not at the call."""

    def generator() -> Any:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        flow(generator)


# -- with_options ----------------------------------------------------------------------------------------------------


def test_with_options_changes_a_copy_only() -> None:
    """The original stays as it was, also when it can be imported."""
    changed = full.with_options(name="changed", tags=["c"], version="8", description="d", executor="sequential")

    assert changed is not full
    assert (changed.name, changed.tags, changed.version, changed.description, changed.executor) == (
        "changed",
        ("c",),
        "8",
        "d",
        "sequential",
    )
    assert (full.name, set(full.tags), full.version, full.executor) == ("Nice name", {"a", "b"}, "7", "thread")
    assert changed.fn is full.fn


@pytest.mark.parametrize("where", ["importable", "local"])
def test_with_options_keeps_what_is_not_named(where: str) -> None:
    """Options that are not named stay, the executor included."""
    executor = ThreadExecutor(workers=1)

    @task(name="n", tags=["t"], version="1", executor=executor)
    def local() -> None: ...

    original: Any = full if where == "importable" else local
    changed = original.with_options(description="new")

    assert changed.description == "new"
    for option in ("name", "tags", "version", "executor", "fn"):
        assert getattr(changed, option) is getattr(original, option) or option == "tags"
    assert changed.tags == original.tags


def test_with_options_can_be_chained() -> None:
    """Each step builds on the one before."""
    changed = add.with_options(name="one").with_options(version="2").with_options(tags=["x"])

    assert (changed.name, changed.version, changed.tags) == ("one", "2", ("x",))
    assert add.name == "add"


def test_none_in_with_options_means_the_default() -> None:
    """None is what the decorator takes for not given."""
    changed = full.with_options(name=None, description=None, version=None, tags=None, executor=None)

    assert changed.name == "full"
    assert changed.description == "Do something else."
    assert (changed.version, changed.tags, changed.executor) == (None, (), None)


def test_a_changed_copy_works() -> None:
    """The copy can be called in and outside a flow."""
    changed = add.with_options(name="sum")

    assert changed(1, 2) == 3
    assert in_flow(lambda: changed(1, 2).name) == "sum-0"
    assert in_flow(lambda: changed(1, 2)) == 3


def test_copies_of_a_task_are_tasks_of_their_own() -> None:
    """copy.copy keeps every option."""

    @task(name="n", tags=["t"], version="1", executor="thread")
    def local() -> int:
        return 1

    twin = copy.copy(local)

    assert (twin.name, twin.tags, twin.version, twin.executor) == ("n", ("t",), "1", "thread")
    assert twin() == 1


# -- outside a flow --------------------------------------------------------------------------------------------------


def test_outside_a_flow_a_task_is_its_function() -> None:
    """A decorated function stays a function."""
    assert add(1, 2, c=3) == 6
    assert add.fn(1) == 2
    assert list(map(add, [1, 2])) == [2, 3]


def test_outside_a_flow_an_exception_is_the_functions_own() -> None:
    """Nothing is caught or recorded."""
    error = ValueError("boom")

    @task
    def fail() -> None:
        raise error

    with pytest.raises(ValueError, match="boom") as caught:
        fail()

    assert caught.value is error


def test_outside_a_flow_wrong_arguments_are_a_type_error() -> None:
    """As for the plain function."""
    with pytest.raises(TypeError):
        add()
    with pytest.raises(TypeError):
        add(1, nonsense=2)


def test_outside_a_flow_wait_for_and_quote_do_no_harm() -> None:
    """The same call works in a unit test: there is nothing to wait for, and a quote holds what it holds."""
    value = [1]

    assert full(value, wait_for=[]) is value
    assert full(quote(value)) is value


def test_submit_outside_a_flow_is_an_error() -> None:
    """It names the task and says where it was called."""
    with pytest.raises(OutsideFlowError, match=r"add.*outside a flow"):
        add.submit(1)


@pytest.mark.parametrize("executor", ["sequential", "thread"])
def test_inside_a_task_a_task_is_its_function(executor: str) -> None:
    """A task called by a task is a plain call, and `submit` there is an error."""

    @task
    def outer() -> object:
        with pytest.raises(OutsideFlowError, match="inside a task"):
            add.submit(1)
        return add(1, 2)

    state = flow(executor=executor)(lambda: [outer()])()

    assert state.result() == [3]
    assert len(state.result(raise_on_failure=False)) == 1


def test_in_a_thread_of_the_body_a_task_is_its_function() -> None:
    """A thread that the body starts is outside of the flow."""
    seen: list[object] = []

    def body() -> None:
        thread = threading.Thread(target=lambda: seen.append(add(1)))
        thread.start()
        thread.join()

    state = flow(body)()

    assert seen == [2]
    assert repr(state) == "State(name='Completed', type=StateType.COMPLETED)"


@pytest.mark.timeout(20)
def test_a_context_that_outlives_its_flow_starts_nothing() -> None:
    """A call in a context kept from a flow that has ended raises instead of waiting for ever."""
    import contextvars

    kept: list[contextvars.Context] = []
    flow(lambda: kept.append(contextvars.copy_context()))()

    with pytest.raises(LocalflowError):
        kept[0].run(add.submit, 1)


# -- in a flow -------------------------------------------------------------------------------------------------------


def test_a_call_in_a_flow_gives_a_future() -> None:
    """`t(...)` and `t.submit(...)` are the same thing."""

    def body() -> object:
        called, submitted = add(1, b=2), add.submit(1, b=2)
        assert isinstance(called, TaskFuture)
        assert isinstance(submitted, TaskFuture)
        return [called, submitted]

    assert in_flow(body) == [3, 3]


def test_fn_in_a_flow_is_the_plain_function() -> None:
    """`t.fn(...)` makes no task run."""
    state = flow(lambda: add.fn(1, 2))()

    assert repr(state) == "State(name='Completed', type=StateType.COMPLETED)"
    assert state.result() == 3


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"a": 2}), ((1,), {"nonsense": 1}), ((), {"b": 1}), ((1, 2, 3, 4), {"c": 1})],
)
def test_wrong_arguments_are_a_type_error_at_the_call(args: Any, kwargs: Any) -> None:
    """The mistake shows in the body, where it is made; no task run comes of it."""

    def body() -> object:
        for call in (add, add.submit):
            with pytest.raises(TypeError, match="add"):
                call(*args, **kwargs)
        return "reached"

    assert in_flow(body) == "reached"


def test_every_kind_of_parameter() -> None:
    """Positional-only, keyword-only and variadic parameters arrive as for the plain function."""

    @task
    def everything(a: Any, /, b: Any, *rest: Any, c: Any, d: Any = "d", **more: Any) -> Any:
        return a, b, rest, c, d, more

    def body() -> object:
        with pytest.raises(TypeError):
            everything(1, 2)
        return [everything(1, 2, 3, 4, c=5, e=6), everything(1, b=2, c=3, a=4)]

    assert in_flow(body) == [(1, 2, (3, 4), 5, "d", {"e": 6}), (1, 2, (), 3, "d", {"a": 4})]


def test_parameters_with_the_names_of_ours() -> None:
    """A user's parameter may be called self, args, kwargs, task or fn."""

    @task
    def odd(self: Any, args: Any, kwargs: Any, task: Any, fn: Any, context: Any) -> Any:
        return self, args, kwargs, task, fn, context

    def body() -> object:
        return odd(self=1, args=2, kwargs=3, task=4, fn=5, context=6)

    assert odd(self=1, args=2, kwargs=3, task=4, fn=5, context=6) == (1, 2, 3, 4, 5, 6)
    assert in_flow(body) == (1, 2, 3, 4, 5, 6)


def test_arguments_arrive_as_the_very_objects() -> None:
    """In-process executors copy nothing that holds no future."""
    given = {"rows": [object()]}
    seen: list[object] = []

    @task
    def look(value: Any, *, again: Any) -> None:
        seen.extend([value, again])

    for executor in ("sequential", "thread"):
        flow(executor=executor)(lambda: look(given, again=given))()

    assert all(value is given for value in seen)
    assert len(seen) == 4


def test_a_task_may_be_called_often_and_by_many_flows() -> None:
    """A task keeps nothing of its calls."""

    def body() -> Any:
        return [add(n) for n in range(3)]

    assert in_flow(body) == in_flow(body) == [1, 2, 3]


# -- what can be decorated -------------------------------------------------------------------------------------------


class Greeter:
    """Has tasks among its methods, and can be called."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def __call__(self, name: str) -> str:
        """Greet."""
        return f"{self.greeting} {name}"

    @task
    def greet(self, name: str) -> str:
        """Greet somebody."""
        return f"{self.greeting} {name}"

    @staticmethod
    @task
    def shout(name: str) -> str:
        """Say it loud."""
        return name.upper()

    @classmethod
    def make(cls) -> Greeter:
        """Make one."""
        return cls("made")


def test_a_method_can_be_a_task() -> None:
    """A decorated method is still a method."""
    greeter = Greeter("hello")

    assert greeter.greet("you") == "hello you"
    assert in_flow(lambda: greeter.greet("you")) == "hello you"
    assert in_flow(lambda: greeter.greet.submit("you")) == "hello you"
    assert isinstance(Greeter.greet, Task)


def test_a_static_method_can_be_a_task() -> None:
    """Under @staticmethod the task is found through the class and its instances."""
    assert Greeter.shout("you") == "YOU"
    assert in_flow(lambda: Greeter("").shout("you")) == "YOU"


def test_bound_methods_lambdas_and_callables_can_be_tasks() -> None:
    """Whatever can be called can be a task."""
    greeter = Greeter("hello")
    double = task(lambda n: 2 * n)

    assert in_flow(lambda: [task(greeter.__call__)("a"), task(greeter)("b"), double(3), task(Greeter.make)().name]) == [
        "hello a",
        "hello b",
        6,
        "make-0",
    ]
    assert double.name == "<lambda>"
    assert task(greeter).name == "Greeter"


def test_a_partial_can_be_a_task() -> None:
    """functools.partial objects have no name of their own, and wrong arguments are still a TypeError."""
    partial = task(functools.partial(operator.add, 1))

    def body() -> object:
        with pytest.raises(TypeError):
            partial(1, 2, 3)
        return partial(2)

    assert partial.name
    assert in_flow(body) == 3


def test_a_callable_object_with_wrong_arguments_is_a_type_error() -> None:
    """The message needs no name that the object does not have."""
    greeter = task(Greeter("hello"))

    def body() -> object:
        with pytest.raises(TypeError):
            greeter(1, 2, 3)
        return "reached"

    assert in_flow(body) == "reached"


@pytest.mark.parametrize(
    ("builtin", "args", "value"),
    [(len, ([1, 2],), 2), (sorted, ([2, 1],), [1, 2]), (max, (1, 2), 2), (int, ("7",), 7), (dict, ([(1, 2)],), {1: 2})],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_builtins_can_be_tasks(builtin: Any, args: Any, value: object) -> None:
    """Also those whose signature Python cannot tell."""
    assert in_flow(lambda: task(builtin)(*args)) == value


def test_a_class_can_be_a_task() -> None:
    """Its instances are the data."""
    made = in_flow(lambda: task(Greeter)("hi"))

    assert isinstance(made, Greeter)
    assert made.greeting == "hi"


def test_a_wrapped_function_can_be_a_task() -> None:
    """Other decorators below ours keep their effect."""

    def twice(fn: Any) -> Any:
        @functools.wraps(fn)
        def wrapper(*args: Any) -> Any:
            return fn(fn(*args))

        return wrapper

    @task
    @twice
    def increment(n: int) -> int:
        return n + 1

    assert increment.name == "increment"
    assert in_flow(lambda: increment(1)) == 3


def test_attributes_of_the_function_do_not_disturb() -> None:
    """A function may carry attributes with the names of ours."""

    def marked(n: int) -> int:
        return n

    marked.submit = marked.kind = marked.with_options = "mine"  # type: ignore[attr-defined]
    decorated = task(marked)

    assert in_flow(lambda: decorated.submit(1)) == 1
    assert decorated.with_options(name="x").name == "x"


# -- executors -------------------------------------------------------------------------------------------------------


@task
def thread_name() -> str:
    """Tell the thread."""
    return threading.current_thread().name


def test_a_task_may_name_its_own_executor() -> None:
    """I/O on threads beside work in the body's own thread."""
    main = threading.current_thread().name

    def body() -> object:
        return [thread_name(), thread_name.with_options(executor="thread")(), thread_name()]

    here, there, again = in_flow(body, "sequential")

    assert here == again == main
    assert there != main


def test_a_task_may_bring_its_own_executor() -> None:
    """An instance is as good as a name, and is shut down with the flow."""
    executor = ThreadExecutor(workers=1)
    on_thread = thread_name.with_options(executor=executor)

    for _ in range(2):
        names = in_flow(lambda: [on_thread(), on_thread()])
        assert names[0] == names[1] != threading.current_thread().name


def test_a_task_on_threads_may_be_in_the_callers_thread_by_name() -> None:
    """The other way round: one sequential task in a flow on threads."""
    main = threading.current_thread().name

    def body() -> object:
        return thread_name.with_options(executor=SequentialExecutor())(), thread_name()

    here, there = in_flow(body, "thread")

    assert here == main
    assert there != main


def test_data_flows_between_executors() -> None:
    """Dependencies do not care where their ends run."""

    def body() -> object:
        on_threads = add.with_options(executor="thread")
        return add(on_threads(add(on_threads(1))))

    assert in_flow(body, "sequential") == 5


def test_an_unknown_executor_fails_the_flow_where_the_task_is_called() -> None:
    """The message names what was asked for."""
    state = flow(lambda: add.with_options(executor="nonsense")(1))()

    assert state.is_failed()
    assert "nonsense" in state.message


# -- pickling --------------------------------------------------------------------------------------------------------


def test_an_importable_task_is_pickled_by_reference() -> None:
    """Its pickle is small and gives the very task."""
    data = pickle.dumps(importable)

    assert pickle.loads(data) is importable
    assert len(data) < 200


def test_a_task_that_cannot_be_imported_is_pickled_by_value() -> None:
    """A local task travels with its function and options."""
    offset = 10

    @task(name="local", tags=["t"], version="2")
    def local(n: int) -> int:
        """Say something."""
        return n + offset

    twin = cloudpickle.loads(cloudpickle.dumps(local))

    assert twin(1) == 11
    assert (twin.name, twin.tags, twin.version, twin.description) == ("local", ("t",), "2", "Say something.")


def test_a_changed_copy_of_an_importable_task_can_be_pickled() -> None:
    """The options travel, the function goes by reference."""
    twin = pickle.loads(pickle.dumps(add.with_options(name="other", tags=["x"])))

    assert (twin.name, twin.tags) == ("other", ("x",))
    assert twin.fn is add.fn
    assert add.name == "add"


def test_a_lambda_or_partial_task_can_be_pickled() -> None:
    """Functions without an importable name travel by value."""
    for decorated in (task(lambda a, b: a + b), task(functools.partial(operator.add))):
        assert cloudpickle.loads(cloudpickle.dumps(decorated))(1, 2) == 3


def test_tasks_of_main_travel_by_value(own_folder: Path) -> None:
    """A script's tasks can be unpickled where the script cannot be imported."""
    Path("script.py").write_text(
        "import cloudpickle, sys\n"
        "from localflow import flow, task\n"
        "@task(name='mine', executor='thread')\n"
        "def double(n): return 2 * n\n"
        "@flow(name='my flow')\n"
        "def main(n): return double(n)\n"
        "sys.stdout.buffer.write(cloudpickle.dumps((double, main, double.with_options(name='other'))))\n"
    )
    data = subprocess.run([sys.executable, "script.py"], capture_output=True, check=True).stdout

    double, main, other = pickle.loads(data)

    assert (double(2), double.name, main.name, other.name) == (4, "mine", "my flow", "other")
    assert main(3).result() == 6


def test_state_type_of_a_task_is_unaffected_by_pickle() -> None:
    """A task that returns a task returns it whole."""

    @task
    def give_task() -> Any:
        return add

    state: State = flow(lambda: give_task())()

    assert state.type is StateType.COMPLETED
    assert state.result() is add
