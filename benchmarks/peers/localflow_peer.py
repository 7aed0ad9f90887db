"""localflow on its process executor, every state recorded in its SQLite store; futures are arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers import work
from localflow import ProcessExecutor, flow, task

if TYPE_CHECKING:
    from collections.abc import Callable

nothing, successor, spin = task(work.nothing), task(work.successor), task(work.spin)
compute, make, read = task(work.compute), task(work.make), task(work.read)


def with_workers(body: Callable[[Any], Any]) -> Any:
    """Run a flow."""

    @flow(executor=ProcessExecutor(workers=work.WORKERS))
    def measured() -> Any:
        return body(None)

    return measured().result()


def independent(_: object, count: int) -> list[int]:
    """Call one by one."""
    futures = [nothing(number) for number in range(count)]
    return [future.result() for future in futures]


def chain(_: object, count: int) -> int:
    """Hand on futures."""
    last: Any = 0
    for _ in range(count):
        last = successor(last)
    return int(last.result())


def mapped(_: object, count: int) -> list[int]:
    """Map; each item is a task run of its own."""
    return nothing.map(range(count)).result()


def stencil(_: object, steps: int, length: float) -> list[int]:
    """Hand on futures."""
    row: list[Any] = []
    for _ in range(steps):
        row = [spin(length, *work.neighbours(row, place)) for place in range(work.WIDTH)]
    return [future.result() for future in row]


def computing(_: object, count: int, turns: int) -> list[int]:
    """Call one by one."""
    futures = [compute(turns) for _ in range(count)]
    return [future.result() for future in futures]


def large_array(_: object, size: int) -> list[float]:
    """Hand on the future of the array."""
    array = make(size)
    futures = [read(array, number) for number in range(work.READERS)]
    return [future.result() for future in futures]
