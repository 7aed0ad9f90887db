"""Stores of earlier formats: opened, read, added to and marked as of the newest one; later formats are refused."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.json_files import JsonStateStore
from localflow.errors import CorruptStoreError, StoreVersionError
from localflow.interfaces import FlowRun, StateType, TaskRun
from localflow.testing.store_records import changes_of, make_running

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture
def golden(tmp_path: Path) -> Callable[[int], Path]:
    """Copy the store that a localflow of an earlier format has left, as it would have been kept."""

    def copy(version: int) -> Path:
        path = tmp_path / "runs"
        shutil.copytree(GOLDEN / f"json-{version}", path)
        for place in [path, *path.rglob("*")]:
            place.chmod(0o700 if place.is_dir() else 0o600)
        return path

    return copy


def version_of(path: Path) -> int:
    """Return the version that a store says it has."""
    version: int = json.loads((path / "store.json").read_text())["version"]
    return version


def contents(path: Path) -> dict[str, bytes]:
    """Return all files of a store."""
    return {str(place): place.read_bytes() for place in path.rglob("*") if place.is_file()}


@pytest.mark.parametrize("version", [1, 2])
def test_golden_store_is_read(golden: Callable[[int], Path], version: int) -> None:
    """Everything in a store of each format is there: records, results, logs, what the cache has."""
    path = golden(version)

    with closing(JsonStateStore(path)) as store:
        assert [summary.flow_run.id for summary in store.list_flow_runs()] == [
            "unfinished-run",
            "child-run",
            "finished-run",
        ]
        assert [summary.flow_run.id for summary in store.list_flow_runs(unfinished=True)] == ["unfinished-run"]
        flow_run, task_run, *changes = store.read("finished-run")
        assert isinstance(flow_run, FlowRun)
        assert isinstance(task_run, TaskRun)
        assert (flow_run.parameters, flow_run.code, flow_run.inputs) == ({"names": ["orion", "café"]}, "", "")
        assert (task_run.tags, task_run.code, task_run.inputs) == (("slow",), "", "")
        assert changes_of(changes, flow_run)[-1].type is StateType.FAILED
        large, small = store.load_result("finished-run", 1), store.load_result("child-run", 1)
        assert large is not None
        assert len(large.data) == 257 * 256
        assert small is not None
        cached = store.find_cached("load-v1", 0.0)
        assert cached is not None
        assert cached.result == small
        assert [entry.message for _, entry in store.read_logs("finished-run")] == ["loading"]
        assert store.check() == []


def test_store_of_format_1_is_migrated(golden: Callable[[int], Path]) -> None:
    """At its first opening it becomes one of format 2, and what is recorded again is read by the next opening."""
    path = golden(1)
    with closing(JsonStateStore(path)) as store:
        assert version_of(path) == 2
        flow_run = next(store.read("unfinished-run"))
        assert isinstance(flow_run, FlowRun)
        store.append([flow_run._replace(code="new"), make_running(flow_run, 2)])

    with closing(JsonStateStore(path)) as store:
        assert next(store.read("unfinished-run")) == flow_run._replace(code="new")
        assert [summary.flow_run.id for summary in store.list_flow_runs(unfinished=True)] == ["unfinished-run"]


def test_migration_that_died_begins_again(golden: Callable[[int], Path]) -> None:
    """A store is marked last, so what a killed migration has done before is done once more."""
    path = golden(1)
    (path / "store.json.part").write_text('{"form')
    (path / "unfinished").mkdir(mode=0o700)
    (path / "unfinished" / "finished-run").touch(mode=0o600)

    with closing(JsonStateStore(path)) as store:
        assert [summary.flow_run.id for summary in store.list_flow_runs(unfinished=True)] == ["unfinished-run"]

    assert version_of(path) == 2
    assert not (path / "store.json.part").exists()
    assert [place.name for place in (path / "unfinished").iterdir()] == ["unfinished-run"]


def test_damaged_run_does_not_stop_the_migration(golden: Callable[[int], Path]) -> None:
    """A flow run that cannot be read may be unfinished: it is looked at again whenever that is asked."""
    path = golden(1)
    journal = path / "finished-run" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"orion", b"opion"))

    with closing(JsonStateStore(path)) as store:
        assert [summary.flow_run.id for summary in store.list_flow_runs(unfinished=True)] == ["unfinished-run"]
        with pytest.raises(CorruptStoreError):
            store.read("finished-run")


@pytest.mark.parametrize("version", [3, 0, -1, "2", None, 1.5])
def test_other_formats_are_refused(golden: Callable[[int], Path], version: object) -> None:
    """A store of a later format is named with both versions, and nothing in it is touched."""
    path = golden(1)
    (path / "store.json").write_text(json.dumps({"format": "localflow state store", "version": version}))
    before = contents(path)

    with pytest.raises(StoreVersionError, match=f"has format version {version}, this localflow reads version 2"):
        JsonStateStore(path)

    assert contents(path) == before
