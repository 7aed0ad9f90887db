"""What goes wrong with the database, worded as StoreError with the place, the cause and the next move."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from psycopg import Error, OperationalError, errors

from localflow.interfaces import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from localflow_postgres.place import Place

_TAKEN = re.compile(r"\(flow_run, number, sequence\)=\((-?\d+), (-?\d+), (-?\d+)\)")

#: The server has rolled back, and the very same may well succeed now.
REPEATABLE = (errors.DeadlockDetected, errors.SerializationFailure)

# What a server says that takes no connection; of that there is only the text.
_REFUSALS = {
    "does not exist": "make the database with createdb, or see user and database in its url",
    "authentication failed": "see user and password in its url",
    "no password supplied": "give user and password in its url",
    "too many": "close some connections, or raise max_connections of the server",
    "connection slots": "close some connections, or raise max_connections of the server",
}

_STARTING = (errors.CannotConnectNow, errors.AdminShutdown, errors.CrashShutdown)


def database_failure(place: Place, error: Error, ids: Mapping[int, str] | None = None) -> StoreError:
    """Return the StoreError for what the server or the way there said; `ids` are those of flow runs by their keys."""
    cause = place.without_secrets(" ".join((error.diag.message_primary or str(error)).split()))
    found = _TAKEN.search(error.diag.message_detail or "") if isinstance(error, errors.UniqueViolation) else None
    if found:
        key, number, sequence = map(int, found.groups())
        flow_run = (ids or {}).get(key, "?")
        run = f"{flow_run}-{number}" if number else flow_run
        return StoreError(
            f"run '{run}' has a state change {sequence} in this state store already; is another engine running it?"
        )
    return StoreError(f"{place.named} {_worded(error, cause)}")


def _worded(error: Error, cause: str) -> str:
    if isinstance(error, (errors.DiskFull, errors.ConfigurationLimitExceeded)):
        return f"is full: {cause}; free some space there, everything recorded so far is safe"
    if isinstance(error, (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName)):
        return f"was removed or changed while it was in use: {cause}; nothing more can be recorded, run again"
    if isinstance(error, errors.InsufficientPrivilege):
        return f"may not be used: {cause}; let an owner GRANT it to this user, or name another schema"
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return f"cannot be written: {cause}; name the server that takes writes"
    if isinstance(error, OperationalError):
        for told, advice in _REFUSALS.items():
            if told in cause:
                return f"cannot be opened: {cause}; {advice}"
        return f"cannot be reached: {cause}; see whether the server is up and its url right"
    return f"cannot be used: {cause}"


def is_starting(error: Error) -> bool:
    """Return whether a server that refuses a connection may take it in a moment."""
    text = str(error).lower()
    return isinstance(error, _STARTING) or "starting up" in text or "shutting down" in text or _is_absent(text)


def _is_absent(text: str) -> bool:
    return "refused" in text or "no such file" in text or "server closed the connection" in text


def not_recorded(flow_run_id: str) -> StoreError:
    """Return the StoreError for records of a flow run whose own record is missing."""
    return StoreError(f"flow run '{flow_run_id}' is not recorded in this state store; append its FlowRun first")


def not_a_record(value: object) -> StoreError:
    """Return the StoreError for something else among records."""
    return StoreError(f"a state store keeps FlowRun, TaskRun, StateChange and LogEntry records, not {value!r}")


def in_doubt(place: Place, cause: str) -> StoreError:
    """Return the StoreError for a commit of which nobody can tell any more whether it happened."""
    return StoreError(
        f"{place.named} was lost while it recorded something, and cannot be asked whether it has: {cause}; "
        "`localflow show` tells as soon as it can be reached"
    )


def claim_lost(place: Place, flow_run_id: str) -> StoreError:
    """Return the StoreError for an engine whose claim went with its connection, and is somebody else's now."""
    return StoreError(
        f"{place.named} was out of reach, and meanwhile another process has taken hold of flow run '{flow_run_id}'; "
        "nothing more of it is recorded from here"
    )
