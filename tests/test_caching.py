"""What a cache key depends on, and what the options of caching take."""

from __future__ import annotations

import pickle
import threading
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow import task
from localflow.caching import (
    FLOW_PARAMETERS,
    INPUTS,
    NO_CACHE,
    RUN_ID,
    TASK_SOURCE,
    CachePolicy,
    hit_message,
    miss_message,
)
from localflow.calls import Call
from localflow.errors import NotCacheableError
from localflow.payloads import Packed, Payload, pack
from localflow.records import CachedResult, FlowRun, TaskRun
from localflow.tasks import Task

EVERYTHING = INPUTS + TASK_SOURCE + RUN_ID + FLOW_PARAMETERS


def make_call(called: Any, *args: Any, run_id: str = "run", flow: dict[str, Any] | None = None, **kwargs: Any) -> Call:
    """Make a call of a task as the engine does; `flow` are the parameters of the flow."""
    flow_run = FlowRun(run_id, "brave-otter", "main", 0.0, run_id, arguments=pack(flow or {}))
    return Call(1, TaskRun(flow_run, 1, f"{called.name}-0", called.name, 0, 0.0), 1, called, args, kwargs)


def key(called: Any, *args: Any, **kwargs: Any) -> str | None:
    """Return the cache key of a call."""
    caching = called.caching
    assert caching is not None
    found: str | None = caching.key(make_call(called, *args, **kwargs))
    return found


@task(cache_policy=INPUTS)
def add(a: int, b: int = 2, *rest: int, scale: int = 1, **options: int) -> int:
    """Add numbers."""
    return (a + b + sum(rest)) * scale


# -- policies ----------------------------------------------------------------------------------------------------------


def test_a_policy_shows_what_it_depends_on() -> None:
    """In the words it is written with."""
    assert repr(INPUTS) == "INPUTS"
    assert repr(TASK_SOURCE + INPUTS) == "INPUTS + TASK_SOURCE"
    assert repr(INPUTS - "b" - "a") == "INPUTS - 'a' - 'b'"
    assert repr((INPUTS + TASK_SOURCE) - "a") == "(INPUTS + TASK_SOURCE) - 'a'"
    assert repr(NO_CACHE) == "NO_CACHE"


PARTS = st.sampled_from([INPUTS, TASK_SOURCE, RUN_ID, FLOW_PARAMETERS, NO_CACHE, INPUTS - "a", INPUTS - "b"])


@given(PARTS, PARTS, PARTS)
def test_the_order_of_a_sum_does_not_count(a: CachePolicy, b: CachePolicy, c: CachePolicy) -> None:
    """Nor do brackets, nor adding the same twice."""
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + a == a
    assert hash(a + b) == hash(b + a)


def test_a_sum_leaves_out_only_what_all_of_its_inputs_leave_out() -> None:
    """An argument that one of them depends on is one that the sum depends on."""
    assert (INPUTS - "a") + INPUTS == INPUTS
    assert (INPUTS - "a" - "b") + (INPUTS - "a") == INPUTS - "a"
    assert (INPUTS - "a") + TASK_SOURCE == (INPUTS + TASK_SOURCE) - "a"


def test_no_cache_adds_nothing() -> None:
    """And nothing can be taken from it."""
    assert NO_CACHE + INPUTS == INPUTS + NO_CACHE == INPUTS
    assert NO_CACHE - "a" == NO_CACHE


def test_a_policy_survives_pickling() -> None:
    """A task with its options travels to workers."""
    policy = (INPUTS + TASK_SOURCE) - "a"

    assert pickle.loads(pickle.dumps(policy)) == policy


def test_policies_are_added_to_policies_and_narrowed_by_names_only() -> None:
    """Anything else is a mistake."""
    with pytest.raises(TypeError, match="unsupported operand"):
        INPUTS + "a"  # type: ignore[operator]
    with pytest.raises(TypeError, match="name of an argument"):
        INPUTS - TASK_SOURCE  # type: ignore[operator]


# -- options -----------------------------------------------------------------------------------------------------------


def make(**options: Any) -> Task[..., Any]:
    """Make a task with options."""
    return Task(lambda x: x, name="load", **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_policy": None},
        {"cache_policy": NO_CACHE},
        {"refresh_cache": False},
        {"cache_policy": NO_CACHE, "cache_expiration": 60, "refresh_cache": True},
    ],
)
def test_nothing_is_cached_unless_it_is_asked_for(options: dict[str, Any]) -> None:
    """A task without a policy has no caching."""
    assert make(**options).caching is None


def test_an_expiration_is_a_timedelta_or_seconds() -> None:
    """Both mean the same."""
    for expiration in (90, 90.0, timedelta(minutes=1.5)):
        caching = make(cache_policy=INPUTS, cache_expiration=expiration).caching

        assert caching is not None
        assert caching.expiration == 90.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_policy": "INPUTS"}, "@task 'load': cache_policy takes INPUTS, TASK_SOURCE, RUN_ID, FLOW_PARAMETERS"),
        ({"cache_policy": lambda context, parameters: "x"}, "a function that makes keys is a cache_key_fn"),
        ({"cache_key_fn": "x"}, r"cache_key_fn takes a function \(context, parameters\), not 'x'"),
        (
            {"cache_policy": INPUTS, "cache_expiration": 0},
            "cache_expiration takes a timedelta or seconds above 0, not 0",
        ),
        ({"cache_policy": INPUTS, "cache_expiration": True}, "cache_expiration"),
        ({"cache_policy": INPUTS, "cache_expiration": "60"}, "cache_expiration"),
        ({"cache_policy": INPUTS, "cache_expiration": float("inf")}, "cache_expiration"),
        ({"cache_policy": INPUTS, "cache_expiration": timedelta(0)}, "cache_expiration"),
        ({"cache_policy": INPUTS, "refresh_cache": 1}, "refresh_cache takes True or False, not 1"),
        ({"cache_expiration": 60}, "cache_expiration has no effect without a cache; give cache_policy=INPUTS"),
        ({"refresh_cache": True}, "refresh_cache has no effect without a cache"),
    ],
)
def test_a_wrong_option_is_refused_where_the_task_is_made(options: dict[str, Any], message: str) -> None:
    """The message says what it takes."""
    with pytest.raises(TypeError, match=message):
        make(**options)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_one_call_has_one_key_however_it_is_written() -> None:
    """By position, by name, or left at the default."""
    assert key(add, 1, 2) == key(add, 1) == key(add, a=1, b=2) == key(add, b=2, a=1) == key(add, 1, b=2, scale=1)
    assert key(add, 1, x=1, y=2) == key(add, 1, y=2, x=1)


def test_calls_with_other_arguments_have_other_keys() -> None:
    """Also where the values look alike."""
    calls = [key(add, 1), key(add, 2), key(add, True), key(add, 1.0), key(add, "1"), key(add, 2, 1), key(add, 1, 2, 3)]
    calls += [key(add, 1, scale=2), key(add, 1, more=2), key(add, [1]), key(add, (1,)), key(add, 1, 2, 3, 4)]

    assert len(set(calls)) == len(calls)


@given(st.integers() | st.text() | st.lists(st.integers()), st.integers() | st.text() | st.lists(st.integers()))
def test_keys_are_equal_exactly_if_the_arguments_are(a: Any, b: Any) -> None:
    """A wrong hit is worse than any miss."""
    assert (key(add, a) == key(add, b)) is (a == b)


def test_data_that_came_from_a_worker_counts_as_what_it_is() -> None:
    """Whether it is packed is no part of it."""
    caching = add.caching
    assert caching is not None
    packed = make_call(add, Packed(pack([1, 2])))._replace(holds_packed=True)

    assert caching.key(packed) == key(add, [1, 2])


def test_an_argument_can_be_left_out() -> None:
    """Then it may be anything, also what could not be part of a key."""
    narrowed = add.with_options(cache_policy=INPUTS - "b" - "scale")

    assert key(narrowed, 1, 2, scale=3) == key(narrowed, 1, threading.Lock(), scale=4) != key(narrowed, 2)


def test_an_argument_that_cannot_be_part_of_a_key_is_named() -> None:
    """With its type, the reason and the way out."""
    with pytest.raises(NotCacheableError) as caught:
        key(add, 1, {"deep": threading.Lock()})

    assert str(caught.value) == (
        "argument 'b' (dict) cannot be part of a cache key: TypeError: cannot pickle '_thread.lock' object; "
        "leave it out with cache_policy=INPUTS - 'b'"
    )


def test_an_argument_that_cannot_be_unpickled_is_told() -> None:
    """The task will fail for it, the cache does not."""
    call = make_call(add, Packed(Payload("pickle", b"garbage")))._replace(holds_packed=True)

    assert add.caching is not None
    with pytest.raises(NotCacheableError, match="cannot be unpickled"):
        add.caching.key(call)


def test_different_tasks_never_share_a_key() -> None:
    """Whatever the policy and however alike they are."""

    def make_scaled(factor: int) -> Any:
        @task(name="scaled", cache_policy=policy)
        def scaled(x: int) -> int:
            return x * factor

        return scaled

    for policy in (INPUTS, RUN_ID, TASK_SOURCE, FLOW_PARAMETERS, EVERYTHING):
        lambdas = [
            Task(lambda x: x + 1, name="f", cache_policy=policy),
            Task(lambda x: x + 2, name="f", cache_policy=policy),
        ]
        tasks = [
            *lambdas,
            make_scaled(1),
            make_scaled(2),
            Task(pow, cache_policy=policy),
            Task(pow, name="p", cache_policy=policy),
        ]

        assert len({key(each, 3) if each.fn is not pow else key(each, 3, 1) for each in tasks}) == len(tasks)


def test_the_object_of_a_method_is_part_of_its_key() -> None:
    """It is an argument like others, by the name `self`."""

    class Scaler:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        @task(cache_policy=INPUTS)
        def scale(self, x: int) -> int:
            return x * self.factor

        @task(cache_policy=INPUTS - "self")
        def same(self, x: int) -> int:
            return x

    assert key(Scaler(1).scale, 1) == key(Scaler(1).scale, 1) != key(Scaler(2).scale, 1)
    assert key(Scaler(1).same, 1) == key(Scaler(2).same, 1)


def test_a_task_copied_with_other_options_keeps_its_keys() -> None:
    """So that one copy can refresh what another one uses."""
    assert key(add.with_options(refresh_cache=True, cache_expiration=5, retries=3), 1) == key(add, 1)


def defined(body: str, policy: CachePolicy, options: str = "") -> Any:
    """Define a task by the text of its body."""
    names: dict[str, Any] = {"task": task, "policy": policy, "__name__": "typed_in"}
    exec(f"@task(cache_policy=policy{options})\ndef f(x):\n    return {body}", names)
    return names["f"]


def test_the_source_of_a_task_is_part_of_its_key_only_if_that_is_asked_for(tmp_path: Any) -> None:
    """TASK_SOURCE changes with the body; INPUTS alone does not."""
    keys = {}
    for policy in (INPUTS, INPUTS + TASK_SOURCE):
        for body in ("x + 1", "x + 2"):
            file = tmp_path / "tasks.py"
            file.write_text(f"@task(cache_policy=policy)\ndef f(x):\n    return {body}\n")
            names: dict[str, Any] = {"task": task, "policy": policy, "__name__": "tasks"}
            exec(compile(file.read_text(), str(file), "exec"), names)
            keys[policy, body] = key(names["f"], 1)

    assert keys[INPUTS, "x + 1"] == keys[INPUTS, "x + 2"]
    assert len(set(keys.values())) == 3


def test_a_file_edited_while_it_runs_does_not_lend_its_new_text_to_old_code(tmp_path: Any) -> None:
    """What the old code computes must not be found by the new code."""
    keys = []
    file = tmp_path / "tasks.py"
    file.write_text("@task(cache_policy=TASK_SOURCE)\ndef f(x):\n    return x + 1\n")
    old = compile(file.read_text(), str(file), "exec")
    file.write_text("@task(cache_policy=TASK_SOURCE)\ndef f(x):\n    return x + 2\n")
    new = compile(file.read_text(), str(file), "exec")
    for code in (old, new):
        names: dict[str, Any] = {"task": task, "TASK_SOURCE": TASK_SOURCE, "__name__": "tasks"}
        exec(code, names)
        keys.append(key(names["f"], 1))

    assert keys[0] != keys[1]


def test_the_options_of_the_decorator_are_no_part_of_the_source(tmp_path: Any) -> None:
    """Adding refresh_cache for one run must refresh what the next run finds."""
    keys = []
    for options in ("", ", refresh_cache=True"):
        file = tmp_path / "tasks.py"
        file.write_text(f"@task(cache_policy=TASK_SOURCE{options})\ndef f(x):\n    return x\n")
        names: dict[str, Any] = {"task": task, "TASK_SOURCE": TASK_SOURCE, "__name__": "tasks"}
        exec(compile(file.read_text(), str(file), "exec"), names)
        keys.append(key(names["f"], 1))

    assert keys[0] == keys[1]


def test_a_task_typed_into_a_repl_has_a_source_as_well() -> None:
    """Its code, for there is no file."""
    assert key(defined("x + 1", TASK_SOURCE), 1) == key(defined("x + 1", TASK_SOURCE), 1)
    assert key(defined("x + 1", TASK_SOURCE), 1) != key(defined("x + 2", TASK_SOURCE), 1)


def test_the_run_is_part_of_a_key_only_if_that_is_asked_for() -> None:
    """RUN_ID keeps a result within its flow run."""
    within = add.with_options(cache_policy=INPUTS + RUN_ID)

    assert key(within, 1, run_id="a") == key(within, 1, run_id="a") != key(within, 1, run_id="b")
    assert key(add, 1, run_id="a") == key(add, 1, run_id="b")


def test_the_parameters_of_the_flow_are_part_of_a_key_only_if_that_is_asked_for() -> None:
    """By their values, not by what is shown of them."""
    by_flow = add.with_options(cache_policy=FLOW_PARAMETERS)
    long, other = ["x" * 1000, (1, 2)], ["x" * 1000, [1, 2]]

    assert key(by_flow, 1, flow={"a": long}) == key(by_flow, 2, flow={"a": long}) != key(by_flow, 1, flow={"a": other})
    assert key(add, 1, flow={"a": 1}) == key(add, 1, flow={"a": 2})
    narrowed = add.with_options(cache_policy=FLOW_PARAMETERS - "a")
    assert key(narrowed, 1, flow={"a": 1}) == key(narrowed, 1, flow={"a": 2})


def test_parameters_of_the_flow_that_could_not_be_kept_make_no_key() -> None:
    """A connection, for example."""
    call = make_call(add)
    flow_run = call.task_run.flow_run._replace(arguments=None)
    call = call._replace(task_run=call.task_run._replace(flow_run=flow_run))
    caching = add.with_options(cache_policy=FLOW_PARAMETERS).caching

    assert caching is not None
    with pytest.raises(NotCacheableError, match="the parameters of flow run 'brave-otter' cannot be pickled"):
        caching.key(call._replace(args=(1,)))


# -- keys made by a function -------------------------------------------------------------------------------------------


def test_a_key_function_gets_the_context_and_all_parameters_by_name() -> None:
    """Defaults included; what it returns is the key."""
    seen = []

    def by_name(context: Any, parameters: dict[str, Any]) -> str:
        seen.append((context, parameters))
        return "my key"

    caching = add.with_options(cache_key_fn=by_name).caching  # it goes before the policy
    context = object()

    assert caching is not None
    assert caching.key(make_call(add, 1, 2, 3, more=4), context) == "my key"
    assert seen == [(context, {"a": 1, "b": 2, "rest": (3,), "scale": 1, "options": {"more": 4}})]


def test_two_tasks_may_share_a_key_if_their_functions_say_so() -> None:
    """That is what such a function is for."""
    one, two = (Task(fn, cache_key_fn=lambda context, parameters: "shared") for fn in (abs, round))

    assert key(one, 1) == key(two, 1) == "shared"


def test_a_key_function_may_ask_for_no_caching() -> None:
    """By returning None."""
    assert key(make(cache_key_fn=lambda context, parameters: None), 1) is None


@pytest.mark.parametrize(
    ("returns", "message"),
    [("''", "not ''"), ("3", "not 3"), ("b'x'", "not b'x'"), ("1 / 0", "raised ZeroDivisionError")],
)
def test_a_key_function_that_makes_no_key_means_no_caching(returns: str, message: str) -> None:
    """The reason is told; the call runs."""
    with pytest.raises(NotCacheableError, match=message):
        key(make(cache_key_fn=eval(f"lambda context, parameters: {returns}")), 1)


@pytest.mark.parametrize("text", ["x" * 1000, "a\0b", "\udcff", "line\nline"])
def test_a_key_that_a_store_or_terminal_might_choke_on_is_shortened_to_one_that_is_safe(text: str) -> None:
    """Different texts stay different."""
    found, other = (key(make(cache_key_fn=lambda context, parameters, t=t: t), 1) for t in (text, text + "!"))

    assert found is not None
    assert found.isascii()
    assert len(found) == 40
    assert found != other


# -- messages ----------------------------------------------------------------------------------------------------------


def test_a_hit_names_the_run_whose_result_is_used() -> None:
    """So that a reader can look it up."""
    cached = CachedResult("id-1", "load-0", "brave-otter", 0.0, None, pack(1))

    assert hit_message(cached) == "used the result of task run 'load-0' of flow run 'brave-otter'"


def test_a_miss_says_why() -> None:
    """There was no result, it had expired, a new one was asked for, or there is no key."""
    plain, refreshed, expiring = (
        make(cache_policy=INPUTS, **options).caching
        for options in ({}, {"refresh_cache": True}, {"cache_expiration": 1})
    )
    assert plain is not None
    assert refreshed is not None
    assert expiring is not None

    assert miss_message(plain, "key") == "not from the cache: there is no result with its key"
    assert miss_message(expiring, "key") == "not from the cache: there is no result with its key, or it has expired"
    assert miss_message(refreshed, "key") == "not from the cache: refresh_cache is set"
    assert miss_message(plain, None) == "not cached: its cache_key_fn returned None"
    assert miss_message(plain, None, NotCacheableError("too odd")) == "not cached: too odd"
