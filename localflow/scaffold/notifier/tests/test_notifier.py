"""The notifier `myname` keeps localflow's contract, and is told of what happens in flows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from localflow_myname.notifier import MynameNotifier

from localflow import flow, task
from localflow.testing import NotifierContract

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localflow.interfaces import Notifier


class TestContract(NotifierContract):
    """What localflow asks of every notifier."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """Return the file that it writes."""
        return tmp_path / "myname.log"

    @pytest.fixture
    def notifier(self, path: Path) -> Notifier:
        """Return a new notifier."""
        return MynameNotifier(path)

    @pytest.fixture
    def delivered(self, path: Path) -> Callable[[], list[str]]:
        """Return what reads the lines of the file."""
        return lambda: path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@task
def divide(number: float) -> float:
    """Return one part of so many."""
    return 1 / number


@flow
def main() -> None:
    """Fail."""
    divide(0)


def test_flow_tells_it_of_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow with the settings of a user tells it of the states that they name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "localflow.toml").write_text('[notifiers.myname]\npath = "told.log"\non = ["Failed"]\n')

    main()

    told = (tmp_path / "told.log").read_text().splitlines()
    assert [" is Failed: " in line for line in told] == [True, True]
    assert "divide-0" in told[0]
