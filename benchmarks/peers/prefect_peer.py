"""Prefect 3 on its process pool, with the server that it starts for itself; futures are arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.task_runners import ProcessPoolTaskRunner

from benchmarks.peers import work

if TYPE_CHECKING:
    from collections.abc import Callable

nothing, successor, spin, compute, make, read = map(
    task, (work.nothing, work.successor, work.spin, work.compute, work.make, work.read)
)


def with_workers(body: Callable[[Any], Any]) -> Any:
    """Run a flow."""
    return run(body, ProcessPoolTaskRunner(max_workers=work.WORKERS))


def run(body: Callable[[Any], Any], runner: Any) -> Any:
    """Run a flow on a task runner."""

    def measured() -> Any:
        return body(None)

    return flow(measured, task_runner=runner)()


def independent(_: object, count: int) -> list[int]:
    """Submit one by one."""
    futures = [nothing.submit(number) for number in range(count)]
    return [future.result() for future in futures]


def chain(_: object, count: int) -> int:
    """Hand on futures."""
    last: Any = 0
    for _ in range(count):
        last = successor.submit(last)
    return int(last.result())


def mapped(_: object, count: int) -> list[int]:
    """Map; each item is a task run of its own."""
    return list(nothing.map(range(count)).result())


def stencil(_: object, steps: int, length: float) -> list[int]:
    """Hand on futures."""
    row: list[Any] = []
    for _ in range(steps):
        row = [spin.submit(length, *work.neighbours(row, place)) for place in range(work.WIDTH)]
    return [future.result() for future in row]


def computing(_: object, count: int, turns: int) -> list[int]:
    """Submit one by one."""
    futures = [compute.submit(turns) for _ in range(count)]
    return [future.result() for future in futures]


def large_array(_: object, size: int) -> list[float]:
    """Hand on the future of the array."""
    array = make.submit(size)
    futures = [read.submit(array, number) for number in range(work.READERS)]
    return [future.result() for future in futures]
