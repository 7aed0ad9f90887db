"""Ray on this machine: tasks on worker processes, references to results are arguments."""

from __future__ import annotations

import tempfile
from functools import cache
from typing import TYPE_CHECKING, Any

import ray
from ray.util.multiprocessing import Pool

from benchmarks.peers import work

if TYPE_CHECKING:
    from collections.abc import Callable

nothing, successor, spin, compute, make, read = map(
    ray.remote, (work.nothing, work.successor, work.spin, work.compute, work.make, work.read)
)


def with_workers(body: Callable[[Any], Any]) -> Any:
    """Start Ray, without its dashboard."""
    with ray.init(num_cpus=work.WORKERS, include_dashboard=False, _temp_dir=tempfile.gettempdir()):
        return body(None)


def independent(_: object, count: int) -> list[int]:
    """Submit one by one."""
    return list(ray.get([nothing.remote(number) for number in range(count)]))


def chain(_: object, count: int) -> int:
    """Hand on references."""
    last: Any = 0
    for _ in range(count):
        last = successor.remote(last)
    return int(ray.get(last))


@cache
def pool() -> Any:
    """Return the pool of actors that maps, started for the first who asks."""
    return Pool(work.WORKERS)


def mapped(_: object, count: int) -> list[int]:
    """Map in chunks."""
    return list(pool().map(work.nothing, range(count), chunksize=work.CHUNK))


def stencil(_: object, steps: int, length: float) -> list[int]:
    """Hand on references."""
    row: list[Any] = []
    for _ in range(steps):
        row = [spin.remote(length, *work.neighbours(row, place)) for place in range(work.WIDTH)]
    return list(ray.get(row))


def computing(_: object, count: int, turns: int) -> list[int]:
    """Submit one by one."""
    return list(ray.get([compute.remote(turns) for _ in range(count)]))


def large_array(_: object, size: int) -> list[float]:
    """Hand on the reference to the array."""
    array = make.remote(size)
    return list(ray.get([read.remote(array, number) for number in range(work.READERS)]))
