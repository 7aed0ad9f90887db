"""Programs of their own for the tests of state stores: killed, raced, forked and limited."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.json_files import JsonStateStore
from localflow.builtin.sqlite import SqliteStateStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from localflow.interfaces import StateStore

PROLOGUE = """
import os, resource, sys, threading, time
from localflow.builtin.json_files import JsonStateStore
from localflow.builtin.memory import MemoryStateStore
from localflow.builtin.sqlite import SqliteStateStore
from localflow.errors import *
from localflow.interfaces import CacheEntry, Payload
from localflow.testing.store_records import *

def open_store():
    kind, path = sys.argv[1:3]
    return {"sqlite": SqliteStateStore, "json": JsonStateStore}[kind](path)

def say(text):
    print(text, flush=True)

"""


@pytest.fixture(params=["sqlite", "json"])
def kind(request: pytest.FixtureRequest) -> str:
    """Name a store that keeps its records in files."""
    name: str = request.param
    return name


@pytest.fixture
def store_type(kind: str) -> type[SqliteStateStore] | type[JsonStateStore]:
    """Return the class of that store."""
    return SqliteStateStore if kind == "sqlite" else JsonStateStore


@pytest.fixture
def path(tmp_path: Path, kind: str) -> Path:
    """Say where that store is."""
    return tmp_path / "state" / {"sqlite": "localflow.db", "json": "runs"}[kind]


@pytest.fixture
def open_store(store_type: Callable[[Path], StateStore], path: Path) -> Iterator[Callable[[], StateStore]]:
    """Open that store, as often as wanted."""
    opened: list[StateStore] = []

    def open_store() -> StateStore:
        opened.append(store_type(path))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python programs that know the stores; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: object, under: Sequence[str] = ()) -> subprocess.Popen[str]:
        command = [*under, sys.executable, "-c", PROLOGUE + program, *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., list[str]]:
    """Run such a program to its end and return the lines it prints."""

    def run(program: str, *arguments: object, under: Sequence[str] = ()) -> list[str]:
        output, errors = start(program, *arguments, under=under).communicate(timeout=30)
        assert not errors
        return output.splitlines()

    return run


@contextmanager
def claimed(store: StateStore, flow_run_id: str) -> Iterator[None]:
    """Hold the claim on a flow run for the block, as an engine at work does."""
    claim = store.claim(flow_run_id)
    assert claim is not None
    try:
        yield
    finally:
        claim.release()
