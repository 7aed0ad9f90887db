"""The share of the torture that every change must pass, and the proof that it would notice broken promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
KILLS = 60

Torture = Callable[..., tuple[int, str, dict[str, Any]]]


@pytest.fixture
def torture(own_folder: Path) -> Torture:
    """Run the torture with arguments; gives exit code, what was found, and the figures."""

    def run(*arguments: str) -> tuple[int, str, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.torture", *arguments],
            cwd=ROOT, env={**os.environ, "TMPDIR": str(own_folder)}, stdout=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
        *found, figures = done.stdout.splitlines()
        return done.returncode, "\n".join(found), json.loads(figures)

    return run


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", ["sqlite", "json"])
def test_fault_C5_torture_kill_9_at_any_instant_loses_nothing(torture: Torture, store: str) -> None:
    """Engines and workers are killed at random and at failpoints; after each kill all that is promised is true."""
    code, found, figures = torture(store, str(KILLS), "--lanes", "4")

    assert code == 0, found
    assert figures["violations"] == []
    assert sum(figures["kills"].values()) >= KILLS
    assert figures["resumes"] >= KILLS / 3
    assert figures["lost_attempts"] >= KILLS / 6  # they were killed in the middle of something
    assert sum(count for kill, count in figures["kills"].items() if not kill.endswith("engine")) >= KILLS / 15


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("store", ["sqlite", "json"])
@pytest.mark.parametrize(
    ("variant", "kills", "sign"), [("shared", 10, ""), ("full", 10, "full engine"), ("faulty", 16, "failing append")]
)
def test_fault_C5_torture_with_more_that_goes_wrong(
    torture: Torture, store: str, variant: str, kills: int, sign: str
) -> None:
    """Two engines share the store, the disk is full, or appends fail after all is written: the same promises hold."""
    code, found, figures = torture(store, str(kills), "--lanes", "2", "--variant", variant)

    assert code == 0, found
    assert figures["violations"] == []
    assert sum(figures["kills"].values()) >= kills
    assert not sign or figures["kills"].get(sign, 0) > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("store", "where", "found"),
    [
        ("in-place", "--in-store-only", "the store cannot be read: "),
        # What it says too early may be that a task has completed, or that a run is lost: `localflow runs` marks that.
        (
            "early-answer",
            "",
            "was shown COMPLETED, the store has it |`localflow runs` says .*'RUNNING'|a notifier was told that ",
        ),
        ("result-after-record", "--in-store-only", "the file is missing"),
        ("lock-file", "", "the run cannot be claimed though its engine is dead"),
    ],
    ids=["in-place", "early-answer", "result-after-record", "lock-file"],
)
def test_the_torture_notices_a_store_that_breaks_its_promise(
    torture: Torture, store: str, where: str, found: str
) -> None:
    """A store that writes in place, answers early, names what is not there, or locks by a file does not get through."""
    code, told, _ = torture(store, "20", "--lanes", "1", "--until-violation", *([where] if where else []))

    assert code == 1
    assert re.search(found, told), told
