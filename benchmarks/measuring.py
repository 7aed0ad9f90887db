"""How a benchmark measures: its functions in processes and folders of their own, in turn, several times.

A benchmark is a module with a function `rows(session)` that yields one row for each figure. What it compares are plain
functions of that module: `session.alternate(ours, peer, size)` calls each in a fresh process, in a fresh folder with a
new state store, first one, then the other, as often as the session repeats. So each meets the machine in the same mood,
and a ratio is the median of the ratios within a round.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORKERS = 2

_ROOT = Path(__file__).resolve().parent.parent


class Row(NamedTuple):
    """One figure of the table and what it should be."""

    work: str
    against: str
    measured: float | None
    """None where it could not be measured; `detail` says why."""
    unit: str = "x"
    at_most: float | None = None
    at_least: float | None = None
    detail: str = ""
    """The figures behind it."""

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without a target or a figure."""
        if self.measured is None or (self.at_most is None and self.at_least is None):
            return None
        if self.at_most is not None:
            return self.measured <= self.at_most
        return self.measured >= (self.at_least or 0.0)


class Session(NamedTuple):
    """How large and how often."""

    repeat: int = 5
    scale: str = "usual"
    """`tiny` to see that everything runs, `usual`, or `full` where the usual size is not the whole one."""

    def size(self, usual: int, *, tiny: int, full: int | None = None) -> int:
        """Return how large a benchmark is at this scale."""
        return {"tiny": tiny, "usual": usual, "full": full or usual}[self.scale]

    def alternate(self, *functions: Callable[..., Any], arguments: Sequence[object] = ()) -> list[list[Any]]:
        """Call functions in turn, each in its own process and folder; return, for each, what it returned every time."""
        rounds = [[in_process(function, *arguments) for function in functions] for _ in range(self.repeat)]
        return [list(values) for values in zip(*rounds, strict=True)]


def in_process(function: Callable[..., Any], *arguments: object, folder: Path | None = None) -> Any:
    """Call a function of a module in a fresh process, in a new folder unless one is given; return what it returns.

    Arguments and result travel as JSON.
    """
    command = ["-m", "benchmarks.side", function.__module__, function.__name__, json.dumps(arguments)]
    return json.loads(run_python(*command, folder=folder).splitlines()[-1])


def run_python(*arguments: str, folder: Path | None = None) -> str:
    """Run this Python with arguments, in a new folder unless one is given; return what it prints."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as made:
            return run_python(*arguments, folder=Path(made))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment(), capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def environment() -> dict[str, str]:
    """Return the environment without settings of localflow, with this package on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCALFLOW_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))}


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    began_at = time.perf_counter()
    work()
    return time.perf_counter() - began_at


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios within the rounds."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def each(times: Sequence[float], count: int) -> str:
    """Word a median time per task."""
    return f"{statistics.median(times) / count * 1e6:,.1f} us"


def resident_bytes() -> int:
    """Return how much memory this process holds."""
    import psutil

    return int(psutil.Process().memory_info().rss)
