"""Engines are measured beside each other by the same programs, and nothing of them is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from benchmarks.peers import environments, side, table
from benchmarks.peers.__main__ import measure
from benchmarks.peers.engines import ENGINES, Engine
from benchmarks.peers.side import Measured

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "benchmarks.peers"]

ORPHAN = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open("child", "w").write(str(child.pid))
time.sleep(float(sys.argv[1]))
"""

RUN = """
import json, sys
from pathlib import Path
from benchmarks.peers import programs

programs.adopt_orphans()
ended = programs.run([sys.executable, "-c", sys.argv[1], sys.argv[2]], Path(sys.argv[3]), limit=float(sys.argv[4]))
print(json.dumps(ended._asdict()))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the comparison as its users do."""
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "name",
    [
        "stdlib",
        pytest.param(
            "loky",
            marks=pytest.mark.skipif(not environments.is_made("loky"), reason="make bench-peers ONLY=loky installs it"),
        ),
    ],
)
def test_every_work_of_an_engine_is_measured_and_told(name: str, tmp_path: Path) -> None:
    """The programs run from beginning to end, and what is printed is also written as JSON."""
    done = run(name, "--tiny", "--json", str(tmp_path / "figures.json"))

    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "figures.json").read_text())
    rounds = {(one["engine"], one["work"]): one["rounds"] for one in told["figures"]}
    assert set(told["versions"]) == {"plain", "stdlib", "localflow", name}
    assert all(f"| {engine} " in done.stdout for engine in told["versions"])
    for engine in {"localflow", name}:
        for work in set(side.MEASURES) - {"stencil"}:
            assert rounds[engine, work][0]["value"] > 0, rounds[engine, work]
        # a busy machine may not let tasks of this size be efficient; then that is said
        (stencil,) = rounds[engine, "stencil"]
        assert stencil["value"] or stencil["detail"].startswith("below 50 %")


def test_an_unknown_engine_is_refused() -> None:
    """A misspelt name is no empty table."""
    done = run("dusk", "--tiny")

    assert done.returncode == 2
    assert "unknown: dusk" in done.stderr


def test_stopping_the_comparison_ends_what_it_has_started() -> None:
    """A SIGTERM leaves no engine running."""
    with subprocess.Popen([*COMMAND, "stdlib"], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as started:
        assert started.stderr is not None
        started.stderr.readline()  # the first figure; another program runs now

        started.send_signal(signal.SIGTERM)

        assert started.wait(30) == 128 + signal.SIGTERM


@pytest.mark.parametrize(("rest", "limit", "code"), [("0", "60", 0), ("600", "2", None)])
def test_processes_in_sessions_of_their_own_do_not_outlive_their_program(
    rest: str, limit: str, code: int | None, tmp_path: Path
) -> None:
    """Whether the program ends or is stopped at its limit, what it has started is found, counted and killed."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, ORPHAN, rest, str(tmp_path), limit],
        cwd=ROOT, capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip

    ended = json.loads(done.stdout)
    assert ended["code"] == code
    assert ended["left_behind"] == 1
    assert not psutil.pid_exists(int((tmp_path / "child").read_text()))


def test_what_goes_wrong_on_an_engine_is_its_figure() -> None:
    """An engine whose program fails is passed by, with the last thing it said."""
    column = table.works("tiny", turns=1)[0]

    measured = measure(Engine("broken", "no_such_peer"), Path(sys.executable), column, limit=60)

    assert measured.value is None
    assert "No module named 'benchmarks.peers.no_such_peer'" in measured.detail


def test_an_engine_that_returns_something_else_has_no_figure() -> None:
    """Quick and wrong does not count."""
    peer = SimpleNamespace(independent=lambda _, count: [0] * count)

    with pytest.raises(ValueError, match="expected"):
        side.independent(peer, None, budget=0.0)


def test_what_cannot_be_installed_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip says comes out of the error, and the next try begins anew."""
    monkeypatch.setattr(environments, "FOLDER", tmp_path)

    with pytest.raises(environments.InstallationError, match="no-such-folder"):
        environments.python("broken", ["./no-such-folder"])

    assert not environments.is_made("broken")


def test_a_figure_that_is_missing_says_why_below_the_table() -> None:
    """A dash means that an engine has nothing for a work; a failure is told in words."""
    columns = [column for column in table.works("usual", turns=1) if column.name in {"chain", "stencil"}]
    figures = {
        ("localflow", "chain"): [Measured(1e-4), Measured(2e-4), Measured(9e-4)],
        ("localflow", "stencil"): [Measured(3e-4)],
        ("joblib", "chain"): [Measured(None)],
        ("joblib", "stencil"): [Measured(5e-3), Measured(None, "had not ended after 180 s, and was killed")],
    }

    lines = list(table.lines(columns, figures, {"localflow": "1", "joblib": "2"}))

    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[3:-1]] for line in lines[:4] if line}
    assert cells["localflow 1"] == ["200", "300"]
    assert cells["joblib 2"] == ["-", "see below"]
    assert "- joblib, stencil: had not ended after 180 s, and was killed" in lines


def test_every_engine_has_a_program() -> None:
    """The list names modules that are there, each with a way to start workers."""
    folder = ROOT / "benchmarks" / "peers"

    missing = [
        engine.name
        for engine in ENGINES.values()
        if "def with_workers(" not in (folder / f"{engine.program}.py").read_text()
    ]

    assert missing == []
