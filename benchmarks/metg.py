"""P4: METG(50 %) of Task Bench's stencil_1d: how short tasks may be and still fill half of the cores' time.

Task (t, i) takes the results of (t-1, i-1), (t-1, i) and (t-1, i+1) and spins for a set time. Efficiency is that time
times the number of tasks, divided by the cores and by the time it all took; as in Task Bench, workers are up before the
clock starts. The shortest length with an efficiency of one half is found by bisection on a logarithmic scale.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from benchmarks.measuring import WORKERS, Row, Session, ratio
from benchmarks.work import spin
from localflow import ProcessExecutor, flow, task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WIDTH = 4
SHORTEST, LONGEST = 10e-6, 10e-3  # seconds
BISECTIONS = 7  # of a range of three decades: to 6 % of the length
TRIES = 3


step = task(spin)


def neighbours(row: list[Any], place: int) -> list[Any]:
    """Return what the task at a place takes of the row above it."""
    return row[max(0, place - 1) : place + 2]


@flow(executor=ProcessExecutor(workers=WORKERS))
def stencil(steps: int, length: float) -> float:
    """Return how long the stencil takes once the workers are up."""
    for future in [step(0.0) for _ in range(WIDTH)]:
        future.wait()
    began_at = time.perf_counter()
    row: list[Any] = []
    for _ in range(steps):
        row = [step(length, *neighbours(row, place)) for place in range(WIDTH)]
    for future in row:
        future.result()
    return time.perf_counter() - began_at


def stencil_by_hand(steps: int, length: float) -> float:
    """Return how long the stencil takes row by row in a pool whose workers are up."""
    with ProcessPoolExecutor(WORKERS) as pool:
        for future in [pool.submit(spin, 0.0) for _ in range(WIDTH)]:
            future.result()
        began_at = time.perf_counter()
        row: list[int] = []
        for _ in range(steps):
            futures = [pool.submit(spin, length, *neighbours(row, place)) for place in range(WIDTH)]
            row = [future.result() for future in futures]
        return time.perf_counter() - began_at


def ours(steps: int) -> float:
    """Return localflow's METG in seconds."""
    return shortest_length(lambda length: float(stencil(steps, length).result()), steps)


def peer(steps: int) -> float:
    """Return the pool's METG in seconds."""
    return shortest_length(lambda length: stencil_by_hand(steps, length), steps)


def shortest_length(taken: Callable[[float], float], steps: int) -> float:
    """Bisect for the shortest length of a task with an efficiency of one half."""
    low, high = SHORTEST, LONGEST
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        wall = statistics.median(taken(middle) for _ in range(TRIES))
        if middle * WIDTH * steps / WORKERS / wall >= 0.5:
            high = middle
        else:
            low = middle
    return high


def rows(session: Session) -> Iterator[Row]:
    """Compare with the pool's."""
    steps = session.size(250, tiny=3)
    mine, theirs = session.alternate(ours, peer, arguments=[steps])
    yield Row(
        f"METG(50 %), stencil_1d, {WIDTH} x {steps}",
        "ProcessPoolExecutor row by row",
        ratio(mine, theirs),
        at_most=0.25,
        detail=f"{statistics.median(mine) * 1e6:,.0f} us against {statistics.median(theirs) * 1e6:,.0f} us",
    )
