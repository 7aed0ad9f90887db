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
        is_named = (
            process.info["name"] in ("raylet", "gcs_server") or line.startswith("ray::") or "ray/_private" in line
        )
        if is_named or "RAY_RAYLET_PID" in variables:
            found.add(process.pid)
    return found


def session_folders() -> set[Path]:
    """Return the folders of Rays that were started for one engine alone."""
    return set(Path(tempfile.gettempdir()).glob("localflow-ray-*"))


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def start(place: Path, *args: str) -> subprocess.Popen[str]:
    """Start Python in a folder, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"},
        start_new_session=True,
    )


def test_a_program_from_stdin_leaves_nothing(place: Path) -> None:
    """Functions and classes of `__main__` work; stdout has the program's words only, and no process or file stays.

    What an engine has left whose watchdog was killed with it is removed as well.
    """
    abandoned = Path(tempfile.mkdtemp(prefix="localflow-ray-", dir=tempfile.gettempdir()))
    (abandoned / "engine.lock").touch()
    folders = session_folders() - {abandoned}

    script = start(place, "-")
    output, errors = script.communicate(SCRIPT, timeout=80)

    assert output == f"{[3 * number for number in range(10)]}\n"
    assert "ray" not in errors.lower()
    assert session_folders() <= folders


def test_ctrl_c_ends_everything(place: Path) -> None:
    """The task that runs is cancelled and recorded so, the flow run ends, and so does Ray."""
    begun, folders = place / "begun", session_folders()
    script = start(place, "script.py", str(begun))

    eventually(begun.exists, 60)
    os.killpg(script.pid, signal.SIGINT)
    script.communicate(timeout=60)

    assert not psutil.pid_exists(int(begun.read_text()))
    assert session_folders() <= folders
    localflow = str(Path(sys.executable).with_name("localflow"))
    shown = subprocess.run([localflow, "show", "@last"], cwd=place, capture_output=True, text=True, check=False)
    assert "Executor   ray" in shown.stdout
    assert "1 Interrupted" in shown.stdout


def test_ray_dies_with_an_engine_that_is_killed(place: Path) -> None:
    """After `kill -9` of the engine all processes of Ray end, with what tasks have started, and its folder goes."""
    begun, folders, processes = place / "begun", session_folders(), ray_processes()
    script = start(place, "script.py", str(begun))
    eventually(begun.exists, 60)

    script.kill()
    script.communicate(timeout=30)

    eventually(lambda: ray_processes() <= processes, 15)
    eventually(lambda: session_folders() <= folders, 15)
