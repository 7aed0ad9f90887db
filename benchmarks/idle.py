"""P12: the processor time of an engine that waits for one long task."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from benchmarks.independent import noop
from benchmarks.measuring import WORKERS, Row, Session
from benchmarks.work import rest
from localflow import ProcessExecutor, ThreadExecutor, flow, task

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTLE = 0.3  # seconds


nap = task(rest)


@flow
def waiting(length: float) -> float:
    """Return how much of a core this process and its children use while a task sleeps."""
    noop(0).wait()
    future = nap(length + 2 * SETTLE)
    time.sleep(SETTLE)
    before = processor_seconds()
    time.sleep(length)
    used = processor_seconds() - before
    future.wait()
    return used / length


def processor_seconds() -> float:
    """Return the processor time of this process and all below it, so far."""
    import psutil

    engine = psutil.Process()
    family = [engine, *engine.children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in family)


def processes(length: float) -> float:
    """Measure with worker processes."""
    return float(waiting.with_options(executor=ProcessExecutor(workers=WORKERS))(length).result())


def threads(length: float) -> float:
    """Measure with threads."""
    return float(waiting.with_options(executor=ThreadExecutor(workers=WORKERS))(length).result())


def rows(session: Session) -> Iterator[Row]:
    """Compare with one core."""
    length = 0.1 if session.scale == "tiny" else 4.0
    measured = session.alternate(processes, threads, arguments=[length])
    for kind, used in zip(("processes", "threads"), measured, strict=True):
        yield Row(
            f"engine and workers waiting for one task, {kind}", "one core", 100 * statistics.median(used), " %", 1.0
        )
