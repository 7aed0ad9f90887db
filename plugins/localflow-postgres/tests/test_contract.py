"""The state store `postgres` keeps localflow's contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from localflow_postgres.store import PostgresStateStore

from localflow.testing import StateStoreContract

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.interfaces import StateStore


class TestContract(StateStoreContract):
    """What localflow asks of every state store, on a real server."""

    @pytest.fixture
    def make_store(self, database: str, schema: str) -> Callable[[], StateStore]:
        """Open a store in a schema of the test's own."""
        return lambda: PostgresStateStore(database, schema)
