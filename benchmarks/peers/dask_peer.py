"""Dask distributed: a local cluster of processes with one thread each; futures are arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dask import bag
from distributed import Client, LocalCluster

from benchmarks.peers import work

if TYPE_CHECKING:
    from collections.abc import Callable


def with_workers(body: Callable[[Any], Any]) -> Any:
    """Start the cluster, without its dashboard."""
    with (
        LocalCluster(n_workers=work.WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        return body(client)


def independent(client: Any, count: int) -> list[int]:
    """Submit one by one; `pure=False` has equal calls computed each time."""
    futures = [client.submit(work.nothing, number, pure=False) for number in range(count)]
    return list(client.gather(futures))


def chain(client: Any, count: int) -> int:
    """Hand on futures."""
    last: Any = 0
    for _ in range(count):
        last = client.submit(work.successor, last, pure=False)
    return int(last.result())


def mapped(client: Any, count: int) -> list[int]:
    """Map over a bag, whose partitions are chunks."""
    items = bag.from_sequence(range(count), partition_size=work.CHUNK)
    return list(client.compute(items.map(work.nothing)).result())


def stencil(client: Any, steps: int, length: float) -> list[int]:
    """Hand on futures."""
    row: list[Any] = []
    for _ in range(steps):
        row = [
            client.submit(work.spin, length, *work.neighbours(row, place), pure=False) for place in range(work.WIDTH)
        ]
    return list(client.gather(row))


def computing(client: Any, count: int, turns: int) -> list[int]:
    """Submit one by one."""
    return list(client.gather([client.submit(work.compute, turns, pure=False) for _ in range(count)]))


def large_array(client: Any, size: int) -> list[float]:
    """Hand on the future of the array."""
    array = client.submit(work.make, size, pure=False)
    return list(client.gather([client.submit(work.read, array, number, pure=False) for number in range(work.READERS)]))
