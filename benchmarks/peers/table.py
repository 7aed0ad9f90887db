"""The figures of all engines as a table, in Markdown."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.peers import work
from benchmarks.peers.engines import ENGINES
from benchmarks.peers.side import Measured

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MICROSECONDS, SECONDS = "us", "s"
Figures = dict[tuple[str, str], list[Measured]]
"""What was measured, round by round, by the names of engine and work."""


class Work(NamedTuple):
    """One column of the table."""

    name: str
    heading: str
    unit: str
    arguments: Mapping[str, float]
    """What `side.py` takes for it."""


def works(scale: str, turns: int) -> list[Work]:
    """Return the columns; `turns` of `compute` take 20 ms."""
    tiny = scale == "tiny"
    budget = {"budget": 0.0 if tiny else 2.0}
    tasks = 2 if tiny else 64
    size = 2 if tiny else 200
    return [
        Work("independent", "independent no-op", MICROSECONDS, budget),
        Work("chain", "link of a chain", MICROSECONDS, budget),
        Work("mapped", "item of a map", MICROSECONDS, budget),
        Work("stencil", "METG(50 %)", MICROSECONDS, budget),
        Work("computing", f"{tasks} tasks of 20 ms", SECONDS, {"count": tasks, "turns": turns}),
        Work("large_array", f"{size} MB read {work.READERS} times", SECONDS, {"size": size}),
        Work("hello", "hello world", SECONDS, {}),
    ]


def median(measured: Sequence[Measured]) -> float | None:
    """Return the median of the rounds, in seconds; None if one of them has no figure."""
    values = [one.value for one in measured if one.value is not None]
    return statistics.median(values) if values and len(values) == len(measured) else None


def lines(columns: Sequence[Work], figures: Figures, versions: Mapping[str, str]) -> Iterator[str]:
    """Yield the tables and what must be said about them."""
    head = ["engine", "kept on disk of each task"]
    yield from _table(
        head + [f"{column.heading}, {column.unit}" for column in columns],
        [
            [f"{name} {version}".rstrip(), ENGINES[name].records]
            + [cell(figures[name, column.name], column.unit) for column in columns]
            for name, version in versions.items()
        ],
    )
    serial = median(figures.get(("plain", "computing"), []))
    if serial is not None:
        yield ""
        yield f"{work.WORKERS} workers everywhere; computing on them takes {serial / work.WORKERS:.2f} s at best."
    yield ""
    yield "The same as multiples of localflow's:"
    yield ""
    ours = {column.name: median(figures["localflow", column.name]) for column in columns}
    yield from _table(
        ["engine"] + [column.heading for column in columns],
        [
            [name] + [_multiple(median(figures[name, column.name]), ours[column.name]) for column in columns]
            for name in versions
        ],
    )
    yield ""
    for name in versions:
        yield f"- {name}: {ENGINES[name].remark}"
    for (name, column_name), measured in figures.items():
        if detail := next((one.detail for one in measured if one.value is None), ""):
            yield f"- {name}, {column_name}: {detail}"
        if most := max((one.left_behind for one in measured), default=0):
            yield f"- {name}, {column_name}: left up to {most} processes running, which were killed"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for cells in (head, ["-" * width for width in widths], *rows):
        yield f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |"


def cell(measured: Sequence[Measured], unit: str) -> str:
    """Word the median of the rounds in a unit."""
    value = median(measured)
    if value is None:
        return "see below" if any(one.detail for one in measured if one.value is None) else "-"
    if unit == SECONDS:
        return f"{value:.2f}"
    value *= 1e6
    return f"{value:,.2f}" if value < 1 else f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def _multiple(value: float | None, ours: float | None) -> str:
    return (
        "-" if value is None or not ours else f"{value / ours:,.2f}x" if value < 10 * ours else f"{value / ours:,.0f}x"
    )
