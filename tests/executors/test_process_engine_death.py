"""The engine dies, in any way: its workers are gone within two seconds, whatever they are doing."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.executors.conftest import eventually, is_gone, numbers_in

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

LIMIT = 2.0

# What a worker is doing when the engine dies; each notes the pids that must be gone.
BUSY = {
    "idle": "note()",
    "sleeping": "note(); time.sleep(60)",
    "computing": "note()\nwhile True: pass",
    "holding the GIL": "import ctypes; note(); ctypes.PyDLL(None).sleep(60)",
    "ignoring SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN); note(); time.sleep(60)",
    "stopped": "note(); os.kill(os.getpid(), signal.SIGSTOP)",
    "waiting for a child": "child = subprocess.Popen(['sleep', '60']); note(child.pid); child.wait()",
    "with a child of its own session": (
        "child = subprocess.Popen(['sleep', '60'], start_new_session=True); note(child.pid); time.sleep(60)"
    ),
    "with an orphan": "note(int(subprocess.getoutput('sleep 60 >/dev/null 2>&1 & echo $!'))); time.sleep(60)",
}

PROGRAM = """
def task(log):
    def note(*others):
        for pid in (os.getpid(), *others):
            workloads.note(log, str(pid))
{body}

executor = ProcessExecutor(workers=2)
runner = CallRunner(executor)
executor.start(runner.report)
runner.submit(*(runner.call(task, {log!r}) for _ in range(2)))
for pid in {extra}:
    workloads.note({log!r}, str(pid))
{ending}
time.sleep(60)
"""


def program(doing: str, log: Path, ending: str = "", extra: str = "()") -> str:
    """Return the source of an engine whose workers are busy."""
    body = "\n".join(f"    {line}" for line in BUSY[doing].split("\n"))
    return PROGRAM.format(body=body, log=str(log), ending=ending, extra=extra)


@pytest.mark.parametrize("doing", BUSY)
def test_workers_die_with_an_engine_that_is_killed(
    start_program: Callable[[str], subprocess.Popen[str]], tmp_path: Path, doing: str
) -> None:
    """After `kill -9` of the engine no worker and none of their children is left."""
    log = tmp_path / "pids"
    engine = start_program(program(doing, log))
    count = 4 if "child" in doing or "orphan" in doing else 2
    eventually(lambda: len(numbers_in(log)) == count)

    engine.kill()
    killed_at = time.monotonic()
    engine.wait()

    eventually(lambda: all(is_gone(pid) for pid in numbers_in(log)), LIMIT)
    assert time.monotonic() - killed_at < LIMIT


def test_workers_die_although_a_fork_of_the_engine_lives(
    start_program: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    """A process forked by user code, which holds all of the engine's descriptors, keeps no worker alive."""
    log, child_log = tmp_path / "pids", tmp_path / "child"
    fork = f"child = os.fork()\nif not child: time.sleep(60)\nworkloads.note({str(child_log)!r}, str(child))"
    engine = start_program(program("sleeping", log, ending=fork))
    eventually(lambda: len(numbers_in(log)) == 2 and numbers_in(child_log))

    engine.kill()
    engine.wait()

    eventually(lambda: all(is_gone(pid) for pid in numbers_in(log)), LIMIT)
    os.kill(numbers_in(child_log)[0], signal.SIGKILL)


def test_workers_die_when_engine_and_supervisor_are_killed_together(
    start_program: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Workers do not depend on the supervisor for their end."""
    log, supervisor_log = tmp_path / "pids", tmp_path / "supervisor"
    tell = f"import psutil; workloads.note({str(supervisor_log)!r}, str(psutil.Process().children()[0].pid))"
    engine = start_program(program("holding the GIL", log, ending=tell))
    eventually(lambda: len(numbers_in(log)) == 2 and numbers_in(supervisor_log))

    engine.send_signal(signal.SIGSTOP)
    os.kill(numbers_in(supervisor_log)[0], signal.SIGKILL)
    engine.kill()
    engine.wait()

    eventually(lambda: all(is_gone(pid) for pid in numbers_in(log)), LIMIT)


@pytest.mark.parametrize(
    "ending", ["sys.exit(3)", "raise ValueError('boom')", "os._exit(3)", "executor.shutdown(); sys.exit(3)"]
)
def test_a_program_that_ends_leaves_nothing(
    start_program: Callable[[str], subprocess.Popen[str]], tmp_path: Path, ending: str
) -> None:
    """However the program ends, with or without a shutdown, its workers end with it, and nothing is said of them."""
    log = tmp_path / "pids"
    wait = f"while not workloads.wait_for_file({str(log)!r}): pass\n"
    engine = start_program(program("sleeping", log, ending=wait + ending))

    _, errors = engine.communicate(timeout=10)

    assert engine.returncode == (1 if "raise" in ending else 3)
    assert [line for line in errors.splitlines() if "boom" not in line and not line.startswith(("  ", "Trace"))] == []
    eventually(lambda: all(is_gone(pid) for pid in numbers_in(log)), LIMIT)


def test_ctrl_c_in_the_terminal_does_not_reach_workers(
    start_program: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    """SIGINT to the engine's process group interrupts the engine alone; workers end when it does, without a word."""
    log = tmp_path / "pids"
    wait = f"os.setpgrp()\nworkloads.note({str(tmp_path / 'ready')!r}, str(os.getpid()))"
    engine = start_program(program("sleeping", log, ending=wait))
    eventually(lambda: len(numbers_in(log)) == 2 and numbers_in(tmp_path / "ready"))

    os.killpg(engine.pid, signal.SIGINT)
    _, errors = engine.communicate(timeout=10)

    assert errors.count("KeyboardInterrupt") == 1
    eventually(lambda: all(is_gone(pid) for pid in numbers_in(log)), LIMIT)


@pytest.mark.parametrize("failpoint", ["dispatched:3", "outcome-read:2"])
def test_an_engine_that_dies_between_two_steps_leaves_nothing(
    start_program: Callable[[str], subprocess.Popen[str]],
    tmp_path: Path,
    failpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed just when calls were sent, or outcomes have come, it dies with its workers as it does elsewhere."""
    log = tmp_path / "pids"
    monkeypatch.setenv("LOCALFLOW_FAILPOINT", failpoint)

    engine = start_program(f"""
with CallRunner(ProcessExecutor(workers=2)) as runner:
    for _ in range(5):
        runner.run(runner.call(lambda: workloads.note({str(log)!r}, str(os.getpid()))))
""")

    assert engine.wait(20) == -signal.SIGKILL
    eventually(lambda: all(is_gone(pid) for pid in numbers_in(log)), LIMIT)
    assert numbers_in(log)
