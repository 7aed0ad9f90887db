"""What the thread executor does beyond the contract."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.cores import usable_cores
from localflow.builtin.thread import ThreadExecutor
from localflow.states import StateType
from localflow.testing import workloads
from localflow.testing.running import CallRunner
from tests.executors.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from localflow.interfaces import Call, Outcome


def our_threads(kind: str = "thread") -> list[str]:
    """Return the names of the executor's threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(f"localflow-{kind}")]


def limited(call: Call, seconds: float = 0.1) -> Call:
    """Return the call with a timeout."""
    return call._replace(timeout_seconds=seconds)


def test_there_are_four_threads_for_each_core_and_at_least_eight() -> None:
    """The default fits tasks that mostly wait."""
    assert ThreadExecutor().workers == max(8, 4 * usable_cores())


def test_as_many_calls_as_workers_run_at_once() -> None:
    """Calls that wait for each other meet, if there are workers enough."""
    barrier = threading.Barrier(4, timeout=10)

    with CallRunner(ThreadExecutor(workers=4)) as runner:
        outcomes = runner.run(*(runner.call(barrier.wait) for _ in range(4)))

    assert {outcome.state.type for outcome in outcomes} == {StateType.COMPLETED}


def test_threads_start_on_demand() -> None:
    """A single call after the other needs a single thread."""
    with CallRunner(ThreadExecutor(workers=8)) as runner:
        for number in range(20):
            runner.run(runner.call(workloads.identity, number))
            eventually(lambda: len(our_threads()) <= 2)


def test_short_calls_are_taken_ahead() -> None:
    """While calls are short more of them are wanted than there are threads, and no more when they are long."""
    executor, seen = ThreadExecutor(workers=2), []

    with CallRunner(executor) as runner:
        runner.on_outcome = lambda outcome: seen.append(executor.capacity) or ()  # type: ignore[func-returns-value]
        runner.run(*(runner.call(workloads.identity, number) for number in range(200)))
        while_short = max(seen)  # a single call may take long on a busy machine
        runner.run(*(runner.call(workloads.pid, 0.02) for _ in range(8)))
        while_long = executor.capacity

    assert while_short > 2
    assert while_long == 2


def test_a_slow_report_gathers_what_is_done_meanwhile() -> None:
    """While one report is under way the other threads go on, and what they finish is reported together."""
    released, batches = threading.Event(), []

    def report(outcomes: Sequence[Outcome]) -> None:
        batches.append(len(outcomes))
        released.wait(10)

    executor = ThreadExecutor(workers=4)
    executor.start(report)
    runner = CallRunner(executor)
    ended = threading.Semaphore(0)
    executor.submit([runner.call(ended.release) for _ in range(20)])
    for _ in range(20):
        assert ended.acquire(timeout=10)
    released.set()
    eventually(lambda: sum(batches) == 20)
    executor.shutdown()

    assert len(batches) < 20


def test_an_outcome_does_not_wait_for_the_next_call_of_its_thread() -> None:
    """What a thread has finished is reported while it is at work on the call that waited behind that."""
    release = threading.Event()

    with CallRunner(ThreadExecutor(workers=1)) as runner:
        short, long = runner.call(workloads.identity, 1), runner.call(release.wait, 10)
        runner.executor.submit([short, long])
        [outcome] = runner.wait_for([short])
        before = len(runner.outcomes)
        release.set()
        runner.wait_for([long])

    assert outcome.state.data == 1
    assert before == 1


def test_calls_that_are_queued_behind_each_other_are_reported_together() -> None:
    """While a thread has its next call waiting it does not stop to report the last one."""
    batches: list[int] = []
    executor = ThreadExecutor(workers=1)
    executor.start(lambda outcomes: batches.append(len(outcomes)))
    runner = CallRunner(executor)

    executor.submit([runner.call(workloads.identity, number) for number in range(1000)])
    eventually(lambda: sum(batches) == 1000)
    executor.shutdown()

    assert len(batches) < 500


def test_a_report_that_raises_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    """A report that fails is logged, and the next calls run as ever."""
    reported = []

    def report(outcomes: Sequence[Outcome]) -> None:
        reported.extend(outcomes)
        raise OSError("no room")

    executor = ThreadExecutor(workers=1)
    executor.start(report)
    runner = CallRunner(executor)
    for _ in range(3):
        executor.submit([runner.call(workloads.identity, 1)])
    eventually(lambda: len(reported) == 3)
    executor.shutdown()

    assert "could not be reported" in caplog.text


def test_calls_that_have_not_begun_can_be_cancelled() -> None:
    """A queued call ends CANCELLED at once and never runs; a running one goes on."""
    release, ran = threading.Event(), []

    with CallRunner(ThreadExecutor(workers=1)) as runner:
        running, queued, last = runner.call(release.wait, 10), runner.call(ran.append, 1), runner.call(ran.append, 2)
        runner.executor.submit([running, queued, last])
        runner.executor.cancel([running.id, queued.id])
        [dropped] = runner.wait_for([queued])
        release.set()
        outcomes = runner.wait_for([running, last])

    assert dropped.state.type is StateType.CANCELLED
    assert [outcome.state.type for outcome in outcomes] == [StateType.COMPLETED] * 2
    assert ran == [2]
    assert len(runner.outcomes) == 3


def test_a_result_that_exits_while_it_is_pickled_harms_nobody() -> None:
    """Whatever the code of a value does when it is packed for the store, the call is answered."""

    class Exiting:
        def __reduce__(self) -> str:
            raise SystemExit(3)

    with CallRunner(ThreadExecutor(workers=1)) as runner:
        odd, plain = runner.run(runner.call(Exiting), runner.call(workloads.identity, 1))

    assert odd.state.is_final()
    assert plain.state.result() == 1


def test_shutdown_abandons_a_thread_that_is_stuck() -> None:
    """Shutdown does not wait for a task that does not end."""
    begun, release = threading.Event(), threading.Event()

    def stuck() -> None:
        begun.set()
        release.wait(30)

    with CallRunner(ThreadExecutor(workers=2)) as runner:
        runner.submit(runner.call(stuck))
        assert begun.wait(10)
        before = time.monotonic()
    elapsed = time.monotonic() - before
    release.set()

    assert elapsed < 2


def test_a_second_start_is_refused() -> None:
    """One executor object serves one flow run at a time, and says so."""
    with CallRunner(ThreadExecutor()) as runner, pytest.raises(RuntimeError, match="give each flow run its own"):
        runner.executor.start(runner.report)


# -- timeouts ----------------------------------------------------------------------------------------------------------


def test_a_thread_that_is_given_up_is_replaced() -> None:
    """Calls queued behind late ones get their turn, and as many as ever run at once."""
    release, barrier = threading.Event(), threading.Barrier(3, timeout=10)

    with CallRunner(ThreadExecutor(workers=3)) as runner:
        calls = [limited(runner.call(release.wait, 30)) for _ in range(6)]
        runner.executor.submit(calls)
        late = runner.wait_for(calls)
        met = runner.run(*(runner.call(barrier.wait) for _ in range(3)))
        release.set()

    assert {outcome.state.name for outcome in late} == {"TimedOut"}
    assert {outcome.state.type for outcome in met} == {StateType.COMPLETED}


def test_a_call_that_returns_after_all_is_not_reported_again() -> None:
    """The outcome of a call that was given up is dropped, and its thread ends."""
    release = threading.Event()

    with CallRunner(ThreadExecutor(workers=2)) as runner:
        runner.run(*(limited(runner.call(release.wait, 30)) for _ in range(4)))
        given_up = set(our_threads())
        release.set()
        eventually(lambda: not given_up.intersection(our_threads()))
        runner.run(*(runner.call(workloads.identity, number) for number in range(20)))

        assert len(runner.outcomes) == 24


@pytest.mark.parametrize("task", [workloads.wait_for_file, workloads.block_loop, workloads.ignore_cancel])
def test_a_call_of_the_same_id_is_another_call(task: Callable[[str], bool], tmp_path: Path) -> None:
    """The next attempt of a call that was given up runs and is reported, while the first one still goes on."""
    release, released = tmp_path / "release", tmp_path / "released"
    released.touch()

    with CallRunner(ThreadExecutor(workers=2)) as runner:
        first = limited(runner.call(task, str(release)))
        runner.run(first)
        runner.submit(limited(first, 20.0)._replace(attempt=2, args=(str(released),)))
        runner.wait_until(lambda: len(runner.outcomes) == 2)
        release.touch()
        runner.run(runner.call(workloads.identity, 1), runner.call(workloads.identity_later, 1))

        assert [outcome.state.name for outcome in runner.outcomes] == ["TimedOut", *["Completed"] * 3]


def test_a_timeout_that_meets_the_end_gives_one_outcome() -> None:
    """However closely the deadline and the return of a call race, one of them ends it and no thread is lost."""
    barrier = threading.Barrier(4, timeout=10)

    with CallRunner(ThreadExecutor(workers=4)) as runner:
        runner.run(*(limited(runner.call(time.sleep, 0.005), 0.005 + n % 10 / 10_000) for n in range(400)))
        met = runner.run(*(runner.call(barrier.wait) for _ in range(4)))

        assert {outcome.state.type for outcome in met} == {StateType.COMPLETED}
        assert sorted(outcome.call_id for outcome in runner.outcomes) == list(range(1, 405))


def test_what_a_call_says_after_its_timeout_is_dropped() -> None:
    """Lines come back up to the deadline and not from beyond, wherever they go."""
    release, said = threading.Event(), threading.Event()

    def talk() -> None:
        workloads.say("before")
        release.wait(30)
        workloads.say("after")
        said.set()

    with CallRunner(ThreadExecutor(workers=2)) as runner:
        calls = [limited(runner.call(talk)), limited(runner.call(talk)._replace(log=None))]
        runner.run(*calls)
        release.set()
        assert said.wait(10)
        eventually(lambda: len(our_threads()) == 0)

    assert [[line.message for line in runner.lines[call.id]] for call in calls] == [["before, line 0"]] * 2


def test_what_a_call_says_within_its_timeout_comes_with_its_outcome() -> None:
    """Without somebody who takes lines at once none is lost either."""
    with CallRunner(ThreadExecutor(workers=2)) as runner:
        calls = [runner.call(task, "in time", 2)._replace(log=None) for task in (workloads.say, workloads.say_later)]
        runner.run(*calls, *(second := [limited(call, 20.0)._replace(id=call.id + 10) for call in calls]))

    for call in [*calls, *second]:
        assert [line.message for line in runner.lines[call.id]] == ["in time, line 0", "in time, line 1"]


def test_an_earlier_deadline_overtakes_a_later_one() -> None:
    """The watch does not sleep through the deadline of a call that begins after it has fallen asleep."""
    release = threading.Event()

    with CallRunner(ThreadExecutor(workers=2)) as runner:
        patient = limited(runner.call(release.wait, 30), 25.0)
        runner.submit(patient)
        eventually(lambda: our_threads("watch"))
        runner.run(runner.call(time.sleep, 0.1))  # by now the watch sleeps; if not, the test is only less sharp
        [outcome] = runner.run(limited(runner.call(release.wait, 30)), timeout=5)
        release.set()
        [other] = runner.wait_for([patient])

    assert outcome.state.name == "TimedOut"
    assert other.state.result() is True


def test_a_call_that_has_ended_is_not_kept_until_its_deadline() -> None:
    """The watch lets go of a call, and of its arguments, when it ends."""

    class Large:
        pass

    with CallRunner(ThreadExecutor(workers=1)) as runner:
        large = Large()
        gone = weakref.ref(large)
        runner.run(limited(runner.call(type, large), 3600.0))
        del large

        eventually(lambda: gc.collect() >= 0 and gone() is None)


def test_without_timeouts_nobody_watches() -> None:
    """The watch costs a thread only where there is a timeout, or more calls than threads."""
    with CallRunner(ThreadExecutor(workers=2)) as runner:
        for number in range(20):
            runner.run(runner.call(workloads.identity, number))
        before = our_threads("watch")
        runner.run(limited(runner.call(workloads.identity, 1), 20.0))
        after = our_threads("watch")

    assert (before, len(after)) == ([], 1)


def test_shutdown_comes_before_a_deadline() -> None:
    """After shutdown nothing is reported, be it late or not."""
    begun, release = threading.Event(), threading.Event()

    def stuck() -> None:
        begun.set()
        release.wait(30)

    with CallRunner(ThreadExecutor(workers=2)) as runner:
        runner.submit(limited(runner.call(stuck), 0.3))
        assert begun.wait(10)
    time.sleep(0.4)
    release.set()
    eventually(lambda: not our_threads())

    assert runner.outcomes == []


def test_a_program_ends_while_a_thread_that_was_given_up_goes_on(run_program: Callable[[str], str]) -> None:
    """Neither a thread nor a loop that is stuck in a late call keeps the program from its end."""
    began_at = time.monotonic()

    printed = run_program("""
from localflow.builtin.thread import ThreadExecutor

async def block():
    time.sleep(60)

with CallRunner(ThreadExecutor(workers=2)) as runner:
    calls = [runner.call(time.sleep, 60), runner.call(block)]
    for outcome in runner.run(*(call._replace(timeout_seconds=0.1) for call in calls)):
        print(outcome.state.name)
""")

    assert printed.split() == ["TimedOut", "TimedOut"]
    assert time.monotonic() - began_at < 20


# -- async calls -------------------------------------------------------------------------------------------------------


def test_asyncio_comes_with_the_first_async_call(run_program: Callable[[str], str]) -> None:
    """Who has no async tasks does not pay for the import."""
    printed = run_program("""
from localflow.builtin.thread import ThreadExecutor

with CallRunner(ThreadExecutor(workers=2)) as runner:
    runner.run(runner.call(workloads.identity, 1)._replace(timeout_seconds=10.0))
    print("asyncio" in sys.modules)
    runner.run(runner.call(workloads.identity_later, 1))
    print("asyncio" in sys.modules)
""")

    assert printed.split() == ["False", "True"]


def test_async_calls_share_one_loop() -> None:
    """All async calls run in the same thread, and none of the workers is kept by them."""

    async def where() -> tuple[str, int]:
        await asyncio.sleep(0.01)
        return threading.current_thread().name, id(asyncio.get_running_loop())

    with CallRunner(ThreadExecutor(workers=2)) as runner:
        outcomes = runner.run(*(runner.call(where) for _ in range(50)))

        assert len({outcome.state.result() for outcome in outcomes}) == 1
        assert our_threads() == []
    execution = outcomes[0].execution
    assert execution is not None
    assert execution.worker == outcomes[0].state.result()[0]
    assert execution.cpu_seconds is None


@pytest.mark.parametrize("task", [workloads.leave_variable, workloads.leave_variable_later], ids=["sync", "async"])
def test_context_variables_of_the_submitting_thread_are_not_seen(task: Callable[[], object]) -> None:
    """A call runs in an empty context, whoever hands it over."""
    token = workloads.variable.set("the submitter's")

    with CallRunner(ThreadExecutor(workers=2)) as runner:
        [outcome] = runner.run(runner.call(task))
    workloads.variable.reset(token)

    assert outcome.state.result() == "untouched"


def test_async_calls_do_not_wait_for_the_others() -> None:
    """They have a capacity of their own."""
    release = threading.Event()

    with CallRunner(ThreadExecutor(workers=1)) as runner:
        blocking = [runner.call(release.wait, 30) for _ in range(3)]
        runner.submit(*blocking)
        [outcome] = runner.run(runner.call(workloads.identity_later, 1))
        release.set()
        runner.wait_for(blocking)

    assert outcome.state.result() == 1


def test_a_blocked_loop_is_replaced_at_the_timeout() -> None:
    """Calls behind one that blocks the loop begin in a new one as soon as it is past its timeout, once each."""
    release, began = threading.Event(), []

    async def block() -> None:
        release.wait(30)

    async def begin(number: int) -> str:
        began.append(number)
        return threading.current_thread().name

    with CallRunner(ThreadExecutor(workers=2)) as runner:
        late, *following = outcomes = runner.run(
            limited(runner.call(block)), *(runner.call(begin, number) for number in range(10))
        )
        given_up = set(our_threads("loop")) - {outcome.state.result() for outcome in following}
        release.set()
        eventually(lambda: not given_up.intersection(our_threads("loop")))
        runner.run(runner.call(begin, 10))

        assert len(runner.outcomes) == len(outcomes) + 1
    assert late.state.name == "TimedOut"
    assert len(given_up) == 1
    assert began == list(range(11))


def test_an_async_call_that_is_cancelled_tidies_up() -> None:
    """Cancelling reaches the coroutine where it awaits; its neighbours notice nothing."""
    seen: list[str] = []

    async def tidy(name: str, seconds: float) -> str:
        seen.append(name)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            seen.append(f"{name} cancelled")
            raise
        return name

    with CallRunner(ThreadExecutor(workers=2)) as runner:
        stopped, neighbour = runner.call(tidy, "stopped", 30.0), runner.call(tidy, "neighbour", 0.1)
        runner.submit(stopped, neighbour)
        eventually(lambda: len(seen) == 2)
        runner.executor.cancel([stopped.id])
        outcomes = runner.wait_for([stopped, neighbour])

    assert [outcome.state.type for outcome in outcomes] == [StateType.CANCELLED, StateType.COMPLETED]
    assert seen[2:] == ["stopped cancelled"]


def test_an_async_call_behind_a_blocked_loop_can_be_cancelled() -> None:
    """It is answered at once and never begins."""
    begun, release, ran = threading.Event(), threading.Event(), []

    async def block() -> None:
        begun.set()
        release.wait(30)

    async def run() -> None:
        ran.append(1)

    with CallRunner(ThreadExecutor(workers=2)) as runner:
        blocking, waiting = runner.call(block), runner.call(run)
        runner.submit(blocking, waiting)
        assert begun.wait(10)
        runner.executor.cancel([waiting.id])
        [outcome] = runner.wait_for([waiting])
        release.set()
        runner.wait_for([blocking])

    assert outcome.state.type is StateType.CANCELLED
    assert ran == []
    assert len(runner.outcomes) == 2


def test_a_coroutine_that_raises_cancelled_by_itself_has_failed() -> None:
    """CancelledError means CANCELLED only where somebody has cancelled the call."""
    with CallRunner(ThreadExecutor(workers=2)) as runner:
        [outcome] = runner.run(runner.call(workloads.fail_later, asyncio.CancelledError()))

    assert outcome.state.type is StateType.FAILED


def test_an_exit_in_a_background_task_does_not_end_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """What a call leaves running in the loop cannot end it for the others."""

    async def leave() -> None:
        async def stop() -> None:
            sys.exit(3)

        left.append(asyncio.create_task(stop()))

    left: list[asyncio.Task[None]] = []
    with CallRunner(ThreadExecutor(workers=2)) as runner:
        outcomes = runner.run(runner.call(leave))
        outcomes += runner.run(runner.call(workloads.identity_later, 1, 0.01))

    assert [outcome.state.type for outcome in outcomes] == [StateType.COMPLETED] * 2
    assert isinstance(left[0].exception(), SystemExit)
    assert "wanted to end it" in caplog.text


def test_shutdown_cancels_async_calls_and_closes_their_generators() -> None:
    """What still runs in the loop gets to its `finally`, generators that were left half read as well."""
    tidied: list[str] = []
    begun = threading.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            tidied.append("generator")

    async def wait() -> None:
        half_read = numbers()
        kept.append(half_read)
        await anext(half_read)
        begun.set()
        try:
            await asyncio.sleep(30)
        finally:
            tidied.append("call")

    kept: list[AsyncIterator[int]] = []
    with CallRunner(ThreadExecutor(workers=2)) as runner:
        runner.submit(runner.call(wait))
        assert begun.wait(10)

    assert tidied == ["call", "generator"]
    assert our_threads("loop") == []
    assert runner.outcomes == []


def test_a_blocked_loop_does_not_hold_up_the_shutdown() -> None:
    """Shutdown gives a loop that does not listen about a second, then leaves it to its end."""
    begun, release = threading.Event(), threading.Event()

    async def block() -> None:
        begun.set()
        release.wait(30)

    with CallRunner(ThreadExecutor(workers=2)) as runner:
        runner.submit(runner.call(block))
        assert begun.wait(10)
        before = time.monotonic()
    elapsed = time.monotonic() - before
    release.set()

    assert elapsed < 5
    assert runner.outcomes == []
