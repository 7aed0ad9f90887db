"""The built-in state stores keep the contract that plugins must keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from localflow.builtin.json_files import JsonStateStore
from localflow.builtin.memory import MemoryStateStore
from localflow.builtin.sqlite import SqliteStateStore
from localflow.builtin.storage import standing_rows
from localflow.testing import StateStoreContract
from localflow.testing.store_choice import ChoiceContract

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localflow.interfaces import StateStore


class TestSqliteStateStore(StateStoreContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> Callable[[], StateStore]:
        """Open the same file each time."""
        return lambda: SqliteStateStore(tmp_path / "state" / "localflow.db")


class TestSqliteStateStoreThatKeepsStandings(ChoiceContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], StateStore]:
        """Open the same file each time, with every flow run taken for a large one."""
        monkeypatch.setattr(standing_rows, "FEW_CHANGES", 0)
        return lambda: SqliteStateStore(tmp_path / "state" / "localflow.db")


class TestJsonStateStore(StateStoreContract):
    model_examples = 20

    @pytest.fixture
    def make_store(self, tmp_path: Path) -> Callable[[], StateStore]:
        """Open the same directory each time."""
        return lambda: JsonStateStore(tmp_path / "state" / "runs")


class TestMemoryStateStore(StateStoreContract):
    model_examples = 50

    @pytest.fixture
    def make_store(self) -> Callable[[], StateStore]:
        """Make a new store each time: there is nothing to open again."""
        return MemoryStateStore
