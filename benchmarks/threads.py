"""P5: independent tasks that do nothing, on threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from benchmarks.independent import many
from benchmarks.measuring import WORKERS, Row, Session, each, ratio, seconds
from benchmarks.work import nothing
from localflow import ThreadExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator


def ours(count: int) -> float:
    """Time the flow, from its call to its final state."""
    return seconds(lambda: many.with_options(executor=ThreadExecutor(workers=WORKERS))(count).result())


def peer(count: int) -> float:
    """Time a pool of threads that is given as many calls."""

    def work() -> None:
        with ThreadPoolExecutor(WORKERS) as pool:
            for future in [pool.submit(nothing, number) for number in range(count)]:
                future.result()

    return seconds(work)


def rows(session: Session) -> Iterator[Row]:
    """Compare with `submit`, which records nothing."""
    count = session.size(10_000, tiny=20)
    mine, theirs = session.alternate(ours, peer, arguments=[count])
    yield Row(
        f"{count:,} no-ops, threads",
        "ThreadPoolExecutor.submit",
        ratio(mine, theirs),
        at_most=3.0,
        detail=f"{each(mine, count)} against {each(theirs, count)} a task",
    )
