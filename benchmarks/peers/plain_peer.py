"""Plain Python: the same functions, called one after the other in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers import work

if TYPE_CHECKING:
    from collections.abc import Callable


def with_workers(body: Callable[[Any], Any]) -> Any:
    """Start nothing."""
    return body(None)


def independent(_: object, count: int) -> list[int]:
    """Call."""
    return [work.nothing(number) for number in range(count)]


def computing(_: object, count: int, turns: int) -> list[int]:
    """Call; half of this time is what two cores can reach at best."""
    return [work.compute(turns) for _ in range(count)]


def large_array(_: object, size: int) -> list[float]:
    """Call."""
    array = work.make(size)
    return [work.read(array, number) for number in range(work.READERS)]
