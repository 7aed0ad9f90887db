"""Programs of their own that drive the process executor, and what the tests want to know of processes."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from localflow.builtin.process import ProcessExecutor
from localflow.testing.running import CallRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PROLOGUE = """
import os, signal, subprocess, sys, threading, time
from localflow.builtin.process import ProcessExecutor
from localflow.testing import workloads
from localflow.testing.running import CallRunner

"""


@pytest.fixture(scope="session")
def servers_of_pools() -> None:
    """Start what pools of processes start once, and keep until the program ends, before anybody looks for leaks."""
    multiprocessing.resource_tracker.ensure_running()
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.forkserver.ensure_running()
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("loky.backend.resource_tracker").ensure_running()


@pytest.fixture
def runner() -> Iterator[CallRunner]:
    """Drive a process executor of two workers."""
    with CallRunner(ProcessExecutor(workers=2)) as runner:
        yield runner


@pytest.fixture
def start_program(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Return a callable that starts a program, given as source, with localflow at hand."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str) -> subprocess.Popen[str]:
        script = tmp_path / f"program{len(started)}.py"
        script.write_text(PROLOGUE + source)
        # The programs that fork on purpose are told from Python 3.12 on that this may lead to deadlocks.
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore:This process:DeprecationWarning", str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def run_program(start_program: Callable[[str], subprocess.Popen[str]]) -> Callable[[str], str]:
    """Return a callable that runs a program to its end and returns what it printed; it must exit with 0, in silence."""

    def run(source: str) -> str:
        process = start_program(source)
        output, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
        return output

    return run


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until `condition` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)


def is_gone(pid: int) -> bool:
    """Return whether no process of this pid runs any more."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def numbers_in(path: Path) -> list[int]:
    """Return the numbers that tasks have written to a file, one a line, as far as the lines are complete."""
    if not path.exists():
        return []
    return [int(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def supervisor_pid() -> int:
    """Return the pid of the one supervisor below this process."""
    [supervisor] = own_children()
    return supervisor.pid


def own_children() -> list[psutil.Process]:
    """Return the children of this process, but for the servers that pools of other tests keep until the end."""
    servers = ("forkserver", "resource_tracker")
    children = psutil.Process().children()
    return [child for child in children if not any(name in " ".join(child.cmdline()) for name in servers)]
