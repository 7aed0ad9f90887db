"""Parsl's HighThroughputExecutor on this machine; futures of apps are arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import parsl
from parsl import python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from benchmarks.peers import work

if TYPE_CHECKING:
    from collections.abc import Callable

nothing, successor, spin, compute, make, read = map(
    python_app, (work.nothing, work.successor, work.spin, work.compute, work.make, work.read)
)


def with_workers(body: Callable[[Any], Any]) -> Any:
    """Start one block of workers."""
    executor = HighThroughputExecutor(
        label="local",
        address="127.0.0.1",
        max_workers_per_node=work.WORKERS,
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
    )
    with parsl.load(Config(executors=[executor])):
        return body(None)


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
