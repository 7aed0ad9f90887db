"""What the process executor keeps up while calls come and go fast: nothing is late, nothing is done twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, cast

import pytest

from localflow.builtin.process import ProcessExecutor
from localflow.builtin.process.assignment import Assignment
from localflow.builtin.process.waiting import Lookout
from localflow.states import StateType
from localflow.testing import workloads
from localflow.testing.running import CallRunner
from localflow.usage import LoopMeter, ProcessMeter, ThreadMeter
from tests.executors.conftest import numbers_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from localflow.builtin.process.workers import Worker
    from localflow.interfaces import Call, Outcome, Output
    from localflow.usage import Meter


def burn(seconds: float) -> None:
    """Keep this thread busy for so much CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


# -- results ---------------------------------------------------------------------------------------------------------


def test_no_result_waits_for_the_call_after_it(tmp_path: Path) -> None:
    """What a short call returned is known while the long one that was sent along with it is still running."""
    release = tmp_path / "release"
    with CallRunner(ProcessExecutor(workers=1)) as runner:
        runner.run(*(runner.call(workloads.identity, number) for number in range(300)))  # calls are short, it learns
        short = [runner.call(workloads.identity, number) for number in range(10)]
        long = runner.call(workloads.wait_for_file, str(release))
        runner.executor.submit([*short, long])

        outcomes = runner.wait_for(short)
        has_ended = any(outcome.call_id == long.id for outcome in runner.outcomes)
        release.touch()
        runner.wait_for([long])

    assert [outcome.state.result() for outcome in outcomes] == list(range(10))
    assert not has_ended


@pytest.mark.parametrize("workers", [1, 2])
def test_calls_before_a_deadly_one_have_completed_once(tmp_path: Path, workers: int) -> None:
    """A worker that dies amid short calls takes its own along: those before it are not lost, none runs twice."""
    log = tmp_path / "log"

    def note(number: int) -> int:
        workloads.note(str(log), str(number))
        return number

    with CallRunner(ProcessExecutor(workers=workers)) as runner:
        runner.run(*(runner.call(workloads.identity, number) for number in range(300)))  # calls are short, it learns
        for first in (0, 100, 200):
            before = [runner.call(note, first + number) for number in range(50)]
            deadly = runner.call(workloads.kill_process, signal.SIGKILL)
            behind = [runner.call(note, first + 50 + number) for number in range(50)]
            runner.executor.submit([*before, deadly, *behind])

            innocent = runner.wait_for([*before, *behind])

            assert [outcome.state.result() for outcome in innocent] == list(range(first, first + 100))
            assert runner.wait_for([deadly])[0].state.type is StateType.CRASHED

    assert sorted(numbers_in(log)) == list(range(300))


# -- what can wait a moment, and no longer ---------------------------------------------------------------------------


def test_a_timeout_holds_while_outcomes_stream_by(runner: CallRunner, tmp_path: Path) -> None:
    """A call that is late is stopped in time, however many outcomes of other calls come meanwhile."""
    late = runner.call(time.sleep, 30)._replace(timeout_seconds=0.2)
    is_open = True

    def stream(outcome: Outcome) -> list[Call]:
        nonlocal is_open
        is_open = is_open and outcome.call_id != late.id
        return [runner.call(workloads.identity)] if is_open else []

    runner.on_outcome = stream
    began = time.monotonic()
    runner.submit(late, *(runner.call(workloads.identity) for _ in range(8)))
    [outcome] = runner.wait_for([late])

    assert outcome.state.name == "TimedOut"
    assert time.monotonic() - began < 5
    assert len(runner.outcomes) > 20


def test_calls_that_come_during_shutdown_are_given_up() -> None:
    """An engine that takes outcomes while its executor shuts down may submit what follows; nobody complains."""
    executor = ProcessExecutor(workers=1)
    reporting, closing = threading.Event(), threading.Event()
    problems: list[BaseException] = []
    runner = CallRunner(executor)

    def report(reported: Sequence[Outcome | Output]) -> None:
        if reporting.is_set():
            return
        reporting.set()
        closing.wait(10)
        end = time.monotonic() + 0.2
        try:
            while time.monotonic() < end:
                executor.submit([runner.call(workloads.identity)])
        except BaseException as error:
            problems.append(error)

    executor.start(report)
    executor.submit([runner.call(workloads.identity)])
    assert reporting.wait(10)
    shutdown = threading.Thread(target=executor.shutdown)
    shutdown.start()
    closing.set()
    shutdown.join(10)

    assert not problems
    with pytest.raises(RuntimeError, match="not started"):
        executor.submit([runner.call(workloads.identity)])


# -- outcomes that gather --------------------------------------------------------------------------------------------


class Laden:
    """A worker with some calls that it has not begun."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def waiting(self) -> int:
        """Return how many these are."""
        return self.calls


def leisure(milliseconds: float, *calls: int, size: int = 2) -> float:
    """Return for how many milliseconds outcomes may gather if calls take so long and workers have so many of them."""
    assignment = Assignment(size)
    assignment.workers = {number: cast("Worker", Laden(each)) for number, each in enumerate(calls)}
    assignment.learn([milliseconds / 1000])
    return round(assignment.leisure() * 1000, 3)


@pytest.mark.parametrize(
    ("milliseconds", "calls", "most"),
    [
        (0.2, (3, 8), 0.2),
        (0.2, (90, 90), 1.0),
        (5.0, (2, 2), 1.0),
    ],
)
def test_outcomes_gather_while_all_workers_have_much_to_do(
    milliseconds: float, calls: tuple[int, ...], most: float
) -> None:
    """They do for half as long as the worker with the least has calls besides its next, and a millisecond at most."""
    assert leisure(milliseconds, *calls) == most


@pytest.mark.parametrize(
    ("milliseconds", "calls"),
    [
        (0.2, (1, 8)),
        (0.2, (0, 8)),
        (0.2, (8,)),
        (0.01, (90, 90)),
    ],
)
def test_outcomes_do_not_wait_where_somebody_may(milliseconds: float, calls: tuple[int, ...]) -> None:
    """A worker that has only its next call, one that is still to start, an engine that is the slowest of all."""
    assert leisure(milliseconds, *calls) == 0


# -- looking out -----------------------------------------------------------------------------------------------------


def test_what_is_there_is_found_at_once() -> None:
    """Who looks out does not look twice when there is something."""
    looks: list[str] = []

    def look() -> str:
        looks.append("")
        return "something"

    assert Lookout(10).find(look) == "something"
    assert len(looks) == 1


def test_what_comes_soon_is_found() -> None:
    """Who looks out looks again until there is something."""
    answers = iter(["", "", "something"])

    assert Lookout(10).find(lambda: next(answers)) == "something"


@pytest.mark.parametrize("seconds", [0, 0.001])
def test_nobody_looks_out_for_long(seconds: float) -> None:
    """When the time is over there is nothing."""
    began = time.monotonic()

    assert Lookout(seconds).find(lambda: "") == ""
    assert time.monotonic() - began < 5


def test_who_meets_others_does_not_look_out_for_a_while() -> None:
    """When somebody else keeps the core for long there is one look and no more; later it is tried again."""
    ways: list[float] = []

    def give_way() -> None:
        ways.append(time.monotonic())
        time.sleep(0.002)

    lookout = Lookout(0.0005, give_way)
    while time.monotonic() < (ways[0] + 0.2 if ways else float("inf")):
        assert lookout.find(lambda: "") == ""

    assert 2 <= len(ways) <= 10


def test_who_looks_out_in_vain_again_and_again_does_not_for_a_while() -> None:
    """When nothing came in time so often in a row there is one look and no more; later it is tried again."""
    ways: list[float] = []

    lookout = Lookout(1e-9, lambda: ways.append(time.monotonic()))
    while len(ways) < 10 or time.monotonic() < ways[0] + 0.2:
        assert lookout.find(lambda: "") == ""

    assert len(ways) <= 50


# -- what calls use --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ThreadMeter, ProcessMeter])
def test_a_meter_tells_the_time_of_one_call(make: Callable[[], Meter]) -> None:
    """CPU time is that of the call alone, not of those before it."""
    meter = make()
    meter.begin()
    burn(0.05)
    first, peak = meter.end()
    meter.begin()
    second, _ = meter.end()

    assert first is not None
    assert second is not None
    assert 0.049 < first < 1
    assert second < 0.04
    assert peak is None or peak > 1 << 20


def test_time_between_calls_is_not_theirs() -> None:
    """What a process does while it waits for a call is left out."""
    meter = ProcessMeter()
    burn(0.05)
    meter.go_on()
    meter.begin()

    seconds, _ = meter.end()

    assert seconds is not None
    assert seconds < 0.04


def test_calls_that_share_a_thread_have_no_time_of_their_own() -> None:
    """In a loop only the memory of the process can be told."""
    meter = LoopMeter()
    meter.begin()

    assert meter.end()[0] is None


def test_the_time_of_a_call_in_a_worker_is_its_own(runner: CallRunner) -> None:
    """A short call after a long one, and one after a pause, have used next to nothing."""

    def burn(seconds: float) -> int:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return os.getpid()

    long = [runner.call(burn, 0.05) for _ in range(2)]
    runner.run(*long)
    runner.run(*long)
    for outcome in runner.run(*(runner.call(burn, 0.0) for _ in range(4))):
        assert outcome.execution is not None
        assert outcome.execution.cpu_seconds is not None
        assert 0 <= outcome.execution.cpu_seconds < 0.04
    assert all(outcome.state.is_completed() for outcome in runner.outcomes)
