"""P3: a chain of tasks, each taking the result of the one before, on processes.

Once the whole flow against the whole pool, as a program meets them: a pool forks this process within milliseconds,
localflow starts clean interpreters, and that is most of a short chain. Then link against link, with the workers up.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from benchmarks.measuring import WORKERS, Row, Session, each, ratio, seconds
from benchmarks.work import successor
from localflow import ProcessExecutor, flow, task

if TYPE_CHECKING:
    from collections.abc import Iterator


step = task(successor)


@flow(executor=ProcessExecutor(workers=WORKERS))
def chained(count: int) -> object:
    """Call the task with the future of its last call, so many times."""
    last = step(0)
    for _ in range(count - 1):
        last = step(last)
    return last


def ours(count: int) -> float:
    """Time the flow, from its call to its final state."""
    return seconds(lambda: chained(count).result())


def peer(count: int) -> float:
    """Time a pool that is given one call after the other."""

    def work() -> None:
        with ProcessPoolExecutor(WORKERS) as pool:
            last = 0
            for _ in range(count):
                last = pool.submit(successor, last).result()

    return seconds(work)


@flow(executor=ProcessExecutor(workers=WORKERS))
def warm_chain(count: int) -> float:
    """Return how long the chain takes once a worker has done a call."""
    step(0).wait()
    began_at = time.perf_counter()
    last = step(0)
    for _ in range(count - 1):
        last = step(last)
    last.result()
    return time.perf_counter() - began_at


def ours_warm(count: int) -> float:
    """Return the time of the chain alone."""
    return float(warm_chain(count).result())


def peer_warm(count: int) -> float:
    """Return the time of the loop alone."""
    with ProcessPoolExecutor(WORKERS) as pool:
        last = pool.submit(successor, 0).result()
        began_at = time.perf_counter()
        for _ in range(count):
            last = pool.submit(successor, last).result()
        return time.perf_counter() - began_at


def rows(session: Session) -> Iterator[Row]:
    """Compare with a loop of `submit(...).result()`."""
    count = session.size(1_000, tiny=10)
    mine, theirs = session.alternate(ours, peer, arguments=[count])
    yield Row(
        f"chain of {count:,}, processes",
        "submit(...).result() by hand",
        ratio(mine, theirs),
        at_most=0.5,
        detail=f"{each(mine, count)} against {each(theirs, count)} a link",
    )
    mine, theirs = session.alternate(ours_warm, peer_warm, arguments=[count])
    yield Row(
        "a link of it, workers up",
        "submit(...).result() by hand",
        ratio(mine, theirs),
        detail=f"{each(mine, count)} against {each(theirs, count)}",
    )
