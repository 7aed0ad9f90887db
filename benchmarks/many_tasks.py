"""P11: a flow of very many tasks, on processes: what the last one costs, and the memory of those that end and wait."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.independent import noop
from benchmarks.measuring import WORKERS, Row, Session, ratio, resident_bytes, seconds
from benchmarks.work import hold
from localflow import ProcessExecutor, flow, task, wait

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL = 10_000
WARM_UP = 500
KIB = 1_024


holder = task(hold)


@flow(executor=ProcessExecutor(workers=WORKERS))
def finished(count: int) -> float:
    """Return how many bytes the engine has grown by for each task that has ended, its future still held."""
    wait([noop(number) for number in range(WARM_UP)])
    before = resident_bytes()
    futures = [noop(number) for number in range(count)]
    wait(futures)
    return (resident_bytes() - before) / count


@flow(executor=ProcessExecutor(workers=WORKERS))
def pending(count: int) -> float:
    """Return how many bytes the engine has grown by for each task that waits for another."""
    wait([noop(number) for number in range(WARM_UP)])
    released = Path("released").absolute()
    held = holder(str(released))
    before = resident_bytes()
    futures = [noop(number, wait_for=[held]) for number in range(count)]
    grown = resident_bytes() - before
    released.touch()
    return grown / len(futures)


def seconds_each(count: int) -> float:
    """Return the time of the flow, divided by its tasks."""
    return seconds(lambda: finished(count).result()) / count


def bytes_finished(count: int) -> float:
    """Return the engine's bytes for a finished task."""
    return float(finished(count).result())


def bytes_pending(count: int) -> float:
    """Return the engine's bytes for a pending task."""
    return float(pending(count).result())


def few(count: int) -> float:
    """Return the time of a task in a small flow; the count is that of the large one."""
    return seconds_each(min(SMALL, count))


def rows(session: Session) -> Iterator[Row]:
    """Compare with a small flow, and weigh the task runs."""
    count = session.size(100_000, tiny=50, full=1_000_000)
    if session.scale == "full":
        session = session._replace(repeat=1)  # a round takes minutes
    large, small = session.alternate(seconds_each, few, arguments=[count])
    yield Row(
        f"each of {count:,} tasks of one flow",
        f"each of {min(SMALL, count):,}",
        ratio(large, small),
        at_most=1.2,
        detail=f"{statistics.median(large) * 1e6:,.1f} us against {statistics.median(small) * 1e6:,.1f} us",
    )
    for function, what, limit in ((bytes_finished, "finished", 1.0), (bytes_pending, "pending", 2.0)):
        (weights,) = session._replace(repeat=1).alternate(function, arguments=[count])
        yield Row(f"engine's memory for each {what} task", "-", weights[0] / KIB, unit=" KiB", at_most=limit)
