"""The executor `ray` keeps localflow's contract."""

from __future__ import annotations

import pytest
from localflow_ray.executor import RayExecutor

from localflow.testing import ExecutorContract


@pytest.mark.usefixtures("ray_there")
class TestContract(ExecutorContract):
    """What localflow asks of every executor, on a Ray that is there already."""

    @pytest.fixture
    def executor(self) -> RayExecutor:
        return RayExecutor(workers=2)
