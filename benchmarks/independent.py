"""P1: independent tasks that do nothing, on processes."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from benchmarks.measuring import WORKERS, Row, Session, each, ratio, seconds
from benchmarks.work import nothing
from localflow import ProcessExecutor, flow, task

if TYPE_CHECKING:
    from collections.abc import Iterator


noop = task(nothing)


@flow(executor=ProcessExecutor(workers=WORKERS))
def many(count: int) -> None:
    """Call the task so many times."""
    for number in range(count):
        noop(number)


def ours(count: int) -> float:
    """Time the flow, from its call to its final state."""
    return seconds(lambda: many(count).result(raise_on_failure=True))


def peer(count: int) -> float:
    """Time a pool that is given as many calls."""

    def work() -> None:
        with ProcessPoolExecutor(WORKERS) as pool:
            for future in [pool.submit(nothing, number) for number in range(count)]:
                future.result()

    return seconds(work)


def rows(session: Session) -> Iterator[Row]:
    """Compare with `submit`."""
    count = session.size(10_000, tiny=20)
    mine, theirs = session.alternate(ours, peer, arguments=[count])
    yield Row(
        f"{count:,} independent no-ops, processes",
        "ProcessPoolExecutor.submit",
        ratio(mine, theirs),
        at_most=0.30,
        detail=f"{each(mine, count)} against {each(theirs, count)} a task",
    )
