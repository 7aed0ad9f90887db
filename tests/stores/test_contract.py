"""The built-in state stores keep the contract that plugins must keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from localflow.builtin.json_files import JsonStateStore
from localflow.builtin.memory import MemoryStateStore
from localflow.builtin.sqlite import SqliteStateStore
from localflow.testing import StateStoreContract

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localflow.interfaces import StateStore


class TestSqliteStateStore(StateStoreContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> Callable[[], StateStore]:
        """Open the same file each time."""
        return lambda: SqliteStateStore(tmp_path / "state" / "localflow.db")


class TestJsonStateStore(StateStoreContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> Callable[[], StateStore]:
        """Open the same directory each time."""
        return lambda: JsonStateStore(tmp_path / "state" / "runs")


class TestMemoryStateStore(StateStoreContract):
    @pytest.fixture
    def make_store(self) -> Callable[[], StateStore]:
        """Make a new store each time: there is nothing to open again."""
        return MemoryStateStore
