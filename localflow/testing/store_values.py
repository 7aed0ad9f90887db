"""The contract of a state store: large values, which workers write as files and the store keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from localflow.capabilities import find_capability
from localflow.interfaces import CacheEntry
from localflow.large_values import FILE
from localflow.payloads import pack, unpack
from localflow.testing.promises import belongs_to
from localflow.testing.store_records import StoreFixtures, make_completed, make_flow_run, make_task_run

if TYPE_CHECKING:
    from pathlib import Path

    from localflow.interfaces import FlowRun, Folder, Payload, StateStore

VALUE = [bytes(range(256)) * 2000, "and more"]


@belongs_to("value_folder")
class ValueContract(StoreFixtures):
    """What a store must do that has a folder for large values."""

    def test_value_in_a_file_is_kept_with_its_record(self, store: StateStore) -> None:
        """A recorded draft stays when its folder is closed, and is found by its run and by its cache key."""
        flow_run, payload, folder = _drafted(store)
        task_run = make_task_run(flow_run)
        assert payload.format == FILE

        store.append([flow_run, task_run, make_completed(task_run, result=payload, cache=CacheEntry("key"))])
        folder.close()

        loaded, found = store.load_result(flow_run.id, 1), store.find_cached("key", 0.0)
        assert loaded is not None
        assert found is not None
        assert unpack(loaded) == unpack(found.result) == VALUE

    def test_value_that_is_not_recorded_goes(self, store: StateStore) -> None:
        """A draft that no record names is gone when its folder is closed."""
        flow_run, _, folder = _drafted(store)
        store.append([flow_run])
        drafts = _files(folder)

        folder.close()

        assert len(drafts) == 1
        assert _files(folder) == []

    def test_value_goes_with_its_results(self, store: StateStore) -> None:
        """Removing results, or whole runs, removes the files."""
        if not find_capability("state store", "remove").is_promised(store):
            pytest.skip(f"{type(store).__name__} does not promise remove")
        for results_only in (True, False):
            flow_run, payload, folder = _drafted(store)
            store.append([flow_run, make_completed(flow_run, 1, result=payload)])
            folder.close()
            kept = _files(folder)

            store.remove([flow_run.id], results_only=results_only)

            assert len(kept) == 1
            assert _files(folder) == []
            assert store.load_result(flow_run.id, 0) is None


def _drafted(store: StateStore) -> tuple[FlowRun, Payload, Folder]:
    """Return a flow run, a large value of it as a draft, and the folder that this lies in."""
    flow_run = make_flow_run()
    folder = store.value_folder(flow_run.root_id)
    assert folder is not None
    return flow_run, pack(VALUE, folder), folder


def _files(folder: Folder) -> list[Path]:
    assert folder.path is not None
    return [path for path in folder.path.rglob("*") if path.is_file()] if folder.path.exists() else []
