"""Async flows and tasks, on every executor and inside running loops."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from localflow import State, StateType, ThreadExecutor, flow, get_run_context, task
from localflow.errors import RunTimedOutError
from localflow.testing import harness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from localflow.testing.harness import Harness


@pytest.fixture(params=["sequential", "thread", "process"])
def runs(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """Run flows on each executor."""
    with harness(request.param) as runs:
        yield runs


@task
async def double(n: int) -> int:
    """Give the loop a turn, then double."""
    await asyncio.sleep(0)
    return 2 * n


@task
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


# -- tasks -----------------------------------------------------------------------------------------------------------


def test_an_async_task_in_a_plain_flow(runs: Harness) -> None:
    """It is called like any task, and its future has its value."""
    assert flow(name="main")(lambda: double(4))().result() == 8


def test_async_and_plain_tasks_depend_on_one_another(runs: Harness) -> None:
    """Data goes from either kind to the other."""
    assert flow(name="main")(lambda: double(add(double(1), 1)))().result() == 6


def test_a_failing_async_task_fails_with_its_exception(runs: Harness) -> None:
    """As a plain one does."""

    @task
    async def fail() -> None:
        raise KeyError("k")

    with pytest.raises(KeyError):
        flow(name="main")(lambda: fail())().result()


@pytest.mark.parametrize("kind", ["generator", "async generator"])
def test_a_generator_is_drained_to_a_list(runs: Harness, kind: str) -> None:
    """What it yields is the task's value."""

    def plain(n: int) -> Iterator[int]:
        yield from range(n)

    async def slow(n: int) -> AsyncIterator[int]:
        for item in range(n):
            await asyncio.sleep(0)
            yield item

    count = task(name="count")(plain if kind == "generator" else slow)

    assert flow(name="main")(lambda: count(3))().result() == [0, 1, 2]


def test_an_async_task_is_stopped_at_its_timeout(runs: Harness) -> None:
    """On every executor, for a coroutine can be cancelled wherever it runs."""
    began = time.monotonic()

    @task(timeout_seconds=0.2)
    async def slow() -> None:
        await asyncio.sleep(30)

    state = flow(name="main")(lambda: slow())()

    assert time.monotonic() - began < 5
    assert runs.history("slow-0")[-1] == "TimedOut"
    with pytest.raises(RunTimedOutError, match=r"Task run exceeded timeout of 0.2 second\(s\)"):
        state.result()


def test_async_tasks_know_their_run(runs: Harness) -> None:
    """Each of several at once sees its own context."""

    @task
    async def own_name(n: int) -> str:
        await asyncio.sleep(0.01)
        run = get_run_context().task_run
        assert run is not None
        return run.name

    names = flow(name="main")(lambda: own_name.map(range(5)))().result()
    assert names == [f"own_name-{n}" for n in range(5)]


def test_many_async_tasks_of_the_thread_executor_share_a_loop() -> None:
    """More of them than there are threads wait at the same time."""
    running, most = 0, 0

    @task
    async def wait() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        while most < 200:  # all of them must be there before the first may go
            await asyncio.sleep(0.001)
        running -= 1

    @flow(executor=ThreadExecutor(workers=2))
    def main() -> None:
        for _ in range(200):
            wait()

    with harness(None):
        assert main().is_completed()
    assert most == 200


def test_a_partial_and_a_callable_object_may_be_async(runs: Harness) -> None:
    """Whatever gives a coroutine is an async task."""

    class Doubler:
        async def __call__(self, n: int) -> int:
            return 2 * n

    async def power(base: int, exponent: int) -> int:
        return base**exponent

    square = task(name="square")(functools.partial(power, exponent=2))
    doubler = task(name="doubler")(Doubler())

    assert flow(name="main")(lambda: [square(3), doubler(3)])().result() == [9, 6]


# -- flows -----------------------------------------------------------------------------------------------------------


def test_an_async_flow_gives_an_awaitable_of_its_state(runs: Harness) -> None:
    """Futures are awaited in its body."""

    @flow
    async def main() -> int:
        first = await double(1)
        return await add(first, await double(2))

    state = asyncio.run(main())

    assert isinstance(state, State)
    assert state.result() == 6


def test_an_async_flow_that_returns_futures(runs: Harness) -> None:
    """They need not be awaited: the flow waits for all that it has started."""

    @flow
    async def main() -> Any:
        return [double(1), add(1, 1)]

    assert asyncio.run(main()).result() == [2, 2]


def test_awaiting_a_failed_future_raises_its_exception(runs: Harness) -> None:
    """As `result()` does."""

    @task
    async def fail() -> None:
        raise KeyError("k")

    @flow
    async def main() -> str:
        try:
            await fail()
        except KeyError:
            return "caught"
        return "not raised"

    assert asyncio.run(main()).result() == "caught"


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_the_loop_goes_on_while_a_future_is_awaited(executor: str) -> None:
    """A plain task at work elsewhere does not hold up other coroutines of the flow."""
    Path("stop").unlink(missing_ok=True)

    @task
    def until_told() -> str:
        while not Path("stop").exists():
            time.sleep(0.005)
        return "told"

    async def tell() -> None:
        await asyncio.sleep(0.02)
        Path("stop").touch()

    @flow
    async def main() -> str:
        _, value = await asyncio.gather(tell(), until_told())
        return value

    with harness(executor):
        assert asyncio.run(main()).result() == "told"


def test_async_subflows_run_at_the_same_time() -> None:
    """`gather` over subflow calls: each is its own flow run with the same parent."""
    there: list[str] = []

    @flow
    async def child(name: str) -> str:
        there.append(name)
        while len(there) < 2:
            await asyncio.sleep(0.001)
        return name

    @flow
    async def main() -> list[State]:
        return list(await asyncio.gather(child("a"), child("b")))

    with harness() as runs:
        assert asyncio.run(main()).result() == ["a", "b"]
        parents = {summary.flow_run.parent_id for summary in runs.flow_runs() if summary.flow_run.flow == "child"}
    assert len(parents) == 1
    assert parents != {None}


def test_a_plain_subflow_in_an_async_flow(runs: Harness) -> None:
    """It is a plain call that returns a state."""
    child = flow(name="child")(lambda n: add(n, 1))

    @flow
    async def main() -> Any:
        return [child(1), await double(1)]

    assert asyncio.run(main()).result() == [2, 2]


def test_wrong_arguments_of_an_async_flow_raise_at_the_call() -> None:
    """Not when it is awaited."""

    @flow
    async def main(n: int) -> int:
        return n

    with harness(), pytest.raises(TypeError):
        main(1, 2)


def test_an_exception_in_an_async_body_is_the_state() -> None:
    """It does not escape from the await."""

    @flow
    async def main() -> None:
        raise ValueError("boom")

    with harness():
        state = asyncio.run(main())

    assert (state.type, state.message) == (StateType.FAILED, "Flow run encountered an exception: ValueError: boom")


def test_a_slow_async_flow_is_stopped_at_its_timeout() -> None:
    """Its body is cancelled, its state is TimedOut, the loop goes on."""

    @flow(timeout_seconds=0.2)
    async def main() -> None:
        await asyncio.sleep(30)

    async def around() -> tuple[State, str]:
        return await main(), await asyncio.sleep(0, "after")

    with harness():
        began = time.monotonic()
        state, after = asyncio.run(around())
    assert time.monotonic() - began < 5
    assert (state.name, after) == ("TimedOut", "after")
    assert state.message == "Flow run exceeded timeout of 0.2 second(s)"


def test_the_timeout_of_an_async_flow_does_not_reach_its_caller() -> None:
    """Whoever awaits the flow is not cancelled by it, also if the body does not heed its end."""

    @flow(timeout_seconds=0.1)
    async def deaf() -> None:
        time.sleep(0.3)

    @flow(timeout_seconds=0.1)
    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)

    async def around() -> list[str]:
        names = []
        for main in (deaf, stubborn):
            names.append((await main()).name)
            await asyncio.sleep(0.01)
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0
        return names

    with harness():
        assert asyncio.run(around()) == ["TimedOut", "TimedOut"]


def test_waiting_flows_do_not_use_up_the_threads_of_the_loop() -> None:
    """Many subflows wait for a task that only the loop's own pool can let go on."""
    go = threading.Event()

    @task
    def wait() -> None:
        assert go.wait(10)

    @flow
    async def child() -> None:
        wait()

    @flow(executor="thread")
    async def main() -> None:
        async def let_go() -> None:
            await asyncio.sleep(0.1)
            await asyncio.to_thread(go.set)

        await asyncio.gather(let_go(), *[child() for _ in range(8)])

    with harness(None):
        assert asyncio.run(main()).is_completed()


def test_an_async_flow_is_tried_again() -> None:
    """Retries with a delay do not block the loop."""
    attempts: list[int] = []

    @flow(retries=1, retry_delay_seconds=0.05)
    async def main() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError
        return len(attempts)

    with harness() as runs:
        assert asyncio.run(main()).result() == 2
        assert runs.history() == ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"]


def test_a_cancelled_async_flow_is_recorded_as_cancelled() -> None:
    """Cancelling the asyncio task that awaits the flow ends flow and tasks, and the cancellation goes on."""
    started = threading.Event()

    @task
    async def wait() -> None:
        started.set()
        await asyncio.sleep(30)

    @flow(executor="thread")
    async def main() -> None:
        await wait()

    async def around() -> None:
        running = asyncio.ensure_future(main())
        await asyncio.to_thread(started.wait, 10)
        running.cancel()
        await running

    with harness(None) as runs:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(around())
        assert runs.history()[-1] == "Interrupted"
        assert runs.history("wait-0")[-1] == "Cancelled"


def test_a_done_future_may_be_awaited_many_times() -> None:
    """Each time with the same value, also after the flow."""

    @flow
    async def main() -> int:
        future = double(1)
        return await future + await future

    with harness():
        assert asyncio.run(main()).result() == 4


def test_the_command_line_runs_an_async_flow() -> None:
    """`localflow run` brings the loop."""
    Path("flow.py").write_text(
        "import asyncio\n"
        "from localflow import flow, task\n"
        "@task\n"
        "async def double(n: int) -> int:\n"
        "    await asyncio.sleep(0)\n"
        "    return 2 * n\n"
        "@flow\n"
        "async def main(n: int) -> int:\n"
        "    return await double(n)\n"
    )
    command = [sys.executable, "-m", "localflow", "run", "flow.py", "-p", "n=4"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert ended.returncode == 0, ended.stderr
    assert "Completed" in ended.stdout


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_signal_ends_an_async_flow_in_good_order(signum: signal.Signals, code: int) -> None:
    """States say CANCELLED, and the program ends as it would without localflow."""
    Path("script.py").write_text(
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from localflow import flow, task\n"
        "@task\n"
        "async def wait():\n"
        "    Path('started').touch()\n"
        "    await asyncio.sleep(60)\n"
        "@flow(executor='thread')\n"
        "async def main():\n"
        "    await wait()\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "script.py"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not Path("started").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=20)

    assert process.returncode == code, errors
    shown = subprocess.run(
        [sys.executable, "-m", "localflow", "runs", "--json"], capture_output=True, text=True, timeout=30
    )
    assert '"CANCELLED"' in shown.stdout
