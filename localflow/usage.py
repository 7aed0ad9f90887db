"""What calls use of the machine: CPU time and memory."""

from __future__ import annotations

import sys
import time
from functools import cache
from typing import Any, Protocol

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Meter(Protocol):
    """Measures one call at a time."""

    def begin(self) -> None:
        """Note that a call begins."""

    def end(self) -> tuple[float | None, int | None]:
        """Return the CPU seconds of the call and the most memory its process has had, in bytes.

        Each is None where nobody knows.
        """


class ThreadMeter:
    """Measures the thread that runs a call."""

    __slots__ = ("_cpu",)

    def begin(self) -> None:
        """Note that a call begins in this thread."""
        self._cpu, _ = _thread_usage()

    def end(self) -> tuple[float | None, int | None]:
        """Return the CPU seconds of this thread since then, and the most memory the process has had."""
        cpu, peak = _thread_usage()
        return cpu - self._cpu, peak


class LoopMeter:
    """Measures a call that shares its thread with others."""

    __slots__ = ()

    def begin(self) -> None:
        """Note that a call begins."""

    def end(self) -> tuple[float | None, int | None]:
        """Return None, as the thread's CPU time is that of many calls, and the most memory the process has had."""
        return None, peak_rss_bytes()


class ProcessMeter:
    """Measures a process that does one call after the other."""

    def __init__(self) -> None:
        """Begin at once."""
        self._cpu = 0.0
        self.go_on()

    def go_on(self) -> None:
        """Leave out what the process has used since the last call, while it waited for another."""
        self._cpu, _ = _process_usage()

    def begin(self) -> None:
        """Note that a call begins, right after the one before or `go_on`, which saves a system call."""

    def end(self) -> tuple[float | None, int | None]:
        """Return the CPU seconds of this process since the call began, and the most memory it has had."""
        before = self._cpu
        cpu, peak = _process_usage()
        self._cpu = cpu
        return cpu - before, peak


def peak_rss_bytes() -> int | None:
    """Return the largest resident size this process has had, or None where the system does not tell."""
    return _process_usage()[1]


def _thread_usage() -> tuple[float, int | None]:
    resource = _resource()
    if not hasattr(resource, "RUSAGE_THREAD"):
        return time.thread_time(), peak_rss_bytes()
    usage = resource.getrusage(resource.RUSAGE_THREAD)  # Linux tells both at once, sooner than the time alone
    return usage[0] + usage[1], usage[2] * 1024


def _process_usage() -> tuple[float, int | None]:
    resource = _resource()
    if resource is None:
        return time.process_time(), None
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage[0] + usage[1], usage[2] * _RSS_UNIT


@cache
def _resource() -> Any:
    try:
        import resource
    except ImportError:
        return None
    return resource
