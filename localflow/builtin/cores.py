"""How many cores this process may really use: affinity masks and container limits included."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from localflow.builtin.control_groups import CONTROL_GROUPS, PROCESS_GROUPS, groups

if TYPE_CHECKING:
    from pathlib import Path


def usable_cores() -> int:
    """Return the number of cores this process may use, at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS and Windows have no affinity masks
        cores = os.cpu_count() or 1
    limit = container_limit(PROCESS_GROUPS, CONTROL_GROUPS)
    return max(1, cores if limit is None else min(cores, math.ceil(limit)))


def container_limit(process_groups: Path, control_groups: Path) -> float | None:
    """Return the cores that control groups (version 2 or 1) allow, or None where they set no limit.

    Args:
        process_groups: the file that lists the groups of this process, one `id:controllers:path` per line.
        control_groups: where the file systems of control groups are mounted.
    """
    limits = [
        limit
        for folder, is_version_2 in groups("cpu", process_groups, control_groups)
        if (limit := _group_limit_v2(folder) if is_version_2 else _group_limit_v1(folder)) is not None
    ]
    return min(limits, default=None)


def _group_limit_v2(folder: Path) -> float | None:
    """Read `cpu.max`: a quota and a period in microseconds, or `max` for no quota."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _group_limit_v1(folder: Path) -> float | None:
    """Read quota and period in microseconds from a file each; a quota of -1 is none."""
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
