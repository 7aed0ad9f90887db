"""The tables, all in one schema of their own.

A flow run's id stands once, in `flow_runs`; all other rows have its key instead. `progress` has a row for each flow run
that whoever writes records of it locks first: so writers of one run follow each other, and none writes to a run that is
being removed. It says whether the run has ended, how long its log is, and how the task runs of a large run stand since
it ended. A result of more than a few bytes lies apart, in parts, so that no value is too large and those who read the
history do not read values.

`odd` is NULL but where an integer of more than 64 bits stands in a row; then it is the JSON of those columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, LiteralString

from localflow.interfaces import StoreError
from localflow_postgres.encoding import digest

if TYPE_CHECKING:
    import psycopg

    from localflow_postgres.place import Place

FORMAT_VERSION = 1
OLDEST_SERVER = 13

TABLES: tuple[LiteralString, ...] = (
    "CREATE TABLE format (version integer NOT NULL)",
    """CREATE TABLE flow_runs (
    key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text NOT NULL UNIQUE,
    name text NOT NULL,
    flow text NOT NULL,
    created_at double precision NOT NULL,
    root_id text NOT NULL,
    parent_id text,
    parameters text NOT NULL,
    entry_point text NOT NULL,
    executor text NOT NULL,
    versions text NOT NULL,
    host text NOT NULL,
    pid bigint NOT NULL,
    tags text,
    code text NOT NULL,
    inputs text NOT NULL,
    arguments_format text,
    arguments bytea,
    odd text
)""",
    "CREATE INDEX flow_runs_by_root ON flow_runs (root_id, key)",
    """CREATE TABLE progress (
    flow_run bigint PRIMARY KEY,
    is_final boolean NOT NULL,
    log_entries bigint NOT NULL,
    standings text
) WITH (fillfactor = 50)""",
    "CREATE INDEX unfinished ON progress (flow_run) WHERE NOT is_final",
    """CREATE TABLE task_runs (
    flow_run bigint NOT NULL,
    number bigint NOT NULL,
    name text NOT NULL,
    task text NOT NULL,
    ordinal bigint NOT NULL,
    created_at double precision NOT NULL,
    upstreams text,
    tags text,
    version text NOT NULL,
    map_number bigint NOT NULL,
    map_index bigint NOT NULL,
    code text NOT NULL,
    inputs text NOT NULL,
    odd text,
    PRIMARY KEY (flow_run, number)
)""",
    """CREATE TABLE state_changes (
    flow_run bigint NOT NULL,
    number bigint NOT NULL,
    sequence bigint NOT NULL,
    type text NOT NULL,
    name text NOT NULL,
    message text NOT NULL,
    "timestamp" double precision NOT NULL,
    previous text NOT NULL,
    attempt bigint NOT NULL,
    worker text,
    pid bigint,
    started_at double precision,
    ended_at double precision,
    cpu_seconds double precision,
    peak_rss_bytes bigint,
    cause text,
    result_format text,
    result bytea,
    result_parts integer NOT NULL,
    cache_key text,
    cache_digest bigint,
    cache_expires_at double precision,
    cache_entry bigint,
    odd text,
    PRIMARY KEY (flow_run, number, sequence)
)""",
    "CREATE SEQUENCE cache_entries",
    """CREATE INDEX state_changes_by_cache_key ON state_changes (cache_digest, cache_entry)
    WHERE cache_digest IS NOT NULL""",
    """CREATE TABLE result_parts (
    flow_run bigint NOT NULL,
    number bigint NOT NULL,
    sequence bigint NOT NULL,
    part integer NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (flow_run, number, sequence, part)
)""",
    # Pickles are hardly worth the time that it takes to compress them.
    "ALTER TABLE result_parts ALTER COLUMN data SET STORAGE EXTERNAL",
    """CREATE TABLE log_entries (
    flow_run bigint NOT NULL,
    position bigint NOT NULL,
    number bigint NOT NULL,
    attempt bigint NOT NULL,
    "timestamp" double precision NOT NULL,
    level bigint NOT NULL,
    source text NOT NULL,
    message text NOT NULL,
    odd text,
    PRIMARY KEY (flow_run, position)
)""",
)


def prepare_schema(connection: psycopg.Connection, place: Place) -> None:
    """See to it that the tables are there, whoever else does so at the same moment, and that they are ours to use.

    Raises:
        StoreError: this database or what is in the schema cannot be used.
        psycopg.Error: the server refuses.
    """
    if connection.info.server_version < OLDEST_SERVER * 10_000:
        found = connection.info.parameter_status("server_version")
        raise StoreError(f"{place.named} is on PostgreSQL {found}; localflow-postgres needs {OLDEST_SERVER} or newer")
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise StoreError(f"{place.named} has the encoding {encoding}; make a database with ENCODING 'UTF8' and name it")
    version = _find_version(connection, place)
    if version is None:
        version = _make_tables(connection, place)
    if version != FORMAT_VERSION:
        advice = "upgrade localflow-postgres" if version > FORMAT_VERSION else "use the localflow-postgres that made it"
        raise StoreError(
            f"{place.named} has format version {version}, this localflow-postgres reads version {FORMAT_VERSION}; "
            f"{advice}, or name another schema"
        )


def _make_tables(connection: psycopg.Connection, place: Place) -> int:
    schema = place.schema
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (digest(f"localflow schema {schema}"),))
        version = _find_version(connection, place)
        if version is not None:  # another process was quicker
            return version
        if connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone() is None:
            from psycopg.sql import SQL, Identifier

            connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(schema)))
        for statement in TABLES:
            connection.execute(statement)
        connection.execute("INSERT INTO format VALUES (%s)", (FORMAT_VERSION,))
    return FORMAT_VERSION


def _find_version(connection: psycopg.Connection, place: Place) -> int | None:
    """Return the format of the tables, None if there are none."""
    # Not by to_regclass: within a transaction it may still say what was so before we waited for the lock.
    there = connection.execute(
        """SELECT has_schema_privilege(pg_namespace.oid, 'USAGE')
           FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
           WHERE nspname = %s AND relname = 'format'""",
        (place.schema,),
    ).fetchone()
    if there is None:
        return None
    if not there[0]:
        raise StoreError(f"{place.named} may not be used: it needs GRANT USAGE ON SCHEMA, and rights on what is in it")
    row = connection.execute("SELECT version FROM format").fetchone()
    return None if row is None else int(row[0])
