"""The built-in executors keep the contract that those of plugins keep."""

from __future__ import annotations

import pytest

from localflow.builtin.process import ProcessExecutor
from localflow.builtin.sequential import SequentialExecutor
from localflow.builtin.thread import ThreadExecutor
from localflow.testing.executors import ExecutorContract


class TestSequentialExecutor(ExecutorContract):
    @pytest.fixture
    def executor(self) -> SequentialExecutor:
        """Return the executor."""
        return SequentialExecutor()


class TestThreadExecutor(ExecutorContract):
    gives_up_late_calls = True

    @pytest.fixture
    def executor(self) -> ThreadExecutor:
        """Return the executor."""
        return ThreadExecutor(workers=4)


class TestProcessExecutor(ExecutorContract):
    @pytest.fixture
    def executor(self) -> ProcessExecutor:
        """Return the executor."""
        return ProcessExecutor(workers=2)


class TestProcessExecutorThatRecycles(ExecutorContract):
    """Nothing is lost by replacing workers all the time."""

    @pytest.fixture
    def executor(self) -> ProcessExecutor:
        """Return the executor."""
        return ProcessExecutor(workers=3, max_tasks_per_worker=25)
