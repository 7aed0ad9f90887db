"""Records into the tables: one transaction for each append, in two round trips.

The first brings all statements and gives the transaction's number, the second is the COMMIT. A connection that is lost
before the COMMIT has left nothing behind, so the whole is done again on a new one. If it is lost during the COMMIT, the
server is asked by that number what became of the transaction: nothing is written twice, and nothing is said to be
committed that is not.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg

from localflow.interfaces import FlowRun, LogEntry, StateChange, StoreError, TaskRun
from localflow_postgres import rows, statements
from localflow_postgres.connections import connect, failure, is_lost, reconnect
from localflow_postgres.encoding import from_text, int_array, to_text
from localflow_postgres.failures import REPEATABLE, database_failure, in_doubt, not_a_record, not_recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localflow.interfaces import Record
    from localflow_postgres.place import Place

_ATTEMPTS = 3
_MAX_KEYS = 10_000
_MANY_CHANGES = 100_000  # of a flow run: how its task runs stand is then counted once, when it ends
_NOTHING_MORE = (None, None, None, None)  # the last fields of most state changes: execution, cause, result, cache


class Batch:
    """Records by where they go, and the flow runs that must be there before them."""

    def __init__(self, records: Sequence[Record]) -> None:
        """Sort records; raises StoreError if one of them is none."""
        self.flow_runs: dict[str, FlowRun] = {}
        self.needed: dict[str, None] = {}
        self.task_runs: dict[tuple[str, int], TaskRun] = {}  # of those that are there twice the last counts
        self.plain_changes: list[StateChange] = []
        self.changes: list[StateChange] = []
        self.log_entries: dict[str, list[LogEntry]] = {}
        for record in records:
            if isinstance(record, StateChange):
                self._need(record.run.flow_run)
                (self.plain_changes if record[8:] == _NOTHING_MORE else self.changes).append(record)
            elif isinstance(record, TaskRun):
                self._need(record.flow_run)
                self.task_runs[record.flow_run.id, record.number] = record
            elif isinstance(record, LogEntry):
                self._need(record.run.flow_run)
                self.log_entries.setdefault(record.run.flow_run.id, []).append(record)
            elif isinstance(record, FlowRun):
                self.flow_runs[record.id] = record
            else:
                raise not_a_record(record)

    def _need(self, flow_run: FlowRun) -> None:
        if flow_run.id not in self.flow_runs:
            self.needed[flow_run.id] = None

    @property
    def all_changes(self) -> list[StateChange]:
        """All state changes."""
        return self.plain_changes + self.changes


class Writer:
    """The connection that writes, for one thread at a time."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._connection: psycopg.Connection | None = None
        self._lock = threading.Lock()
        self._keys: dict[str, int] = {}  # of flow runs, by id

    def append(self, records: Sequence[Record], before: Callable[[], None]) -> None:
        """Add records in one transaction; `before` is called ahead of each attempt. Raises StoreError."""
        batch = Batch(records)
        self.transact(lambda connection: self._insert(connection, batch), before)

    def transact(self, work: Callable[[psycopg.Connection], str], before: Callable[[], None] = lambda: None) -> None:
        """Commit what `work` does between its BEGIN and the number of the transaction, which it returns.

        Raises:
            StoreError: it could not be done, and has not been done; or nobody can tell.
        """
        with self._lock:
            for attempt in range(1, _ATTEMPTS + 1):
                before()
                connection = self._connected(again=attempt > 1)
                try:
                    xid = work(connection)
                except psycopg.Error as error:
                    ids = {key: id for id, key in self._keys.items()}
                    is_repeatable = self._abandon(connection) or isinstance(error, REPEATABLE)
                    if attempt == _ATTEMPTS or not is_repeatable:
                        raise database_failure(self._place, error, ids) from error
                    continue
                except BaseException:
                    self._abandon(connection)
                    raise
                if self._commit(connection, xid):
                    return
            raise StoreError(f"{self._place.named} was lost {_ATTEMPTS} times before it could record something")

    def forget(self) -> None:
        """Look the keys of flow runs up anew: they may have been removed."""
        self._keys.clear()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _commit(self, connection: psycopg.Connection, xid: str) -> bool:
        """Commit; return whether that has happened, and if not it is sure that nothing has."""
        try:
            answer = connection.execute("COMMIT").statusmessage
        except psycopg.Error as error:
            if not self._abandon(connection):
                raise failure(self._place, error) from error
            return self._find_outcome(xid, error)
        except BaseException:  # Ctrl-C, say: whoever asked for it knows that the end was not awaited
            self._drop()
            raise
        if answer != "COMMIT":
            raise StoreError(f"{self._place.named} has answered {answer!r} to a COMMIT; nothing was recorded")
        return True

    def _find_outcome(self, xid: str, error: psycopg.Error) -> bool:
        """Return whether a transaction has been committed whose connection was lost over its COMMIT."""
        cause = self._place.without_secrets(" ".join(str(error).split()))
        deadline = time.monotonic() + float(self._place.parameters["connect_timeout"])
        status: str | None = "in progress"
        while status == "in progress" and time.monotonic() < deadline:
            try:
                with closing(reconnect(self._place)) as connection:
                    row = connection.execute(statements.XID_STATUS, (xid,)).fetchone()
            except StoreError as lost:
                raise in_doubt(self._place, cause) from lost
            except psycopg.OperationalError:  # lost once more
                continue
            status = row[0] if row else None
            if status == "in progress":
                time.sleep(0.05)  # it is still at work there, or has not noticed that we are gone
        if status not in ("committed", "aborted"):
            raise in_doubt(self._place, cause) from error
        return bool(status == "committed")

    def _connected(self, *, again: bool) -> psycopg.Connection:
        if self._connection is None:
            self._connection = (reconnect if again else connect)(self._place)
        return self._connection

    def _abandon(self, connection: psycopg.Connection) -> bool:
        """Roll back what is open and end the connection; return whether it was lost before that.

        After an error the server passes by the rest of a pipeline. What psycopg had it prepare there is not prepared,
        and psycopg believes that it is, so the next use of such a statement on this connection would fail.
        """
        self._keys.clear()
        try:
            if is_lost(connection):
                return True
            connection.execute("ROLLBACK")
            return False
        except psycopg.Error:
            return True
        finally:
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # -- inserting ---------------------------------------------------------------------------------------------------

    def _insert(self, connection: psycopg.Connection, batch: Batch) -> str:
        with connection.pipeline():
            connection.execute(statements.BEGIN)
            keys = self._find_keys(connection, batch)
            wanted = int_array(sorted(set(keys.values())))
            locked = connection.execute(statements.LOCK, (wanted,))
            if batch.task_runs or batch.plain_changes or batch.changes:
                connection.execute(statements.FORGET_STANDINGS, (wanted,))
            self._insert_runs(connection, batch, keys)
            for flow_run_id, entries in batch.log_entries.items():
                values = rows.log_columns(entries) | {"flow_run": keys[flow_run_id]}
                connection.execute(statements.ADD_LOG_ENTRIES, values)
            xid = connection.execute(statements.XID)
        there = {key for (key,) in locked.fetchall()}
        for flow_run_id, key in keys.items():
            if key not in there:
                raise not_recorded(flow_run_id)  # any more
        (number,) = xid.fetchone() or ("",)
        return str(number)

    def _insert_runs(self, connection: psycopg.Connection, batch: Batch, keys: dict[str, int]) -> None:
        if batch.task_runs:
            runs = [(keys[run.flow_run.id], run) for run in batch.task_runs.values()]
            connection.execute(statements.ADD_TASK_RUNS, rows.task_run_columns(runs))
        if batch.plain_changes:
            changes = [(keys[change.run.flow_run.id], change) for change in batch.plain_changes]
            connection.execute(statements.ADD_PLAIN_CHANGES, rows.plain_change_columns(changes))
        if batch.changes:
            changes = [(keys[change.run.flow_run.id], change) for change in batch.changes]
            connection.execute(statements.ADD_CHANGES, rows.change_columns(changes))
            for key, change in changes:
                if change.result is not None and rows.is_large(change.result):
                    for number, part in enumerate(rows.parts(change.result)):
                        values = (key, change.run.number, change.sequence, number, part)
                        connection.execute(statements.ADD_RESULT_PART, values)
        moved = sorted({keys[change.run.flow_run.id] for change in batch.all_changes if change.run.number == 0})
        if moved:
            connection.execute(statements.SET_FINAL, (int_array(moved),))
            for key in moved:
                connection.execute(statements.KEEP_STANDINGS, {"flow_run": key, "many": _MANY_CHANGES})

    def _find_keys(self, connection: psycopg.Connection, batch: Batch) -> dict[str, int]:
        """Return the keys of all flow runs of a batch, those added that come with it. Raises StoreError."""
        keys = {id: key for id in batch.needed if (key := self._keys.get(id)) is not None}
        unknown = [id for id in batch.needed if id not in keys]
        if unknown:
            found = connection.execute(statements.FIND_KEYS, ([to_text(id) for id in unknown],)).fetchall()
            keys.update((from_text(id), key) for id, key in found)
            for id in unknown:
                if id not in keys:
                    raise not_recorded(id)
        added = [
            connection.execute(statements.ADD_FLOW_RUN, rows.flow_run_row(run)) for run in batch.flow_runs.values()
        ]
        if added:
            new = [int(row[0]) for cursor in added if (row := cursor.fetchone())]
            connection.execute(statements.ADD_PROGRESS, (int_array(new),))
            keys.update(zip(batch.flow_runs, new, strict=True))
        if len(self._keys) >= _MAX_KEYS:
            self._keys.clear()
        self._keys.update(keys)
        return keys
