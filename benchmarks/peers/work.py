"""What every engine is given to do; needs nothing but the standard library, and numpy for the array."""

from __future__ import annotations

import time
from typing import Any

WORKERS = 2
WIDTH = 4  # of the stencil
READERS = 8  # of the array
CHUNK = 250  # items that go together where an engine lets one say so
MB = 1_000_000


def nothing(number: int) -> int:
    """Return the number."""
    return number


def successor(number: int) -> int:
    """Return the next number."""
    return number + 1


def spin(length: float, *neighbours: int) -> int:
    """Use so many seconds of a core; return how many neighbours there are.

    The clock is the thread's own: threads that wait for each other are not busy.
    """
    until = time.thread_time() + length
    while time.thread_time() < until:
        pass
    return len(neighbours)


def neighbours(row: list[Any], place: int) -> list[Any]:
    """Return what the task at a place of the stencil takes of the row above it."""
    return row[max(0, place - 1) : place + 2]


def compute(turns: int) -> int:
    """Add up so many numbers."""
    total = 0
    for number in range(turns):
        total += number & 7
    return total


def make(size: int) -> Any:
    """Return an array of so many MB."""
    import numpy

    return numpy.arange(size * MB // 8, dtype=numpy.float64)


def read(array: Any, number: int) -> float:
    """Read every element; return their sum and the number."""
    return float(array.sum()) + number
