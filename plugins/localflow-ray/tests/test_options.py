"""Each option of the executor `ray` has an effect."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import ray
from localflow_ray.executor import RayExecutor

from localflow.project import Project
from localflow.testing import workloads
from localflow.testing.running import CallRunner

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("ray_there")


def test_workers_limits_how_many_run_at_once(tmp_path: Path) -> None:
    """With one worker two calls never meet, though Ray has room for both."""
    with CallRunner(RayExecutor(workers=1)) as runner:
        calls = [runner.call(workloads.note, str(tmp_path / "log"), text, 0.05) for text in "abcdef"]

        runner.executor.submit(calls)
        outcomes = runner.wait_for(calls)

    spans = sorted((outcome.execution.started_at, outcome.execution.ended_at) for outcome in outcomes)  # type: ignore
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_num_cpus_is_what_a_call_takes() -> None:
    """A call that takes half a CPU leaves room for twice as many."""
    with CallRunner(RayExecutor(num_cpus=0.5)) as runner:
        capacity = runner.executor.capacity

        def granted() -> float:
            return float(ray.get_runtime_context().get_assigned_resources()["CPU"])

        [outcome] = runner.run(runner.call(granted))

    assert capacity == 2 * 4  # twice the room, as a cluster may grow
    assert outcome.state.result() == 0.5


def test_runtime_env_reaches_the_workers() -> None:
    """Variables, and whatever else Ray can set up, are there for tasks."""
    with CallRunner(RayExecutor(runtime_env={"env_vars": {"FLAVOUR": "mint"}})) as runner:
        [outcome] = runner.run(runner.call(lambda: os.environ.get("FLAVOUR")), timeout=60)

    assert outcome.state.result() == "mint"


def test_a_wrong_size_is_told() -> None:
    """`object_store_memory` names itself where it makes no sense."""
    with pytest.raises(ValueError, match="object_store_memory must be a number of bytes"):
        RayExecutor(object_store_memory="lots")


def test_the_address_of_a_client_is_refused() -> None:
    """It would not be this process that owns what is on the cluster."""
    with pytest.raises(ValueError, match="a cluster which this machine is a node of"):
        RayExecutor(address="ray://head:10001")


def test_options_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """localflow.toml may name the executor, with all its options."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "localflow.toml").write_text(
        """
        [executors.gpu]
        type = "ray"
        address = "head:6379"
        workers = 8
        num_cpus = 2
        num_gpus = 0.5
        resources = { disk = 1 }
        object_store_memory = "1 GiB"

        [executors.gpu.runtime_env]
        pip = ["numpy"]
        env_vars = { FLAVOUR = "mint" }
        """
    )

    executor = Project.load().choose("gpu")

    assert isinstance(executor, RayExecutor)
    assert (executor.address, executor.workers, executor.num_cpus, executor.num_gpus) == ("head:6379", 8, 2, 0.5)
    assert executor.resources == {"disk": 1}
    assert executor.runtime_env == {"pip": ["numpy"], "env_vars": {"FLAVOUR": "mint"}}
