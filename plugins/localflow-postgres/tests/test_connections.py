"""What the store does when connections are lost: nothing twice, nothing by half, nothing said that is not so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from proxies import Proxy

from localflow.interfaces import FlowRun, LogEntry, StateChange, StateType, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow_postgres.store import PostgresStateStore


RUN = FlowRun("0123abcd", "brave-otter", "etl", 1700000000.0, "0123abcd")

_CUT_ALL = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


def change(sequence: int) -> StateChange:
    """Return a state change of the run."""
    return StateChange(RUN, sequence, StateType.RUNNING, "Running", "", 1700000001.0)


def said(text: str) -> LogEntry:
    """Return a log entry of the run."""
    return LogEntry(RUN, 1, 1700000001.0, 20, "etl", text)


@pytest.fixture
def proxy(database: str) -> Iterator[tuple[Proxy, str]]:
    """Put a proxy before the server; comes with the URL to reach the database through it."""
    with tempfile.TemporaryDirectory(prefix="lfpx") as folder:
        socket_folder = Path(psycopg.conninfo.conninfo_to_dict(database)["host"])
        proxy = Proxy(Path(folder), socket_folder)
        yield proxy, database.replace(str(socket_folder), folder)
        proxy.close()


@pytest.mark.parametrize("passes_on", [False, True])
def test_connection_lost_over_a_commit_is_asked_about(
    open_store: Callable[..., PostgresStateStore], proxy: tuple[Proxy, str], passes_on: bool
) -> None:
    """Whether the COMMIT has reached the server or not, the records are there once when `append` returns."""
    cutter, url = proxy
    store = open_store(url)
    store.append([RUN])
    cutter.passes_on, cutter.cuts = passes_on, 1

    store.append([change(1), said("once")])

    assert cutter.cuts == 0
    assert [record.sequence for record in store.read(RUN.id) if isinstance(record, StateChange)] == [1]
    assert [entry.message for _, entry in store.read_logs(RUN.id)] == ["once"]
    store.close()


def test_nothing_is_written_twice_however_often_connections_are_cut(
    open_store: Callable[..., PostgresStateStore], ask: Callable[..., list[tuple[Any, ...]]]
) -> None:
    """While all sessions are ended again and again, each append is there once, in order, and reading goes on."""
    store = open_store()
    claim = store.claim(RUN.id)
    store.append([RUN])
    is_over = threading.Event()
    cuts = 0

    def cut() -> None:
        nonlocal cuts
        while not is_over.wait(0.02):
            ask(_CUT_ALL)
            cuts += 1

    cutter = threading.Thread(target=cut)
    cutter.start()
    recorded = 0
    try:
        for number in range(1, 151):
            while True:
                try:
                    store.append([change(recorded + 1), said(str(number))])
                except StoreError:  # cut too often in a row: then nothing of it is there
                    continue
                recorded += 1
                break
    finally:
        is_over.set()
        cutter.join()

    assert cuts > 3
    assert [record.sequence for record in store.read(RUN.id) if isinstance(record, StateChange)] == [*range(1, 151)]
    assert [entry.message for _, entry in store.read_logs(RUN.id)] == [str(number) for number in range(1, 151)]
    claim.release()


def test_refused_records_do_not_spoil_the_connection(open_store: Callable[..., PostgresStateStore]) -> None:
    """However often the server has refused something in between, what comes next is recorded."""
    store = open_store()
    store.append([RUN])

    for number in range(1, 11):
        with pytest.raises(StoreError, match=f"run '{RUN.id}' has a state change {number} in this state store already"):
            store.append([change(number), change(number), said("never")])
        store.append([change(number), said(str(number))])

    assert [record.sequence for record in store.read(RUN.id) if isinstance(record, StateChange)] == [*range(1, 11)]
    assert [entry.message for _, entry in store.read_logs(RUN.id)] == [str(number) for number in range(1, 11)]


def test_server_is_restarted_under_a_run(open_store: Callable[..., PostgresStateStore], server: Any) -> None:
    """An engine goes on when its server was killed and started again: with its claim, and with all it had recorded."""
    store, other = open_store(), open_store()
    claim = store.claim(RUN.id)
    store.append([RUN, change(1)])
    server.stop()
    server.start()

    store.append([change(2)])

    assert [record.sequence for record in store.read(RUN.id) if isinstance(record, StateChange)] == [1, 2]
    assert other.claim(RUN.id) is None
    claim.release()
    assert other.claim(RUN.id) is not None


def test_run_that_somebody_else_has_taken_is_not_written_to(
    open_store: Callable[..., PostgresStateStore], ask: Callable[..., list[tuple[Any, ...]]]
) -> None:
    """An engine whose claim went with its connection, and is another's now, records nothing more."""
    store, other = open_store(), open_store()
    claim = store.claim(RUN.id)
    store.append([RUN])
    ask(_CUT_ALL)
    taken = other.claim(RUN.id)
    assert taken is not None

    with pytest.raises(StoreError, match=f"another process has taken hold of flow run '{RUN.id}'"):
        store.append([change(1)])

    assert list(other.read(RUN.id)) == [RUN]
    claim.release()
    assert open_store().claim(RUN.id) is None
    taken.release()


def test_claim_of_a_dead_process_is_waited_for(
    open_store: Callable[..., PostgresStateStore],
    ask: Callable[..., list[tuple[Any, ...]]],
    wait_until: Callable[[Callable[[], object], str], None],
    database: str,
    schema: str,
) -> None:
    """A server that is slow to notice the death of an engine does not make it seem alive."""
    store = open_store()
    script = f"""
import sys
from localflow_postgres.store import PostgresStateStore
claim = PostgresStateStore({database!r}, {schema!r}).claim({RUN.id!r})
print("claimed", flush=True)
sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "claimed\n"
    ((backend,),) = ask("SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s", f"localflow {holder.pid}@%")
    os.kill(backend, signal.SIGSTOP)
    claims: list[Any] = []
    waiter = threading.Thread(target=lambda: claims.append(store.claim(RUN.id)))
    try:
        holder.kill()
        holder.wait()
        waiter.start()
        wait_until(
            lambda: claims or ask("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory'"), "nobody waits"
        )
    finally:
        os.kill(backend, signal.SIGCONT)
    waiter.join()
    holder.stdin.close()
    holder.stdout.close()

    assert claims[0] is not None
    claims[0].release()


def test_claim_outlasts_the_timeout_of_idle_sessions(
    open_store: Callable[..., PostgresStateStore], database: str
) -> None:
    """A server that ends sessions in which nothing happens leaves an engine its claim."""
    store, other = open_store(f"{database}&options=-c%20idle_session_timeout%3D50"), open_store()
    claim = store.claim(RUN.id)
    assert claim is not None
    deadline = time.monotonic() + 0.5

    while time.monotonic() < deadline:
        assert other.claim(RUN.id) is None

    claim.release()


def test_server_that_is_gone_is_named(open_store: Callable[..., PostgresStateStore], server: Any) -> None:
    """What cannot be reached is a StoreError with the place, for writing, reading and claiming."""
    store = open_store(connect_timeout=1)
    store.append([RUN])
    server.stop(2)
    try:
        for attempt in (
            lambda: store.append([change(1)]),
            lambda: list(store.read(RUN.id)),
            store.list_flow_runs,
            lambda: store.claim(RUN.id),
        ):
            with pytest.raises(
                StoreError, match=r"state store postgresql://flow@.*/runs schema test_.* cannot be reached"
            ):
                attempt()
    finally:
        server.start()

    assert list(store.read(RUN.id)) == [RUN]


def test_abandoned_reader_holds_nothing(
    open_store: Callable[..., PostgresStateStore], ask: Callable[..., list[tuple[Any, ...]]]
) -> None:
    """Whoever stops reading in the middle leaves no transaction open."""
    store = open_store()
    store.append([RUN, *(change(number) for number in range(1, 20))])
    records = store.read(RUN.id)
    next(records)
    assert ask("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'") == [(1,)]

    del records

    assert ask("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'") == [(0,)]


def test_child_of_a_dead_writer_locks_nothing(
    open_store: Callable[..., PostgresStateStore], database: str, schema: str
) -> None:
    """A process that dies in the middle of a transaction, with a child that lives on, leaves no lock on its run."""
    store = open_store()
    store.append([RUN])
    script = f"""
import os, sys
from localflow_postgres.connections import connect
from localflow_postgres.place import Place
connection = connect(Place({database!r}, {schema!r}, 10.0))
connection.execute("BEGIN")
connection.execute("SELECT * FROM progress FOR UPDATE")
if os.fork() == 0:
    print("locked", flush=True)
    sys.stdin.read()
    os._exit(0)
sys.stdout.flush()
os.kill(os.getpid(), 9)
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "locked\n"
    holder.wait(30)

    store.append([change(1)])

    holder.stdin.close()
    holder.stdout.read()
    holder.stdout.close()


def test_child_uses_no_connection_of_its_parent(open_store: Callable[..., PostgresStateStore]) -> None:
    """In a forked child the store refuses, says why, and closing it there is nothing to the parent."""
    store = open_store()
    store.append([RUN])
    here, there = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            store.append([change(1)])
        except StoreError as error:
            os.write(there, str(error).encode())
        store.close()
        os._exit(0)
    os.close(there)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    told = os.read(here, 1000).decode()
    os.close(here)

    assert f"was opened by process {os.getpid()} and is used in its forked child {child}" in told
    store.append([change(1)])
    assert store.list_flow_runs()[0].change == change(1)
