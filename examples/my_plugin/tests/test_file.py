"""The notifier `file` keeps localflow's contract."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from localflow_my_plugin.file import FileNotifier

from localflow.testing import NotifierContract, make_change

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localflow.interfaces import Notifier


class TestContract(NotifierContract):
    """What localflow asks of every notifier."""

    @pytest.fixture
    def notifier(self, tmp_path: Path) -> Notifier:
        """Write to a file in a folder that does not exist yet."""
        return FileNotifier(tmp_path / "log" / "events.jsonl")

    @pytest.fixture
    def delivered(self, tmp_path: Path) -> Callable[[], list[str]]:
        """Read the file."""
        path = tmp_path / "log" / "events.jsonl"
        return lambda: path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def test_lines_are_json(tmp_path: Path) -> None:
    """Each line can be read on its own, with `jq` or `json.loads`."""
    notifier = FileNotifier(tmp_path / "events.jsonl")

    notifier.notify(make_change(task_run="extract-0"))
    notifier.notify(make_change(task_run="load-0"))

    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["run_name"] for line in lines] == ["extract-0", "load-0"]
