"""Measure engines beside each other: `python -m benchmarks.peers [loky dask ...] [--repeat N] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import describe
from benchmarks.measuring import seconds
from benchmarks.peers import environments, programs, table
from benchmarks.peers.engines import ALWAYS, ENGINES
from benchmarks.peers.side import Measured
from benchmarks.peers.work import compute
from localflow.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.engines import Engine

LENGTH = 0.020  # seconds that a task of the computing work takes


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for, all by default."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="Measure engines beside each other."
    )
    others = [name for name in ENGINES if name not in ALWAYS]
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"beside {', '.join(ALWAYS)}: {', '.join(others)}; all if none is given",
    )
    parser.add_argument("--repeat", type=int, help="rounds, 3 if not given; medians are shown")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for one engine and one work")
    parser.add_argument("--tiny", action="store_true", help="only see that everything runs; the figures mean nothing")
    parser.add_argument("--json", type=Path, help="where the figures go as well")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(ENGINES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    programs.adopt_orphans()

    chosen = [engine for name, engine in ENGINES.items() if name in (*ALWAYS, *(options.names or others))]
    installed = find_installed(chosen)
    turns = 100 if options.tiny else turns_of(LENGTH)
    columns = table.works("tiny" if options.tiny else "usual", turns)
    figures: table.Figures = {}
    rounds = options.repeat or (1 if options.tiny else 3)
    for number in range(1, rounds + 1):
        for column in columns:
            for engine, (python, _) in installed.items():
                measured = figures.setdefault((engine.name, column.name), [])
                if measured and measured[-1].value is None:
                    continue  # what there is nothing for, or what failed, is not tried again
                measured.append(measure(engine, python, column, options.limit))
                figure = f"{table.cell(measured[-1:], column.unit)} {column.unit}"
                if measured[-1].value is None:
                    figure = measured[-1].detail or "nothing for it"
                print(f"{number}/{rounds} {engine.name}, {column.heading}: {figure}", file=sys.stderr, flush=True)
    versions = {engine.name: version for engine, (_, version) in installed.items()}
    print(describe(), end="\n\n")
    print("\n".join(table.lines(columns, figures, versions)))
    if options.json:
        options.json.write_text(json.dumps(as_data(columns, figures, versions), indent=2) + "\n")


def find_installed(engines: Sequence[Engine]) -> dict[Engine, tuple[Path, str]]:
    """Return interpreter and version of each engine that can be installed; say why the others cannot."""
    found = {}
    for engine in engines:
        if not engine.distributions:
            version = {"localflow": __version__}.get(engine.name, "")
            found[engine] = (Path(sys.executable), version)
            continue
        try:
            python = environments.python(engine.environment, engine.distributions)
            found[engine] = (python, environments.version(python, engine.distributions[0]))
        except environments.InstallationError as error:
            print(f"{engine.name} is passed by, it could not be installed: {error}")
    return found


def measure(engine: Engine, python: Path, column: table.Work, limit: float) -> Measured:
    """Measure one work on one engine, in a new process and folder; a figure of None says what went wrong."""
    with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        answer = folder / "answer.json"
        ended = programs.run(
            [str(python), "-m", "benchmarks.peers.side", engine.program, column.name,
             json.dumps(dict(column.arguments)), str(answer)],
            folder, {**environments.variables(python, folder), **dict(engine.variables)}, limit,
        )  # fmt: skip
        if ended.code is None:
            measured = Measured(None, f"had not ended after {limit:g} s, and was killed")
        elif ended.code:
            said = ended.output.strip().splitlines() or [f"exit code {ended.code}"]
            measured = Measured(None, f"failed: {said[-1]}")
        else:
            measured = Measured(*json.loads(answer.read_text()))
            if column.name == "hello":
                measured = measured._replace(value=ended.seconds)
    return measured._replace(left_behind=ended.left_behind)


def turns_of(length: float) -> int:
    """Return how many turns `compute` makes in so many seconds on this machine."""
    turns = 100_000
    return int(turns * length / min(seconds(lambda: compute(turns)) for _ in range(10)))


def as_data(columns: Sequence[table.Work], figures: table.Figures, versions: dict[str, str]) -> dict[str, object]:
    """Return everything measured, round by round, as what JSON knows."""
    return {
        "machine": describe(),
        "versions": versions,
        "figures": [
            {"engine": name, "work": column.name, "rounds": [one._asdict() for one in figures[name, column.name]]}
            for name in versions
            for column in columns
        ],
    }


if __name__ == "__main__":
    main()
