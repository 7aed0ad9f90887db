"""P8: a few long tasks among many short ones, on processes: none may wait behind a long one.

The bound is what greedy list scheduling would need: each task in call order goes to the worker that is free first. It
is computed from how long the tasks really took.
"""

from __future__ import annotations

import heapq
import statistics
import time
from typing import TYPE_CHECKING

from benchmarks.measuring import WORKERS, Row, Session
from benchmarks.work import rest
from localflow import ProcessExecutor, flow, task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHORT, LONG = 0.001, 1.0  # seconds


nap = task(rest)


@flow(executor=ProcessExecutor(workers=WORKERS))
def mixed(count: int, long: float) -> list[float]:
    """Return how long it all takes once the workers are up, then how long each task took."""
    for future in [nap(0.0) for _ in range(2 * WORKERS)]:
        future.wait()
    every = count // 10
    began_at = time.perf_counter()
    futures = [nap(long if number % every == every // 2 else SHORT) for number in range(count)]
    taken = [future.result() for future in futures]
    return [time.perf_counter() - began_at, *taken]


def greedy(lengths: Sequence[float]) -> float:
    """Return when the last worker is done if each task goes to the one that is free first."""
    free_at = [0.0] * WORKERS
    for length in lengths:
        heapq.heapreplace(free_at, free_at[0] + length)
    return max(free_at)


def ours(count: int, long: float) -> float:
    """Return the time taken, as a multiple of the bound."""
    wall, *lengths = mixed(count, long).result()
    return float(wall / greedy(lengths))


def rows(session: Session) -> Iterator[Row]:
    """Compare with the bound."""
    count = session.size(1_000, tiny=10)
    long = LONG if count > 10 else 10 * SHORT
    (measured,) = session.alternate(ours, arguments=[count, long])
    yield Row(
        f"{count:,} tasks of 1 ms, 10 of {long:g} s among them",
        "greedy list scheduling",
        statistics.median(measured),
        at_most=1.05,
        detail=f"worst {max(measured):.3f}x",
    )
