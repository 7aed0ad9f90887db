"""Measure and print the table: `python -m benchmarks [P3 P6 ...] [--repeat N] [--full] [--json FILE]`."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import describe
from benchmarks.measuring import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.measuring import Row

BENCHMARKS = {
    "P1": "independent",
    "P2": "mapped",
    "P3": "chain",
    "P4": "metg",
    "P5": "threads",
    "P6": "sequential",
    "P7": "cpu_bound",
    "P8": "mixed_lengths",
    "P9": "large_array",
    "P10": "startup",
    "P11": "many_tasks",
    "P12": "idle",
    "P13": "big_store",
    "shapes": "shapes",
}

_LINE = "{:<7} {:<62} {:<31} {:>10} {:>16} {:<4} {}"
_VERDICTS = {True: "yes", False: "NO", None: "-"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure localflow.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all if none is given")
    parser.add_argument("--repeat", type=int, help="rounds of each comparison, 5 if not given; medians are shown")
    parser.add_argument("--json", type=Path, help="where the figures go as well")
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--full", action="store_true", help="a million task runs where the usual size is less")
    scale.add_argument("--tiny", action="store_true", help="only see that everything runs; the figures mean nothing")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    session = Session(
        repeat=options.repeat or (1 if options.tiny else 5),
        scale="full" if options.full else "tiny" if options.tiny else "usual",
    )
    print(describe())
    print(_LINE.format("", "work", "against", "target", "measured", "met", ""))
    figures = []
    for name in options.names or BENCHMARKS:
        for row in importlib.import_module(f"benchmarks.{BENCHMARKS[name]}").rows(session):
            print(line(name, row), flush=True)
            figures.append({"name": name, **row._asdict(), "met": row.is_met})
    if options.json:
        options.json.write_text(json.dumps({"machine": describe(), "figures": figures}, indent=2) + "\n")


def line(name: str, row: Row) -> str:
    """Return the line of the table for a figure."""
    target = "-"
    if row.at_most is not None:
        target = f"<= {row.at_most:g}"
    elif row.at_least is not None:
        target = f">= {row.at_least:g}"
    measured = "skipped" if row.measured is None else f"{row.measured:.3g}{row.unit}"
    return _LINE.format(name, row.work, row.against, target, measured, _VERDICTS[row.is_met], row.detail).rstrip()


if __name__ == "__main__":
    main()
