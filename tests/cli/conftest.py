"""The command line as its users run it: in a process of its own, in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from pathlib import Path

TUTORIAL = '''
from localflow import flow, task


@task
def create_tables():
    return "made"


@task
def add_project(name):
    if not name:
        raise ValueError("a project needs a name")
    return name.upper()


@task
def announce(name):
    return f"added {name}"


@flow(name="Add Projects")
def main(names: list[str], api_token: str = "hush"):
    """Add projects."""
    made = create_tables()
    for name in names:
        announce(add_project(name, wait_for=[made]))
'''


class Cli(Protocol):
    """Runs `localflow` with arguments; keywords are environment variables."""

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end."""


@pytest.fixture
def cli(own_folder: Path) -> Cli:
    """Run `python -m localflow` in the test's folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "localflow", *arguments],
            capture_output=True, encoding="utf-8", env={**os.environ, **environment}, timeout=50, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def read_json(cli: Cli) -> Any:
    """Return what a reading verb prints with `--json`."""

    def read(*arguments: str) -> Any:
        done = cli(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return read


@pytest.fixture
def tutorial(own_folder: Path) -> str:
    """Write the tutorial's flow and return the file's name."""
    (own_folder / "tutorial.py").write_text(TUTORIAL)
    return "tutorial.py"
