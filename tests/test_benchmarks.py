"""The benchmarks run, at sizes that measure nothing, and the runner prints a row for each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, line
from benchmarks.measuring import Row

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmarks as their users do."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_prints_a_row_for_each_of_its_figures(name: str, tmp_path: Path) -> None:
    """Each runs from beginning to end, and what is printed is also written as JSON."""
    done = run(name, "--tiny", "--json", str(tmp_path / "figures.json"))

    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    lines = done.stdout.splitlines()[2:]
    assert figures
    assert [figure["work"] in text for figure, text in zip(figures, lines, strict=True)] == [True] * len(figures)
    assert all(figure["name"] == name for figure in figures)


def test_an_unknown_benchmark_is_refused() -> None:
    """A misspelt name is no empty table."""
    done = run("P99", "--tiny")

    assert done.returncode == 2
    assert "unknown: P99" in done.stderr


@pytest.mark.parametrize(
    ("row", "is_met"),
    [
        (Row("work", "peer", 0.3, at_most=0.3), True),
        (Row("work", "peer", 0.31, at_most=0.3), False),
        (Row("work", "peer", 0.95, at_least=0.95), True),
        (Row("work", "peer", 0.94, at_least=0.95), False),
        (Row("work", "peer", 1.0), None),
        (Row("work", "peer", None, at_most=0.3), None),
    ],
)
def test_a_target_is_met_from_the_right_side(row: Row, is_met: bool | None) -> None:
    """Some figures should be small, some large, and some have no target or could not be taken."""
    assert row.is_met is is_met


def test_what_could_not_be_measured_says_why() -> None:
    """A row without a figure is skipped, with the reason."""
    told = line("P9", Row("array", "plain Python", None, at_most=1.3, detail="numpy is not installed"))

    assert "skipped" in told
    assert told.endswith("numpy is not installed")
