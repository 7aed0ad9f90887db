"""The store in memory: what it does beyond the contract."""

from __future__ import annotations

import pytest

from localflow.builtin.memory import MemoryStateStore
from localflow.errors import StoreError
from localflow.testing.store_records import make_flow_run, make_running


def test_flow_run_is_recorded_once() -> None:
    """A second record of the same flow run is refused and does not take the place of the first."""
    flow_run = make_flow_run()
    store = MemoryStateStore()
    store.append([flow_run, make_running(flow_run)])

    with pytest.raises(StoreError, match="already"):
        store.append([flow_run])

    assert list(store.read(flow_run.id)) == [flow_run, make_running(flow_run)]


def test_stores_share_nothing() -> None:
    """Each store in memory is one of its own."""
    store = MemoryStateStore()
    store.append([make_flow_run()])

    assert MemoryStateStore().list_flow_runs() == []
