"""P6: tasks that do nothing, each ended and recorded when its call returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.independent import many
from benchmarks.measuring import Row, Session, each, ratio, seconds
from benchmarks.threads import peer
from localflow import SequentialExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator


def ours(count: int) -> float:
    """Time the flow, from its call to its final state."""
    return seconds(lambda: many.with_options(executor=SequentialExecutor())(count).result())


def rows(session: Session) -> Iterator[Row]:
    """Compare with a pool of threads, which records nothing."""
    count = session.size(10_000, tiny=20)
    mine, theirs = session.alternate(ours, peer, arguments=[count])
    yield Row(
        f"{count:,} no-ops, sequential",
        "ThreadPoolExecutor.submit",
        ratio(mine, theirs),
        at_most=5.0,
        detail=f"{each(mine, count)} against {each(theirs, count)} a task",
    )
