"""Workers and supervisors die: what is said of it, what is run again and what is not, and that nothing wears out."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

import psutil
import pytest

from localflow.builtin.process import ProcessExecutor
from localflow.states import WORKER_LOST, StateType
from localflow.testing import workloads
from localflow.testing.running import CallRunner
from tests.executors.conftest import eventually, is_gone, numbers_in, supervisor_pid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localflow.interfaces import Outcome

ROUNDS = 50


def crashed(runner: CallRunner, function: Callable[..., Any], *args: Any) -> Outcome:
    """Run a call that kills its worker, and return its outcome."""
    [outcome] = runner.run(runner.call(function, *args))
    assert (outcome.state.type, outcome.state.name) == (StateType.CRASHED, WORKER_LOST)
    return outcome


# -- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL])
def test_a_signal_is_named_with_the_worker_and_the_task(runner: CallRunner, signum: signal.Signals) -> None:
    """The message says which worker was killed by what in which task, and the cause has it as data."""
    outcome = crashed(runner, workloads.kill_process, signum)

    cause = outcome.state.cause
    assert cause is not None
    assert cause.kind == "worker"
    assert cause.signal == signum
    assert cause.pid is not None
    assert outcome.state.message.startswith(f"worker {cause.pid} killed by {signum.name} after ")
    assert outcome.state.message.endswith("s while running 'kill_process-1' (attempt 1/1)")
    assert outcome.execution is not None
    assert outcome.execution.pid == cause.pid


@pytest.mark.parametrize("status", [0, 1, 99, 255])
def test_an_exit_status_is_named(runner: CallRunner, status: int) -> None:
    """A task that ends its process without a result is CRASHED, whatever the status."""
    outcome = crashed(runner, workloads.end_process, status)

    cause = outcome.state.cause
    assert cause is not None
    assert cause.exit_code == status
    assert f"worker {cause.pid} exited with status {status} without returning a result after" in outcome.state.message


def test_the_stack_of_a_crash_is_kept(runner: CallRunner) -> None:
    """A segmentation fault leaves the Python stack, with the function that caused it."""
    outcome = crashed(runner, workloads.read_null)

    assert outcome.state.cause is not None
    assert "Segmentation fault" in outcome.state.cause.traceback_text
    assert "in read_null" in outcome.state.cause.traceback_text


def test_a_long_lived_worker_is_told_by_the_time_of_its_last_call(runner: CallRunner) -> None:
    """The message counts the time of the call, not of the worker."""

    def die_later() -> None:
        time.sleep(0.3)
        os._exit(1)

    runner.run(runner.call(workloads.pid, 0.5))
    outcome = crashed(runner, die_later)

    assert "after 0.3s while" in outcome.state.message or "after 0.4s while" in outcome.state.message


# -- who else is concerned -------------------------------------------------------------------------------------------


def test_a_death_is_noticed_although_a_child_holds_the_pipes(runner: CallRunner, tmp_path: Path) -> None:
    """A forked child that lives on in the worker's group delays nothing, and is killed."""
    log = tmp_path / "pids"

    def fork_and_die(path: str) -> None:
        child = os.fork()
        if not child:
            time.sleep(60)
        workloads.note(path, str(child))
        os._exit(1)

    before = time.monotonic()
    crashed(runner, fork_and_die, str(log))

    assert time.monotonic() - before < 5
    [child] = numbers_in(log)
    eventually(lambda: is_gone(child))


def test_a_forked_child_that_returns_from_the_task_is_no_worker(runner: CallRunner, tmp_path: Path) -> None:
    """A task that forks and returns in both processes is answered once, and the child ends with its own status."""
    log = tmp_path / "log"

    def fork_and_return(path: str) -> int:
        child = os.fork()
        workloads.note(path, "1")
        if not child:
            raise SystemExit(5)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    outcomes = runner.run(runner.call(fork_and_return, str(log)), *[runner.call(workloads.pid) for _ in range(10)])

    assert outcomes[0].state.result() == 5
    assert numbers_in(log) == [1, 1]
    assert len(runner.outcomes) == 11


def test_a_worker_that_dies_idle_is_replaced(runner: CallRunner, caplog: pytest.LogCaptureFixture) -> None:
    """The death of a worker that has nothing to do is logged, and harms no call."""
    [outcome] = runner.run(runner.call(workloads.pid))
    os.kill(outcome.state.result(), signal.SIGKILL)
    eventually(lambda: "while it was idle" in caplog.text)

    [following] = runner.run(runner.call(workloads.pid))

    assert following.state.result() != outcome.state.result()
    assert f"worker {outcome.state.result()} killed by SIGKILL while it was idle; it is replaced" in caplog.text


def test_a_result_that_came_before_the_death_counts(runner: CallRunner) -> None:
    """A worker that is killed just after its outcome was sent has completed the call."""

    def return_then_die() -> int:
        worker = os.getpid()
        if not os.fork():
            time.sleep(0.05)
            os.kill(worker, signal.SIGKILL)
            os._exit(0)
        return 7

    for _ in range(5):
        [outcome] = runner.run(runner.call(return_then_die))

        assert outcome.state.result() == 7
    eventually(lambda: runner.run(runner.call(workloads.identity, 1)))


@pytest.mark.parametrize("megabytes", [8])
def test_a_worker_killed_amid_a_large_frame_is_a_crash(runner: CallRunner, tmp_path: Path, megabytes: int) -> None:
    """Half a result, or half an argument, is nothing; the next call is not disturbed by the rest of it."""
    log = tmp_path / "pids"

    def send(path: str, size: int) -> bytes:
        workloads.note(path, str(os.getpid()))
        if not os.fork():
            time.sleep(0.005)
            os.kill(os.getppid(), signal.SIGKILL)
            os._exit(0)
        return bytes(size)

    for _ in range(5):
        sending, receiving = (
            runner.call(send, str(log), megabytes << 20),
            runner.call(len, bytes(megabytes << 20)),
        )
        outcomes = runner.run(sending, receiving)
        [following] = runner.run(runner.call(workloads.identity, 1))

        assert outcomes[0].state.type in (StateType.CRASHED, StateType.COMPLETED)
        assert outcomes[1].state.result() == megabytes << 20
        assert following.state.result() == 1


def test_what_writes_nonsense_into_the_pipe_is_a_crash(runner: CallRunner) -> None:
    """A task that writes into descriptors that are not its own loses its worker, and nobody else anything."""

    def scribble() -> None:
        for descriptor in range(3, 20):
            try:
                os.write(descriptor, b"\xff" * 64)
            except OSError:
                continue
        time.sleep(30)

    outcome = crashed(runner, scribble)
    [following] = runner.run(runner.call(workloads.identity, 1))

    assert "killed by SIGKILL" in outcome.state.message
    assert following.state.result() == 1


def test_a_task_that_closes_all_descriptors_is_a_crash(runner: CallRunner) -> None:
    """A task that closes what is not its own cannot be answered, and nobody else is concerned."""
    outcome = crashed(runner, os.closerange, 3, 64)
    [following] = runner.run(runner.call(workloads.identity, 1))

    assert "exited with status 1 without returning a result" in outcome.state.message
    assert following.state.result() == 1


def test_calls_that_a_dead_worker_had_not_begun_run_elsewhere(tmp_path: Path) -> None:
    """With calls sent ahead to it, a dying worker takes one with it and no more."""
    log = tmp_path / "log"

    with CallRunner(ProcessExecutor(workers=1)) as runner:
        runner.run(*(runner.call(workloads.identity, number) for number in range(300)))  # calls are short, it learns
        fatal = runner.call(workloads.end_process, 1)
        others = [runner.call(workloads.note, str(log), str(number)) for number in range(60)]
        runner.executor.submit([*others[:20], fatal, *others[20:]])
        outcomes = runner.wait_for([fatal, *others])

    assert outcomes[0].state.type is StateType.CRASHED
    assert {outcome.state.type for outcome in outcomes[1:]} == {StateType.COMPLETED}
    assert sorted(numbers_in(log)) == list(range(60))


def test_nothing_wears_out_with_crashes() -> None:
    """Round after round of crashes, descriptors and threads of this process stay as many as they were."""

    def counts() -> tuple[int, int]:
        return psutil.Process().num_fds(), threading.active_count()

    with CallRunner(ProcessExecutor(workers=2)) as runner:
        runner.run(*(runner.call(workloads.pid, 0.02) for _ in range(8)))
        before = counts()
        for _ in range(ROUNDS):
            outcomes = runner.run(
                runner.call(workloads.kill_process), *(runner.call(workloads.identity, number) for number in range(4))
            )
            assert [outcome.state.type for outcome in outcomes].count(StateType.CRASHED) == 1
        runner.run(*(runner.call(workloads.pid, 0.02) for _ in range(8)))

        assert counts() == before


# -- the supervisor dies ---------------------------------------------------------------------------------------------


def test_the_supervisor_is_replaced(runner: CallRunner, tmp_path: Path) -> None:
    """When the supervisor is killed its workers go with it; calls they had not begun run with the next one."""
    log = tmp_path / "log"
    running = [runner.call(lambda path: workloads.note(path, str(os.getpid()), 60), str(log)) for _ in range(2)]
    runner.submit(*running)
    eventually(lambda: len(numbers_in(log)) == 2)
    runner.executor.submit(waiting := [runner.call(workloads.identity, number) for number in range(10)])

    os.kill(supervisor_pid(), signal.SIGKILL)
    lost, kept = runner.wait_for(running), runner.wait_for(waiting)

    assert {(outcome.state.type, outcome.state.name) for outcome in lost} == {(StateType.CRASHED, WORKER_LOST)}
    assert "was lost with its supervisor" in lost[0].state.message
    assert [outcome.state.result() for outcome in kept] == list(range(10))
    assert all(is_gone(pid) for pid in numbers_in(log))


def test_supervisors_that_die_again_and_again_are_replaced(runner: CallRunner) -> None:
    """The executor goes on as long as there is some success between the deaths."""
    for number in range(5):
        [outcome] = runner.run(runner.call(workloads.identity, number))
        os.kill(supervisor := supervisor_pid(), signal.SIGKILL)
        eventually(lambda supervisor=supervisor: is_gone(supervisor))  # type: ignore[misc]

        assert outcome.state.result() == number


def test_the_death_of_a_supervisor_is_noticed_although_a_fork_holds_its_socket(
    run_program: Callable[[str], str],
) -> None:
    """A process that user code forks just when the supervisor starts does not hide its death."""
    output = run_program("""
import logging, psutil
logging.disable()
spawn, forks = os.posix_spawn, []

def fork_and_spawn(*args, **options):
    forks.append(os.fork())
    if not forks[-1]:
        time.sleep(60)
    return spawn(*args, **options)

os.posix_spawn = fork_and_spawn
with CallRunner(ProcessExecutor(workers=1)) as runner:
    runner.run(runner.call(workloads.identity, 1))
    [supervisor] = [child for child in psutil.Process().children() if child.pid not in forks]
    supervisor.kill()
    try:
        supervisor.wait(5)
    except psutil.TimeoutExpired:
        print("nobody noticed")
    print(runner.run(runner.call(workloads.identity, 2))[0].state.result())
for child in forks:
    os.kill(child, signal.SIGKILL)
""")

    assert output == "2\n"


def test_shutdown_copes_with_a_supervisor_that_is_gone(tmp_path: Path) -> None:
    """Nothing is left when the supervisor dies at the very end."""
    log = tmp_path / "log"

    with CallRunner(ProcessExecutor(workers=1)) as runner:
        runner.submit(runner.call(lambda: workloads.note(str(log), str(os.getpid()), 60)))
        eventually(lambda: numbers_in(log))
        os.kill(supervisor_pid(), signal.SIGKILL)

    eventually(lambda: is_gone(numbers_in(log)[0]))


# -- workers that cannot start ---------------------------------------------------------------------------------------


def test_an_initializer_that_raises_answers_every_call() -> None:
    """After three failed starts every call, also a later one, ends with the reason; none hangs."""

    def refuse() -> NoReturn:
        raise ValueError("no licence")

    with CallRunner(ProcessExecutor(workers=2, initializer=refuse)) as runner:
        calls = [runner.call(workloads.identity, number) for number in range(20)]
        runner.executor.submit(calls)
        outcomes = runner.wait_for(calls)
        [later] = runner.run(runner.call(workloads.identity, 1))

    for outcome in [*outcomes, later]:
        assert (outcome.state.type, outcome.state.name) == (StateType.CRASHED, WORKER_LOST)
        assert outcome.state.message == "cannot start workers: the initializer failed: ValueError: no licence"
        assert outcome.state.cause is not None
        assert "in refuse" in outcome.state.cause.traceback_text


def test_starts_that_fail_are_few(tmp_path: Path) -> None:
    """There is no storm of restarts: three rounds, with pauses between them."""
    log = tmp_path / "log"

    def refuse() -> NoReturn:
        workloads.note(str(log), str(os.getpid()))
        os._exit(3)

    before = time.monotonic()
    with CallRunner(ProcessExecutor(workers=4, initializer=refuse)) as runner:
        [outcome, *_] = runner.run(*(runner.call(workloads.identity, number) for number in range(4)))

    assert "exited with status 3 while starting" in outcome.state.message
    assert len(numbers_in(log)) == 4 + 1 + 1
    assert time.monotonic() - before > 0.6


def test_a_start_that_fails_once_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A passing trouble at the start costs a pause and a warning, no call."""
    log = tmp_path / "log"

    def refuse_once() -> None:
        first = not log.exists()
        workloads.note(str(log), str(os.getpid()))
        if first:
            raise OSError("not yet")

    with CallRunner(ProcessExecutor(workers=1, initializer=refuse_once)) as runner:
        [outcome] = runner.run(runner.call(workloads.identity, 1))

    assert outcome.state.result() == 1
    assert "a worker could not start, which is tried again: the initializer failed: OSError: not yet" in caplog.text


def test_workers_at_work_go_on_when_no_more_can_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When further workers fail to start, those there are do the work."""
    log = tmp_path / "log"

    def refuse_others() -> None:
        if log.exists():
            raise OSError("one is enough")
        workloads.note(str(log), str(os.getpid()))

    with CallRunner(ProcessExecutor(workers=3, initializer=refuse_others)) as runner:
        runner.run(runner.call(workloads.pid))
        outcomes = runner.run(*(runner.call(workloads.pid, 0.05) for _ in range(30)))

    assert {outcome.state.result() for outcome in outcomes} == set(numbers_in(log))


def test_too_few_descriptors_are_told() -> None:
    """Without descriptors for pipes there are no workers, which every call is told."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[int] = []

    with CallRunner(ProcessExecutor(workers=2)) as runner:
        eventually(lambda: len(psutil.Process().children()) > 0)
        lowest = psutil.Process().num_fds() + 4
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
            with contextlib.suppress(OSError):
                while True:
                    opened.append(os.dup(0))
            [outcome] = runner.run(runner.call(workloads.identity, 1))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for descriptor in opened:
                os.close(descriptor)

    assert (outcome.state.type, outcome.state.name) == (StateType.CRASHED, WORKER_LOST)
    assert outcome.state.message.startswith("cannot start workers: OSError: [Errno 24] Too many open files")


def test_an_executor_that_gave_up_can_be_started_again(tmp_path: Path) -> None:
    """A new start is a new chance."""
    allowed = tmp_path / "allowed"

    def refuse() -> None:
        if not allowed.exists():
            raise OSError("not allowed")

    executor = ProcessExecutor(workers=1, initializer=refuse)
    with CallRunner(executor) as runner:
        [first] = runner.run(runner.call(workloads.identity, 1))
    allowed.touch()
    with CallRunner(executor) as runner:
        [second] = runner.run(runner.call(workloads.identity, 2))

    assert first.state.type is StateType.CRASHED
    assert second.state.result() == 2


def test_an_initializer_that_cannot_be_sent_is_told_at_the_start() -> None:
    """An initializer that cannot be pickled is refused when the executor starts."""
    lock = threading.Lock()
    executor = ProcessExecutor(workers=1, initializer=lambda: lock.acquire())

    with pytest.raises(Exception, match="cannot be pickled"):
        executor.start(lambda outcomes: None)
