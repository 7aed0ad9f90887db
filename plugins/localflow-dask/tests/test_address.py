"""Flows on a cluster that is there: a scheduler and workers that are processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import psutil
import pytest
from localflow_dask import DaskExecutor
from localflow_dask.copies import copy_of, keep_copy
from waiting_for import eventually

from localflow import StateType, flow, task
from localflow.errors import PluginError
from localflow.interfaces import Folder, Packed, Payload
from localflow.testing import ExecutorContract, workloads
from localflow.testing.running import CallRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

DASK = str(Path(sys.executable).with_name("dask"))


class Scheduler:
    """A scheduler with workers, each started by the command line of dask."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._file = folder / "scheduler.json"
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", self._file)
        eventually(lambda: self._file.exists() and '"address"' in self._file.read_text(), seconds=30)
        self.address = self._file.read_text().split('"address": "')[1].split('"')[0]

    def add_worker(self, name: str, *options: str) -> psutil.Process:
        """Start a worker with one thread and return the process of its command."""
        folder = ("--local-directory", str(self._folder))
        process = self._start(
            "worker",
            self.address,
            "--name",
            name,
            "--nworkers",
            "1",
            "--nthreads",
            "1",
            "--no-dashboard",
            *folder,
            *options,
        )
        return psutil.Process(process.pid)

    def kill_scheduler(self) -> None:
        """End the scheduler at once."""
        self._processes[0].kill()

    def close(self) -> None:
        """End everything."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, *command: Any) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen([DASK, *map(str, command)], stdout=log, stderr=log, cwd=self._folder)
        self._processes.append(process)
        return process


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduler]:
    """Return a scheduler with two workers that have nannies."""
    scheduler = Scheduler(tmp_path_factory.mktemp("cluster"))
    try:
        for name in ("one", "two"):
            scheduler.add_worker(name)
        yield scheduler
    finally:
        scheduler.close()


@pytest.fixture
def small_cluster(tmp_path: Path) -> Iterator[Scheduler]:
    """Return a scheduler without workers."""
    (tmp_path / "cluster").mkdir()
    scheduler = Scheduler(tmp_path / "cluster")
    try:
        yield scheduler
    finally:
        scheduler.close()


class TestContract(ExecutorContract):
    """What localflow asks of every executor."""

    @pytest.fixture
    def executor(self, cluster: Scheduler) -> DaskExecutor:
        """Return a new executor."""
        wait_for_workers(cluster, 2)
        return DaskExecutor(address=cluster.address)


def wait_for_workers(cluster: Scheduler, count: int) -> None:
    """Wait until so many workers are there."""
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=30)


def test_the_cluster_goes_on_after_the_flow(cluster: Scheduler) -> None:
    """A cluster that was there before is there afterwards, and its workers are the same."""

    @task
    def pid() -> int:
        time.sleep(0.05)
        return os.getpid()

    @flow(executor=DaskExecutor(address=cluster.address))
    def main() -> object:
        return [pid() for _ in range(20)]

    wait_for_workers(cluster, 2)
    first, second = set(main().result()), set(main().result())

    assert len(first) == 2
    assert first == second


def test_a_scheduler_that_is_not_there() -> None:
    """It is told with its address before anything runs."""

    @flow(executor=DaskExecutor(address="tcp://127.0.0.1:1", timeout=1))
    def main() -> None: ...

    with pytest.raises(PluginError, match=r"'DaskExecutor'.*cannot start.*127\.0\.0\.1:1"):
        main()


def test_a_cluster_without_workers(small_cluster: Scheduler) -> None:
    """That is told, too, after the timeout."""

    @flow(executor=DaskExecutor(address=small_cluster.address, timeout=1))
    def main() -> None: ...

    with pytest.raises(PluginError, match="has had no worker for 1 seconds"):
        main()


def test_a_worker_without_a_nanny_is_not_ended(small_cluster: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody would bring it back, so calls cannot be stopped, and a timeout is warned of."""
    small_cluster.add_worker("only", "--no-nanny")

    @task(timeout_seconds=0.5)
    def slow() -> int:
        time.sleep(1.5)
        return os.getpid()

    @task
    def pid() -> int:
        return os.getpid()

    @flow(executor=DaskExecutor(address=small_cluster.address))
    def main() -> object:
        before = pid()
        return before, slow(), pid(wait_for=[before])

    before, late, after = main().result(raise_on_failure=False)

    assert late.name == "TimedOut"
    assert before.result() == after.result()
    assert "cannot stop its code" in caplog.text


def test_workers_that_come_later_are_used(small_cluster: Scheduler, tmp_path: Path) -> None:
    """A cluster may grow while a flow runs."""
    small_cluster.add_worker("one")
    executor = DaskExecutor(address=small_cluster.address)

    with CallRunner(executor) as runner:
        before = executor.capacity
        small_cluster.add_worker("two")
        eventually(lambda: executor.capacity > before, seconds=30)
        outcomes = runner.run(*(runner.call(workloads.meet, str(tmp_path / "crowd"), n, 2) for n in "ab"))

    assert all(outcome.state.result() for outcome in outcomes)


def test_no_call_is_run_again_by_dask(cluster: Scheduler, tmp_path: Path) -> None:
    """The scheduler allows for three failures of a task; localflow's are run once for each attempt all the same."""
    log = tmp_path / "log"

    @task
    def crash() -> None:
        with log.open("a") as file:
            file.write("ran\n")
        os.kill(os.getpid(), signal.SIGKILL)

    @flow(executor=DaskExecutor(address=cluster.address))
    def main() -> object:
        return crash(), crash.with_options(retries=1, retry_on_crash=True)()

    wait_for_workers(cluster, 2)
    states = main().result(raise_on_failure=False)
    wait_for_workers(cluster, 2)

    assert {state.type for state in states} == {StateType.CRASHED}
    assert log.read_text().count("ran") == 3


def test_a_scheduler_that_dies_ends_the_flow(small_cluster: Scheduler, tmp_path: Path) -> None:
    """What it had in hand is CRASHED, and so is what comes then; nothing waits for ever."""
    small_cluster.add_worker("one")
    begun = tmp_path / "begun"

    @task
    def wait() -> None:
        begun.touch()
        time.sleep(20)

    @task
    def follow() -> None: ...

    @flow(executor=DaskExecutor(address=small_cluster.address))
    def main() -> object:
        waiting = wait()
        eventually(begun.exists, seconds=30)
        small_cluster.kill_scheduler()
        return waiting, follow()

    states = main().result(raise_on_failure=False)

    assert {state.type for state in states} == {StateType.CRASHED}


class TestElsewhere:
    """Workers that do not see the engine's files, as on another machine."""

    @pytest.fixture
    def far(self, cluster: Scheduler) -> Iterator[CallRunner]:
        """Drive an executor without a folder for large values."""
        wait_for_workers(cluster, 2)
        with CallRunner(DaskExecutor(address=cluster.address)) as runner:
            yield runner

    def test_a_large_result_stays_on_the_cluster(self, far: CallRunner) -> None:
        """What depends on it takes the cluster's copy, whatever the engine has."""
        [made] = far.run(far.call(numpy.arange, 1_000_000))
        packed = made.state.packed_data
        assert isinstance(packed, Packed)
        copy = copy_of(packed)
        assert copy is not None
        spoiled = keep_copy(Packed(Payload("pickle", b"not what came")), copy)

        outcomes = far.run(*(far.call(_total, spoiled, {"deep": [spoiled]}) for _ in range(5)))

        assert [outcome.state.result() for outcome in outcomes] == [2 * sum(range(1_000_000))] * 5
        assert packed.get().sum() == sum(range(1_000_000))

    def test_a_copy_goes_with_the_result(self, far: CallRunner, cluster: Scheduler) -> None:
        """The cluster forgets a result that the engine has forgotten."""
        [made] = far.run(far.call(numpy.arange, 1_000_000))
        kept = memory_of(cluster)

        del made
        far.outcomes.clear()

        assert kept == 1
        eventually(lambda: memory_of(cluster) == 0)

    def test_a_result_that_the_cluster_has_lost_is_sent(self, far: CallRunner, tmp_path: Path) -> None:
        """The engine has it as well, so nothing is run again."""
        log = tmp_path / "log"
        [made] = far.run(far.call(_noted_array, str(log), 1_000_000))
        packed = made.state.packed_data
        assert made.execution is not None
        assert made.execution.pid is not None
        capacity = far.executor.capacity
        os.kill(made.execution.pid, signal.SIGKILL)
        eventually(lambda: far.executor.capacity != capacity)

        outcomes = far.run(*(far.call(_total, packed, {"deep": [packed]}) for _ in range(3)), timeout=60)

        assert [outcome.state.result() for outcome in outcomes] == [2 * sum(range(1_000_000))] * 3
        assert log.read_text().split() == ["made"]

    def test_a_call_that_waits_for_a_lost_result_gets_it_all_the_same(
        self, far: CallRunner, cluster: Scheduler, tmp_path: Path
    ) -> None:
        """The worker that has it hangs, then dies, while another one wants it; only what ran there is CRASHED."""
        log, begun = tmp_path / "log", tmp_path / "begun"
        [made] = far.run(far.call(_noted_array, str(log), 1_000_000))
        packed = made.state.packed_data
        assert made.execution is not None
        pid = made.execution.pid or 0
        blocking = far.call(_begin_and_wait, packed, str(begun))
        far.submit(blocking)  # goes where its argument is
        eventually(begun.exists)
        os.kill(pid, signal.SIGSTOP)
        waiting = far.call(_total, packed, {"deep": [packed]})
        far.submit(waiting)
        eventually(lambda: calls_at_work(cluster) == 2)
        os.kill(pid, signal.SIGKILL)

        crashed, completed = far.wait_for([blocking, waiting], timeout=60)

        assert crashed.state.type is StateType.CRASHED
        assert completed.state.result() == 2 * sum(range(1_000_000))
        assert log.read_text().split() == ["made"]

    def test_a_flow_of_arrays(self, cluster: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
        """A flow gives the same, and its results are recorded."""
        monkeypatch.setattr("localflow.builtin.remote.socket.gethostname", lambda: "another-machine")

        @task
        def make(size: int) -> Any:
            return numpy.arange(size)

        @flow(executor=DaskExecutor(address=cluster.address))
        def main() -> object:
            array = make(500_000)
            return _task_total(array, {"deep": [array]}), array

        total, array = main().result()

        assert total == 2 * sum(range(500_000))
        assert array.sum() == sum(range(500_000))


def test_files_are_shared_on_the_same_machine(cluster: Scheduler, tmp_path: Path) -> None:
    """Workers that see the engine's folder put large results there, and map them."""
    (tmp_path / "state").mkdir()
    executor = DaskExecutor(address=cluster.address)
    executor.folder = Folder(tmp_path / "state" / "values" / "run")

    with CallRunner(executor) as runner:
        [made] = runner.run(runner.call(numpy.arange, 1_000_000))
        packed = made.state.packed_data
        [added] = runner.run(runner.call(_total, packed, {"deep": [packed]}))

    assert made.result is not None
    assert made.result.format == "file"
    assert added.state.result() == 2 * sum(range(1_000_000))


def memory_of(cluster: Scheduler) -> int:
    """Return how many results the cluster keeps."""
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client:
        return len(client.who_has())


def calls_at_work(cluster: Scheduler) -> int:
    """Return how many calls the cluster has given to workers."""
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client:
        return sum(len(keys) for keys in client.processing().values())


def _begin_and_wait(array: Any, begun: str) -> None:
    Path(begun).touch()
    time.sleep(60)


def _total(array: Any, others: dict[str, list[Any]]) -> int:
    return int(array.sum() + others["deep"][0].sum())


_task_total = task(_total)


def _noted_array(log: str, size: int) -> Any:
    workloads.note(log, "made")
    return numpy.arange(size)
