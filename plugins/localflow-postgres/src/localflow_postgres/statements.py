"""What is said to the server: constant texts, every value bound. The tables are found by the search path."""

from __future__ import annotations

# -- writing ---------------------------------------------------------------------------------------------------------

BEGIN = "BEGIN"
FIND_KEYS = "SELECT id, key FROM flow_runs WHERE id = ANY(%s)"
ADD_FLOW_RUN = """
    INSERT INTO flow_runs (id, name, flow, created_at, root_id, parent_id, parameters, entry_point, executor, versions,
                           host, pid, tags, code, inputs, arguments_format, arguments, odd)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %b, %s)
    ON CONFLICT (id) DO UPDATE SET
        name = excluded.name, flow = excluded.flow, created_at = excluded.created_at, root_id = excluded.root_id,
        parent_id = excluded.parent_id, parameters = excluded.parameters, entry_point = excluded.entry_point,
        executor = excluded.executor, versions = excluded.versions, host = excluded.host, pid = excluded.pid,
        tags = excluded.tags, code = excluded.code, inputs = excluded.inputs,
        arguments_format = excluded.arguments_format, arguments = excluded.arguments, odd = excluded.odd
    RETURNING key
"""
ADD_PROGRESS = "INSERT INTO progress SELECT unnest(%s::bigint[]), false, 0 ON CONFLICT DO NOTHING"
LOCK = "SELECT flow_run FROM progress WHERE flow_run = ANY(%s::bigint[]) ORDER BY flow_run FOR NO KEY UPDATE"
FORGET_STANDINGS = """
    UPDATE progress SET standings = NULL WHERE flow_run = ANY(%s::bigint[]) AND standings IS NOT NULL
"""
ADD_TASK_RUNS = """
    INSERT INTO task_runs (flow_run, number, name, task, ordinal, created_at, upstreams, tags, version, map_number,
                           map_index, code, inputs, odd)
    SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::float8[], %s::text[],
                         %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::text[])
    ON CONFLICT (flow_run, number) DO UPDATE SET
        name = excluded.name, task = excluded.task, ordinal = excluded.ordinal, created_at = excluded.created_at,
        upstreams = excluded.upstreams, tags = excluded.tags, version = excluded.version,
        map_number = excluded.map_number, map_index = excluded.map_index, code = excluded.code,
        inputs = excluded.inputs, odd = excluded.odd
"""
ADD_CHANGES = """
    INSERT INTO state_changes (flow_run, number, sequence, type, name, message, "timestamp", previous, attempt, worker,
                               pid, started_at, ended_at, cpu_seconds, peak_rss_bytes, cause, result_format, result,
                               result_parts, cache_key, cache_digest, cache_expires_at, odd, cache_entry)
    SELECT *, CASE WHEN cache_digest IS NOT NULL THEN nextval('cache_entries') END
    FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::float8[], %s::text[],
                %s::bigint[], %s::text[], %s::bigint[], %s::float8[], %s::float8[], %s::float8[], %s::bigint[],
                %s::text[], %s::text[], %s::bytea[], %s::int[], %s::text[], %s::bigint[], %s::float8[], %s::text[])
         AS added (flow_run, number, sequence, type, name, message, "timestamp", previous, attempt, worker,
                   pid, started_at, ended_at, cpu_seconds, peak_rss_bytes, cause, result_format, result,
                   result_parts, cache_key, cache_digest, cache_expires_at, odd)
"""
# Most state changes say nothing beyond these columns.
ADD_PLAIN_CHANGES = """
    INSERT INTO state_changes (flow_run, number, sequence, type, name, message, "timestamp", previous, attempt, odd,
                               result_parts)
    SELECT *, 0 FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::float8[],
                            %s::text[], %s::bigint[], %s::text[])
"""
ADD_RESULT_PART = "INSERT INTO result_parts VALUES (%s, %s, %s, %s, %b)"
ADD_LOG_ENTRIES = """
    WITH moved AS (
        UPDATE progress SET log_entries = log_entries + %(count)s WHERE flow_run = %(flow_run)s
        RETURNING log_entries - %(count)s AS before
    )
    INSERT INTO log_entries (flow_run, position, number, attempt, "timestamp", level, source, message, odd)
    SELECT %(flow_run)s, before + place, number, attempt, "timestamp", level, source, message, odd
    FROM moved, unnest(%(numbers)s::bigint[], %(attempts)s::bigint[], %(timestamps)s::float8[], %(levels)s::bigint[],
                       %(sources)s::text[], %(messages)s::text[], %(odd)s::text[])
         WITH ORDINALITY AS said (number, attempt, "timestamp", level, source, message, odd, place)
"""
SET_FINAL = """
    UPDATE progress SET is_final = (
        SELECT type IN ('COMPLETED', 'FAILED', 'CRASHED', 'CANCELLED') FROM state_changes
        WHERE state_changes.flow_run = progress.flow_run AND number = 0 ORDER BY sequence DESC LIMIT 1
    ) WHERE flow_run = ANY(%s::bigint[])
"""
XID = "SELECT pg_current_xact_id()::text"
XID_STATUS = "SELECT pg_xact_status(%s::xid8)"

# -- how task runs stand ---------------------------------------------------------------------------------------------

_STANDINGS = """
    SELECT map_number, type, name, array_agg(first ORDER BY first) AS firsts, array_agg(last ORDER BY first) AS lasts,
           min(started_at) AS started_at, max(ended_at) AS ended_at, min(first) AS place
    FROM (
        SELECT map_number, type, name, min(number) AS first, max(number) AS last, min(started_at) AS started_at,
               max(ended_at) AS ended_at
        FROM (
            SELECT number, map_number, type, name, started_at, ended_at,
                   number - row_number() OVER (PARTITION BY map_number, type, name ORDER BY number) AS island
            FROM (
                SELECT number, map_number, coalesce(newest.type, 'PENDING') AS type,
                       coalesce(newest.name, 'Pending') AS name, coalesce(begun.at, running.at) AS started_at,
                       newest.ended_at
                FROM task_runs
                LEFT JOIN (
                    SELECT DISTINCT ON (number) number, type, name,
                           CASE WHEN type IN ('COMPLETED', 'FAILED', 'CRASHED', 'CANCELLED')
                                THEN coalesce(ended_at, "timestamp") END AS ended_at
                    FROM state_changes WHERE flow_run = %(flow_run)s ORDER BY number, sequence DESC
                ) AS newest USING (number)
                LEFT JOIN (
                    SELECT DISTINCT ON (number) number, started_at AS at FROM state_changes
                    WHERE flow_run = %(flow_run)s AND started_at IS NOT NULL ORDER BY number, sequence
                ) AS begun USING (number)
                LEFT JOIN (
                    SELECT DISTINCT ON (number) number, "timestamp" AS at FROM state_changes
                    WHERE flow_run = %(flow_run)s AND type = 'RUNNING' ORDER BY number, sequence
                ) AS running USING (number)
                WHERE flow_run = %(flow_run)s
            ) AS runs
        ) AS numbered
        GROUP BY map_number, type, name, island
    ) AS islands
    GROUP BY map_number, type, name
"""
COUNT_STANDINGS = _STANDINGS + "ORDER BY place"
KEEP_STANDINGS = (
    """
    UPDATE progress SET standings = (
        SELECT json_agg(json_build_array(map_number, type, name, firsts, lasts, started_at, ended_at) ORDER BY place)
        FROM (
    """
    + _STANDINGS
    + """
        ) AS standings
    ) WHERE flow_run = %(flow_run)s AND is_final AND %(many)s < (
        SELECT count(*) FROM (
            SELECT 1 FROM state_changes WHERE flow_run = %(flow_run)s LIMIT %(many)s + 1
        ) AS first
    )
"""
)
FIND_STANDINGS = "SELECT key, standings FROM flow_runs JOIN progress ON flow_run = key WHERE id = %s"

# -- reading ---------------------------------------------------------------------------------------------------------

_FLOW_RUN = """
    flow_runs.id, flow_runs.name, flow_runs.flow, flow_runs.created_at, flow_runs.root_id, flow_runs.parent_id,
    flow_runs.parameters, flow_runs.entry_point, flow_runs.executor, flow_runs.versions, flow_runs.host, flow_runs.pid,
    flow_runs.tags, flow_runs.code, flow_runs.inputs, flow_runs.arguments_format, flow_runs.arguments, flow_runs.odd
"""
_CHANGE = """
    number, sequence, type, name, message, "timestamp", previous, attempt, worker, pid, started_at, ended_at,
    cpu_seconds, peak_rss_bytes, cause, cache_key, cache_expires_at, odd
"""
_TASK_RUN = """
    SELECT number, name, task, ordinal, created_at, upstreams, tags, version, map_number, map_index, code, inputs, odd
    FROM task_runs
"""
LIST_FLOW_RUNS = (
    "SELECT key, "
    + _FLOW_RUN
    + """, running.at, newest.*
    FROM flow_runs
    JOIN progress ON progress.flow_run = key
    LEFT JOIN LATERAL (
        SELECT
    """
    + _CHANGE
    + """
        FROM state_changes WHERE flow_run = key AND number = 0 ORDER BY sequence DESC LIMIT 1
    ) AS newest ON true
    LEFT JOIN LATERAL (
        SELECT "timestamp" AS at FROM state_changes
        WHERE flow_run = key AND number = 0 AND type = 'RUNNING' ORDER BY sequence LIMIT 1
    ) AS running ON true
"""
)
OF_TREE = "root_id = %(root_id)s"
UNFINISHED = "NOT is_final"
NEWEST_FIRST = " ORDER BY key DESC LIMIT %(limit)s"

READ_FLOW_RUN = "SELECT key, " + _FLOW_RUN + "FROM flow_runs WHERE id = %s"
READ_TASK_RUNS = _TASK_RUN + "WHERE flow_run = %s AND number > %s ORDER BY number LIMIT %s"
READ_TASK_RUNS_BETWEEN = _TASK_RUN + "WHERE flow_run = %s AND number BETWEEN %s AND %s ORDER BY number"
READ_TASK_RUNS_OF = _TASK_RUN + "WHERE flow_run = %s AND number = ANY(%s::bigint[]) ORDER BY number"
FIND_CALLED = """
    SELECT number FROM task_runs WHERE flow_run = %(flow_run)s AND (name = %(called)s OR task = %(called)s)
"""
READ_CHANGES = (
    "SELECT "
    + _CHANGE
    + """
    FROM state_changes WHERE flow_run = %s AND (number, sequence) > (%s, %s) ORDER BY number, sequence LIMIT %s
"""
)
READ_CHANGES_OF = (
    "SELECT "
    + _CHANGE
    + "FROM state_changes WHERE flow_run = %s AND number = ANY(%s::bigint[]) ORDER BY number, sequence"
)
READ_LOG_ENTRIES = """
    SELECT position, number, attempt, "timestamp", level, source, message, odd
    FROM log_entries WHERE flow_run = %s AND position > %s ORDER BY position LIMIT %s
"""
LOAD_RESULT = """
    SELECT newest.result_format, newest.result, newest.result_parts, data
    FROM (
        SELECT state_changes.* FROM state_changes JOIN flow_runs ON key = flow_run
        WHERE id = %s AND number = %s AND type = 'COMPLETED' ORDER BY sequence DESC LIMIT 1
    ) AS newest
    LEFT JOIN result_parts USING (flow_run, number, sequence)
    ORDER BY part
"""
# A time that is no number has passed already; to PostgreSQL it is later than any other.
FIND_CACHED = """
    SELECT found.result_format, found.result, found.result_parts, data, id, number, task_run, flow_run_name, at,
           cache_expires_at
    FROM (
        SELECT state_changes.*, flow_runs.id, flow_runs.name AS flow_run_name, task_runs.name AS task_run,
               state_changes."timestamp" AS at
        FROM state_changes
        JOIN task_runs USING (flow_run, number)
        JOIN flow_runs ON key = flow_run
        WHERE cache_digest = %(digest)s AND cache_key = %(key)s
              AND (cache_expires_at IS NULL OR cache_expires_at > %(now)s AND cache_expires_at <> 'NaN')
              AND type = 'COMPLETED' AND result_format IS NOT NULL
        ORDER BY cache_entry DESC LIMIT 1
    ) AS found
    LEFT JOIN result_parts USING (flow_run, number, sequence)
    ORDER BY part
"""

# -- removing --------------------------------------------------------------------------------------------------------

LOCK_TREE = """
    SELECT flow_run FROM progress WHERE flow_run IN (SELECT key FROM flow_runs WHERE root_id = %s)
    ORDER BY flow_run FOR UPDATE
"""
REMOVE_RESULTS = """
    UPDATE state_changes SET result = NULL, result_format = NULL, result_parts = 0
    WHERE flow_run = ANY(%s::bigint[]) AND result_format IS NOT NULL
"""
REMOVE_PARTS = "DELETE FROM result_parts WHERE flow_run = ANY(%s::bigint[])"
REMOVE_ALL = (
    REMOVE_PARTS,
    "DELETE FROM log_entries WHERE flow_run = ANY(%s::bigint[])",
    "DELETE FROM state_changes WHERE flow_run = ANY(%s::bigint[])",
    "DELETE FROM task_runs WHERE flow_run = ANY(%s::bigint[])",
    "DELETE FROM flow_runs WHERE key = ANY(%s::bigint[])",
    "DELETE FROM progress WHERE flow_run = ANY(%s::bigint[])",
)
