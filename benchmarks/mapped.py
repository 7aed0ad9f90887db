"""P2: one `map` over many items, on processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.independent import noop, peer
from benchmarks.measuring import WORKERS, Row, Session, each, ratio, seconds
from localflow import ProcessExecutor, flow

if TYPE_CHECKING:
    from collections.abc import Iterator


@flow(executor=ProcessExecutor(workers=WORKERS))
def over_items(count: int) -> None:
    """Map the task over so many items."""
    noop.map(range(count))


def ours(count: int) -> float:
    """Time the flow, from its call to its final state."""
    return seconds(lambda: over_items(count).result())


def rows(session: Session) -> Iterator[Row]:
    """Compare with `submit` for each item."""
    count = session.size(100_000, tiny=20)
    mine, theirs = session.alternate(ours, peer, arguments=[count])
    yield Row(
        f"map of {count:,} no-ops, processes",
        "ProcessPoolExecutor.submit",
        ratio(mine, theirs),
        at_most=0.15,
        detail=f"{each(mine, count)} against {each(theirs, count)} an item",
    )
