"""Any pool of `concurrent.futures` keeps the contract of an executor."""

from __future__ import annotations

import concurrent.futures
import multiprocessing

import pytest

from localflow.builtin.futures import FuturesExecutor
from localflow.testing.executors import ExecutorContract

pytestmark = pytest.mark.usefixtures("servers_of_pools")


class TestThreadPool(ExecutorContract):
    @pytest.fixture
    def executor(self) -> FuturesExecutor:
        """Return an executor over threads."""
        return FuturesExecutor(concurrent.futures.ThreadPoolExecutor, workers=4)


class TestProcessPool(ExecutorContract):
    @pytest.fixture
    def executor(self) -> FuturesExecutor:
        """Return an executor over processes of a fork server, as named in a table."""
        return FuturesExecutor("concurrent.futures:ProcessPoolExecutor", max_workers=2)


@pytest.mark.slow
class TestSpawnedProcessPool(ExecutorContract):
    @pytest.fixture
    def executor(self) -> FuturesExecutor:
        """Return an executor over processes that are spawned."""
        context = multiprocessing.get_context("spawn")
        return FuturesExecutor(concurrent.futures.ProcessPoolExecutor, max_workers=2, mp_context=context)


class TestLoky(ExecutorContract):
    @pytest.fixture
    def executor(self) -> FuturesExecutor:
        """Return an executor over a pool of loky."""
        pytest.importorskip("loky", reason="loky is not installed")
        return FuturesExecutor("loky:ProcessPoolExecutor", workers=2)


@pytest.mark.skipif(
    not hasattr(concurrent.futures, "InterpreterPoolExecutor"), reason="Python has pools of interpreters from 3.14 on"
)
class TestInterpreterPool(ExecutorContract):
    @pytest.fixture
    def executor(self) -> FuturesExecutor:
        """Return an executor over interpreters in threads."""
        return FuturesExecutor("concurrent.futures:InterpreterPoolExecutor", workers=2)


@pytest.mark.slow
class TestReusableLoky(ExecutorContract):
    @pytest.fixture
    def executor(self) -> FuturesExecutor:
        """Return an executor over the pool that loky keeps for a process."""
        pytest.importorskip("loky", reason="loky is not installed")
        return FuturesExecutor("loky:get_reusable_executor", workers=2)
