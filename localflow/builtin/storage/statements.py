"""What the SQLite store says to SQLite: constant texts, every value bound."""

from __future__ import annotations

import functools

ADD_FLOW_RUN = """
    INSERT INTO flow_runs (id, name, flow, created_at, root_id, parent_id, parameters, entry_point, executor, versions,
                           host, pid, tags, code, inputs, arguments_format, arguments, checksum)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET
        name = excluded.name, flow = excluded.flow, created_at = excluded.created_at, root_id = excluded.root_id,
        parent_id = excluded.parent_id, parameters = excluded.parameters, entry_point = excluded.entry_point,
        executor = excluded.executor, versions = excluded.versions, host = excluded.host, pid = excluded.pid,
        tags = excluded.tags, code = excluded.code, inputs = excluded.inputs,
        arguments_format = excluded.arguments_format, arguments = excluded.arguments, checksum = excluded.checksum
"""
ADD_PROGRESS = "INSERT INTO progress VALUES (?, 0, NULL, NULL) ON CONFLICT DO NOTHING"
ADD_TASK_RUN = "INSERT OR REPLACE INTO task_runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
# Most state changes say nothing beyond these columns, and what is not bound takes no time.
ADD_PLAIN_CHANGE = """
    INSERT INTO state_changes (flow_run, number, sequence, type, name, message, timestamp, previous, attempt, checksum)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
ADD_FULL_CHANGE = "INSERT INTO state_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
ADD_LARGE_RESULT = "INSERT INTO large_results VALUES (?, ?, ?, ?)"
ADD_CACHE_ENTRY = """
    INSERT INTO cache_entries (key, expires_at, flow_run, number, sequence, checksum) VALUES (?, ?, ?, ?, ?, ?)
"""
ADD_BLOCK = """
    INSERT INTO blocks (flow_run, first, last, task_runs, changes, content, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
ADD_LOG_ENTRY = "INSERT INTO log_entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

#: Note whether a flow run has ended; then, if it has, what it consists of. What is said twice has a name, not a
#: number: some releases of Python 3.12 warn of those.
SET_FINAL = """
    UPDATE progress SET changes = NULL, log_entries = NULL, is_final = (
        SELECT type IN ('COMPLETED', 'FAILED', 'CRASHED', 'CANCELLED') FROM state_changes
        WHERE flow_run = :flow_run AND number = 0 ORDER BY sequence DESC LIMIT 1
    ) WHERE flow_run = :flow_run AND EXISTS (SELECT 1 FROM state_changes WHERE flow_run = :flow_run AND number = 0)
"""
COUNT_ALL = """
    UPDATE progress SET
        changes = (SELECT count(*) FROM state_changes WHERE flow_run = :flow_run)
                  + (SELECT coalesce(sum(changes), 0) FROM blocks WHERE flow_run = :flow_run),
        log_entries = (SELECT count(*) FROM log_entries WHERE flow_run = :flow_run)
    WHERE flow_run = :flow_run AND is_final
"""
FIND_COUNT = "SELECT changes FROM progress WHERE flow_run = ? AND is_final"
#: How task runs stand: what is kept of a flow run, and what it is counted from.
ADD_STANDINGS = "INSERT OR REPLACE INTO standings VALUES (?, ?, ?)"
FORGET_STANDINGS = "DELETE FROM standings WHERE flow_run = ?"
READ_STANDINGS = "SELECT flow_run, content, checksum FROM standings WHERE flow_run = ?"
READ_MAP_NUMBERS = "SELECT number, map_number FROM task_runs WHERE flow_run = ? ORDER BY number"
READ_MOMENTS = """
    SELECT number, sequence, type, name, timestamp, started_at, ended_at FROM state_changes
    WHERE flow_run = ? AND number > 0 ORDER BY number, sequence
"""


@functools.cache
def repeated(statement: str, times: int) -> str:
    """Return a statement that inserts so many rows at once as one of those above inserts one."""
    start, values, row = statement.rpartition("VALUES")
    return f"{start}{values} {', '.join([row] * times)}"


FIND_KEY = "SELECT key FROM flow_runs WHERE id = ?"
FIND_LOG_END = "SELECT coalesce(max(position), 0) FROM log_entries WHERE flow_run = ?"

#: The highest number that anything is recorded of, and the newest sequence of the flow run itself.
FIND_ENDS = """
    SELECT max((SELECT coalesce(max(number), 0) FROM task_runs WHERE flow_run = key),
               (SELECT coalesce(max(number), 0) FROM state_changes WHERE flow_run = key),
               (SELECT coalesce(max(last), 0) FROM blocks WHERE flow_run = key)),
           (SELECT coalesce(max(sequence), 0) FROM state_changes WHERE flow_run = key AND number = 0)
    FROM flow_runs WHERE id = ?
"""
FIND_LAST_CHANGE = "SELECT coalesce(max(sequence), 0) FROM state_changes WHERE flow_run = ? AND number = ?"
FIND_MARK = "SELECT generation, end FROM spools WHERE name = ?"
SET_MARK = "INSERT OR REPLACE INTO spools VALUES (?, ?, ?)"
REMOVE_MARK = "DELETE FROM spools WHERE name = ?"
LIST_MARKS = "SELECT name FROM spools"

_FLOW_RUN_COLUMNS = """
    SELECT key, progress.*, id, name, flow, created_at, root_id, parent_id, parameters, entry_point, executor, versions,
           host, pid, tags, code, inputs, arguments_format, arguments, checksum
"""
_SELECT_FLOW_RUNS = _FLOW_RUN_COLUMNS + "FROM flow_runs LEFT JOIN progress ON progress.flow_run = key "
# SQLite would rather look at all flow runs, in their order.
_SELECT_UNFINISHED = (
    _FLOW_RUN_COLUMNS + "FROM progress INDEXED BY unfinished CROSS JOIN flow_runs ON progress.flow_run = key "
)
_NEWEST_FIRST = " ORDER BY key DESC LIMIT :limit"
#: By whether a tree is asked for, and whether only unfinished runs are.
LIST_FLOW_RUNS = {
    (False, False): _SELECT_FLOW_RUNS + _NEWEST_FIRST,
    (True, False): _SELECT_FLOW_RUNS + "WHERE root_id = :root_id" + _NEWEST_FIRST,
    (False, True): _SELECT_UNFINISHED + "WHERE is_final = 0" + _NEWEST_FIRST,
    (True, True): _SELECT_FLOW_RUNS + "WHERE root_id = :root_id AND is_final = 0" + _NEWEST_FIRST,
}
READ_FLOW_RUN = _SELECT_FLOW_RUNS + "WHERE id = ?"
READ_FLOW_RUN_BY_KEY = _SELECT_FLOW_RUNS + "WHERE key = ?"
READ_ALL_FLOW_RUNS = _SELECT_FLOW_RUNS + "ORDER BY key"
#: Without the index, whose damage would make a run seem unknown.
SEEK_FLOW_RUN = "SELECT 1 FROM flow_runs NOT INDEXED WHERE id = ?"

_SELECT_TASK_RUNS = """
    SELECT flow_run, number, name, task, ordinal, created_at, upstreams, tags, version, map_number, map_index, code,
           inputs, checksum
    FROM task_runs
"""
READ_TASK_RUNS_OF = _SELECT_TASK_RUNS + "WHERE flow_run = ? AND number BETWEEN ? AND ? ORDER BY number"
FIND_CALLED = "SELECT number FROM task_runs WHERE flow_run = :flow_run AND (name = :called OR task = :called)"
LIST_NUMBERS = "SELECT number FROM task_runs WHERE flow_run = ?"
READ_TASK_RUN = _SELECT_TASK_RUNS + "WHERE flow_run = ? AND number = ?"

_SELECT_CHANGES = """
    SELECT flow_run, number, sequence, type, name, message, timestamp, previous, attempt,
           worker, pid, started_at, ended_at, cpu_seconds, peak_rss_bytes, cause, result_format,
           state_changes.checksum, key, expires_at, cache_entries.checksum
    FROM state_changes LEFT JOIN cache_entries USING (flow_run, number, sequence)
"""
READ_CHANGES_OF = _SELECT_CHANGES + "WHERE flow_run = ? AND number BETWEEN ? AND ? ORDER BY number, sequence"
READ_FLOW_CHANGES = _SELECT_CHANGES + "WHERE flow_run = ? AND number = 0 ORDER BY sequence"
READ_CHANGE = _SELECT_CHANGES + "WHERE flow_run = ? AND number = ? AND sequence = ?"

_SELECT_RESULTS = """
    SELECT flow_run, number, sequence, type, name, message, timestamp, previous, attempt,
           worker, pid, started_at, ended_at, cpu_seconds, peak_rss_bytes, cause, result_format, checksum,
           coalesce(result, data), result_checksum
    FROM state_changes LEFT JOIN large_results USING (flow_run, number, sequence)
"""
READ_RESULT = (
    _SELECT_RESULTS
    + """
    WHERE flow_run = ? AND number = ? AND type = 'COMPLETED'
    ORDER BY sequence DESC LIMIT 1
"""
)
READ_RESULT_OF_CHANGE = _SELECT_RESULTS + "WHERE flow_run = ? AND number = ? AND sequence = ?"
# From the newest entry of the key on, along its index, as far as somebody reads; a time that is no number has passed.
FIND_CACHED = """
    SELECT cache_entries.key, expires_at, flow_run, number, sequence, cache_entries.checksum
    FROM cache_entries
    JOIN state_changes USING (flow_run, number, sequence)
    JOIN flow_runs ON flow_runs.key = flow_run
    WHERE cache_entries.key = ? AND (expires_at IS NULL OR typeof(expires_at) <> 'blob' AND expires_at > ?)
          AND type = 'COMPLETED' AND result_checksum IS NOT NULL
    ORDER BY entry DESC
"""
READ_LOG_ENTRIES = """
    SELECT flow_run, position, number, attempt, timestamp, level, source, message, checksum
    FROM log_entries WHERE flow_run = ? AND position > ? ORDER BY position
"""

_SELECT_BLOCKS = "SELECT block, flow_run, first, last, task_runs, changes, content, checksum FROM blocks "
HAS_BLOCKS = "SELECT 1 FROM blocks WHERE flow_run = ? LIMIT 1"
#: Blocks with anything of the task runs from one number to another.
READ_BLOCKS = _SELECT_BLOCKS + "WHERE flow_run = ? AND first BETWEEN ? AND ? AND last >= ? ORDER BY first, block"
FIND_BLOCKS = "SELECT block FROM blocks WHERE flow_run = ? AND first BETWEEN ? AND ? AND last >= ?"
READ_ALL_BLOCKS = _SELECT_BLOCKS + "WHERE flow_run = ?"
READ_BLOCK = _SELECT_BLOCKS + "WHERE block = ?"
REMOVE_BLOCK = "DELETE FROM blocks WHERE block = ?"
LIST_BLOCKS = "SELECT block FROM blocks WHERE flow_run = ? ORDER BY block"
