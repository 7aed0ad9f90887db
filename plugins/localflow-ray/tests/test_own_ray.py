"""A Ray of this machine that the executor starts itself: quiet, and gone with the flow run or with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONFIG = """
executor = "ray"

[executors.ray]
workers = 2
object_store_memory = "150 MiB"
"""

#: A script without a guard, whose functions are of `__main__`.
SCRIPT = """
import os, subprocess, sys, time
from pathlib import Path
from localflow import flow, task

class Pair:
    def __init__(self, first, second):
        self.first, self.second = first, second

@task
def pair(number):
    return Pair(number, number * 2)

@task
def add(pair):
    return pair.first + pair.second

@task
def wait(path, seconds):
    subprocess.Popen(["sleep", str(seconds)], start_new_session=True)
    Path(path).write_text(str(os.getpid()))
    time.sleep(seconds)

@flow
def main():
    if sys.argv[1:]:
        wait(sys.argv[1], 60)
        return None
    return [add(pair(number)) for number in range(10)]

state = main()
if state.is_completed():
    print(state.result())
else:
    print(state)
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Return a folder with settings and the script; nothing of Ray may be left over of what runs there."""
    (tmp_path / "localflow.toml").write_text(CONFIG)
    (tmp_path / "script.py").write_text(SCRIPT)
    before = ray_processes()
    yield tmp_path
    eventually(lambda: ray_processes() <= before, 15)


def ray_processes() -> set[int]:
    """Return the processes of all Rays that this machine has, and what their tasks have started."""
    found = set()
    for process in psutil.process_iter(["name", "cmdline", "environ"]):
        line, variables = " ".join(process.info["cmdline"] or []), process.info["environ"] or {}
        if process.info["name"] in ("raylet", "gcs_server") or "ray/_private" in line or "RAY_RAYLET_PID" in variables:
            found.add(process.pid)
    return found


def session_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("localflow-ray-*"))


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def start(place: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"},
        start_new_session=True,
    )


def test_a_script_needs_no_guard_and_leaves_nothing(place: Path) -> None:
    """Functions and classes of `__main__` work; stdout has the program's words only, and no process or file stays."""
    folders = session_folders()

    script = start(place, "script.py")
    output, errors = script.communicate(timeout=80)

    assert output == f"{[3 * number for number in range(10)]}\n"
    assert "ray" not in errors.lower()
    assert session_folders() <= folders


def test_a_script_from_stdin(place: Path) -> None:
    """A program that is no file can be run as well."""
    script = subprocess.run(
        [sys.executable, "-"], cwd=place, input=SCRIPT, capture_output=True, text=True, timeout=80, check=False
    )

    assert script.stdout == f"{[3 * number for number in range(10)]}\n"


def test_ctrl_c_ends_everything(place: Path) -> None:
    """The task that runs is cancelled, the flow run ends, and so does Ray."""
    begun, folders = place / "begun", session_folders()
    script = start(place, "script.py", str(begun))

    eventually(begun.exists, 60)
    os.killpg(script.pid, signal.SIGINT)
    output, _ = script.communicate(timeout=60)

    assert "Interrupted" in output or script.returncode != 0
    assert not psutil.pid_exists(int(begun.read_text()))
    assert session_folders() <= folders


def test_ray_dies_with_an_engine_that_is_killed(place: Path) -> None:
    """After `kill -9` of the engine all processes of Ray end, with what tasks have started, and its folder goes."""
    begun, folders, processes = place / "begun", session_folders(), ray_processes()
    script = start(place, "script.py", str(begun))
    eventually(begun.exists, 60)

    script.kill()
    script.communicate(timeout=30)

    eventually(lambda: ray_processes() <= processes, 15)
    eventually(lambda: session_folders() <= folders, 15)


def test_what_nobody_could_remove_goes_with_the_next_run(place: Path) -> None:
    """Where engine and watchdog were killed the folder stays, until the next Ray of our own starts."""
    folder = Path(tempfile.mkdtemp(prefix="localflow-ray-", dir=tempfile.gettempdir()))
    (folder / "engine.lock").touch()
    (folder / "session").mkdir()

    start(place, "script.py").communicate(timeout=80)

    assert not folder.exists()


def test_the_run_is_on_record(place: Path) -> None:
    """`localflow run` and `localflow show` know Ray as any other executor."""
    command = [str(Path(sys.executable).with_name("localflow"))]
    text = SCRIPT.split("state = main()")[0]
    (place / "script.py").write_text(text)

    run = subprocess.run(
        [*command, "run", "script.py:main"], cwd=place, capture_output=True, text=True, timeout=80, check=False
    )
    shown = subprocess.run(
        [*command, "show", "@last"], cwd=place, capture_output=True, text=True, timeout=30, check=False
    )

    assert run.returncode == 0, run.stderr
    assert "on executor 'ray'" in run.stderr
    assert "20 Completed" in shown.stdout
