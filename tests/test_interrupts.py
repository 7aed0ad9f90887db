"""Ctrl-C and SIGTERM stop a running flow: its states say so, nothing is left running."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
from pathlib import Path
from localflow import flow, task

@task
def stuck(seconds):
    Path("started").touch()
    time.sleep(seconds)

@task
def after(x):
    Path("after-ran").touch()

@flow(executor=sys.argv[1])
def main():
    after(stuck(60))

main()
"""


def start_flow(executor: str) -> subprocess.Popen[str]:
    """Start the script and return once its first task is at work."""
    Path("script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "script.py", executor], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 20
    while not Path("started").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def recorded_states() -> list[tuple[int, str]]:
    """Return (number, state name) of every run, newest state each."""
    with sqlite3.connect(".localflow/localflow.db") as connection:
        rows = connection.execute("SELECT number, name FROM state_changes ORDER BY number, sequence").fetchall()
    connection.close()
    return sorted(dict(rows).items())


@pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
@pytest.mark.parametrize(("signum", "returncode"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_stop_signal_cancels_the_run_and_ends_the_program(
    executor: str, signum: signal.Signals, returncode: int
) -> None:
    """After Ctrl-C or SIGTERM every open run is CANCELLED `Interrupted` and the program ends as the signal asks."""
    process = start_flow(executor)

    sent_at = time.monotonic()
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=20)

    assert process.returncode == returncode, stderr
    assert time.monotonic() - sent_at < 5
    states = recorded_states()
    assert {name for _, name in states} == {"Interrupted"}
    assert not Path("after-ran").exists()


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    """A flow started with SIGINT ignored, as nohup or `&` do, is not stopped by it."""
    script = (
        "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from localflow import flow, task\n"
        "@task\ndef kill_self():\n    os.kill(os.getpid(), signal.SIGINT)\n    return 'alive'\n"
        "@flow\ndef main():\n    return kill_self()\n"
        "print(main().result())\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)

    assert done.stdout == "alive\n", done.stderr


def test_signal_handlers_are_given_back_after_the_flow() -> None:
    """A flow leaves the program's signal handlers as it found them."""
    script = (
        "import signal\nfrom localflow import flow\n"
        "@flow\ndef main():\n    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL\n"
        "main()\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGTERM).name)\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)

    assert done.stdout == "True SIG_DFL\n", done.stderr


UNWOKEN = """
import signal, threading, time
from localflow import as_completed, flow, task, wait

@task
def stuck():
    clock, last = time.pthread_getcpuclockid(threading.main_thread().ident), None
    while last != (last := time.clock_gettime(clock)):  # until it waits
        time.sleep(0.05)
    # It reaches another thread than the one that handles it, which sleeps on: so it is if it comes just before that.
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    threading.Event().wait(30)

@flow(executor="thread")
def main():
    future = stuck()
    {waiting}

main()
"""


@pytest.mark.parametrize(
    "waiting",
    ["pass", "future.result()", "future.result(timeout=30)", "wait([future])", "list(as_completed([future]))"],
)
def test_a_signal_that_wakes_nobody_is_heard(waiting: str) -> None:
    """Whoever waits for a run looks up soon, though Python handles signals only in a thread that is awake."""
    Path("script.py").write_text(UNWOKEN.format(waiting=waiting))

    began_at = time.monotonic()
    ended = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=20)

    assert ended.returncode == -signal.SIGINT, ended.stderr
    assert time.monotonic() - began_at < 10
