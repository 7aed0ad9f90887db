"""TaskFuture: waiting, results, states and callbacks, before and after the run has ended."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from localflow import Completed, Failed, State, StateType, TaskFuture, flow, quote, task
from localflow.errors import RunFailedError, TaskFailedError, UpstreamFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

BRIEF = 0.05
PATIENCE = 10.0


@pytest.fixture(autouse=True)
def memory_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep nothing on disk."""
    monkeypatch.setenv("LOCALFLOW_STORE", "memory")


@task
def give(value: object) -> object:
    """Return what was given."""
    return value


@task
def fail(error: BaseException) -> None:
    """Raise."""
    raise error


class Gate:
    """Tasks that wait until the test lets them go."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()

    def wait(self) -> None:
        """Wait until the test opens the gate."""
        self.entered.set()
        assert self.opened.wait(PATIENCE)


@task
def give_after(gate: Gate, value: object = None) -> object:
    """Return what was given once the gate is open."""
    gate.wait()
    return value


@task
def fail_after(gate: Gate, error: BaseException) -> None:
    """Raise once the gate is open."""
    gate.wait()
    raise error


def in_flow(body: Callable[[], Any], executor: str = "sequential") -> State:
    """Run `body` as a flow; what it asserts counts."""
    state = flow(name="body", executor=executor)(body)()
    if state.is_failed() and isinstance(state.result(raise_on_failure=False), AssertionError):
        state.result()
    return state


EXECUTORS = pytest.mark.parametrize("executor", ["sequential", "thread"])


# -- ended runs ------------------------------------------------------------------------------------------------------


@EXECUTORS
def test_a_completed_future(executor: str) -> None:
    """Every question about a completed run has its answer."""
    data = object()

    def body() -> object:
        future = give(data)
        assert isinstance(future, TaskFuture)
        state = future.wait()
        assert state is not None
        assert repr(state) == "State(name='Completed', type=StateType.COMPLETED)"
        assert future.done()
        assert future.state is state
        assert future.get_state() is state
        assert future.wait(0) is state
        assert future.result() is data
        assert future.result(timeout=0) is data
        assert future.result(raise_on_failure=False) is data
        assert future.name == "give-0"
        return "reached"

    assert in_flow(body, executor).result() == "reached"


@EXECUTORS
def test_a_failed_future_raises_the_very_exception_each_time(executor: str) -> None:
    """The exception is the task's own object, raised as often as it is asked for."""
    error = ValueError("boom")

    def body() -> object:
        future = fail(error)
        for _ in range(3):
            with pytest.raises(ValueError, match="boom") as caught:
                future.result()
            assert caught.value is error
        state = future.wait()
        assert state is not None
        assert state.type is StateType.FAILED
        assert state.message == "Task run encountered an exception: ValueError: boom"
        assert future.done()
        assert future.result(raise_on_failure=False) is error
        return "reached"

    assert in_flow(body, executor).result() == "reached"


def test_the_traceback_leads_to_the_line_that_raised() -> None:
    """What `result()` raises shows the user's own frames."""

    @task
    def deep() -> None:
        def deeper() -> None:
            raise ValueError("boom")

        deeper()

    def body() -> object:
        with pytest.raises(ValueError, match="boom") as caught:
            deep().result()
        names = [entry.name for entry in caught.traceback]
        assert names[-2:] == ["deep", "deeper"]
        return "reached"

    assert in_flow(body).result() == "reached"


@EXECUTORS
def test_a_blocked_future_counts_as_done(executor: str) -> None:
    """`wait` returns at once, `result` raises with the root failure as cause, however far it is."""
    error = ValueError("boom")

    def body() -> object:
        first = fail(error)
        second = give(first)
        third = give([second])
        for future, upstream in [(second, "fail-0"), (third, "give-0")]:
            state = future.wait()
            assert state is not None
            assert (state.type, state.name) == (StateType.PENDING, "NotReady")
            assert state.message == f"Upstream task run '{upstream}' did not reach a 'COMPLETED' state."
            assert future.done()
            assert not state.is_final()
            with pytest.raises(UpstreamFailedError) as caught:
                future.result()
            assert caught.value.__cause__ is error
            assert isinstance(future.result(raise_on_failure=False), UpstreamFailedError)
        return "reached"

    assert in_flow(body, executor).result() == "reached"


@EXECUTORS
@pytest.mark.parametrize("stop", [SystemExit(3), GeneratorExit("g")])
def test_an_exit_in_a_task_is_that_tasks_failure(executor: str, stop: BaseException) -> None:
    """sys.exit() in a task ends neither the flow nor whoever asks for the result."""

    def body() -> object:
        future = fail(stop)
        with pytest.raises(TaskFailedError) as caught:
            future.result()
        assert caught.value.original_type == type(stop).__name__
        return future.get_state().type

    assert in_flow(body, executor).result() is StateType.FAILED


def test_a_returned_state_is_the_futures_state() -> None:
    """What the task returned is used unaltered."""
    state = Failed("no luck", data={"rows": 0}, name="Unlucky")

    def body() -> object:
        future = give(quote(state))
        assert future.wait() is state
        assert future.result(raise_on_failure=False) == {"rows": 0}
        with pytest.raises(RunFailedError, match="no luck"):
            future.result()
        return "reached"

    assert in_flow(body).result() == "reached"


def test_a_returned_completed_state_gives_its_data() -> None:
    """`return Completed(data=...)` is as good as returning the data."""

    def body() -> object:
        future = give(quote(Completed("by hand", data=[1])))
        assert future.result() == [1]
        assert future.get_state().message == "by hand"
        return give(future)

    assert in_flow(body).result() == [1]


def test_task_run_ids_are_unique_texts() -> None:
    """Each run has an id of its own, and so has each run of the same flow."""

    def body() -> Any:
        return [give(n).task_run_id for n in range(3)]

    first, second = in_flow(body).result(), in_flow(body).result()

    assert all(isinstance(run_id, str) for run_id in first)
    assert len({*first, *second}) == 6


def test_names_count_per_task() -> None:
    """`n` counts the runs of one task in one flow run."""

    def body() -> object:
        renamed = give.with_options(name="other")
        return [future.name for future in (give(1), fail(ValueError()), give(2), renamed(3), give(4), renamed(5))]

    assert in_flow(body).result() == ["give-0", "fail-0", "give-1", "other-0", "give-2", "other-1"]


def test_a_future_shows_its_name_and_state() -> None:
    """The repr helps in a debugger."""

    def body() -> object:
        return repr(give(1))

    assert "give-0" in in_flow(body).result()


@pytest.mark.parametrize("clone", [pickle.dumps, copy.deepcopy])
def test_a_future_cannot_leave_its_process(clone: Callable[[object], object]) -> None:
    """Pickling a future says what to do instead."""

    def body() -> object:
        with pytest.raises(TypeError, match="'give-0' cannot be pickled"):
            clone(give(1))
        return "reached"

    assert in_flow(body).result() == "reached"


# -- runs that have not ended ----------------------------------------------------------------------------------------


def test_a_running_future() -> None:
    """Before the end: not done, no state from `wait`, and a timeout that names run and seconds."""
    gate = Gate()

    def body() -> object:
        future = give_after(gate, "late")
        assert gate.entered.wait(PATIENCE)
        assert not future.done()
        assert future.wait(BRIEF) is None
        assert future.wait(timeout=0) is None
        assert future.get_state().type is StateType.RUNNING
        assert future.state.is_running()
        with pytest.raises(TimeoutError, match="give_after-0"):
            future.result(timeout=BRIEF)
        gate.opened.set()
        return future.result(timeout=PATIENCE)

    assert in_flow(body, "thread").result() == "late"


def test_a_waiting_future_is_pending() -> None:
    """A run whose upstream is at work has not started."""
    gate = Gate()

    def body() -> object:
        future = give(give_after(gate, 1))
        assert gate.entered.wait(PATIENCE)
        assert future.get_state().type is StateType.PENDING
        assert future.get_state().name == "Pending"
        assert not future.done()
        gate.opened.set()
        return future.result()

    assert in_flow(body, "thread").result() == 1


def test_a_timeout_leaves_the_run_alone() -> None:
    """Giving up waiting does not end the task."""
    gate = Gate()

    def body() -> object:
        future = give_after(gate, "kept")
        with pytest.raises(TimeoutError):
            future.result(timeout=0.001)
        gate.opened.set()
        return future

    assert in_flow(body, "thread").result() == "kept"


def test_a_negative_timeout_is_over_at_once() -> None:
    """There is nothing to wait for when the time is past."""
    gate = Gate()

    def body() -> object:
        future = give_after(gate)
        assert future.wait(-1) is None
        gate.opened.set()
        return "reached"

    assert in_flow(body, "thread").result() == "reached"


def test_many_threads_may_wait_for_one_future() -> None:
    """Everybody who waits is woken, with the same state."""
    gate, seen = Gate(), []

    def body() -> object:
        future = give_after(gate, 1)
        waiters = [threading.Thread(target=lambda: seen.append(future.wait(PATIENCE))) for _ in range(20)]
        for waiter in waiters:
            waiter.start()
        gate.opened.set()
        for waiter in waiters:
            waiter.join(PATIENCE)
        assert seen == [future.get_state()] * 20
        return "reached"

    assert in_flow(body, "thread").result() == "reached"


def test_a_future_can_be_asked_after_its_flow_has_ended() -> None:
    """Futures outlive their flow."""
    kept: list[TaskFuture[Any]] = []

    def body() -> None:
        kept.extend([give("data"), fail(ValueError("boom"))])

    in_flow(body, "thread")

    assert kept[0].result() == "data"
    assert kept[0].done()
    with pytest.raises(ValueError, match="boom"):
        kept[1].result()


def test_a_blocked_future_ends_with_its_upstream() -> None:
    """Who waits for a run that will never start is woken when that is known."""
    gate = Gate()

    def body() -> object:
        blocked = give(fail_after(gate, ValueError("boom")))
        assert blocked.wait(BRIEF) is None
        gate.opened.set()
        state = blocked.wait(PATIENCE)
        assert state is not None
        return state.name

    assert in_flow(body, "thread").result() == "NotReady"


# -- callbacks -------------------------------------------------------------------------------------------------------


@EXECUTORS
def test_a_callback_on_a_finished_run_is_called_at_once(executor: str) -> None:
    """Late callbacks are called in the thread that adds them, with the future."""
    told: list[object] = []

    def body() -> None:
        future = give(1)
        future.wait()
        future.add_done_callback(lambda ended: told.append((ended is future, threading.current_thread())))
        assert told == [(True, threading.current_thread())]

    in_flow(body, executor)

    assert len(told) == 1


def test_callbacks_are_called_once_each_in_order() -> None:
    """All callbacks of a run are called when it ends, in the order in which they were added."""
    gate, told, all_told = Gate(), [], threading.Event()

    def body() -> None:
        future = give_after(gate, 1)
        for n in range(5):
            future.add_done_callback(lambda ended, n=n: told.append((n, ended.done(), ended.result())))
        future.add_done_callback(lambda ended: all_told.set())
        gate.opened.set()
        assert all_told.wait(PATIENCE)

    in_flow(body, "thread")

    assert told == [(n, True, 1) for n in range(5)]


def test_callbacks_of_failed_and_blocked_runs_are_called() -> None:
    """Every end is an end."""
    gate, told = Gate(), []
    both = threading.Barrier(3)

    def tell(ended: TaskFuture[Any]) -> None:
        told.append(ended.get_state().name)
        threading.Thread(target=both.wait, args=(PATIENCE,)).start()

    def body() -> None:
        failing = fail_after(gate, ValueError())
        blocked = give(failing)
        failing.add_done_callback(tell)
        blocked.add_done_callback(tell)
        gate.opened.set()
        both.wait(PATIENCE)

    in_flow(body, "thread")

    assert sorted(told) == ["Failed", "NotReady"]


@EXECUTORS
def test_a_callback_that_raises_is_logged_and_changes_nothing(executor: str, caplog: pytest.LogCaptureFixture) -> None:
    """A broken callback harms neither the other callbacks nor the run."""
    gate, told = Gate(), threading.Event()

    def broken(ended: object) -> None:
        raise RuntimeError("broken callback")

    def body() -> object:
        if executor == "sequential":
            gate.opened.set()
        future = give_after(gate, 1)
        future.add_done_callback(broken)
        future.add_done_callback(lambda ended: told.set())
        gate.opened.set()
        assert told.wait(PATIENCE)
        return give(future)

    with caplog.at_level(logging.ERROR, logger="localflow"):
        state = in_flow(body, executor)

    assert state.result() == 1
    assert "broken callback" in caplog.text
    assert "give_after-0" in caplog.text


@pytest.mark.timeout(20)
@EXECUTORS
@pytest.mark.parametrize("stop", [SystemExit(1), GeneratorExit()])
def test_a_callback_that_exits_does_not_stop_the_flow(executor: str, stop: BaseException) -> None:
    """sys.exit() in a callback neither hangs the run nor ends the program."""
    gate = Gate()

    def exiting(ended: object) -> None:
        raise stop

    def body() -> object:
        if executor == "sequential":
            gate.opened.set()
        future = give_after(gate, 1)
        if executor != "sequential":
            future.add_done_callback(exiting)
        downstream = give(future)
        gate.opened.set()
        return [downstream, give(2)]

    assert in_flow(body, executor).result() == [1, 2]


@pytest.mark.timeout(20)
def test_a_callback_may_wait_for_another_run() -> None:
    """A callback that waits holds up no other run, whichever thread reports what."""
    first, second, seen = Gate(), Gate(), []
    finished = threading.Event()

    def body() -> None:
        other = give_after(second, "other")

        def wait_for_other(ended: object) -> None:
            second.opened.set()
            seen.append(other.result(timeout=PATIENCE / 2))
            finished.set()

        one = give_after(first, "one")
        one.add_done_callback(wait_for_other)
        first.opened.set()
        assert finished.wait(PATIENCE)

    state = in_flow(body, "thread")

    assert seen == ["other"]
    assert state.is_completed()


@pytest.mark.timeout(20)
def test_a_callback_may_add_callbacks_without_recursion() -> None:
    """A callback that adds a callback to the next future, ten thousand times."""
    told: list[int] = []

    def body() -> None:
        for n in range(10_000):
            future = give(n)
            future.add_done_callback(lambda ended: told.append(ended.result()))

    in_flow(body)

    assert told == list(range(10_000))


def test_a_callback_may_call_tasks() -> None:
    """In the body's own thread a callback is part of the body: what it calls becomes a task run that is waited for."""
    ran: list[object] = []

    @task
    def note(value: object) -> None:
        ran.append(value)

    def body() -> None:
        future = give("data")
        future.add_done_callback(lambda ended: note(ended))

    state = in_flow(body)

    assert ran == ["data"]
    assert len(state.result()) == 2


def test_waiting_costs_no_cpu() -> None:
    """A body that waits for a long task sleeps."""
    gate = Gate()

    def body() -> float:
        future = give_after(gate)
        assert gate.entered.wait(PATIENCE)
        before = time.thread_time()
        future.wait(0.5)
        used = time.thread_time() - before
        gate.opened.set()
        return used

    assert in_flow(body, "thread").result() < 0.1
