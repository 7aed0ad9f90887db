"""P9: an array of 200 MB, made by one task and read by eight, on processes."""

from __future__ import annotations

import importlib.util
import statistics
import threading
from typing import TYPE_CHECKING, Any

from benchmarks.measuring import WORKERS, Row, Session, ratio, resident_bytes, seconds
from benchmarks.work import MB, make, read
from localflow import ProcessExecutor, flow, task

if TYPE_CHECKING:
    from collections.abc import Iterator

READERS = 8
LOOK_EVERY = 0.005  # seconds


make_task, read_task = task(make), task(read)


@flow(executor=ProcessExecutor(workers=WORKERS))
def shared(size: int) -> list[Any]:
    """Make the array, and read it in several tasks."""
    array = make_task(size)
    return [read_task(array, number) for number in range(READERS)]


class Peak:
    """The most memory this process held within a `with` block, above what it held before, in MB."""

    def __enter__(self) -> Peak:
        self._before = self._most = resident_bytes()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            self._most = max(self._most, resident_bytes())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    @property
    def grown(self) -> float:
        """How much it has grown."""
        return (self._most - self._before) / MB


def ours(size: int) -> float:
    """Time the flow, from its call to the results."""
    return seconds(lambda: shared(size).result())


def engine_growth(size: int) -> float:
    """Return by how many MB the engine grows during a run, beside what it needs for a tiny array."""
    shared(1).result()
    with Peak() as peak:
        shared(size).result()
    return peak.grown


def peer(size: int) -> float:
    """Time the same functions, called one after the other."""

    def work() -> None:
        array = make(size)
        for number in range(READERS):
            read(array, number)

    return seconds(work)


def rows(session: Session) -> Iterator[Row]:
    """Compare with plain Python, and look at the memory of the engine."""
    size = session.size(200, tiny=2)
    work = f"array of {size} MB made once, read {READERS} times"
    if importlib.util.find_spec("numpy") is None:
        yield Row(work, "plain Python", None, detail="numpy is not installed: pip install -e '.[bench]'")
        return
    mine, theirs, growth = session.alternate(ours, peer, engine_growth, arguments=[size])
    yield Row(
        work,
        "plain Python",
        ratio(mine, theirs),
        at_most=1.3,
        detail=f"{statistics.median(mine):.2f} s against {statistics.median(theirs):.2f} s",
    )
    yield Row("memory of the engine meanwhile", "before", statistics.median(growth), unit=" MB", at_most=20.0)
