"""The contract of the executor that is checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from localflow.testing import ExecutorContract

if TYPE_CHECKING:
    from localflow.interfaces import Executor
    from localflow.testing.checked.subject import Subject


class TestExecutor(ExecutorContract):
    """What every executor must do, and what this one promises."""

    @pytest.fixture
    def executor(self, localflow_subject: Subject) -> Executor:
        """Make the executor."""
        return localflow_subject.executor()
