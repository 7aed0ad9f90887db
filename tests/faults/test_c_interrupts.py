"""C1 to C4: Ctrl-C, SIGTERM and SIGHUP stop a run in good order, twice at once, and leave nothing behind."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import eventually, own_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.conftest import Place

BUSY_MACHINE = 5.0  # by how much everything may take longer than promised where others are at work
GRACE = 5.0  # seconds in which a worker may end in good order

NOTIFIER = """
[notifiers.ops]
type = "command"
command = ["sh", "-c", "cat >> told"]
on = ["Cancelled"]
"""

#: One task run completes, as many as there are workers are at work when the signal comes, ten have not started.
STUCK = """
@task
def quick():
    note("quick")
    return 1

@task
def stuck(number):
    note("begin", number)
    if not os.path.exists("go"):
        time.sleep(60)

@task
def stubborn(number):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("begin", number)
    time.sleep(60)

@flow
def main(stubbornly: bool = False):
    quick.submit().wait()
    (stubborn if stubbornly else stuck).map(range(12))
"""


class Terminal:
    """A program in the foreground of a terminal: keys reach it as signals to all of its process group."""

    def __init__(self, place: Place, *arguments: str) -> None:
        self._keys, screen = pty.openpty()

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "localflow", *arguments], stdin=screen, stdout=screen, stderr=screen,
            start_new_session=True, preexec_fn=take_terminal, cwd=place.folder,
        )  # fmt: skip
        os.close(screen)
        self.shown = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._keys, 65_536)
            except OSError:  # the last program has left the terminal
                return
            self.shown += data.decode(errors="replace").replace("\r\n", "\n")

    def press_ctrl_c(self) -> float:
        """Press it and return the moment."""
        os.write(self._keys, b"\x03")
        return time.monotonic()

    def close(self) -> None:
        """Kill what is still there, and read the rest."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._keys)


@pytest.fixture
def open_terminal(place: Place) -> Iterator[Callable[..., Terminal]]:
    """Start localflow with arguments in a terminal of its own."""
    terminals: list[Terminal] = []

    def open_one(*arguments: str) -> Terminal:
        terminals.append(Terminal(place, *arguments))
        return terminals[-1]

    yield open_one
    for terminal in terminals:
        terminal.close()


def begun(place: Place, count: int) -> Callable[[], bool]:
    """Return whether so many tasks have begun to do their work, as a condition."""
    return lambda: sum(line.startswith("begin") for line in place.notes) >= count


@pytest.mark.parametrize(("executor", "at_work"), [("process", 2), ("thread", 2), ("sequential", 1)])
def test_fault_C1_ctrl_c_stops_the_run_in_good_order(
    place: Place, open_terminal: Callable[..., Terminal], executor: str, at_work: int
) -> None:
    """It is told at once, all that was open is CANCELLED `Interrupted`, notifiers know; what is left can be resumed."""
    (place.folder / "localflow.toml").write_text(NOTIFIER)
    workers = () if executor == "sequential" else ("-j", "2")
    terminal = open_terminal("run", place.write(STUCK), "--executor", executor, *workers)
    eventually(begun(place, at_work))

    pressed_at = terminal.press_ctrl_c()
    if executor == "process":
        eventually(
            lambda: re.search(r"interrupted: stopping \d+ running task runs", terminal.shown), 0.5 * BUSY_MACHINE
        )
        assert "press Ctrl-C again to kill" in terminal.shown
    code = terminal.process.wait(20)

    assert code == 130
    assert time.monotonic() - pressed_at < GRACE
    eventually(lambda: not own_processes())
    assert len(terminal.shown.splitlines()) <= 20
    assert "Traceback" not in terminal.shown
    assert len(place.notes) == 1 + at_work  # nothing was dispatched any more
    [run] = place.read("runs")
    assert (run["state"]["type"], run["state"]["name"]) == ("CANCELLED", "Interrupted")
    assert f"resume: localflow resume {run['name']}\n" in terminal.shown
    states = place.states()
    assert states.pop("quick-0") == ("COMPLETED", "Completed")
    assert set(states.values()) == {("CANCELLED", "Interrupted")}
    told = [json.loads(line) for line in (place.folder / "told").read_text().splitlines()]
    assert run["id"] in [event["run_id"] for event in told]

    (place.folder / "go").touch()
    resumed = place.localflow("resume", run["name"])

    assert resumed.returncode == 0, resumed.stderr
    assert set(place.states().values()) == {("COMPLETED", "Completed")}
    assert place.counts["quick"] == 1
    assert len(place.notes) == 1 + at_work + 12


def test_fault_C1_what_had_failed_before_is_told_all_the_same(place: Place) -> None:
    """A run that is stopped tells the failures it has met, and what was not run because of them."""
    place.write("""
@task
def broken():
    raise ValueError("gone wrong before")

@task
def after(x):
    pass

@task
def stuck():
    note("begin")
    time.sleep(60)

@flow(executor="thread")
def main():
    after.submit(broken.submit()).wait()
    stuck.submit()
""")
    program = place.start("-m", "localflow", "run", "flows.py")
    eventually(begun(place, 1))

    program.kill(signal.SIGINT)
    done = program.wait()

    assert done.returncode == 130
    assert "task run 'broken-0' is Failed: Task run encountered an exception: ValueError: gone wrong" in done.stderr
    assert "\nnot run because of 'broken-0': after-0\n" in done.stderr
    assert "\ninterrupted: stuck-0\n" in done.stderr


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_fault_C2_ctrl_c_twice_kills_at_once(
    place: Place, open_terminal: Callable[..., Terminal], executor: str
) -> None:
    """Whoever presses it again waits for nobody: what ignores SIGTERM is killed, and the store is whole."""
    pause = random.uniform(0.2, 2)  # two in a tenth of a second count as one
    terminal = open_terminal(
        "run",
        place.write(STUCK),
        "--executor",
        executor,
        "-j",
        "2",
        "-p",
        f"stubbornly={json.dumps(executor == 'process')}",
    )
    eventually(begun(place, 2))
    terminal.press_ctrl_c()
    eventually(lambda: "press Ctrl-C again" in terminal.shown)
    time.sleep(pause)  # the fault itself: at any moment

    pressed_at = terminal.press_ctrl_c()
    code = terminal.process.wait(20)

    assert code in (130, -signal.SIGINT), f"second Ctrl-C after {pause} seconds"  # the same to a shell
    assert time.monotonic() - pressed_at < 1.5 * BUSY_MACHINE
    eventually(lambda: not own_processes(), 2 * BUSY_MACHINE)
    assert "Traceback" not in terminal.shown
    assert place.read("runs")[0]["state"]["name"] == "Interrupted"
    assert {name for _, name in place.states().values()} == {"Completed", "Interrupted"}


@pytest.mark.parametrize("times", [1, 2])
def test_fault_C2_an_async_flow_is_stopped_like_any_other(
    place: Place, open_terminal: Callable[..., Terminal], times: int
) -> None:
    """Ctrl-C breaks the event loop; what the flow had started ends in good order or at once, and is recorded."""
    place.write("""
@task
def work(stubborn):
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("begin")
    time.sleep(60)

@flow(executor="process")
async def main(stubborn: bool):
    await work.submit(stubborn)
""")
    terminal = open_terminal("run", "flows.py", "-j", "1", "-p", f"stubborn={json.dumps(times == 2)}")
    eventually(begun(place, 1))

    pressed_at = terminal.press_ctrl_c()
    eventually(lambda: "interrupted: stopping 1 running" in terminal.shown)
    if times == 2:
        time.sleep(0.2)  # two in a tenth of a second count as one
        terminal.press_ctrl_c()
    code = terminal.process.wait(20)

    assert code == 130
    assert time.monotonic() - pressed_at < GRACE
    assert "Traceback" not in terminal.shown
    assert place.read("runs")[0]["state"]["name"] == "Interrupted"
    assert place.states() == {"work-0": ("CANCELLED", "Interrupted")}


def test_fault_C3_an_ignored_ctrl_c_stays_ignored(place: Place) -> None:
    """Under `nohup` or `&` SIGINT does nothing, to workers neither; SIGTERM still stops the run."""
    place.write("""
@task
def step(number):
    note("begin", number)
    if number:
        time.sleep(60)
    until(lambda: os.path.exists("go"))

@flow(executor="process")
def main():
    step(0).wait()
    step(1)
""")
    program = place.start(
        "-m", "localflow", "run", "flows.py", before=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN) and None
    )
    eventually(begun(place, 1))

    program.kill(signal.SIGINT)
    (place.folder / "go").touch()
    eventually(begun(place, 2))  # it goes on
    program.kill(signal.SIGTERM)
    done = program.wait()

    assert done.returncode == 143
    assert place.states() == {"step-0": ("COMPLETED", "Completed"), "step-1": ("CANCELLED", "Interrupted")}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["term", "hup"])
def test_fault_C4_a_signal_stops_even_what_ignores_it(place: Place, signum: signal.Signals, code: int) -> None:
    """SIGTERM and SIGHUP do what Ctrl-C does, within the grace and two seconds; workers do not outlive the engine."""
    stubbornly = "true" if signum == signal.SIGTERM else "false"
    program = place.start(
        "-m",
        "localflow",
        "run",
        place.write(STUCK),
        "--executor",
        "process",
        "-j",
        "2",
        "-p",
        f"stubbornly={stubbornly}",
    )
    eventually(begun(place, 2))

    program.kill(signum)
    sent_at = time.monotonic()
    done = program.wait()

    assert done.returncode == code
    assert time.monotonic() - sent_at < GRACE + 2
    eventually(lambda: not own_processes())
    assert "Traceback" not in done.stderr
    assert {name for _, name in place.states().values()} == {"Completed", "Interrupted"}


@pytest.mark.timeout(120)
def test_fault_C4_sigterm_at_any_moment(place: Place) -> None:
    """Whenever it comes, no process is left, and no run is recorded that seems to be at work still."""
    place.write("""
@task
def step(number):
    time.sleep(0.01)
    return number

@task
def add(*numbers):
    return sum(numbers)

@flow(executor="process")
def main():
    for _ in range(15):
        add.submit(*[step.submit(number) for number in range(4)])
""")
    command = ("-m", "localflow", "run", "flows.py", "-j", "2")
    began_at = time.monotonic()
    assert place.run(*command).returncode == 0
    usual = time.monotonic() - began_at
    seed = random.randrange(1_000_000)
    moments = random.Random(seed)

    known = 1
    for _ in range(6):
        moment = moments.uniform(0, usual)
        program = place.start(*command)
        time.sleep(moment)  # the fault itself: at any moment
        program.kill(signal.SIGTERM)
        done = program.wait()

        told = f"seed {seed}, after {moment:.3f} of {usual:.3f} seconds:\n{done.stderr}"
        eventually(lambda: not own_processes(), 2 * BUSY_MACHINE)
        runs = place.read("runs")
        assert {run["state"]["name"] for run in runs} <= {"Completed", "Interrupted"}, told
        if len(runs) > known and runs[0]["state"]["name"] == "Interrupted":
            assert done.returncode == 143, told
        else:  # it had not begun, or was over
            assert done.returncode in (0, -signal.SIGTERM), told
        assert "Traceback" not in done.stderr, told
        known = len(runs)


def test_fault_C2_two_signals_at_once_are_one_wish(place: Place) -> None:
    """A second signal on the heels of the first, as from a terminal and from a parent, does not tear its way out."""
    place.write("""
@flow
def main():
    try:
        signal.raise_signal(signal.SIGTERM)
    except SystemExit:
        signal.raise_signal(signal.SIGHUP)
        note("once")
        time.sleep(0.2)  # the fault itself: a signal that comes later
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            note("twice")
""")

    done = place.localflow("run", "flows.py")

    assert place.notes == ["once", "twice"], done.stderr
