"""The store in memory: what it does beyond the contract."""

from __future__ import annotations

from localflow.builtin.memory import MemoryStateStore
from localflow.testing.store_records import make_flow_run


def test_stores_share_nothing() -> None:
    """Each store in memory is one of its own."""
    store = MemoryStateStore()
    store.append([make_flow_run()])

    assert MemoryStateStore().list_flow_runs() == []
