"""The executor keeps localflow's contract."""

from __future__ import annotations

import pytest
from localflow_dask import DaskExecutor

from localflow.testing import ExecutorContract


class TestDaskExecutor(ExecutorContract):
    """A cluster of its own, two workers with a thread each."""

    @pytest.fixture
    def executor(self) -> DaskExecutor:
        """Return a new executor."""
        return DaskExecutor(workers=2)
