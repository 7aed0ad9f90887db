"""The state store `myname` keeps localflow's contract, and flows are recorded in it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from localflow_myname.store import MynameStateStore

from localflow.testing import StateStoreContract

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localflow.interfaces import StateStore

FLOW = """
from localflow import flow, task

@task
def double(number):
    return number * 2

@flow
def main():
    return double(21)
"""


class TestContract(StateStoreContract):
    """What localflow asks of every state store."""

    @pytest.fixture
    def make_store(self, tmp_path: Path) -> Callable[[], StateStore]:
        """Return a callable that opens the same store each time."""
        return lambda: MynameStateStore(tmp_path / "runs" / "myname.db")


def test_flow_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the settings select keeps the run, where the commands find it again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "localflow.toml").write_text('store = "myname"\n[stores.myname]\npath = "runs.db"\n')
    (tmp_path / "main.py").write_text(FLOW)

    localflow("run", "main.py")

    shown = json.loads(localflow("show", "@last/double-0", "--json"))
    assert (shown["state"]["name"], shown["result"]) == ("Completed", 42)
    assert (tmp_path / "runs.db").exists()


def localflow(*arguments: str) -> str:
    """Run a command of localflow and return what it printed."""
    command = [sys.executable, "-m", "localflow", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=50).stdout
