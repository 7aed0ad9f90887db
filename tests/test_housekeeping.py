"""Runs that may go are removed under a claim, and what dead engines have left is found."""

from __future__ import annotations

import logging
import os
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.memory import MemoryStateStore
from localflow.control import ControlChannel, control_path
from localflow.errors import StoreError
from localflow.housekeeping import (
    apply_retention,
    disk_usage,
    due_runs,
    find_leftovers,
    remove_leftovers,
    remove_runs,
    store_path,
)
from localflow.project import Project
from localflow.records import FlowRun, StateChange
from localflow.states import StateType

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localflow.interfaces import StateStore

DAY = 86_400.0


class Surviving(MemoryStateStore):
    """A store in memory that says it is none, as retention has nothing to do with what is gone anyway."""

    survives = True


@pytest.fixture
def store() -> Iterator[StateStore]:
    """An empty store."""
    with closing(Surviving()) as store:
        yield store


def record(store: StateStore, name: str, age: float = 0.0, type: StateType = StateType.COMPLETED) -> FlowRun:
    """Record a flow run whose newest state is so old."""
    run = FlowRun(name, name, "main", time.time() - age, name)
    change = StateChange(run, 1, type, type.value.capitalize(), "", time.time() - age)
    store.append([run, change])
    return run


def names(store: StateStore) -> set[str]:
    """Return what is recorded."""
    return {summary.flow_run.name for summary in store.list_flow_runs()}


def project_with(text: str) -> Project:
    """Load the project of a localflow.toml with this text."""
    Path("localflow.toml").write_text(text)
    return Project.load()


# -- runs --


def test_runs_are_removed_unless_an_engine_has_them(store: StateStore) -> None:
    """A claim of somebody else keeps a run, and is told."""
    for name in "abc":
        record(store, name)
    held = store.claim("b")

    removal = remove_runs(store, store.list_flow_runs())

    assert held is not None
    assert names(store) == {"b"}
    assert {each.flow_run.name for each in removal.removed} == {"a", "c"}
    assert [each.flow_run.name for each in removal.kept] == ["b"]


def test_claims_end_with_the_removal(store: StateStore) -> None:
    """Also where the store refuses, nothing stays claimed."""

    class Refusing(Surviving):
        def remove(self, root_ids: Sequence[str], *, results_only: bool = False) -> None:
            raise StoreError("no")

    with closing(Refusing()) as refusing:
        record(refusing, "a")
        with pytest.raises(StoreError, match="no"):
            remove_runs(refusing, refusing.list_flow_runs())

        assert refusing.claim("a") is not None


def test_many_runs_are_claimed_some_at_a_time(store: StateStore) -> None:
    """However many runs go, only so many are claimed at once."""

    class Counting(Surviving):
        sizes: list[int] = []  # noqa: RUF012 - of the one object there is

        def remove(self, root_ids: Sequence[str], *, results_only: bool = False) -> None:
            self.sizes.append(len(root_ids))
            super().remove(root_ids, results_only=results_only)

    with closing(Counting()) as counting:
        for number in range(250):
            record(counting, f"run-{number}")

        remove_runs(counting, counting.list_flow_runs())

        assert names(counting) == set()
        assert counting.sizes == [100, 100, 50]


# -- [retention] --


def test_without_retention_nothing_is_asked() -> None:
    """Where nothing is configured the store is not even looked at."""
    assert apply_retention(project_with(""), None) == 0  # type: ignore[arg-type]


def test_retention_removes_what_is_due(store: StateStore) -> None:
    """By default every run that has ended and is old enough goes, whatever its state."""
    record(store, "old", 40 * DAY)
    record(store, "failed", 40 * DAY, StateType.FAILED)
    record(store, "young", DAY)

    assert apply_retention(project_with('[retention]\nolder_than = "30d"'), store) == 2
    assert names(store) == {"young"}


def test_retention_keeps_states_that_are_not_named(store: StateStore) -> None:
    """With `states`, what may still be resumed can be kept for ever."""
    record(store, "old", 40 * DAY)
    record(store, "failed", 40 * DAY, StateType.FAILED)

    apply_retention(project_with('[retention]\nolder_than = "30d"\nstates = ["Completed"]'), store)

    assert names(store) == {"failed"}


def test_retention_never_removes_what_has_not_ended(store: StateStore) -> None:
    """A run that seems to run for a month is for the user to look at."""
    record(store, "running", 40 * DAY, StateType.RUNNING)

    assert due_runs({"older_than": "1d", "states": ["Running"]}, store.list_flow_runs(), time.time()) == []
    assert apply_retention(project_with("[retention]\nkeep_last = 1"), store) == 0


def test_retention_that_fails_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A store that cannot remove runs changes nothing about the run that has ended."""

    class Refusing(Surviving):
        def remove(self, root_ids: Sequence[str], *, results_only: bool = False) -> None:
            raise StoreError("the store is full")

    with closing(Refusing()) as refusing, caplog.at_level(logging.WARNING):
        record(refusing, "b", 2.0)
        record(refusing, "a", 1.0)

        assert apply_retention(project_with("[retention]\nkeep_last = 1"), refusing) == 0

    assert "[retention] could not be applied: the store is full" in caplog.text


# -- files --


def test_place_of_the_store_is_that_of_its_option() -> None:
    """It is taken from the folder of localflow.toml; what has no path has no place."""
    assert store_path(project_with('[stores.sqlite]\npath = "data/runs.db"')) == Path.cwd() / "data/runs.db"
    assert store_path(project_with('store = "memory"')) is None


def test_disk_usage_counts_what_sqlite_keeps_beside_a_file() -> None:
    """The write-ahead log is part of the database."""
    Path("a.db").write_bytes(b"x" * 10_000)
    alone = disk_usage(Path("a.db"))
    Path("a.db-wal").write_bytes(b"x" * 10_000)

    assert alone >= 10_000
    assert disk_usage(Path("a.db")) >= 2 * 10_000
    assert disk_usage(Path("none.db")) == 0


def test_disk_usage_of_a_folder_is_that_of_all_files_in_it() -> None:
    """Folders in it count, links do not."""
    Path("runs/a/results").mkdir(parents=True)
    Path("runs/a/results/x").write_bytes(b"x" * 10_000)
    Path("runs/a/journal").write_bytes(b"x" * 10_000)
    Path("runs/link").symlink_to("/")

    assert 20_000 <= disk_usage(Path("runs")) < 100_000


def aged(path: Path, seconds: float) -> Path:
    """Make a file, or take what is there, and set its time back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch()
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_old_drafts_are_found_in_places_of_ours_only() -> None:
    """A draft of an hour ago has lost its writer; the user's own files are none of our business."""
    project = project_with('[stores.sqlite]\npath = "data/runs.db"')
    draft = aged(Path(".localflow/runs/x/results/y.part").absolute(), 7200)
    database = aged(Path("data/runs.db.new-wal").absolute(), 7200)
    aged(Path(".localflow/young.part"), 60)
    aged(Path("data/mine.part"), 7200)
    aged(Path("mine.new"), 7200)

    found = find_leftovers(project, time.time())

    assert set(found) == {draft, database}
    assert remove_leftovers(found) == []
    assert find_leftovers(project, time.time()) == []
    assert Path("data/mine.part").exists()


def test_folder_that_is_no_store_is_not_looked_into() -> None:
    """Only with the store's own mark in it a folder is ours."""
    project = project_with('store = "json"\n[stores.json]\npath = "runs"')
    draft = aged(Path("runs/x/results/y.part").absolute(), 7200)
    before = find_leftovers(project, time.time())
    Path("runs/store.json").touch()

    assert before == []
    assert find_leftovers(project, time.time()) == [draft]


def test_pipes_that_nobody_listens_at_are_found() -> None:
    """The pipe of a living engine stays; looking does not remove the other."""
    project = project_with("")
    alive = ControlChannel(control_path(project.state_directory, "alive"), lambda: None)
    assert alive.open()
    dead = control_path(project.state_directory, "dead")
    os.mkfifo(dead)
    try:
        found = find_leftovers(project, time.time())
    finally:
        alive.close()

    assert found == [dead]
    assert dead.exists()


@pytest.mark.parametrize("settings", ["", 'store = "json"'], ids=["sqlite", "json"])
def test_claims_of_dead_engines_are_found_and_go(settings: str) -> None:
    """The claim of a living engine stays, and keeps its run from everybody else."""
    project = project_with(settings)
    with closing(project.open_store()) as store:
        claim = store.claim("alive")
        assert claim is not None
        path = store_path(project)
        assert path is not None
        dead = (path if path.is_dir() else path.parent) / "engines/dead"
        dead.touch()

        found = find_leftovers(project, time.time())
        assert found == [dead]
        assert remove_leftovers([*found, dead.with_name("alive")]) == [dead.with_name("alive")]
        assert not dead.exists()
        assert store.claim("alive") is None
        claim.release()


def test_what_a_dead_repair_has_left_is_found() -> None:
    """Its workshop holds copies only; what was set aside is the user's to remove."""
    project = project_with("")
    bench = Path(".localflow/localflow.db.repair").absolute()
    bench.mkdir(parents=True)
    (bench / "sound.db").touch()
    aged(bench, 7200)
    aged(Path(".localflow/runs/x.damaged-20260101T000000Z/y.part"), 7200)

    found = find_leftovers(project, time.time())

    assert found == [bench]
    assert remove_leftovers(found) == []
    assert not bench.exists()


def test_end_of_a_run_waits_for_some_removals_only(store: StateStore) -> None:
    """A long history goes by and by, the oldest first."""
    for number in range(50):
        record(store, f"run-{number:02}", (50 - number) * DAY)
    project = project_with("[retention]\nkeep_last = 1")

    removed = [apply_retention(project, store) for _ in range(4)]

    assert removed == [20, 20, 9, 0]
    assert names(store) == {"run-49"}
