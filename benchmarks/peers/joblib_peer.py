"""joblib's Parallel: one loop after the other, without futures, so no chain and no stencil."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joblib import Parallel, delayed

from benchmarks.peers import work

if TYPE_CHECKING:
    from collections.abc import Callable


def with_workers(body: Callable[[Any], Any]) -> Any:
    """Leave the start to the first loop; its workers stay for the next one."""
    return body(None)


def independent(_: object, count: int) -> list[int]:
    """Send items one by one."""
    return list(Parallel(n_jobs=work.WORKERS, batch_size=1)(delayed(work.nothing)(number) for number in range(count)))


def mapped(_: object, count: int) -> list[int]:
    """Let joblib choose how many items go together."""
    return list(Parallel(n_jobs=work.WORKERS)(delayed(work.nothing)(number) for number in range(count)))


def computing(_: object, count: int, turns: int) -> list[int]:
    """Loop."""
    return list(Parallel(n_jobs=work.WORKERS)(delayed(work.compute)(turns) for _ in range(count)))


def large_array(_: object, size: int) -> list[float]:
    """Fetch the array from a loop of one, and loop over it, which maps it into the workers' memory."""
    parallel = Parallel(n_jobs=work.WORKERS)
    (array,) = parallel([delayed(work.make)(size)])
    return list(parallel(delayed(work.read)(array, number) for number in range(work.READERS)))
