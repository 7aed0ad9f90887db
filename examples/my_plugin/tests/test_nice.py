"""The executor `nice` keeps localflow's contract, and steps back."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from localflow_my_plugin.nice import NiceExecutor

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
        return NiceExecutor(workers=2)


@task
def priority() -> int:
    """Return the niceness of the thread that runs the task."""
    return os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux knows priorities of single threads")
def test_tasks_run_with_low_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's thread is nicer than the program by as much as the option says."""
    monkeypatch.chdir(tmp_path)
    own = os.getpriority(os.PRIO_PROCESS, 0)

    @flow(executor=NiceExecutor(niceness=5))
    def ask() -> object:
        return priority()

    assert ask().result() == min(own + 5, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
