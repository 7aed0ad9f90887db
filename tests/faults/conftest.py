"""The fault matrix: programs of their own, under a hard time limit, with an oracle that is not the store.

A program is a flow file as a user would write it. Whatever its tasks do is noted by `note(...)` in a file of its own,
one write for each line, so that what really ran is known whatever the store says.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import pytest

from localflow.testing.leaks import MARK, marked_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIMIT = 40.0  # seconds for a program; the test's own limit is above it

PROLOGUE = '''
import ctypes, faulthandler, os, signal, subprocess, sys, threading, time
from localflow import *

def note(*words):
    """Say in the oracle's file what has been done: one write, so that no two lines mix."""
    line = " ".join(map(str, words)) + "\\n"
    file = os.open("oracle", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)

def until(condition, seconds=20):
    """Wait for a condition instead of a time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.005)

'''


class Finished(NamedTuple):
    """How a program has ended."""

    returncode: int
    stdout: str
    stderr: str


class Program:
    """A program at work: its output is read to the end, its end waited for within the limit."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal to the program itself, not to its workers."""
        self.process.send_signal(signum)

    def wait(self, timeout: float = LIMIT) -> Finished:
        """Wait for the end; when it takes too long, fail with the stacks of all that are at work."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            for each in [self.process.pid, *(child.pid for child in psutil.Process(self.pid).children(recursive=True))]:
                try:
                    os.kill(each, signal.SIGABRT)  # PYTHONFAULTHANDLER prints all stacks
                except ProcessLookupError:
                    continue
            try:
                out, err = self.process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                out, err = self.process.communicate()
            pytest.fail(f"not over after {timeout} seconds\n--- stdout\n{out}\n--- stderr\n{err}")
        return Finished(self.process.returncode, out, err)


class Place:
    """A folder with programs, an oracle and a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: list[Program] = []

    def write(self, source: str, name: str = "flows.py") -> str:
        """Write a program with the prologue and return its name."""
        (self.folder / name).write_text(PROLOGUE + source)
        return name

    def start(self, *arguments: str, before: Callable[[], None] | None = None, **environment: str) -> Program:
        """Start Python with arguments, in this folder; `before` is run in the child before the program."""
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
            errors="backslashreplace", cwd=self.folder, preexec_fn=before,
            env={**os.environ, "PYTHONFAULTHANDLER": "1", **environment},
        )  # fmt: skip
        program = Program(process)
        self.programs.append(program)
        return program

    def run(self, *arguments: str, timeout: float = LIMIT, **environment: str) -> Finished:
        """Run Python with arguments to its end."""
        return self.start(*arguments, **environment).wait(timeout)

    def localflow(self, *arguments: str, timeout: float = LIMIT, **environment: str) -> Finished:
        """Run a verb to its end."""
        return self.run("-m", "localflow", *arguments, timeout=timeout, **environment)

    def read(self, *arguments: str, **environment: str) -> Any:
        """Return what a reading verb prints with `--json`."""
        done = self.localflow(*arguments, "--json", **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def states(self, run: str = "@last") -> dict[str, tuple[str, str]]:
        """Return type and name of the state of each task run by name."""
        return {each["name"]: (each["state"]["type"], each["state"]["name"]) for each in self.task_runs(run)}

    def task_runs(self, run: str = "@last") -> list[dict[str, Any]]:
        """Return what `show --json` says of the task runs."""
        found: list[dict[str, Any]] = self.read("show", run)["task_runs"]
        return found

    @property
    def notes(self) -> list[str]:
        """The lines of the oracle so far."""
        path = self.folder / "oracle"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def counts(self) -> Counter[str]:
        """How often each line is in the oracle."""
        return Counter(self.notes)

    def close(self) -> None:
        """Kill what is still at work."""
        for program in self.programs:
            if program.process.poll() is None:
                program.process.kill()
            program.process.communicate()


@pytest.fixture
def place(own_folder: Path, no_leaks: None) -> Iterator[Place]:
    """A folder for programs; what they leave behind is told by `no_leaks`."""
    place = Place(own_folder)
    yield place
    place.close()


@pytest.fixture(params=["sqlite", "json"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the programs use each of the stores that survive."""
    name: str = request.param
    monkeypatch.setenv("LOCALFLOW_STORE", name)
    return name


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def own_processes() -> list[psutil.Process]:
    """Return the living processes that the test has started, directly or not."""
    return marked_processes(os.environ[MARK])
