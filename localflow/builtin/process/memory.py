"""How much memory workers use and may use, and whether the kernel has killed one of them for want of it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from localflow.builtin.control_groups import CONTROL_GROUPS, PROCESS_GROUPS, groups

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Where the kernel counts what it has killed on the whole machine.
VMSTAT = Path("/proc/vmstat")

_UNITS = {"": 1, "B": 1} | {
    prefix.upper() + unit: base ** (power + 1)
    for unit, base in (("B", 1000), ("IB", 1024))
    for power, prefix in enumerate("KMGT")
}
_LOOK_SECONDS = 1.0
_READINGS = 10


def parse_size(size: int | str) -> int:
    """Return a size in bytes, given as a number or as a text such as `"2 GiB"` or `"500 MB"`.

    Raises:
        ValueError: it is no such text, or less than one byte; the message has no subject.
    """
    count = size
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", size)
        unit = _UNITS.get(found[2].upper()) if found else None
        count = int(float(found[1]) * unit) if found and unit else 0
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"must be a number of bytes >= 1 or a text such as '2 GiB' or '500 MB', got {size!r}")
    return count


def size_in_words(size: int) -> str:
    """Return a number of bytes for readers, such as `5.9 GiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def resident_bytes(pid: int) -> int | None:
    """Return how much memory a process has now, or None if there is none of this pid."""
    if sys.platform == "linux":
        try:
            # Not by psutil, whose import the engine of most flows can do without.
            with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 - a third of the time that Path takes
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return None
    import psutil

    try:
        size: int = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None
    return size


def available_bytes(process_groups: Path | None = None, control_groups: Path | None = None) -> int | None:
    """Return the memory that this process may use with all its workers: the machine's, or its container's.

    Args:
        process_groups: see `control_groups`.
        control_groups: likewise.
    """
    limits = []
    for folder, is_version_2 in groups("memory", process_groups or PROCESS_GROUPS, control_groups or CONTROL_GROUPS):
        try:
            text = (folder / ("memory.max" if is_version_2 else "memory.limit_in_bytes")).read_text()
            limits.append(int(text))
        except (OSError, ValueError):  # not there, or `max`
            continue
    with contextlib.suppress(OSError, ValueError):  # not told by this system
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def kill_counter(process_groups: Path | None = None, control_groups: Path | None = None) -> Path | None:
    """Return the file in which the kernel counts what it has killed here for want of memory; None if there is none.

    The count of the own control group is preferred: on that of the machine one sees the neighbours' dead.
    """
    for folder, is_version_2 in groups("memory", process_groups or PROCESS_GROUPS, control_groups or CONTROL_GROUPS):
        path = folder / ("memory.events" if is_version_2 else "memory.oom_control")
        if _count(path) is not None:
            return path
    return VMSTAT if _count(VMSTAT) is not None else None


def _count(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


class KernelKills:
    """What the kernel has killed for want of memory, counted from time to time, so that a death can be explained.

    A kill is proven if the count has risen since the call began that the dead worker was in; of a call that is older
    than the readings, since the oldest of them. Each kill explains one death.
    """

    def __init__(self, counter: Path | None) -> None:
        """Read the count in this file, from the first `look` on; None if there is no such thing."""
        self._counter = counter
        self._readings: deque[tuple[float, int]] = deque(maxlen=_READINGS)

    def look(self, now: float) -> None:
        """Note the count, at most once a second; to be called before a call begins, and at times while it goes on."""
        if self._counter is None or (self._readings and now - self._readings[-1][0] < _LOOK_SECONDS):
            return
        count = _count(self._counter)
        if count is not None:
            self._readings.append((now, count))

    def explain(self, began_at: float) -> bool:
        """Return whether there was a kill since a moment of the monotonic clock that explains no other death yet."""
        before = _last_before(self._readings, began_at)
        if before is None or self._counter is None:
            return False
        count = _count(self._counter)
        if count is None or count <= before:
            return False
        self._readings = deque(((at, known + 1) for at, known in self._readings), maxlen=_READINGS)
        return True


def _last_before(readings: Iterable[tuple[float, int]], moment: float) -> int | None:
    found = None
    for at, count in readings:
        if found is not None and at > moment:
            break
        found = count
    return found
