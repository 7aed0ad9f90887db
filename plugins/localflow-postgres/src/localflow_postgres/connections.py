"""Connections to the database: opened anew where one was lost and nothing is in doubt, lent out for reading, and kept
from what a process leaves behind.

A forked child has the sockets of its parent. As long as it kept them open the server would not notice that the parent
has died: claims would stay taken, and rows locked. So no fork happens while a connection is being made, and in the
child each socket becomes /dev/null at once. Programs that are started have none of them anyway, they are close-on-exec.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import psycopg

from localflow.interfaces import StoreError
from localflow_postgres.failures import database_failure, is_starting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow_postgres.place import Place

T = TypeVar("T")

_MAX_IDLE = 4
_LONGEST_PAUSE = 0.5  # seconds between two attempts to reach a server that starts

# The server's side: the claims of a machine that has lost its power end within half a minute, and those of an engine
# that waits for a long task do not end. (PostgreSQL 13 has no such timeout.)
_SETTINGS = """
    SELECT set_config('search_path', quote_ident(%s), false),
           set_config('tcp_keepalives_idle', '15', false), set_config('tcp_keepalives_interval', '5', false),
           set_config('tcp_keepalives_count', '3', false),
           CASE WHEN current_setting('idle_session_timeout', true) IS NOT NULL
                THEN set_config('idle_session_timeout', '0', false) END
"""


def connect(place: Place, purpose: str = "") -> psycopg.Connection:
    """Return a new connection in autocommit mode, to whose statements the schema's tables are at hand.

    Args:
        place: what to connect to.
        purpose: how the server lists it, if not by the name in the URL.

    Raises:
        StoreError: the server refuses, or is not there.
    """
    parameters = place.parameters | ({"application_name": purpose} if purpose else {})
    try:
        with _changing:
            connection = psycopg.connect("", autocommit=True, **parameters)  # type: ignore[arg-type]
            _connections.add(connection)
        try:
            connection.execute(_SETTINGS, (place.schema,))
        except BaseException:
            connection.close()
            raise
    except psycopg.Error as error:
        raise failure(place, error) from error
    return connection


def failure(place: Place, error: psycopg.Error) -> StoreError:
    """Return the StoreError for an error; its cause is cut off where that would show a secret."""
    worded = database_failure(place, error)
    if place.has_secret(str(error)):
        error.args = (place.without_secrets(str(error)),)
    return worded


def reconnect(place: Place, purpose: str = "") -> psycopg.Connection:
    """Return a new connection in the place of one that was lost; a server that starts again has its time for it."""
    deadline = time.monotonic() + float(place.parameters["connect_timeout"])
    pause = 0.05
    while True:
        try:
            return connect(place, purpose)
        except StoreError as error:
            cause = error.__cause__
            if not (isinstance(cause, psycopg.Error) and is_starting(cause)) or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def is_lost(connection: psycopg.Connection) -> bool:
    """Return whether a connection is of no use any more."""
    return connection.closed or connection.broken


class Readers:
    """Connections to read with, each lent to one reader at a time."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._idle: list[psycopg.Connection] = []
        self._lock = threading.Lock()
        self._is_open = True

    def ask(self, work: Callable[[psycopg.Connection], T]) -> T:
        """Return what `work` reads with one statement; it is asked again on another connection if one was lost."""
        connection = self._take()
        try:
            try:
                return work(connection)
            except psycopg.OperationalError:
                if not is_lost(connection):
                    raise
                self._drop_idle()  # which were lost at the same moment
                connection = reconnect(self._place)
                return work(connection)
        finally:
            self._give_back(connection)

    @contextmanager
    def snapshot(self) -> Iterator[psycopg.Connection]:
        """Lend a connection, to which everything stays as it is at its first statement."""
        connection = self._take()
        try:
            try:
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            except psycopg.OperationalError:
                if not is_lost(connection):
                    raise
                self._drop_idle()
                connection = reconnect(self._place)
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield connection
        finally:
            self._give_back(connection)

    def close(self) -> None:
        """Close those that are idle now, and the others when they come back."""
        with self._lock:
            self._is_open = False
        self._drop_idle()

    def _take(self) -> psycopg.Connection:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        return connect(self._place) if connection is None else connection

    def _give_back(self, connection: psycopg.Connection) -> None:
        try:
            if not is_lost(connection) and connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                connection.execute("ROLLBACK")
            if not is_lost(connection):
                with self._lock:
                    if self._is_open and len(self._idle) < _MAX_IDLE:
                        self._idle.append(connection)
                        return
        except psycopg.Error:
            pass  # it is closed, whatever is wrong with it
        connection.close()

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


_changing = threading.RLock()
_connections: weakref.WeakSet[psycopg.Connection] = weakref.WeakSet()


def _let_go_in_child() -> None:
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for connection in list(_connections):
        with suppress(OSError, psycopg.Error):
            # Not closed: its number stays taken, so that whoever closes the connection hits nobody else's file.
            os.dup2(nothing, connection.fileno(), inheritable=False)
    os.close(nothing)
    _connections.clear()
    _changing.release()


os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_let_go_in_child)
