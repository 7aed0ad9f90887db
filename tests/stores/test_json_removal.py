"""Removal from the JSON store, and its list of what is unfinished: whatever a process that died has left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.json_files import JsonStateStore
from localflow.errors import StoreError
from localflow.interfaces import CacheEntry, Payload
from localflow.testing.store_records import (
    make_completed,
    make_flow_run,
    make_log_entry,
    make_running,
    make_task_run,
    run_in_threads,
)
from tests.stores.conftest import PROLOGUE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from localflow.interfaces import FlowRun

LARGE = Payload("pickle", bytes(range(256)) * 400)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Say where the store is."""
    return tmp_path / "runs"


@pytest.fixture
def store(path: Path) -> Iterator[JsonStateStore]:
    """Open the store."""
    with closing(JsonStateStore(path)) as store:
        yield store


@pytest.fixture
def flow_run(store: JsonStateStore) -> FlowRun:
    """Record a flow run that has ended, with all that can belong to one."""
    flow_run = make_flow_run(id="some-run", arguments=LARGE)
    task_run = make_task_run(flow_run)
    store.append([flow_run, task_run, make_running(task_run), make_log_entry(task_run)])
    store.append([make_completed(task_run, result=LARGE, cache=CacheEntry("key")), make_completed(flow_run, 1)])
    return flow_run


def die(path: Path, program: str, failpoint: str) -> None:
    """Run a program on the store that is killed at a failpoint."""
    command = [sys.executable, "-c", PROLOGUE + "store = open_store()\n" + program, "json", str(path)]
    done = subprocess.run(
        command, env={**os.environ, "LOCALFLOW_FAILPOINT": failpoint}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == -9, done.stderr


def names(path: Path) -> list[str]:
    """Return what is in a store."""
    return sorted(str(place.relative_to(path)) for place in path.rglob("*"))


def test_nothing_is_left_of_a_removed_run(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """All files of the flow run go, and what the cache has of it."""
    store.remove([flow_run.id])

    assert names(path) == [".gitignore", ".removed", "cache", "store.json", "unfinished"]


def test_space_of_results_is_given_back(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """Large results go with their files, small ones with their lines; the arguments stay, for `resume`."""
    small = make_task_run(flow_run, 2)
    store.append([small, make_completed(small, 1, result=Payload("pickle", b"x" * 60_000))])
    journal = path / flow_run.id / "journal.jsonl"
    before = journal.stat().st_size

    store.remove([flow_run.id], results_only=True)

    assert journal.stat().st_size < before - 60_000
    assert [place.name for place in (path / flow_run.id / "results").iterdir()] == ["some-run-arguments"]
    assert next(store.read(flow_run.id)) == flow_run
    assert list((path / "cache").iterdir()) == []


def test_other_hints_of_a_key_stay(store: JsonStateStore, flow_run: FlowRun) -> None:
    """Of two results under one key that of the flow run that stays is found."""
    other = make_flow_run()
    task_run = make_task_run(other)
    newer = make_completed(task_run, 1, cache=CacheEntry("key", 5.0))
    store.append([other, task_run, newer])

    store.remove([other.id])

    found = store.find_cached("key", 0.0)
    assert found is not None
    assert found.task_run_id == f"{flow_run.id}-1"


def test_removal_that_died_is_finished_by_the_next_opening(
    store: JsonStateStore, path: Path, flow_run: FlowRun
) -> None:
    """A flow run whose removal has begun is gone, and the rest of it goes when the store is opened again."""
    die(path, "store.remove(['some-run'])", "in-remove")

    assert store.list_flow_runs() == []
    assert list(store.read(flow_run.id)) == []
    assert store.find_cached("key", 0.0) is None
    with closing(JsonStateStore(path)) as another:
        assert another.check() == []
    assert names(path) == [".gitignore", ".removed", "cache", "store.json", "unfinished"]


@pytest.mark.parametrize("failpoint", ["before-replace:1", "before-replace:2", "after-replace:2", "in-remove"])
def test_removal_of_results_that_died_loses_nothing_else(
    store: JsonStateStore, path: Path, flow_run: FlowRun, failpoint: str
) -> None:
    """Wherever it is killed, the history and the log are whole, and asking again finishes it."""
    store.append([make_running(flow_run, 2), make_log_entry(flow_run, "said with a change")])
    records, log = list(store.read(flow_run.id)), list(store.read_logs(flow_run.id))
    assert len(log) == 2

    die(path, "store.remove(['some-run'], results_only=True)", failpoint)

    with closing(JsonStateStore(path)) as another:
        assert list(another.read(flow_run.id)) == records
        assert list(another.read_logs(flow_run.id)) == log
        assert another.check() == []
        another.remove([flow_run.id], results_only=True)
        assert another.load_result(flow_run.id, 1) is None
        assert list(another.read_logs(flow_run.id)) == log
        another.append([make_completed(flow_run, 3)])
    assert [name for name in names(path) if name.endswith(".part")] == []


def test_only_flow_runs_are_removed(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """Whatever else is in the store's directory has no id."""
    before = names(path)

    store.remove(["cache", "unfinished", "engines", ".", "..", "../runs", "store.json", ""])

    assert names(path) == before
    for id in ("cache", "unfinished", "engines"):
        with pytest.raises(StoreError, match="no flow run's id"):
            store.append([make_flow_run(id=id)])


# -- the list of what is unfinished ---------------------------------------------------------------------------------


def test_finished_runs_are_not_looked_at(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """The unfinished flow runs are found without a look at the others, be they damaged."""
    unfinished = make_flow_run()
    store.append([unfinished])
    journal = path / flow_run.id / "journal.jsonl"
    journal.write_bytes(b"damage\n")

    with closing(JsonStateStore(path)) as another:
        assert [summary.flow_run for summary in another.list_flow_runs(unfinished=True)] == [unfinished]
    assert [place.name for place in (path / "unfinished").iterdir()] == [unfinished.id]


def test_writer_that_dies_at_the_end_is_forgiven(store: JsonStateStore, path: Path) -> None:
    """A flow run that has ended is not listed though its writer could not take it off the list; then it is."""
    run = make_flow_run(id="ended")
    store.append([run, make_running(run)])

    die(path, "run = next(store.read('ended'))\nstore.append([make_completed(run, 2)])", "line-synced")

    assert [place.name for place in (path / "unfinished").iterdir()] == ["ended"]
    assert store.list_flow_runs(unfinished=True) == []
    assert list((path / "unfinished").iterdir()) == []
    assert len(list(store.read("ended"))) == 3


@pytest.mark.parametrize("failpoint", ["mid-line", "line-written"])
def test_writer_that_dies_at_the_beginning_is_forgiven(store: JsonStateStore, path: Path, failpoint: str) -> None:
    """A flow run is unfinished as soon as it is recorded, and one that is not is not listed."""
    die(path, "store.append([make_flow_run(id='begun')])", failpoint)

    listed = [summary.flow_run.id for summary in store.list_flow_runs(unfinished=True)]

    assert listed == [summary.flow_run.id for summary in store.list_flow_runs()]
    assert listed == (["begun"] if failpoint == "line-written" else [])
    assert [place.name for place in (path / "unfinished").iterdir()] == listed


def test_lost_entry_of_the_list_is_made_again(store: JsonStateStore, path: Path) -> None:
    """What a power loss has taken from the list of unfinished flow runs is put back by whoever lists all."""
    run = make_flow_run()
    store.append([run])
    (path / "unfinished" / run.id).unlink()

    with closing(JsonStateStore(path)) as another:
        assert len(another.list_flow_runs()) == 1
        assert [summary.flow_run for summary in another.list_flow_runs(unfinished=True)] == [run]


# -- what a writer that died has left ---------------------------------------------------------------------------------


@pytest.mark.parametrize("failpoint", ["before-replace", "after-replace", "result-written", "mid-line"])
def test_large_result_without_its_line_goes(store: JsonStateStore, path: Path, failpoint: str) -> None:
    """The next one to add to the flow run removes the files of results that no line names."""
    run = make_flow_run(id="run")
    store.append([run, make_completed(run, 1, result=LARGE)])
    program = "run = next(store.read('run'))\nresult = Payload('pickle', b'x' * 70_000)\n"
    die(path, program + "store.append([make_completed(run, 2, result=result)])", failpoint)
    results = path / "run" / "results"
    assert len(list(results.iterdir())) == 2

    with closing(JsonStateStore(path)) as another:
        another.append([make_running(run, 2)])

        assert another.load_result("run", 0) == LARGE
    assert [place.name for place in results.iterdir()] == ["run-0-1"]


def test_draft_of_a_hint_goes(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """A hint for the cache that was about to be written leaves nothing behind."""
    program = "run = next(store.read('some-run'))\n"
    program += "store.append([make_completed(make_task_run(run), 3, cache=CacheEntry('other'))])"
    die(path, program, "before-replace")
    assert (path / "cache" / ".part").exists()

    JsonStateStore(path).close()

    (file,) = (path / "cache").iterdir()
    assert json.loads(file.read_text())["records"][0]["key"] == "key"


# -- at once with others ---------------------------------------------------------------------------------------------


def test_readers_meet_nothing_wrong_while_runs_are_removed(store: JsonStateStore, path: Path) -> None:
    """Whoever lists, reads and follows flow runs that another process removes finds them whole, emptied or gone."""
    over = threading.Event()

    def work(thread: int) -> None:
        if thread:
            with closing(JsonStateStore(path)) as reader:
                while not over.is_set():
                    for summary in reader.list_flow_runs():
                        id = summary.flow_run.id
                        assert reader.load_result(id, 1) in (LARGE, None)
                        assert len(list(reader.read_logs(id))) in (0, 2)
                        assert len(list(reader.read(id))) in (0, 4)
            return
        try:
            for _ in range(40):
                run = make_flow_run()
                task_run = make_task_run(run)
                said = make_log_entry(task_run)
                store.append(
                    [run, task_run, make_running(task_run), make_completed(task_run, result=LARGE), said, said]
                )
                store.remove([run.id], results_only=True)
                store.remove([run.id])
        finally:
            over.set()

    run_in_threads(work, 3)
