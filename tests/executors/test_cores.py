"""How many cores may be used, from the files of control groups as Linux writes them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.cores import container_limit, usable_cores

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_there_is_at_least_one_core() -> None:
    """This machine has a core to use, and no more than it has."""
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_affinity_counts() -> None:
    """A process that is bound to one core uses one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(before)])

    try:
        cores = usable_cores()
    finally:
        os.sched_setaffinity(0, before)

    assert cores == 1


def test_version_2_takes_the_least_limit_on_the_way_up(tmp_path: Path) -> None:
    """In version 2 the limit of a group holds for all groups below it."""
    write(tmp_path / "cgroup", "0::/batch/job\n")
    write(tmp_path / "fs/batch/job/cpu.max", "max 100000\n")
    write(tmp_path / "fs/batch/cpu.max", "150000 100000\n")
    write(tmp_path / "fs/cpu.max", "400000 100000\n")

    assert container_limit(tmp_path / "cgroup", tmp_path / "fs") == 1.5


def test_version_1_divides_quota_by_period(tmp_path: Path) -> None:
    """In version 1 quota and period are in files of their own, under the controller's name."""
    write(tmp_path / "cgroup", "5:memory:/a\n4:cpu,cpuacct:/a\n")
    write(tmp_path / "fs/cpu/a/cpu.cfs_quota_us", "50000\n")
    write(tmp_path / "fs/cpu/a/cpu.cfs_period_us", "100000\n")

    assert container_limit(tmp_path / "cgroup", tmp_path / "fs") == 0.5


def test_the_root_counts_where_the_path_is_that_of_the_host(tmp_path: Path) -> None:
    """In a container the named group may not be there; its limit is at the root then."""
    write(tmp_path / "cgroup", "0::/docker/1234\n")
    write(tmp_path / "fs/cpu.max", "200000 100000\n")

    assert container_limit(tmp_path / "cgroup", tmp_path / "fs") == 2


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense\n", "1 0\n"])
def test_what_sets_no_limit_is_none(tmp_path: Path, text: str) -> None:
    """No quota, or a file that says nothing, is no limit."""
    write(tmp_path / "cgroup", "0::/\n")
    write(tmp_path / "fs/cpu.max", text)

    assert container_limit(tmp_path / "cgroup", tmp_path / "fs") is None


def test_a_system_without_control_groups_sets_no_limit(tmp_path: Path) -> None:
    """Where the file is missing there is no limit."""
    assert container_limit(tmp_path / "cgroup", tmp_path / "fs") is None
