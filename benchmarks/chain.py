"""P3: a chain of tasks, each taking the result of the one before, on processes."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from benchmarks.measuring import WORKERS, Row, Session, each, ratio, seconds
from localflow import ProcessExecutor, flow, task

if TYPE_CHECKING:
    from collections.abc import Iterator


def successor(number: int) -> int:
    """Return the next number."""
    return number + 1


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
