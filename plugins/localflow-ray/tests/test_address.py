"""A cluster that is there already, started as its owner would: used by its address, and left as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = "26379"

SCRIPT = """
import os, sys, time
from localflow import flow, task
from localflow_ray.executor import RayExecutor

@task
def pid(seconds=0.0):
    time.sleep(seconds)
    return os.getppid()

@task
def make(count):
    import numpy as np
    return np.arange(count)

@task
def total(array):
    return int(array.sum())

@flow(executor=RayExecutor(address=sys.argv[1]))
def main():
    return pid(), total(make(1 << 18)), [pid(0.3) for _ in range(4)]
"""


#: Data that is made on one node, used on another, and lost with its node.
TWO_NODES = """
import os, ray, signal, sys, time
from localflow import flow, task
from localflow_ray.executor import RayExecutor

here = RayExecutor(address=sys.argv[1], num_cpus=0.1, resources={"here": 0.01})
there = RayExecutor(address=sys.argv[1], num_cpus=0.1, resources={"there": 0.01})

@task(executor=there)
def raylet():
    return os.getppid()

@task(executor=there)
def make(count):
    import numpy as np
    return np.arange(count)

@task(executor=here)
def total(array):
    return int(array.sum())

@task(executor=there)
def wait(seconds):
    time.sleep(seconds)

@flow(executor=here)
def main():
    recorded = make(1 << 18)
    print(total(recorded).result())
    volatile = make.with_options(persist_result=False)(1 << 18)
    volatile.wait()
    at_work = wait(60)
    for _ in range(10):  # so much that this node keeps no copies of what the other one has
        ray.put(bytes(30 << 20))
    os.kill(raylet().result(), signal.SIGKILL)
    print(at_work.wait().name, total(volatile).wait().name, total(recorded).wait().name)

main()
"""


class Cluster:
    """A Ray that was started by hand."""

    def __init__(self, folder: str) -> None:
        self._command = str(Path(sys.executable).with_name("ray"))
        self._environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        self._folder = folder
        self.address = f"127.0.0.1:{PORT}"

    def start(self) -> None:
        self._run(
            *("start", "--head", "--port", PORT, "--node-ip-address", "127.0.0.1", "--num-cpus", "2"),
            *("--object-store-memory", str(150 << 20), "--include-dashboard", "false", "--temp-dir", self._folder),
            *("--resources", '{"here": 1}', "--disable-usage-stats"),
        )

    def add_node(self) -> None:
        self._run(
            *("start", "--address", self.address, "--node-ip-address", "127.0.0.1", "--num-cpus", "1"),
            *("--object-store-memory", str(100 << 20), "--resources", '{"there": 1}', "--disable-usage-stats"),
        )

    def python(self, code: str, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *args],
            capture_output=True, text=True, timeout=60, env=self._environment, check=False,
        )  # fmt: skip

    def _run(self, *args: str) -> None:
        subprocess.run([self._command, *args], capture_output=True, env=self._environment, timeout=80, check=True)

    def stop(self) -> None:
        """End the processes of this cluster, which all have its folder in the command line or a file of it open."""
        ours = [process for process in psutil.process_iter(["cmdline", "open_files"]) if self._has(process)]
        for process in ours:
            process.kill()
        psutil.wait_procs(ours, timeout=20)

    def _has(self, process: psutil.Process) -> bool:
        paths = [file.path for file in process.info["open_files"] or []]
        return any(self._folder in text for text in (*paths, *(process.info["cmdline"] or [])))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a cluster."""
    folder = tempfile.mkdtemp(prefix="lf-cluster-", dir="/tmp")
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_cluster_is_used_and_left_alone(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two flow runs, one after the other, find the same cluster, whose raylet is alive afterwards."""
    monkeypatch.chdir(tmp_path)
    code = SCRIPT + "\nfor _ in range(2): print(main().result())"

    run = cluster.python(code, cluster.address)

    assert run.returncode == 0, run.stderr
    first, second = (eval(line) for line in run.stdout.splitlines())
    assert first[1] == second[1] == sum(range(1 << 18))
    raylets = {first[0], second[0], *first[2]}
    assert len(raylets) == 1
    assert Path(f"/proc/{raylets.pop()}").exists()


def test_what_the_program_has_initialised_stays_so(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An executor without an address uses the Ray that the program has connected to, and does not disconnect it."""
    monkeypatch.chdir(tmp_path)
    code = SCRIPT.replace("address=sys.argv[1]", "") + (
        "\nimport ray"
        "\nray.init(sys.argv[1], log_to_driver=False)"
        "\nseen = main().result()[0]"
        "\nparent = lambda: os.getppid()"
        "\nprint(ray.is_initialized(), ray.get(ray.remote(parent).remote()) == seen)"
    )

    run = cluster.python(code, cluster.address)

    assert run.stdout == "True True\n", run.stderr


def test_a_node_that_dies(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values move between nodes; with a node goes what was at work there, and what nobody else has, and no more."""
    monkeypatch.chdir(tmp_path)
    cluster.add_node()

    run = cluster.python(TWO_NODES, cluster.address)

    assert run.stdout.splitlines() == [str(sum(range(1 << 18))), "WorkerLost WorkerLost Completed"], run.stderr


def test_a_wrong_address_is_told_at_once(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a minute, and the message says what to do."""
    monkeypatch.chdir(tmp_path)
    code = SCRIPT + "\nprint(main().message)"

    run = cluster.python(code, "127.0.0.1:1")

    assert "no Ray cluster answers at 127.0.0.1:1" in run.stdout + run.stderr
    assert "ray start --head" in run.stdout + run.stderr
