"""A flow run is taken up where it ended: what completed is answered from the store, the rest runs."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localflow import allow_failure, flow, task, unmapped
from localflow.errors import ChangedSinceError, NotResumableError, RunClaimedError, RunNotFoundError
from localflow.history import FlowRunHistory
from localflow.project import Project
from localflow.recovery import Again
from localflow.references import find_flow_run
from localflow.resuming import execute_again
from localflow.states import StateType

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.plans import Plan

EXECUTORS = ("sequential", "thread", "process")

log = Path("log")


def note(word: object) -> None:
    """Keep in mind that something ran, in whatever process."""
    with log.open("a") as file:
        file.write(f"{word}\n")


def noted() -> list[str]:
    """Return what ran since the last time, sorted."""
    lines = sorted(log.read_text().split()) if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def last() -> FlowRunHistory:
    """Return what is recorded of the newest flow run that no other called."""
    with Project.load().opened_store() as store:
        return FlowRunHistory.read(store, find_flow_run(store, "@last").flow_run)


def attempts() -> dict[str, int]:
    """Return the newest attempt of each task run by name."""
    return {each.run.name: each.attempt for each in last().task_runs}


def plan_of(flow: Any, again: Again | None = None) -> Plan:
    """Return the plan for the newest flow run."""
    plans: list[Plan] = []

    def take(plan: Plan) -> bool:
        plans.append(plan)
        return False

    project = Project.load()
    with project.opened_store() as store:
        assert execute_again(flow, project, store, find_flow_run(store, "@last").flow_run, again, take) is None
    return plans[0]


def is_fixed() -> bool:
    """Return whether what makes the first attempt fail has been mended."""
    return Path("fixed").exists()


@pytest.fixture
def fix() -> Callable[[], None]:
    """Mend what makes the first attempt fail."""
    return Path("fixed").touch


@task
def extract(n: int) -> int:
    """Give a number."""
    note(f"extract{n}")
    return n * 10


@task
def transform(value: int) -> int:
    """Give the next number; fail at first for one of them."""
    note(f"transform{value}")
    if value == 20 and not is_fixed():
        raise ValueError("not yet")
    return value + 1


@task
def load(values: list[int]) -> int:
    """Add up."""
    note("load")
    return sum(values)


@flow
def etl(count: int = 4) -> Any:
    """Extract, transform and load."""
    return load([transform(value) for value in extract.map(range(count))])


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("store", ["sqlite", "json"])
def test_only_what_did_not_complete_runs_again(
    executor: str, store: str, fix: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Completed task runs of maps and calls are answered, what failed and what waited for it is run."""
    monkeypatch.setenv("LOCALFLOW_STORE", store)
    assert etl.with_options(executor=executor)().is_failed()
    noted()
    fix()

    state = etl.with_options(executor=executor).resume("@last-failed")

    assert state.result() == 1 + 11 + 21 + 31
    assert noted() == ["load", "transform20"]
    assert attempts() == {
        **{f"extract-{n}": 1 for n in range(4)}, "transform-0": 1, "transform-1": 1, "transform-2": 2,
        "transform-3": 1, "load-0": 1,
    }  # fmt: skip
    history = last()
    assert [moment.name for moment in history.moments] == ["Pending", "Running", "Failed", "Retrying", "Completed"]
    assert history.attempt == 2


def test_the_plan_says_what_is_reused_and_what_runs_and_why() -> None:
    """It is made from what is recorded, and nothing has run after it."""
    etl()
    noted()

    plan = plan_of(etl)

    assert str(plan) == "reuse 7, run 2"
    reasons = {step.run.name: step.reason for step in plan.steps if not step.is_reused}
    assert reasons == {
        "transform-2": "it was Failed: Task run encountered an exception: ValueError: not yet",
        "load-0": "it never started: an upstream did not complete",
    }
    assert noted() == []


def test_a_completed_run_is_not_resumed() -> None:
    """There is nothing to do, so it is an error that says what could be done."""

    @flow
    def main() -> None:
        extract(1)

    main()

    with pytest.raises(NotResumableError, match=r"is Completed, there is nothing to resume; --from TASK or --rerun"):
        main.resume("@last")


def test_from_runs_a_task_and_all_that_was_called_after_it(fix: Callable[[], None]) -> None:
    """Also of a run that completed."""
    fix()
    etl()
    noted()

    etl.resume("@last", from_task="transform")

    assert noted() == ["load", "transform0", "transform10", "transform20", "transform30"]


def test_rerun_runs_what_a_pattern_names_and_what_depends_on_it(fix: Callable[[], None]) -> None:
    """Everything else is answered."""
    fix()
    etl()
    noted()

    state = etl.resume("@last", rerun="extract-[12]")

    assert state.is_completed()
    assert noted() == ["extract1", "extract2", "load", "transform10", "transform20"]


def test_an_unknown_task_to_run_again_is_an_error_with_a_suggestion() -> None:
    """Nothing has run after it."""
    etl()
    noted()

    with pytest.raises(RunNotFoundError, match=r"has no task run 'transfrom'; did you mean 'transform'\?"):
        etl.resume("@last", from_task="transfrom")

    assert noted() == []


def changed(source: str) -> Any:
    """Return the flow of a script, as another process would load it."""
    space: dict[str, Any] = {"__name__": "__main__", "note": note, "is_fixed": is_fixed}
    exec(compile("from localflow import *\n" + source, "<script>", "exec"), space)
    return space["main"]


SCRIPT = """
def helper(n):
    return n + 1

@task
def first(n):
    note("first")
    return helper(n)

@task
def second(n):
    note("second")
    return n * 2

@task
def last(n):
    note("last")
    if not is_fixed():
        raise ValueError("not yet")
    return n

@flow
def main(n: int = 1):
    other = second(7)
    return last(second(first(n)))
"""


def resumed_after(fix: Callable[[], None], old: str, new: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what ran when the script was changed between the failure and the resume."""
    changed(SCRIPT)()
    noted()
    fix()
    assert old in SCRIPT
    assert changed(SCRIPT.replace(old, new)).resume("@last").is_completed()
    return noted()


def test_a_task_whose_code_has_changed_runs_again_with_its_downstream(
    fix: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """And the output says why; what does not depend on it is answered."""
    ran = resumed_after(fix, 'note("first")', 'note("first"); n += 0', caplog)

    assert ran == ["first", "last", "second"]
    assert "task run 'first-0' completed before, but its code has changed since" in caplog.text


def test_a_function_that_a_task_calls_is_part_of_its_code(
    fix: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """If it is the user's own."""
    assert resumed_after(fix, "return n + 1", "return n + 2", caplog) == ["first", "last", "second"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def helper(n):", "\n\n# a comment\ndef helper(n):"),
        ("def helper(n):\n", 'def helper(n):\n    "A docstring."\n'),
        ("@task\ndef second", "@task(retries=2)\ndef second"),
    ],
)
def test_what_changes_nothing_of_the_code_makes_nothing_run_again(
    fix: Callable[[], None], caplog: pytest.LogCaptureFixture, old: str, new: str
) -> None:
    """Comments, lines and options are not what a task does."""
    assert resumed_after(fix, old, new, caplog) == ["last"]


def test_arguments_that_have_changed_make_a_call_run_again(
    fix: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """It is a run of its own: nothing that completed is lost, should a later call have its arguments."""
    assert resumed_after(fix, "second(first(n))", "second(first(n + 1))", caplog) == ["first", "last", "second"]

    assert "task run 'first-0' completed before, but the arguments have changed since: a new run" in caplog.text
    assert attempts() == {"first-0": 1, "first-1": 1, "second-0": 1, "second-1": 1, "second-2": 1, "last-0": 2}


def test_strict_refuses_what_has_changed(fix: Callable[[], None]) -> None:
    """Nothing that completed is run again."""
    changed(SCRIPT)()
    noted()
    fix()
    flow = changed(SCRIPT.replace("second(first(n))", "second(first(n + 1))"))
    project = Project.load()
    with project.opened_store() as store:
        run = find_flow_run(store, "@last").flow_run
        finished = execute_again(flow, project, store, run, Again(is_strict=True))

    assert finished is not None
    with pytest.raises(ChangedSinceError, match="arguments have changed since"):
        finished.state.result()
    assert noted() == []


def test_calls_are_known_by_their_arguments_in_whatever_order_they_come(fix: Callable[[], None]) -> None:
    """As where what is called depends on what is done first."""
    order = [[3, 1, 2], [1, 2, 3]]

    @flow
    def main() -> list[int]:
        values = [extract(n).result() for n in order.pop(0)]
        return [*values, transform(20).result()]

    main()
    noted()
    fix()

    assert main.resume("@last").result() == [10, 20, 30, 21]
    assert noted() == ["transform20"]


def test_a_call_between_others_leaves_those_their_answers(fix: Callable[[], None]) -> None:
    """It is a run of its own, after the others."""
    items = [[1, 2], [1, 5, 2]]

    @flow
    def main() -> list[int]:
        values = [extract(n).result() for n in items.pop(0)]
        return [*values, transform(20).result()]

    main()
    noted()
    fix()

    assert main.resume("@last").result() == [10, 50, 20, 21]
    assert noted() == ["extract5", "transform20"]


def test_tasks_of_subflows_are_answered_too(fix: Callable[[], None]) -> None:
    """A subflow goes on as the same flow run; one that completed is called again and runs nothing."""

    @flow
    def inner(start: int) -> Any:
        return [transform(extract(n)) for n in range(start, start + 2)]

    @flow
    def main() -> Any:
        return [inner(0).result(raise_on_failure=False) is None, inner(2), inner(4)]

    main()
    before = [summary.flow_run.id for summary in last().subflow_runs]
    noted()
    fix()

    state = main.resume("@last")

    assert noted() == ["transform20"]
    assert state.is_completed()
    assert [summary.flow_run.id for summary in last().subflow_runs] == before
    assert [summary.change and summary.change.name for summary in last().subflow_runs] == ["Completed"] * 3


def test_a_completed_subflow_without_tasks_is_not_called_again(fix: Callable[[], None]) -> None:
    """Its result is answered from the store."""

    @flow
    def inner() -> int:
        note("inner")
        return 20

    @flow
    def main() -> Any:
        return transform(inner().result())

    main()
    fix()

    assert main.resume("@last").result() == 21
    assert noted() == ["inner", "transform20", "transform20"]


def test_an_async_flow_is_resumed_by_awaiting(fix: Callable[[], None]) -> None:
    """Its branches call tasks in another order, and are answered all the same."""

    @flow
    async def main() -> Any:
        async def branch(n: int) -> int:
            value = await extract(n)
            return await transform(value)

        return await asyncio.gather(*(branch(n) for n in range(4)))

    asyncio.run(main())
    noted()
    fix()

    assert asyncio.run(main.resume("@last")).result() == [1, 11, 21, 31]
    assert noted() == ["transform20"]


@dataclass
class Point:
    x: int


def test_parameters_come_from_the_store(fix: Callable[[], None]) -> None:
    """As they were, not as they are shown."""

    @flow
    def main(point: Point, scale: float = 2.0) -> Any:
        return point, transform(20)

    main(Point(3), scale=0.5)
    fix()

    assert main.resume("@last").result() == (Point(3), 21)


def test_a_result_that_was_not_kept_is_computed_again(fix: Callable[[], None]) -> None:
    """There is no other way to have it; what used it runs again with it."""

    @task
    def lock() -> Any:
        note("lock")
        return threading.Lock()

    @task
    def use(lock: Any) -> int:
        note("use")
        return 20

    @flow
    def main() -> Any:
        return transform(use(lock()))

    main()
    noted()
    fix()

    assert plan_of(main).steps[0].reason == "its result was not kept"
    assert main.resume("@last").result() == 21
    assert noted() == ["lock", "transform20", "use"]


def test_what_took_a_failure_runs_again_with_the_value(fix: Callable[[], None]) -> None:
    """It completed, but with something else."""

    @task
    def told(value: object) -> str:
        return str(value)

    @flow
    def main() -> Any:
        value = transform(20)
        return [told(allow_failure(value)), value]

    main()
    fix()

    assert main.resume("@last").result() == ["21", 21]


def test_a_run_that_is_going_on_is_not_resumed() -> None:
    """Whoever runs it has its claim; the error names that process."""
    caught: list[BaseException] = []

    @flow
    def main() -> None:
        def resume() -> None:
            try:
                main.resume("@last")
            except RunClaimedError as error:
                caught.append(error)

        thread = threading.Thread(target=resume)
        thread.start()
        thread.join()

    main()

    assert len(caught) == 1
    assert "is being executed by pid" in str(caught[0])


def test_retries_begin_anew() -> None:
    """An attempt in an earlier process does not use up those of this one."""

    @task(retries=1)
    def stubborn() -> None:
        note("stubborn")
        if len(noted_so_far()) < 4:
            raise ValueError("not yet")

    def noted_so_far() -> list[str]:
        return log.read_text().split()

    @flow
    def main() -> None:
        stubborn()

    assert main().is_failed()
    assert main.resume("@last").is_completed()
    assert attempts() == {"stubborn-0": 4}


def test_a_retry_of_a_resumed_flow_keeps_the_answers(fix: Callable[[], None]) -> None:
    """What the store answered in the first attempt stands for the calls of the second."""
    failures = [True, True, False]

    @flow(retries=1)
    def main() -> Any:
        values = [extract(n).result() for n in range(2)]
        if failures.pop(0):
            raise RuntimeError("the flow itself")
        return values

    main.with_options(retries=0)()
    noted()

    assert main.resume("@last").result() == [0, 10]
    assert noted() == []
    assert last().attempt == 3


def test_hooks_are_not_called_for_answers(fix: Callable[[], None]) -> None:
    """They told of the completion when it happened."""
    told: list[str] = []

    @task(on_completion=lambda task, run, state: told.append(run.name))
    def hooked(n: int) -> int:
        return n

    @flow
    def main() -> Any:
        return [hooked(1), transform(20)]

    main()
    fix()
    main.resume("@last")

    assert told == ["hooked-0"]


def test_the_state_of_an_answer_is_the_one_recorded(fix: Callable[[], None]) -> None:
    """Name, message and time are those of the completion."""
    states: list[Any] = []

    @flow
    def main() -> Any:
        done = extract(1)
        states.append(done.wait())
        return [done, transform(20)]

    main()
    fix()
    main.resume("@last")

    first, second = states
    assert (second.name, second.type, second.message) == (first.name, StateType.COMPLETED, first.message)
    assert second.timestamp == first.timestamp
    assert second.run_id == first.run_id


def test_unmapped_and_quoted_arguments_are_compared_by_what_they_hold(fix: Callable[[], None]) -> None:
    """Each attempt makes new markers."""

    @task
    def scaled(n: int, factors: list[int]) -> int:
        note(f"scaled{n}")
        return n * factors[0]

    @flow
    def main() -> Any:
        return [*scaled.map([1, 2], unmapped([10, 20])), transform(20)]

    main()
    noted()
    fix()

    assert main.resume("@last").result() == [10, 20, 21]
    assert noted() == ["transform20"]


def test_a_flow_resumes_only_runs_of_its_own() -> None:
    """Another flow's function would make something else of its records."""

    @flow
    def other() -> None: ...

    etl()

    with pytest.raises(NotResumableError, match="is of flow 'etl', not of 'other'"):
        other.resume("@last")


def test_parameters_that_cannot_be_pickled_cannot_be_resumed() -> None:
    """The error says that they are not recorded."""

    @flow
    def main(lock: Any) -> None:
        raise ValueError

    main(threading.Lock())

    with pytest.raises(NotResumableError, match="its parameters could not be pickled"):
        main.resume("@last")


def test_an_item_put_in_front_leaves_the_others_their_answers(fix: Callable[[], None]) -> None:
    """Also if the code of the flow has changed by it."""
    script = SCRIPT.replace("other = second(7)", "others = [second(n) for n in [1, 2, 3]]")
    changed(script)()
    noted()
    fix()

    assert changed(script.replace("[1, 2, 3]", "[0, 1, 2, 3]")).resume("@last").is_completed()
    assert noted() == ["last", "second"]


def test_what_is_out_of_date_stays_so_over_another_interruption(fix: Callable[[], None]) -> None:
    """An upstream ran again, then the flow failed before what was built on it could."""
    answers = [1, 2]
    stops = [True, True, False]

    @task
    def source() -> int:
        note("source")
        return answers.pop(0)

    @task
    def built(value: int) -> int:
        note("built")
        return value * 10

    @flow
    def main() -> Any:
        value = source()
        if len(stops) == 2:
            stops.pop(0)
            raise RuntimeError("between")
        result = built(value).result()
        if stops.pop(0):
            raise RuntimeError("at the end")
        return result

    assert main().is_failed()
    assert main.resume("@last", rerun="source").is_failed()
    assert noted() == ["built", "source", "source"]

    assert str(plan_of(main)) == "reuse 1, run 1"
    assert main.resume("@last").result() == 20
    assert noted() == ["built"]


def test_a_newer_completion_without_a_result_is_not_answered_by_an_older_one(fix: Callable[[], None]) -> None:
    """The value of then is not that of now."""
    values: list[Any] = [1, threading.Lock(), 3]

    @task
    def give() -> Any:
        return values.pop(0)

    @flow
    def main() -> Any:
        given = give().result()
        return [given if isinstance(given, int) else 0, transform(20)]

    main()
    main.resume("@last", rerun="give")
    fix()

    assert main.resume("@last").result() == [3, 21]


def test_a_subflow_is_called_again_if_what_it_is_given_was_run_again(fix: Callable[[], None]) -> None:
    """Its own arguments say only which run they come from."""
    values = [1, 2]

    @task
    def give() -> int:
        return values.pop(0)

    @flow
    def double(value: int) -> int:
        return 2 * value

    @flow
    def main() -> Any:
        return transform(double(give()).result())

    main()

    assert main.resume("@last", rerun="give").result() == 5


def test_calls_of_methods_are_known_by_their_object(fix: Callable[[], None]) -> None:
    """A method's object is one of its arguments."""

    class Source:
        def __init__(self, place: str) -> None:
            self.place = place

        @task
        def read(self) -> str:
            note(self.place)
            return self.place

    order = [["Oslo", "Rome"], ["Rome", "Nice", "Oslo"]]

    @flow
    def main() -> Any:
        read = [Source(place).read().result() for place in order.pop(0)]
        return [*read, transform(20)]

    main()
    noted()
    fix()

    assert main.resume("@last").result() == ["Rome", "Nice", "Oslo", 21]
    assert noted() == ["Nice", "transform20"]


# -- as a property ---------------------------------------------------------------------------------------------------


@st.composite
def disturbed_runs(draw: st.DrawFn) -> tuple[list[list[int]], list[set[int]], list[list[int]]]:
    """Return upstreams for each task, which tasks fail in each attempt, and an order of calls for each attempt."""
    count = draw(st.integers(1, 7))
    upstreams = [draw(st.lists(st.integers(0, n - 1), max_size=3, unique=True)) if n else [] for n in range(count)]
    failures = draw(st.lists(st.sets(st.integers(0, count - 1), min_size=1), min_size=1, max_size=3))
    orders = []
    for _ in range(len(failures) + 1):
        left, order = set(range(count)), []
        while left:
            ready = sorted(n for n in left if not left.intersection(upstreams[n]))
            order.append(draw(st.sampled_from(ready)))
            left.remove(order[-1])
        orders.append(order)
    return upstreams, failures, orders


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(disturbed_runs(), st.sampled_from(["sequential", "thread"]))
def test_a_run_resumed_until_it_completes_is_as_one_undisturbed(
    tmp_path_factory: pytest.TempPathFactory,
    disturbed: tuple[list[list[int]], list[set[int]], list[list[int]]],
    executor: str,
) -> None:
    """In whatever order the calls of each attempt come, each task completes once and the result is the same."""
    upstreams, failures, orders = disturbed
    completed: list[int] = []
    attempt = 0

    @task
    def node(number: int, values: list[int]) -> int:
        if attempt < len(failures) and number in failures[attempt]:
            raise ValueError(number)
        completed.append(number)
        return number + 2 * sum(values)

    @flow(executor=executor)
    def main() -> Any:
        futures: dict[int, Any] = {}
        for number in orders[attempt]:
            futures[number] = node(number, [futures[each] for each in upstreams[number]])
        return [futures[number] for number in sorted(futures)]

    expected: list[int] = []
    for number, above in enumerate(upstreams):
        expected.append(number + 2 * sum(expected[each] for each in above))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        state = main()
        while not state.is_completed():
            attempt += 1
            state = main.resume("@last")

    assert state.result() == expected
    assert sorted(completed) == list(range(len(upstreams)))
