"""Measure one work on one engine, in a process of that engine's environment: `python -m benchmarks.peers.side ...`.

The same for every engine: workers are up and have run a few tasks before the clock starts, it stops when the last
result is there, and what came back is checked. How many tasks are measured follows from what the first few cost, so
that engines a thousand times apart all finish.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.peers import work

if TYPE_CHECKING:
    from collections.abc import Callable

PROBE = 10  # tasks that say what one costs
AT_MOST = {"independent": 10_000, "chain": 1_000, "mapped": 100_000}
DEAREST = 0.02  # seconds a task that does nothing may cost, for the search of METG
STEPS = 250
DOUBLINGS = 7  # from a quarter of what a task costs to sixteen times that
BISECTIONS = 4  # of a doubling: to 4 % of the length


class Measured(NamedTuple):
    """One figure of one engine."""

    value: float | None
    """In seconds; None if there is none: `detail` says why, or is empty if the engine has nothing for this work."""
    detail: str = ""
    """How much was measured, or why nothing was."""
    left_behind: int = 0
    """How many processes were still there after the program, and had to be killed."""


def independent(peer: Any, workers: Any, budget: float) -> Measured:
    """Measure a task that depends on nothing."""

    def call(count: int) -> None:
        _expect(peer.independent(workers, count), list(range(count)))

    return _each(call, AT_MOST["independent"], budget)


def chain(peer: Any, workers: Any, budget: float) -> Measured:
    """Measure a task that depends on the one before."""

    def call(count: int) -> None:
        _expect(peer.chain(workers, count), count)

    return _each(call, AT_MOST["chain"], budget)


def mapped(peer: Any, workers: Any, budget: float) -> Measured:
    """Measure an item of a map."""

    def call(count: int) -> None:
        _expect(peer.mapped(workers, count), list(range(count)))

    return _each(call, AT_MOST["mapped"], budget)


def stencil(peer: Any, workers: Any, budget: float) -> Measured:
    """Search METG(50 %): the shortest length of tasks that still fill half of the cores' time."""

    def taken(steps: int, length: float) -> float:
        row = [len(work.neighbours([0] * work.WIDTH, place)) for place in range(work.WIDTH)]
        return _seconds(lambda: _expect(peer.stencil(workers, steps, length), row))

    taken(PROBE, 0.0)
    each = taken(PROBE, 0.0) / PROBE / work.WIDTH
    if each > DEAREST:
        return Measured(None, f"not searched: a task that does nothing costs {each * 1e3:,.0f} ms")
    steps = max(PROBE, min(STEPS, int(budget / 4 / each / work.WIDTH)))

    def is_filled(length: float) -> bool:
        return length * work.WIDTH * steps / work.WORKERS / taken(steps, length) >= 0.5

    def is_efficient(length: float) -> bool:
        first, second = is_filled(length), is_filled(length)
        return first if first == second else is_filled(length)

    length = each / 4
    for _ in range(DOUBLINGS):
        if is_efficient(length):
            break
        length *= 2
    else:
        return Measured(None, f"below 50 % at tasks of {length / 2 * 1e3:,.1f} ms")
    low, high = length / 2, length
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        if is_efficient(middle):
            high = middle
        else:
            low = middle
    return Measured(high, f"{work.WIDTH} x {steps}")


def computing(peer: Any, workers: Any, count: int, turns: int) -> Measured:
    """Measure tasks that compute."""
    result = work.compute(turns)
    return Measured(_seconds(lambda: _expect(peer.computing(workers, count, turns), [result] * count)))


def large_array(peer: Any, workers: Any, size: int) -> Measured:
    """Measure an array that is made once and read several times."""
    length = size * work.MB // 8
    total = length * (length - 1) // 2

    def call() -> None:
        found = peer.large_array(workers, size)
        _expect([value - found[0] for value in found], list(range(work.READERS)))
        _expect(math.isclose(found[0], total), True)

    peer.large_array(workers, 1)  # numpy is loaded before the clock starts
    return Measured(_seconds(call))


def hello(peer: Any, workers: Any) -> Measured:
    """Run one task; it is the time of the whole program that counts, and who started it takes that."""
    return Measured(_seconds(lambda: _expect(peer.independent(workers, 1), [0])))


MEASURES: dict[str, Callable[..., Measured]] = {
    "independent": independent,
    "chain": chain,
    "mapped": mapped,
    "stencil": stencil,
    "computing": computing,
    "large_array": large_array,
    "hello": hello,
}


def _each(call: Callable[[int], None], at_most: int, budget: float) -> Measured:
    def each(count: int) -> float:
        return _seconds(lambda: call(count)) / count

    call(PROBE)  # what the first call of a kind has to set up is not measured
    count = PROBE
    while (cost := each(count)) * count < budget / PROBE and count < at_most:
        count = min(count * PROBE, at_most)
    count = max(PROBE, min(at_most, int(budget / cost)))
    return Measured(each(count), f"{count:,}")


def _seconds(call: Callable[[], object]) -> float:
    began_at = time.perf_counter()
    call()
    return time.perf_counter() - began_at


def _expect(found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"the engine returned {str(found)[:200]}, expected {str(expected)[:200]}")


def main(program: str, name: str, arguments: str, answer: str) -> None:
    """Measure, with the arguments of a JSON object, and write the figure to a file as JSON."""
    peer = importlib.import_module(f"benchmarks.peers.{program}")
    if name != "hello" and not hasattr(peer, name):
        measured = Measured(None)
    else:
        measured = peer.with_workers(lambda workers: _measure(peer, workers, name, json.loads(arguments)))
    Path(answer).write_text(json.dumps(measured))


def _measure(peer: Any, workers: Any, name: str, arguments: dict[str, Any]) -> list[Any]:
    if name != "hello":
        peer.independent(workers, 2 * work.WORKERS)
    return list(MEASURES[name](peer, workers, **arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
