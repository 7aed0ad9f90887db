"""`localflow cancel RUN` stops a flow run from another terminal, and the channel by which it gets there."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from localflow.control import ControlChannel, control_path, send_cancel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Cli

DEADLINE = 10.0


def wait_until(condition: Callable[[], object]) -> None:
    """Return once the condition holds."""
    until = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


class Listener:
    """A channel that is open, and how often it was told to cancel."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cancelled = threading.Semaphore(0)
        self.channel = ControlChannel(path, self.cancelled.release)

    def was_told(self) -> bool:
        """Return whether it was told once more."""
        return self.cancelled.acquire(timeout=DEADLINE)


@pytest.fixture
def listener(own_folder: Path) -> Iterator[Listener]:
    """Listen as an engine does."""
    listener = Listener(control_path(own_folder / ".localflow", "abc"))
    assert listener.channel.open()
    yield listener
    listener.channel.close()


# -- the channel -----------------------------------------------------------------------------------------------------


def test_each_request_reaches_the_engine(listener: Listener) -> None:
    """A second one too: it may mean more than the first."""
    assert send_cancel(listener.path)
    assert listener.was_told()
    assert send_cancel(listener.path)
    assert listener.was_told()
    assert not listener.cancelled.acquire(blocking=False)


def test_the_pipe_is_there_for_its_owner_only_and_while_somebody_listens(own_folder: Path, listener: Listener) -> None:
    """Hidden from git, too; the rest of the state directory is a store's affair."""
    status = listener.path.stat()

    assert stat.S_ISFIFO(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_IMODE(listener.path.parent.stat().st_mode) == 0o700
    assert (own_folder / ".localflow" / ".gitignore").read_text() == "*\n"

    listener.channel.close()
    listener.channel.close()

    assert list(listener.path.parent.iterdir()) == []
    assert not send_cancel(listener.path)


def test_garbage_is_passed_over(listener: Listener) -> None:
    """Whatever somebody writes there, in whatever pieces."""
    for piece in (b"\0" * 70_000, b"\n\ncan", b"cel", b"\n", b"cance\ncancel", b"l\n"):
        with listener.path.open("wb", buffering=0) as pipe:
            pipe.write(piece)
    assert listener.was_told()

    assert send_cancel(listener.path)
    assert listener.was_told()
    assert not listener.cancelled.acquire(blocking=False)


def test_listening_costs_no_time(listener: Listener) -> None:
    """The thread sleeps until there is something to read."""
    before = time.process_time()

    time.sleep(0.2)

    assert time.process_time() - before < 0.05


def test_a_request_that_cannot_be_followed_leaves_the_channel_open(own_folder: Path) -> None:
    """The next one may succeed."""
    tries = []

    def cancel() -> None:
        tries.append(1)
        raise ValueError("not now")

    channel = ControlChannel(control_path(own_folder / ".localflow", "abc"), cancel)
    channel.open()

    for count in (1, 2):
        assert send_cancel(control_path(own_folder / ".localflow", "abc"))
        wait_until(lambda count=count: len(tries) == count)  # type: ignore[misc]
    channel.close()


def test_the_channel_may_be_closed_by_what_it_calls(own_folder: Path) -> None:
    """It waits for nobody then."""
    closed = threading.Event()
    channel = ControlChannel(control_path(own_folder / ".localflow", "abc"), lambda: (channel.close(), closed.set()))  # type: ignore[func-returns-value]
    channel.open()

    assert send_cancel(control_path(own_folder / ".localflow", "abc"))

    assert closed.wait(DEADLINE)


def test_what_a_killed_engine_has_left_is_removed(own_folder: Path) -> None:
    """Also if a forked child of it lives on; a new engine of the same run takes the place."""
    path = control_path(own_folder / ".localflow", "abc")
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom localflow.control import ControlChannel\n"
        "channel = ControlChannel(Path(sys.argv[1]), print)\nassert channel.open()\n"
        "if os.fork() == 0:\n    channel.close()\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "else:\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, start_new_session=True
    ) as engine:
        assert engine.stdout is not None
        engine.stdout.readline()
        assert send_cancel(path)  # the child's close has removed nothing

        engine.kill()
        engine.wait()

        assert path.exists()
        assert not send_cancel(path)
        assert not path.exists()
        os.killpg(engine.pid, signal.SIGKILL)

    os.mkfifo(path)
    listener = Listener(path)
    assert listener.channel.open()
    assert send_cancel(path)
    assert listener.was_told()
    listener.channel.close()


def test_where_no_pipe_can_be_made_the_run_goes_on(own_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is warned of, for then nobody can cancel it from elsewhere."""
    (own_folder / ".localflow").write_text("a file")

    channel = ControlChannel(control_path(own_folder / ".localflow", "abc"), print)

    assert not channel.open()
    assert "`localflow cancel` will not reach this run" in caplog.text
    channel.close()


@pytest.mark.parametrize(
    "make", [lambda path: path.write_text(""), lambda path: path.symlink_to("x"), lambda path: path.mkdir()]
)
def test_nothing_is_sent_to_what_is_no_pipe(own_folder: Path, make: Callable[[Path], object]) -> None:
    """A file, a link or a folder in its place is an error, and stays."""
    path = control_path(own_folder / ".localflow", "abc")
    path.parent.mkdir(parents=True)
    make(path)

    with pytest.raises(OSError, match="abc"):
        send_cancel(path)

    assert path.is_symlink() or path.exists()


# -- the verb --------------------------------------------------------------------------------------------------------

WAITING = """
import sys, time
from localflow import flow, task

@task
def wait_long(n):
    print("at work", n, flush=True)
    for _ in range(2000):
        time.sleep(0.02)

@task
def later(x): ...

@flow
def main():
    return later(wait_long(1))

@flow
def above():
    main()

@flow
def stubborn():
    print("at work", flush=True)
    for _ in range(20):
        try:
            while True:
                time.sleep(0.5)
        except BaseException:
            pass
"""


@pytest.fixture
def start(own_folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run a flow in the background, returning when it is at work."""
    (own_folder / "flows.py").write_text(WAITING)
    started = []

    def start(flow: str = "main", executor: str = "process") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "localflow", "run", f"flows.py:{flow}", "--executor", executor]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert "at work" in process.stdout.readline()
        return process

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.mark.parametrize("executor", ["process", "thread", "sequential"])
def test_a_run_is_cancelled_from_another_terminal(
    cli: Cli, read_json: Any, start: Callable[..., subprocess.Popen[str]], executor: str
) -> None:
    """With its tasks; both sides are told, and nothing is left of the way there."""
    running = start(executor=executor)

    done = cli("cancel", "@last")
    told, _ = running.communicate(timeout=20)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("State(name='Cancelled', type=StateType.CANCELLED")
    assert running.returncode == 130
    assert "State(name='Cancelled'" in told
    run = read_json("show", "@last")
    assert [each["state"]["type"] for each in (run, run["task_runs"][0])] == ["CANCELLED", "CANCELLED"]
    assert list(control_path(Path(".localflow"), run["id"]).parent.iterdir()) == []


def test_a_run_that_is_over_is_not_cancelled(cli: Cli, tutorial: str) -> None:
    """Exit code 2 and what became of it; nothing changes."""
    cli("run", tutorial, "-p", 'names=["orion"]')

    done = cli("cancel", "@last")

    assert done.returncode == 2
    assert "is Completed already, there is nothing to cancel" in done.stderr


def test_a_part_of_a_run_is_not_cancelled_alone(
    cli: Cli, read_json: Any, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """The run at the top is named."""
    start("above")
    below, above = read_json("runs")

    done = cli("cancel", below["name"])

    assert done.returncode == 2
    assert f"cancel all of it: localflow cancel {above['name']}" in done.stderr
    assert cli("cancel", above["name"]).returncode == 0


def test_a_run_whose_engine_was_killed_cannot_be_cancelled(
    cli: Cli, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """Exit code 2: it has ended, which is marked by this command if no other has done so."""
    running = start(executor="sequential")
    running.kill()
    running.wait()

    done = cli("cancel", "@last")

    assert done.returncode == 2
    assert f"its engine, in process {running.pid}, is gone" in done.stderr
    assert "is EngineLost already, there is nothing to cancel" in done.stderr


def test_waiting_for_the_end_has_a_limit(cli: Cli, start: Callable[..., subprocess.Popen[str]]) -> None:
    """A flow may take its time to stop; whoever does not want to wait for it need not."""
    start("stubborn", executor="sequential")

    impatient, done = cli("cancel", "@last", "--no-wait"), cli("cancel", "@last", "--timeout", "0.3")

    assert (impatient.returncode, impatient.stdout) == (0, "")
    assert impatient.stderr.endswith("is told to stop\n")
    assert done.returncode == 1
    assert "has not ended within 0.3 seconds" in done.stderr


def test_an_unknown_run_is_an_error(cli: Cli) -> None:
    """As everywhere."""
    assert cli("cancel", "nobody").returncode == 2
