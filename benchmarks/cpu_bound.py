"""P7: tasks that compute for some 20 ms, on processes; how much of the workers' time is spent in them.

The work is fixed beforehand and does not look at a clock, so whatever takes a core away from it shows. Workers are up
before the clock starts. The same work on a plain pool is told beside it: what a machine cannot give, nobody can use.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from benchmarks.measuring import WORKERS, Row, Session, seconds
from benchmarks.work import compute
from localflow import ProcessExecutor, flow, task

if TYPE_CHECKING:
    from collections.abc import Iterator

LENGTH = 0.020  # seconds


crunch = task(compute)


@flow(executor=ProcessExecutor(workers=WORKERS))
def spread(count: int, turns: int) -> float:
    """Return how long so many tasks take once the workers are up."""
    for future in [crunch(1) for _ in range(2 * WORKERS)]:
        future.wait()
    began_at = time.perf_counter()
    for future in [crunch(turns) for _ in range(count)]:
        future.result()
    return time.perf_counter() - began_at


def pooled(count: int, turns: int) -> float:
    """Return how long as many calls take in a pool whose workers are up."""
    with ProcessPoolExecutor(WORKERS) as pool:
        for future in [pool.submit(compute, 1) for _ in range(2 * WORKERS)]:
            future.result()
        began_at = time.perf_counter()
        for future in [pool.submit(compute, turns) for _ in range(count)]:
            future.result()
        return time.perf_counter() - began_at


def efficiencies(count: int) -> list[float]:
    """Return the efficiency of localflow and of the pool: serial time, divided by workers and by the time taken."""
    turns = 100_000
    turns = int(turns * LENGTH / min(seconds(lambda: compute(turns)) for _ in range(10)))
    serial = seconds(lambda: [compute(turns) for _ in range(count)])
    return [serial / WORKERS / taken for taken in (spread(count, turns).result(), pooled(count, turns))]


def rows(session: Session) -> Iterator[Row]:
    """Compare with the serial time divided by the workers."""
    count = session.size(64, tiny=2)
    (measured,) = session.alternate(efficiencies, arguments=[count])
    mine, theirs = (statistics.median(values) for values in zip(*measured, strict=True))
    yield Row(
        f"{count} tasks of 20 ms of computing, processes",
        f"serial time / {WORKERS}",
        mine,
        unit="",
        at_least=0.95,
        detail=f"efficiency; ProcessPoolExecutor {theirs:.3f}",
    )
