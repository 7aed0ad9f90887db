"""Graphs of many shapes, on processes: what a task costs in each, against tasks that depend on nothing.

There is no target but that no shape has a cliff. Each is run at two sizes, so that a cost that grows with the size of
the graph shows.
"""

from __future__ import annotations

import random
import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.measuring import WORKERS, Row, Session, ratio, seconds
from localflow import ProcessExecutor, flow, task

if TYPE_CHECKING:
    from collections.abc import Iterator

GROWTH = 4
WIDTH = 4
FAN = 50
UPSTREAMS = 3


@task
def join(*values: Any) -> int:
    """Return how much it was given."""
    return len(values)


def independent(count: int) -> None:
    """Call tasks that depend on nothing."""
    for _ in range(count):
        join()


def stencil(count: int) -> None:
    """Call rows of tasks, each depending on its neighbours in the row above."""
    row: list[Any] = [join() for _ in range(WIDTH)]
    for _ in range(count // WIDTH - 1):
        row = [join(*row[max(0, place - 1) : place + 2]) for place in range(WIDTH)]


def tree(count: int) -> None:
    """Call leaves, and join them two by two until one is left."""
    level: list[Any] = [join() for _ in range(count // 2)]
    while len(level) > 1:
        level = [join(*level[place : place + 2]) for place in range(0, len(level), 2)]


def fans(count: int) -> None:
    """Call one task, many that depend on it, one that depends on all of these, and so on."""
    root = join()
    for _ in range(count // (FAN + 1)):
        root = join([join(root) for _ in range(FAN)])


def random_graph(count: int) -> None:
    """Call tasks that depend on a few of those before, the same ones every time."""
    draw = random.Random(count)
    futures: list[Any] = [join()]
    for _ in range(count - 1):
        futures.append(join(*draw.sample(futures, min(len(futures), draw.randint(0, UPSTREAMS)))))


SHAPES = {shape.__name__: shape for shape in (independent, stencil, tree, fans, random_graph)}


@flow(executor=ProcessExecutor(workers=WORKERS))
def shaped(name: str, count: int) -> None:
    """Call the tasks of a shape."""
    SHAPES[name](count)


def seconds_each(count: int) -> dict[str, float]:
    """Return what a task costs in each shape."""
    return {name: seconds(lambda name=name: shaped(name, count).result()) / count for name in SHAPES}  # type: ignore[misc]


def many_seconds_each(count: int) -> dict[str, float]:
    """Return the same for graphs that are several times as large."""
    return seconds_each(GROWTH * count)


def rows(session: Session) -> Iterator[Row]:
    """Compare each shape with independent tasks, and a large graph of it with a small one."""
    count = session.size(2_000, tiny=20)
    small, large = session.alternate(seconds_each, many_seconds_each, arguments=[count])
    for name in SHAPES:
        mine = [times[name] for times in large]
        growth = ratio(mine, [times[name] for times in small])
        yield Row(
            f"{name.replace('_', ' ')} of {GROWTH * count:,} tasks, processes",
            "independent tasks",
            ratio(mine, [times["independent"] for times in large]),
            detail=f"{statistics.median(mine) * 1e6:,.1f} us a task, {growth:.2f}x that of {count:,} tasks",
        )
