"""The work on a pool whose futures are no arguments: what depends on something is submitted when that is done."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import work


def independent(pool: Any, count: int) -> list[int]:
    """Submit one by one."""
    futures = [pool.submit(work.nothing, number) for number in range(count)]
    return [future.result() for future in futures]


def chain(pool: Any, count: int) -> int:
    """Wait for each result."""
    last = 0
    for _ in range(count):
        last = pool.submit(work.successor, last).result()
    return last


def mapped(pool: Any, count: int) -> list[int]:
    """Map in chunks."""
    return list(pool.map(work.nothing, range(count), chunksize=work.CHUNK))


def stencil(pool: Any, steps: int, length: float) -> list[int]:
    """Wait for each row."""
    row: list[int] = []
    for _ in range(steps):
        futures = [pool.submit(work.spin, length, *work.neighbours(row, place)) for place in range(work.WIDTH)]
        row = [future.result() for future in futures]
    return row


def computing(pool: Any, count: int, turns: int) -> list[int]:
    """Submit one by one."""
    futures = [pool.submit(work.compute, turns) for _ in range(count)]
    return [future.result() for future in futures]


def large_array(pool: Any, size: int) -> list[float]:
    """Fetch the array, and send it with each call."""
    array = pool.submit(work.make, size).result()
    futures = [pool.submit(work.read, array, number) for number in range(work.READERS)]
    return [future.result() for future in futures]
