"""Who holds which flow run: advisory locks of the server's, on a connection of their own.

Such a lock belongs to the connection. When the process dies, however that happens, the kernel closes the socket and the
server takes the lock off; when its machine vanishes, keepalives end the connection. The connection is idle but for the
moments in which a claim is taken or released, so the server notices at once.

That it takes the server a millisecond to notice must not make a dead engine seem alive: who finds a lock taken looks
whose it is, and waits for a moment if that is a process of this machine that is there no more.
"""

from __future__ import annotations

import os
import platform
import re
import select
import threading
from typing import TYPE_CHECKING, LiteralString

import psycopg

from localflow_postgres.connections import connect, failure, is_lost, reconnect
from localflow_postgres.encoding import digest
from localflow_postgres.failures import claim_lost

if TYPE_CHECKING:
    from localflow_postgres.place import Place

_PURPOSE = re.compile(r"localflow (\d+)@(.*)")
_PATIENCE = "2s"  # for the server to notice that a process is dead

_TAKE = "SELECT pg_try_advisory_lock(%s)"
_AWAIT = "SELECT pg_advisory_lock(%s)"
_RELEASE = "SELECT pg_advisory_unlock(%s)"
# An advisory lock on a bigint is listed by its halves.
_FIND_HOLDER = """
    SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND classid = ((%(key)s >> 32) & 4294967295)::oid AND objid = (%(key)s & 4294967295)::oid
"""


class Claims:
    """The claims that one opening of a store has."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._host = platform.node()[:40]  # the server cuts the name of a connection off at 63 bytes
        self._connection: psycopg.Connection | None = None
        self._poll: select.poll | None = None
        self._held: dict[str, Claim] = {}
        self._lock = threading.RLock()

    def take(self, flow_run_id: str) -> Claim | None:
        """Return a claim on a flow run, or None if somebody has one; raises StoreError."""
        with self._lock:
            self.keep()
            if flow_run_id in self._held:  # the server would let us have it twice
                return None
            try:
                if not self._take(flow_run_id):
                    return None
            except psycopg.Error as error:
                raise failure(self._place, error) from error
            claim = self._held[flow_run_id] = Claim(self, flow_run_id)
            return claim

    def keep(self) -> None:
        """See to it that what is held is still held; raises StoreError if it is not and cannot be had again."""
        if not self._held:
            return
        with self._lock:
            if self._connection is not None and not self._is_cut(self._connection):
                return
            self._drop()
            self._connect(again=True)
            for flow_run_id in self._held:
                try:
                    if not self._take(flow_run_id):
                        raise claim_lost(self._place, flow_run_id)
                except psycopg.Error as error:
                    raise failure(self._place, error) from error

    def release(self, claim: Claim) -> None:
        """Let a flow run go; if that fails the connection goes, and with it all that it held."""
        with self._lock:
            if self._held.get(claim.flow_run_id) is not claim:
                return
            del self._held[claim.flow_run_id]
            connection = self._connection
            if connection is None:
                return
            try:
                connection.execute(_RELEASE, (self._key(claim.flow_run_id),))
            except psycopg.Error:
                self._drop()

    def close(self) -> None:
        """Let everything go."""
        with self._lock:
            self._held.clear()
            self._drop()

    def _take(self, flow_run_id: str) -> bool:
        key = self._key(flow_run_id)
        connection = self._connection
        if connection is None or self._is_cut(connection):
            self._drop()
            connection = self._connect()
        if _answer(connection, _TAKE, key):
            return True
        holder = connection.execute(_FIND_HOLDER, {"key": key}).fetchone()
        if holder is None:  # gone in this moment
            return _answer(connection, _TAKE, key)
        return self._is_dead(holder[0]) and self._await(connection, key)

    def _await(self, connection: psycopg.Connection, key: int) -> bool:
        """Wait until the server has noticed that the holder is dead."""
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (_PATIENCE,))
        try:
            connection.execute(_AWAIT, (key,))
        except psycopg.errors.LockNotAvailable:
            return False
        finally:
            if not is_lost(connection):
                connection.execute("SELECT set_config('lock_timeout', '0', false)")
        return True

    def _is_dead(self, purpose: str | None) -> bool:
        """Return whether this is the name of a connection whose process was on this machine and has ended."""
        found = _PURPOSE.fullmatch(purpose or "")
        if found is None or found[2] != self._host:
            return False
        try:
            os.kill(int(found[1]), 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False

    def _key(self, flow_run_id: str) -> int:
        return digest(f"localflow {self._place.schema} {flow_run_id!r}")

    def _connect(self, *, again: bool = False) -> psycopg.Connection:
        purpose = f"localflow {os.getpid()}@{self._host}"
        self._connection = (reconnect if again else connect)(self._place, purpose)
        self._poll = select.poll()
        self._poll.register(self._connection.fileno(), select.POLLIN)
        return self._connection

    def _is_cut(self, connection: psycopg.Connection) -> bool:
        """Return whether a connection was lost, which costs a system call: an idle one has nothing to say."""
        if is_lost(connection):
            return True
        assert self._poll is not None
        if not self._poll.poll(0):
            return False
        try:
            connection.execute("SELECT 1")  # the end, or a message of the server's that is not for us
        except psycopg.Error:
            return True
        return False

    def _drop(self) -> None:
        connection, self._connection, self._poll = self._connection, None, None
        if connection is not None:
            connection.close()


class Claim:
    """The hold that this process has on a flow run."""

    __slots__ = ("_claims", "_pid", "flow_run_id")

    def __init__(self, claims: Claims, flow_run_id: str) -> None:
        self._claims = claims
        self._pid = os.getpid()
        self.flow_run_id = flow_run_id

    def release(self) -> None:
        """Let it go; a second time, or in a forked child, nothing happens."""
        if os.getpid() == self._pid:
            self._claims.release(self)


def _answer(connection: psycopg.Connection, statement: LiteralString, key: int) -> bool:
    row = connection.execute(statement, (key,)).fetchone()
    return bool(row and row[0])
