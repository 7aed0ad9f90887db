"""The functions that the benchmarks on processes have workers call, both localflow's and those of the pool beside it.

They are in a module of their own that needs next to nothing: a worker imports the module that a task's function is in,
and what else that imports would be counted as the start of the worker.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

MB = 1_000_000


def nothing(number: int) -> int:
    """Return the number."""
    return number


def successor(number: int) -> int:
    """Return the next number."""
    return number + 1


def join(*values: Any) -> int:
    """Return how much it was given."""
    return len(values)


def spin(length: float, *neighbours: int) -> int:
    """Be busy for so many seconds."""
    until = time.perf_counter() + length
    while time.perf_counter() < until:
        pass
    return len(neighbours)


def compute(turns: int) -> int:
    """Add up so many numbers."""
    total = 0
    for number in range(turns):
        total += number & 7
    return total


def rest(length: float) -> float:
    """Sleep, and return how long it really took."""
    began_at = time.perf_counter()
    time.sleep(length)
    return time.perf_counter() - began_at


def hold(path: str) -> None:
    """Wait until a file is there."""
    while not os.path.exists(path):  # noqa: PTH110
        time.sleep(0.01)


def make(size: int) -> Any:
    """Return an array of so many MB."""
    import numpy

    return numpy.arange(size * MB // 8, dtype=numpy.float64)


def read(array: Any, number: int) -> float:
    """Read every element; return their sum and the number."""
    return float(array.sum()) + number
