"""The state store `myname`: all records in one SQLite file.

Each record is a row, found by the columns beside it; its fields are pickled as plain values and are read by an
unpickler that knows no classes, so that looking at records never runs anybody's code.
"""

from __future__ import annotations

import io
import pickle
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from localflow.interfaces import (
    CachedResult,
    CacheEntry,
    Cause,
    Claim,
    Execution,
    FlowRun,
    FlowRunSummary,
    LogEntry,
    Payload,
    Record,
    State,
    StateChange,
    StateStore,
    StateType,
    StoreError,
    TaskRun,
)
from localflow.locks import take_claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_Made = TypeVar("_Made")

_TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS flow_runs (place INTEGER PRIMARY KEY, id UNIQUE, root_id, is_final DEFAULT 0, fields BLOB);
CREATE INDEX IF NOT EXISTS unfinished ON flow_runs (place) WHERE NOT is_final;
CREATE INDEX IF NOT EXISTS trees ON flow_runs (root_id);
CREATE TABLE IF NOT EXISTS task_runs (flow_run, number, fields BLOB, PRIMARY KEY (flow_run, number));
CREATE TABLE IF NOT EXISTS changes (flow_run, number, sequence, fields BLOB, PRIMARY KEY (flow_run, number, sequence));
CREATE TABLE IF NOT EXISTS logs (flow_run, position, fields BLOB, PRIMARY KEY (flow_run, position));
CREATE TABLE IF NOT EXISTS results (flow_run, number, fields BLOB, PRIMARY KEY (flow_run, number));
CREATE TABLE IF NOT EXISTS cached (place INTEGER PRIMARY KEY, flow_run, key BLOB, fields BLOB);
CREATE INDEX IF NOT EXISTS cache_keys ON cached (key);
CREATE INDEX IF NOT EXISTS cached_of ON cached (flow_run);
"""
_REMOVE_RESULTS = (
    "DELETE FROM results WHERE flow_run IN (SELECT id FROM flow_runs WHERE root_id = ?)",
    "DELETE FROM cached WHERE flow_run IN (SELECT id FROM flow_runs WHERE root_id = ?)",
)
_REMOVE_ALL = (
    "DELETE FROM task_runs WHERE flow_run IN (SELECT id FROM flow_runs WHERE root_id = ?)",
    "DELETE FROM changes WHERE flow_run IN (SELECT id FROM flow_runs WHERE root_id = ?)",
    "DELETE FROM logs WHERE flow_run IN (SELECT id FROM flow_runs WHERE root_id = ?)",
    *_REMOVE_RESULTS,
    "DELETE FROM flow_runs WHERE root_id = ?",
)
#: By whether a tree is asked for, and whether only unfinished runs are.
_LIST = {
    (False, False): "SELECT id, fields FROM flow_runs ORDER BY place DESC LIMIT :limit",
    (True, False): "SELECT id, fields FROM flow_runs WHERE root_id = :root_id ORDER BY place DESC LIMIT :limit",
    (False, True): "SELECT id, fields FROM flow_runs WHERE NOT is_final ORDER BY place DESC LIMIT :limit",
    (True, True): """
        SELECT id, fields FROM flow_runs WHERE root_id = :root_id AND NOT is_final ORDER BY place DESC LIMIT :limit
    """,
}


class MynameStateStore(StateStore):
    """Keeps records in one SQLite file; safe against the death of any process."""

    def __init__(self, path: Path = Path(".localflow/myname.db")) -> None:
        """Keep the path; localflow has made a relative one start at the folder of localflow.toml."""
        self._path = Path(path)
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        self._is_closed = False

    @property
    def location(self) -> str:
        """The file."""
        return str(self._path)

    # -- writing --

    def append(self, records: Sequence[Record]) -> None:
        """Add records in their order, all or none."""
        with self._transaction() as connection:
            known: set[str] = set()
            for record in records:
                self._append(connection, record, known)

    def _append(self, connection: sqlite3.Connection, record: Record, known: set[str]) -> None:
        if isinstance(record, FlowRun):
            connection.execute(
                "INSERT INTO flow_runs (id, root_id, fields) VALUES (?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET fields = excluded.fields",
                (record.id, record.root_id, _dumped(record)),
            )
            return
        if not isinstance(record, (TaskRun, StateChange, LogEntry)):
            raise StoreError(f"a state store keeps records, not {record!r}")
        run = record if isinstance(record, TaskRun) else record.run
        id = run.flow_run.id
        if id not in known and not connection.execute("SELECT 1 FROM flow_runs WHERE id = ?", [id]).fetchone():
            raise StoreError(f"flow run '{id}' is not recorded in {self.location}; append its FlowRun first")
        known.add(id)
        if isinstance(record, TaskRun):
            fields = _dumped(record._replace(flow_run=None))  # type: ignore[arg-type]
            connection.execute("INSERT OR REPLACE INTO task_runs VALUES (?, ?, ?)", (id, run.number, fields))
        elif isinstance(record, LogEntry):
            fields = _dumped(record._replace(run=run.number))  # type: ignore[arg-type]
            connection.execute(
                "INSERT INTO logs SELECT ?, coalesce(max(position), 0) + 1, ? FROM logs WHERE flow_run = ?",
                (id, fields, id),
            )
        else:
            self._append_change(connection, record)

    def _append_change(self, connection: sqlite3.Connection, change: StateChange) -> None:
        id, number = change.run.flow_run.id, change.run.number
        fields = _dumped(change._replace(run=number, result=None))  # type: ignore[arg-type]
        try:
            connection.execute("INSERT INTO changes VALUES (?, ?, ?, ?)", (id, number, change.sequence, fields))
        except sqlite3.IntegrityError:
            raise StoreError(
                f"run '{change.run.id}' has a state change {change.sequence} in {self.location} already; "
                "is another engine running it?"
            ) from None
        if number == 0:
            is_final = State(change.type).is_final()
            connection.execute("UPDATE flow_runs SET is_final = ? WHERE id = ?", (is_final, id))
        if change.type is not StateType.COMPLETED:
            return
        connection.execute("DELETE FROM results WHERE flow_run = ? AND number = ?", (id, number))
        if change.result is not None:
            connection.execute("INSERT INTO results VALUES (?, ?, ?)", (id, number, _dumped(change.result)))
            if change.cache is not None and isinstance(change.run, TaskRun):
                names = change.run.id, change.run.name, change.run.flow_run.name
                cached = CachedResult(*names, change.timestamp, change.cache.expires_at, change.result)
                values = id, _key(change.cache.key), _dumped(cached)
                connection.execute("INSERT INTO cached (flow_run, key, fields) VALUES (?, ?, ?)", values)

    def remove(self, root_ids: Sequence[str], *, results_only: bool = False) -> None:
        """Remove trees of flow runs, or only their results."""
        with self._transaction() as connection:
            for id in root_ids:
                for statement in _REMOVE_RESULTS if results_only else _REMOVE_ALL:
                    connection.execute(statement, [id])

    # -- reading --

    def list_flow_runs(
        self, limit: int | None = None, *, root_id: str | None = None, unfinished: bool = False
    ) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, the one recorded last first."""
        values = {"limit": -1 if limit is None else limit, "root_id": root_id}
        with self._transaction() as connection:
            found = connection.execute(_LIST[root_id is not None, unfinished], values).fetchall()
            return [self._summary(connection, id, _flow_run(fields)) for id, fields in found]

    def _summary(self, connection: sqlite3.Connection, id: str, flow_run: FlowRun) -> FlowRunSummary:
        query = "SELECT fields FROM changes WHERE flow_run = ? AND number = 0 ORDER BY sequence"
        changes = [_change(_loaded(fields), {0: flow_run}) for (fields,) in connection.execute(query, [id])]
        if not changes:
            return FlowRunSummary(flow_run, None)
        newest = changes[-1]
        started_at = next((change.timestamp for change in changes if change.type is StateType.RUNNING), None)
        return FlowRunSummary(flow_run, newest, started_at, newest.timestamp if State(newest.type).is_final() else None)

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Yield a flow run, its task runs by number, then all state changes."""
        with self._transaction() as connection:
            runs = self._runs(connection, flow_run_id)
            query = "SELECT fields FROM changes WHERE flow_run = ? ORDER BY number, sequence"
            changes = [_change(_loaded(fields), runs) for (fields,) in connection.execute(query, [flow_run_id])]
        return iter([*runs.values(), *changes])

    def _runs(self, connection: sqlite3.Connection, flow_run_id: str) -> dict[int, FlowRun | TaskRun]:
        """Return a flow run, as number 0, and its task runs, as they were recorded last."""
        found = connection.execute("SELECT fields FROM flow_runs WHERE id = ?", [flow_run_id]).fetchone()
        if found is None:
            return {}
        flow_run = _flow_run(found[0])
        runs: dict[int, FlowRun | TaskRun] = {0: flow_run}
        query = "SELECT number, fields FROM task_runs WHERE flow_run = ? ORDER BY number"
        for number, fields in connection.execute(query, [flow_run_id]):
            runs[number] = _made(TaskRun, _loaded(fields), flow_run=flow_run)
        return runs

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the result that a run has last completed with, if it was recorded."""
        query = "SELECT fields FROM results WHERE flow_run = ? AND number = ?"
        with self._transaction() as connection:
            found = connection.execute(query, (flow_run_id, number)).fetchone()
        return _made(Payload, _loaded(found[0])) if found else None

    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Return the newest result recorded with this cache key that has not expired at `now`."""
        with self._transaction() as connection:
            query = "SELECT fields FROM cached WHERE key = ? ORDER BY place DESC"
            for (pickled,) in connection.execute(query, [_key(key)]):
                fields = _loaded(pickled)
                if fields["expires_at"] is None or fields["expires_at"] > now:
                    return _made(CachedResult, fields, result=_made(Payload, fields["result"]))
        return None

    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Yield a flow run's log entries after a position, with theirs."""
        with self._transaction() as connection:
            runs = self._runs(connection, flow_run_id)
            query = "SELECT position, fields FROM logs WHERE flow_run = ? AND position > ? ORDER BY position"
            rows = connection.execute(query, (flow_run_id, after))
            found = [(position, _loaded(fields)) for position, fields in rows]
        return ((position, _made(LogEntry, fields, run=runs[fields["run"]])) for position, fields in found)

    # -- holding and closing --

    def claim(self, flow_run_id: str) -> Claim | None:
        """Take hold of a flow run: a lock of the operating system on a file beside the database."""
        with self._lock, self._errors():
            folder = self._path.with_name(f"{self._path.name}-claims")
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return take_claim(folder / flow_run_id.encode().hex())

    def close(self) -> None:
        """Close the database; closing twice is harmless."""
        with self._lock:
            self._is_closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for a block that is committed as a whole, or not at all if it raises."""
        with self._lock, self._errors():
            connection = self._connection = self._connection or self._opened()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _opened(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600)  # what flows are called with is nobody else's business
        # Other processes may be writing: wait for them. `isolation_level=None`: transactions begin where we say so.
        connection = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA auto_vacuum = FULL")  # what is removed gives its space back
            connection.executescript(_TABLES)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise what goes wrong in the block as a StoreError that names the place and the cause."""
        if self._is_closed:
            raise StoreError(f"state store {self.location} is closed; open it again to use it")
        try:
            yield
        except (sqlite3.Error, OSError, pickle.PickleError, EOFError, KeyError) as error:
            raise StoreError(f"state store {self.location} cannot be used: {error}") from error


# -- records as plain values, and back -------------------------------------------------------------------------------


def _flow_run(pickled: bytes) -> FlowRun:
    fields = _loaded(pickled)
    arguments = fields.get("arguments")
    return _made(FlowRun, fields, arguments=None if arguments is None else _made(Payload, arguments))


def _change(fields: dict[str, Any], runs: Mapping[int, FlowRun | TaskRun]) -> StateChange:
    kinds = {"execution": Execution, "cause": Cause, "cache": CacheEntry}
    nested = {name: _made(kind, fields[name]) for name, kind in kinds.items() if fields.get(name)}
    return _made(StateChange, fields, run=runs[fields["run"]], type=StateType(fields["type"]), **nested)


def _made(kind: Callable[..., _Made], fields: Mapping[str, Any], **others: Any) -> _Made:
    """Make a record of its fields: those that a newer localflow has written are left out, missing ones are defaults."""
    known: Any = kind
    return kind(**{name: value for name, value in {**fields, **others}.items() if name in known._fields})


def _key(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")  # any text at all, also what SQLite does not take for one


def _dumped(record: Any) -> bytes:
    return pickle.dumps(_plain(record), protocol=5)


def _plain(value: Any) -> Any:
    """Return a value as dicts, lists, tuples, texts, bytes, numbers and None, of no other classes."""
    if isinstance(value, StateType):
        return value.value
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(map(_plain, value))
    plain: tuple[Any, ...] = (bool, int, float, bytes)
    for kind in plain:
        if isinstance(value, kind):
            return kind(value)
    return str.__str__(value) if isinstance(value, str) else value


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is in a record, where only plain values may be")


def _loaded(pickled: bytes) -> Any:
    return _PlainUnpickler(io.BytesIO(pickled)).load()
