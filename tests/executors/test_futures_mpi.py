"""A pool of MPI keeps the contract of an executor. MPI starts its workers with a launcher, so that is a program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONTRACT = """
import pytest
from localflow import FuturesExecutor
from localflow.testing import ExecutorContract

class TestMpi(ExecutorContract):
    @pytest.fixture
    def executor(self):
        return FuturesExecutor("mpi4py.futures:MPIPoolExecutor", workers=2)
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_pool_of_mpi_keeps_the_contract(tmp_path: Path) -> None:
    """Its workers run calls like those of any other pool."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    folder = Path(sys.executable).parent
    launcher = shutil.which("mpiexec", path=os.pathsep.join([str(folder), os.environ["PATH"]]))
    if launcher is None:
        pytest.skip("there is no mpiexec")
    (tmp_path / "test_mpi.py").write_text(CONTRACT)
    command = [launcher, "-n", "3", sys.executable, "-m", "mpi4py.futures", "-m", "pytest", "-q", "test_mpi.py"]

    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout
