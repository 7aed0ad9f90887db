"""`localflow store copy` from SQLite to PostgreSQL and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from localflow.builtin.sqlite import SqliteStateStore
from localflow.copying import copy_trees
from localflow.interfaces import CacheEntry, Payload, StateType, StoreError
from localflow.payloads import pack, unpack
from localflow.testing.store_records import (
    ODD_TEXTS,
    make_completed,
    make_flow_run,
    make_log_entry,
    make_running,
    make_task_run,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from localflow_postgres.store import PostgresStateStore

    from localflow.interfaces import StateStore

MANY = 3_000  # task runs, which take several appends


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Callable[[str], SqliteStateStore]]:
    """Give a function that opens a store in SQLite by a name."""
    opened: list[SqliteStateStore] = []

    def open_sqlite(name: str) -> SqliteStateStore:
        opened.append(SqliteStateStore(tmp_path / name / "localflow.db"))
        return opened[-1]

    yield open_sqlite
    for store in opened:
        store.close()


def copy_all(source: StateStore, target: StateStore) -> list[str]:
    """Copy all trees, the oldest first; gives what became of each."""
    summaries = reversed(source.list_flow_runs())
    chosen = [each for each in summaries if each.flow_run.parent_id is None]
    return [each.outcome for each in copy_trees(source, target, chosen)]


def contents(store: StateStore) -> list[Any]:
    """Return all that a store gives of its flow runs but the results."""
    return [
        (summary, list(store.read(summary.flow_run.id)), list(store.read_logs(summary.flow_run.id)),
         store.read_standings(summary.flow_run.id))
        for summary in store.list_flow_runs()
    ]  # fmt: skip


def test_runs_are_the_same_there_and_back(
    sqlite: Callable[[str], SqliteStateStore], open_store: Callable[..., PostgresStateStore]
) -> None:
    """Trees with odd texts, many task runs and large values are the same in PostgreSQL, and again in SQLite."""
    one, two, postgres = sqlite("one"), sqlite("two"), open_store()
    value = list(range(200_000))
    for number, text in enumerate(ODD_TEXTS[:-1]):
        top = make_flow_run(name=text, parameters={"text": text}, created_at=1700000000.0 + number)
        child = make_flow_run(root_id=top.id, parent_id=f"{top.id}-1", created_at=top.created_at + 0.5)
        task = make_task_run(child, name=text, task=text)
        large = make_completed(task, result=pack(value, one.value_folder(top.id)), cache=CacheEntry(f"{text} key"))
        one.append([top, make_running(top), child, make_running(child), task, make_running(task), large])
        one.append([make_log_entry(task, text), make_completed(child), make_completed(top, type=StateType.FAILED)])
    many = make_flow_run(id="many", created_at=1700001000.0)
    tasks = [make_task_run(many, number) for number in range(1, MANY + 1)]
    one.append([many, make_running(many), *tasks, *map(make_running, tasks), *map(make_completed, tasks)])
    one.append([make_completed(many)])

    outcomes = [copy_all(one, postgres), copy_all(postgres, two), copy_all(one, postgres), copy_all(two, postgres)]

    assert [set(each) for each in outcomes] == [{"copied"}, {"copied"}, {"present"}, {"present"}]
    assert contents(one) == contents(postgres) == contents(two)
    assert postgres.check() == two.check() == []
    for store in (postgres, two):
        assert store.load_result("many", MANY) == Payload("json", b'{"rows": 3}')
        for text in ODD_TEXTS[:-1]:
            found = store.find_cached(f"{text} key", 0.0)
            assert found is not None
            assert unpack(found.result) == value


def test_copy_that_cannot_be_finished_leaves_nothing(
    sqlite: Callable[[str], SqliteStateStore],
    open_store: Callable[..., PostgresStateStore],
    ask: Callable[..., list[tuple[Any, ...]]],
) -> None:
    """If PostgreSQL refuses in the middle of a large run, what it had of it is removed; a second attempt succeeds."""
    source, target = sqlite("one"), open_store()
    run = make_flow_run(id="run")
    tasks = [make_task_run(run, number) for number in range(1, MANY + 1)]
    source.append([run, *tasks, *map(make_running, tasks), make_completed(run, 1)])
    ask(f"ALTER TABLE state_changes ADD CONSTRAINT small CHECK (number <> {MANY})")

    with pytest.raises(StoreError, match='violates check constraint "small"'):
        copy_all(source, target)

    assert target.list_flow_runs() == []
    assert ask("SELECT count(*) FROM task_runs") == [(0,)]
    ask("ALTER TABLE state_changes DROP CONSTRAINT small")
    assert copy_all(source, target) == ["copied"]
    assert contents(target) == contents(source)


FLOW = """
from pathlib import Path
from localflow import flow, task

@task
def load(name):
    with open("calls.txt", "a") as file:
        file.write(f"{name}\\n")
    return name * 100_000

@task
def count(text):
    if not Path("ready").exists():
        raise RuntimeError("not ready")
    return len(text)

@flow
def main(name: str = "x"):
    return count(load(name))
"""


def test_copied_run_is_resumed(tmp_path: Path, database: str, schema: str) -> None:
    """A run that failed with its records in SQLite goes on with them in PostgreSQL, under either name of the store."""
    (tmp_path / "flows.py").write_text(FLOW)
    (tmp_path / "localflow.toml").write_text(
        f'[stores.team]\ntype = "postgres"\nurl = "env:PGURL"\nschema = "{schema}"\n'
    )

    def localflow(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "localflow", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60,
            env=os.environ | {"PGURL": database} | environment, check=False,
        )  # fmt: skip

    assert localflow("run", "flows.py").returncode == 1
    copied = localflow("store", "copy", "sqlite", "team", "--json")
    assert copied.returncode == 0, copied.stderr
    assert json.loads(copied.stdout)["to"].startswith("postgresql://flow@")
    (tmp_path / "ready").touch()

    resumed = localflow("resume", "@last", LOCALFLOW_STORE="team")

    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "calls.txt").read_text() == "x\n"
    back = localflow("store", "copy", "team", "sqlite")
    assert back.returncode == 3
    assert "another history of it is in" in back.stderr
