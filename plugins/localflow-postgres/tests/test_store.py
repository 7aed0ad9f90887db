"""What is special about the state store `postgres`."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from localflow_postgres.store import PostgresStateStore

from localflow.interfaces import (
    CacheEntry,
    Cause,
    Execution,
    FlowRun,
    LogEntry,
    Payload,
    StateChange,
    StateType,
    StoreError,
    TaskRun,
)
from localflow.testing.store_records import make_completed, make_flow_run, make_running, make_task_run, run_in_threads

if TYPE_CHECKING:
    from collections.abc import Callable


# -- opening ---------------------------------------------------------------------------------------------------------


def test_tables_are_made_once_whoever_comes(open_store: Callable[..., PostgresStateStore]) -> None:
    """Several that open a new store at the same moment all have it."""
    stores: list[PostgresStateStore] = []

    run_in_threads(lambda number: stores.append(open_store()), 8)

    stores[0].append([make_flow_run(id="one")])
    assert [len(store.list_flow_runs()) for store in stores] == [1] * 8


def test_stores_in_two_schemas_share_nothing(
    open_store: Callable[..., PostgresStateStore], database: str, schema: str, ask: Callable[..., list[tuple[Any, ...]]]
) -> None:
    """Each schema is a store of its own, with claims of its own; any name may be one."""
    name = f'{schema} "odd" name'
    one, other = open_store(), PostgresStateStore(database, name)
    one.append([make_flow_run(id="one")])
    claims = [one.claim("one"), other.claim("one")]

    assert None not in claims
    assert other.list_flow_runs() == []
    other.close()
    ask(f'DROP SCHEMA "{name.replace(chr(34), chr(34) * 2)}" CASCADE')


def test_newer_format_is_refused(
    open_store: Callable[..., PostgresStateStore], ask: Callable[..., list[tuple[Any, ...]]]
) -> None:
    """A store of a newer format is not touched, and both numbers are told."""
    open_store().close()
    ask("UPDATE format SET version = 7")

    with pytest.raises(StoreError, match="has format version 7, this localflow-postgres reads version 1; upgrade"):
        open_store()


def test_database_of_another_encoding_is_refused(server: Any, schema: str) -> None:
    """A database that cannot hold every text is not used."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")

    with pytest.raises(StoreError, match="has the encoding LATIN1; make a database with ENCODING 'UTF8'"):
        PostgresStateStore(server.url("latin"), schema)


def test_missing_database_is_named(server: Any) -> None:
    """A database that is not there is a StoreError with its name."""
    with pytest.raises(StoreError, match='database "nowhere" does not exist; make the database with createdb'):
        PostgresStateStore(server.url("nowhere"))


def test_store_that_takes_no_writes_says_so(open_store: Callable[..., PostgresStateStore], database: str) -> None:
    """A read-only database is a StoreError when something is to be recorded."""
    open_store()
    store = open_store(f"{database}&options=-c%20default_transaction_read_only%3Don")

    with pytest.raises(StoreError, match=r"cannot be written: cannot execute .* in a read-only transaction"):
        store.append([make_flow_run()])


def test_store_without_rights_is_refused(
    open_store: Callable[..., PostgresStateStore], database: str, ask: Callable[..., list[tuple[Any, ...]]]
) -> None:
    """A user without rights on the schema is told so."""
    open_store()
    ask("CREATE USER stranger")
    with pytest.raises(StoreError, match="may not be used: it needs GRANT USAGE ON SCHEMA"):
        open_store(database.replace("flow@", "stranger@"))


def test_removed_tables_are_noticed(
    open_store: Callable[..., PostgresStateStore], schema: str, ask: Callable[..., list[tuple[Any, ...]]]
) -> None:
    """Tables that vanish while they are in use are a StoreError, and are not made anew."""
    store = open_store()
    store.append([make_flow_run()])
    ask(f"DROP SCHEMA {schema} CASCADE")

    with pytest.raises(StoreError, match="was removed or changed while it was in use"):
        store.append([make_flow_run()])
    with pytest.raises(StoreError, match="was removed or changed while it was in use"):
        store.list_flow_runs()


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_password_is_nowhere(server: Any, database: str, schema: str) -> None:
    """Neither the location nor an error with its traceback shows the password, in whatever form it was given."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE USER secretive PASSWORD 'right one'")
        connection.execute("GRANT CREATE ON DATABASE runs TO secretive")
    password = "hush#hush/1"
    urls = [
        server.url("runs", "secretive", "hush%23hush%2F1"),
        f"host={server.url().partition('host=')[2]} dbname=runs user=secretive password={password}",
        "postgresql://secretive@127.0.0.1:1/runs?password=hush%23hush%2F1&connect_timeout=2",
    ]
    told = []
    for url in urls:
        with pytest.raises(StoreError) as caught:
            PostgresStateStore(url, schema, connect_timeout=1)
        told.append("".join(traceback.format_exception(caught.value)))
    for url in (f"postgresql://x:{password}@[/", f"host=x password={password} ="):
        with pytest.raises(ValueError, match="url is no PostgreSQL URL") as wrong:
            PostgresStateStore(url)
        told.append("".join(traceback.format_exception(wrong.value)))
    with_right_one = PostgresStateStore(server.url("runs", "secretive", "right%20one"), schema)
    told.append(with_right_one.location)
    with_right_one.close()

    assert "password authentication failed" in told[0]
    assert told[-1].startswith("postgresql://secretive@")
    for text in told:
        assert not any(form in text for form in (password, "hush%23", "right one", "right%20one"))


# -- values ----------------------------------------------------------------------------------------------------------


def test_result_in_many_parts_is_kept(
    open_store: Callable[..., PostgresStateStore], ask: Callable[..., list[tuple[Any, ...]]]
) -> None:
    """A result of many megabytes comes back byte for byte, and is removed with all its parts."""
    store = open_store()
    flow_run = make_flow_run()
    task_run = make_task_run(flow_run)
    payload = Payload("pickle", bytes(range(256)) * (25 << 12) + b"end")
    store.append([flow_run, task_run, make_completed(task_run, 1, result=payload)])

    assert store.load_result(flow_run.id, 1) == payload
    assert ask("SELECT count(*) FROM result_parts") == [(4,)]
    store.remove([flow_run.id], results_only=True)
    assert store.load_result(flow_run.id, 1) is None
    assert ask("SELECT count(*) FROM result_parts") == [(0,)]


def test_missing_part_of_a_result_is_noticed(
    open_store: Callable[..., PostgresStateStore], ask: Callable[..., list[tuple[Any, ...]]]
) -> None:
    """A result that is not whole is never handed out."""
    store = open_store()
    flow_run = make_flow_run()
    store.append([flow_run, make_completed(flow_run, 1, result=Payload("pickle", bytes(20 << 20)))])
    ask("DELETE FROM result_parts WHERE part = 1")

    with pytest.raises(StoreError, match="a result has 2 parts where 3 were recorded"):
        store.load_result(flow_run.id, 0)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("DELETE FROM state_changes WHERE number = 1 AND sequence = 1", "not all state changes of run top-1 are there"),
        ("DELETE FROM task_runs", "a run top-1 has state changes and is not there"),
        ("DELETE FROM log_entries WHERE position = 1", "not all log entries of flow run top are there"),
        ("DELETE FROM flow_runs WHERE id = 'top'", "flow run below is part of a tree whose top is not there"),
        ("DELETE FROM result_parts WHERE part = 0", "a result of run top-1 is not all there"),
        ("UPDATE progress SET is_final = true", "whether flow run top has ended is noted wrongly"),
        ("DELETE FROM progress WHERE log_entries = 2", "the progress of flow run top is not there"),
    ],
)
def test_check_names_what_is_wrong(
    open_store: Callable[..., PostgresStateStore], ask: Callable[..., list[tuple[Any, ...]]], damage: str, problem: str
) -> None:
    """Whatever is missing in the tables is named."""
    store = open_store()
    top = make_flow_run(id="top")
    task_run = make_task_run(top)
    entries = [LogEntry(task_run, 1, 1.0, 20, "x", str(number)) for number in range(2)]
    completed = make_completed(task_run, result=Payload("pickle", bytes(5000)))
    store.append([top, make_running(top), task_run, make_running(task_run), completed, *entries])
    store.append([make_flow_run(id="below", root_id="top", parent_id="top")])
    assert store.check() == []

    ask(damage)

    assert problem in store.check()


def test_empty_and_zero_are_not_nothing(open_store: Callable[..., PostgresStateStore]) -> None:
    """What is empty or 0 in a cause, an execution or a cache entry comes back as that."""
    store = open_store()
    flow_run = make_flow_run()
    causes = [Cause(""), Cause("worker", signal=0, exit_code=0, pid=0, arguments={"": ""})]
    changes = [
        make_running(
            flow_run, number, cause=cause, execution=Execution("", 0, 0.0, 0.0, 0.0, 0), cache=CacheEntry("", 0.0)
        )
        for number, cause in enumerate(causes, 1)
    ]
    store.append([flow_run, *changes])

    assert list(store.read(flow_run.id)) == [flow_run, *changes]


# -- large runs ------------------------------------------------------------------------------------------------------


def test_large_run_is_read_in_pages(
    open_store: Callable[..., PostgresStateStore], ask: Callable[..., list[tuple[Any, ...]]]
) -> None:
    """A run of more task runs than are kept in memory is read as it was recorded, and its standings are kept."""
    store = open_store()
    flow_run = make_flow_run()
    store.append([flow_run])
    tasks = [make_task_run(flow_run, number, map_number=1 + number % 2) for number in range(1, 55_001)]
    changes: list[StateChange] = []
    for start in range(0, len(tasks), 11_000):
        some = tasks[start : start + 11_000]
        ended = [change for task in some for change in (make_running(task), make_completed(task, result=None))]
        store.append([*some, *ended])
        changes += ended
    completed = make_completed(flow_run, 1, result=None)
    store.append([completed])
    counted = store.read_standings(flow_run.id)

    read = list(store.read(flow_run.id))

    assert read == [flow_run, *tasks, completed, *changes]
    assert ask("SELECT standings IS NOT NULL FROM progress") == [(True,)]
    assert [(each.map_number, each.type, each.name, each.size) for each in counted] == [
        (2, StateType.COMPLETED, "Completed", 27_500),
        (1, StateType.COMPLETED, "Completed", 27_500),
    ]
    store.append([make_running(tasks[0], 3)])
    assert ask("SELECT standings IS NOT NULL FROM progress") == [(False,)]
    assert [each.size for each in store.read_standings(flow_run.id)] == [1, 27_500, 27_499]


def test_records_are_readable_in_sql(
    open_store: Callable[..., PostgresStateStore], ask: Callable[..., list[tuple[Any, ...]]]
) -> None:
    """Names, states and parameters stand in columns that anybody can ask for."""
    store = open_store()
    flow_run = FlowRun("ab", "calm-heron", "etl", 1.0, "ab", parameters={"day": 3})
    task_run = TaskRun(flow_run, 1, "load-0", "load", 0, 1.0)
    store.append([flow_run, task_run, make_running(task_run)])

    found = ask(
        "SELECT f.name, t.name, c.type, (f.parameters::jsonb ->> 'day')::int FROM flow_runs f "
        "JOIN task_runs t ON t.flow_run = f.key JOIN state_changes c USING (flow_run, number)"
    )

    assert found == [("calm-heron", "load-0", "RUNNING", 3)]
