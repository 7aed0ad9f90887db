"""A plugin with the real state stores, wrapped so that some appends fail although all is written.

It is installed where the torture runs. Only programs that find the part of these in their environment have failures:
whoever looks at what they have left has none.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from localflow import hookimpl
from localflow.builtin.json_files import JsonStateStore
from localflow.builtin.sqlite import SqliteStateStore
from localflow.testing import FaultyStore

if TYPE_CHECKING:
    from localflow.hookspecs import RegisterStateStore

VARIABLE = "TORTURE_FAILING_PART"


def faulty_sqlite(path: Path = Path(".localflow/localflow.db")) -> FaultyStore:
    """Wrap the store of SQLite."""
    return FaultyStore(SqliteStateStore(path), execute_and_fail=_part())


def faulty_json(path: Path = Path(".localflow/runs")) -> FaultyStore:
    """Wrap the store of JSON lines."""
    return FaultyStore(JsonStateStore(path), execute_and_fail=_part())


def _part() -> float:
    return float(os.environ.get(VARIABLE, "0"))


@hookimpl
def localflow_register_state_stores(register: RegisterStateStore) -> None:
    """Register the wrapped stores."""
    register("faulty-sqlite", faulty_sqlite)
    register("faulty-json", faulty_json)
