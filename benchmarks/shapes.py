"""Graphs of many shapes, on every executor: what a task costs in a large graph, against one in a small graph.

There is no target but that no shape has a cliff: a cost that grows with the size of the graph shows. Workers are up
before the clock starts.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING, Any

from benchmarks.measuring import WORKERS, Row, Session, ratio
from benchmarks.work import join
from localflow import ProcessExecutor, SequentialExecutor, ThreadExecutor, flow, task, wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Call = Callable[..., Any]

GROWTH = 10
WIDTH = 4
FAN = 50
UPSTREAMS = 3


joined = task(join)


def independent(call: Call, count: int) -> None:
    """Call tasks that depend on nothing."""
    for _ in range(count):
        call()


def chain(call: Call, count: int) -> None:
    """Call tasks that each depend on the one before."""
    last = call()
    for _ in range(count - 1):
        last = call(last)


def stencil(call: Call, count: int) -> None:
    """Call rows of tasks, each depending on its neighbours in the row above."""
    row = [call() for _ in range(WIDTH)]
    for _ in range(count // WIDTH - 1):
        row = [call(*row[max(0, place - 1) : place + 2]) for place in range(WIDTH)]


def tree(call: Call, count: int) -> None:
    """Call leaves, and join them two by two until one is left."""
    level = [call() for _ in range(count // 2)]
    while len(level) > 1:
        level = [call(*level[place : place + 2]) for place in range(0, len(level), 2)]


def fans(call: Call, count: int) -> None:
    """Call one task, many that depend on it, one that depends on all of these, and so on."""
    root = call()
    for _ in range(count // (FAN + 1)):
        root = call([call(root) for _ in range(FAN)])


def one_fan(call: Call, count: int) -> None:
    """Call one task, all others but one that depend on it, and one that depends on all of these."""
    root = call()
    call([call(root) for _ in range(count - 2)])


def random_graph(call: Call, count: int) -> None:
    """Call tasks that depend on a few of those before, the same ones every time."""
    draw = random.Random(count)
    futures = [call()]
    for _ in range(count - 1):
        futures.append(call(*draw.sample(futures, min(len(futures), draw.randint(0, UPSTREAMS)))))


SHAPES = {shape.__name__: shape for shape in (independent, chain, stencil, tree, fans, one_fan, random_graph)}


@flow
def shaped(name: str, count: int) -> float:
    """Return what a task of a shape costs, from the first call until all have ended."""
    wait([joined() for _ in range(2 * WORKERS)])
    futures: list[Any] = []

    def call(*values: Any) -> Any:
        futures.append(joined(*values))
        return futures[-1]

    began_at = time.perf_counter()
    SHAPES[name](call, count)
    wait(futures)
    return (time.perf_counter() - began_at) / len(futures)


EXECUTORS: dict[str, Any] = {
    "sequential": SequentialExecutor(),
    "threads": ThreadExecutor(workers=WORKERS),
    "processes": ProcessExecutor(workers=WORKERS),
}


def costs(executor: str, count: int) -> dict[str, tuple[float, float]]:
    """Return what a task costs in a small and in a large graph of each shape, in flow runs of their own."""
    run = shaped.with_options(executor=EXECUTORS[executor])
    return {name: (run(name, count).result(), run(name, GROWTH * count).result()) for name in SHAPES}


def rows(session: Session) -> Iterator[Row]:
    """Compare a large graph of each shape with a small one."""
    count = session.size(1_000, tiny=10)
    for executor in EXECUTORS:
        (measured,) = session.alternate(costs, arguments=[executor, count])
        independents = [costs["independent"][1] for costs in measured]
        for name in SHAPES:
            few, many = zip(*(costs[name] for costs in measured), strict=True)
            yield Row(
                f"{name.replace('_', ' ')} of {GROWTH * count:,} tasks, {executor}",
                f"a task in one of {count:,}",
                ratio(many, few),
                detail=f"{statistics.median(many) * 1e6:,.1f} us against {statistics.median(few) * 1e6:,.1f} us; "
                f"{ratio(many, independents):.2f}x independent tasks",
            )
