"""Looks at everything in the tables for what cannot be. Damaged pages are the server's affair, by `data_checksums`."""

from __future__ import annotations

from typing import TYPE_CHECKING, LiteralString

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

_SHOWN = 20

# Each gives what to name of a thing that is wrong.
_WRONGS: tuple[tuple[LiteralString, LiteralString], ...] = (
    (
        "flow run {} is part of a tree whose top is not there",
        "SELECT id FROM flow_runs AS run WHERE NOT EXISTS (SELECT 1 FROM flow_runs WHERE id = run.root_id)",
    ),
    (
        "the progress of flow run {} is not there",
        "SELECT id FROM flow_runs WHERE NOT EXISTS (SELECT 1 FROM progress WHERE flow_run = key)",
    ),
    *(
        (
            "the table " + table + " has rows of flow run {}, which is not there",
            "SELECT DISTINCT flow_run::text FROM "
            + table
            + " WHERE NOT EXISTS (SELECT 1 FROM flow_runs WHERE key = flow_run)",
        )
        for table in ("progress", "task_runs", "state_changes", "result_parts", "log_entries")
    ),
    (
        "a run {} has state changes and is not there",
        """SELECT DISTINCT id || '-' || number FROM state_changes JOIN flow_runs ON key = flow_run
           WHERE number <> 0 AND NOT EXISTS (
               SELECT 1 FROM task_runs
               WHERE task_runs.flow_run = state_changes.flow_run AND task_runs.number = state_changes.number)""",
    ),
    (
        "a run {} has log entries and is not there",
        """SELECT DISTINCT id || '-' || number FROM log_entries JOIN flow_runs ON key = flow_run
           WHERE number <> 0 AND NOT EXISTS (
               SELECT 1 FROM task_runs
               WHERE task_runs.flow_run = log_entries.flow_run AND task_runs.number = log_entries.number)""",
    ),
    (
        "not all state changes of run {} are there",
        """SELECT id || '-' || number FROM state_changes JOIN flow_runs ON key = flow_run
           GROUP BY id, number HAVING max(sequence) <> count(*)""",
    ),
    (
        "not all log entries of flow run {} are there",
        """SELECT id FROM progress JOIN flow_runs ON key = flow_run
           WHERE log_entries <> (SELECT count(*) FROM log_entries WHERE log_entries.flow_run = progress.flow_run)""",
    ),
    (
        "whether flow run {} has ended is noted wrongly",
        """SELECT id FROM progress JOIN flow_runs ON key = flow_run
           WHERE is_final <> coalesce((
               SELECT type IN ('COMPLETED', 'FAILED', 'CRASHED', 'CANCELLED') FROM state_changes
               WHERE state_changes.flow_run = key AND number = 0 ORDER BY sequence DESC LIMIT 1), false)""",
    ),
    (
        "a result of run {} is not all there",
        """SELECT id || '-' || number FROM state_changes JOIN flow_runs ON key = flow_run
           WHERE result_parts <> (
               SELECT count(*) FROM result_parts
               WHERE result_parts.flow_run = state_changes.flow_run AND result_parts.number = state_changes.number
                     AND result_parts.sequence = state_changes.sequence)""",
    ),
)


def wrongs(connection: psycopg.Connection) -> Iterator[str]:
    """Yield a line for each thing that is wrong, for the first ones of a kind."""
    for words, statement in _WRONGS:
        found = connection.execute(statement).fetchall()
        for (name,) in found[:_SHOWN]:
            yield words.format(name)
        if len(found) > _SHOWN:
            yield f"and {len(found) - _SHOWN} more: {words.format('...')}"
