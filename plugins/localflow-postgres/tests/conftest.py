"""A PostgreSQL server of the tests' own: in a temporary folder, on a socket there and on no port, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from localflow_postgres.store import PostgresStateStore
from psycopg.sql import SQL, Identifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_UNPRIVILEGED = ("postgres", "nobody")  # who may run a server where the tests run as root


class Server:
    """A server that can be stopped, killed and started again."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._folder = folder
        self._data = folder / "data"
        self._user: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            self._user = next((name for name in _UNPRIVILEGED if _is_user(name)), None)
            if self._user is None:
                pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres or nobody here")
            shutil.chown(folder, self._user)
        self._run("initdb", "-D", str(self._data), "-U", "flow", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        with (self._data / "pg_hba.conf").open("w") as file:
            file.write("local all secretive scram-sha-256\nlocal all all trust\n")
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(
                f"listen_addresses = ''\nunix_socket_directories = '{folder}'\nmax_connections = 100\n"
                "fsync = off\nshared_buffers = '64MB'\nlogging_collector = off\n"
                "password_encryption = 'scram-sha-256'\n"
            )
        self.start()

    def url(self, database: str = "postgres", user: str = "flow", password: str = "") -> str:
        """Return what to connect with."""
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@/{database}?host={self._folder}"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=self._user, group=self._group, extra_groups=[]
                if self._user else None, cwd=self._folder,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url()).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self._folder / "log").read_text(errors="replace")) from None
                time.sleep(0.05)

    def stop(self, how: int = 3) -> None:
        """Stop it at once, whoever is connected: signal 3 recovers at the next start, 2 winds up."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    @property
    def _group(self) -> int | None:
        return pwd.getpwnam(self._user).pw_gid if self._user else None

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._binaries / program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            user=self._user, group=self._group, extra_groups=[] if self._user else None, cwd=self._folder,
            env=os.environ | {"LC_ALL": "C"}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Start a server for all tests."""
    binaries = _find_binaries()
    if binaries is None:
        pytest.skip("there are no initdb and postgres here: install PostgreSQL (Debian: postgresql-15)")
    folder = Path(tempfile.mkdtemp(prefix="lfpg"))  # short: the path of a socket has at most 107 bytes
    server = None
    try:
        server = Server(binaries, folder)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def database(server: Server) -> str:
    """Make a database for all tests; gives its URL."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE runs")
    return server.url("runs")


@pytest.fixture
def schema(database: str) -> Iterator[str]:
    """Give the name of a schema of the test's own; afterwards no connection of the test's may be left."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield name
    with psycopg.connect(database, autocommit=True) as connection:
        _wait_until(lambda: not _sessions(connection), "a connection is left open")
        connection.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(name)))


@pytest.fixture
def open_store(database: str, schema: str) -> Iterator[Callable[..., PostgresStateStore]]:
    """Give a function that opens the store of the test, by another URL if one is given; closed afterwards."""
    opened: list[PostgresStateStore] = []

    def open_store(url: str = database, **options: Any) -> PostgresStateStore:
        opened.append(PostgresStateStore(url, schema, **options))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def ask(database: str, schema: str) -> Callable[..., list[tuple[Any, ...]]]:
    """Give a function that runs a statement in the schema of the test."""

    def ask(statement: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(database, autocommit=True, options=f"-c search_path={schema}") as connection:
            cursor = connection.execute(statement, values or None)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    return ask


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object], str], None]:
    """Give a function that waits until something is so."""
    return _wait_until


def _wait_until(is_so: Callable[[], object], otherwise: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def _sessions(connection: psycopg.Connection) -> bool:
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ).fetchone()
    return bool(row and row[0])


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _find_binaries() -> Path | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name.split(".")[0]))
    for name in ("postgres", "initdb"):
        found = shutil.which(name)
        if found:
            folders.append(Path(found).resolve().parent)
    return next((path for path in folders if (path / "initdb").exists() and (path / "postgres").exists()), None)
