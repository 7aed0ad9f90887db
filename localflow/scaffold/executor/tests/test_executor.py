"""The executor `myname` keeps localflow's contract, and flows run on it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from localflow_myname.executor import MynameExecutor

from localflow import flow, task
from localflow.testing import ExecutorContract

if TYPE_CHECKING:
    from pathlib import Path

    from localflow.interfaces import Executor


class TestContract(ExecutorContract):
    """What localflow asks of every executor."""

    @pytest.fixture
    def executor(self) -> Executor:
        """Return a new executor."""
        return MynameExecutor(workers=2)


@task
def worker() -> str:
    """Return the name of the thread that runs the task."""
    return threading.current_thread().name


@flow(executor="myname")
def main() -> object:
    """Ask where the task runs."""
    return worker()


def test_flow_runs_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow that names it has its tasks run there."""
    monkeypatch.chdir(tmp_path)

    assert main().result() == "myname_0"
