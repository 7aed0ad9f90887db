"""Flow runs out of the SQLite store, a bounded piece at a time, so that engines at work never wait for long.

First the flow runs themselves go, in one transaction, and with them all that readers see; what is noted in
`removed_runs` then goes by and by. A process that dies in the middle leaves that note, and the next removal goes on.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from localflow.builtin.storage import statements
from localflow.builtin.storage.blocks import without_results
from localflow.builtin.storage.database import begin, connect
from localflow.failpoints import reach

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_PIECE = 1_000  # rows that go in one transaction
_PIECE_BYTES = 128 << 10  # of blocks that are replaced in one transaction
_VACUUM_BYTES = 256 << 20  # a file from before pages could be given back one by one is written anew up to this size

_HIDE = (
    "INSERT INTO removed_runs SELECT key FROM flow_runs WHERE root_id = ?",
    "DELETE FROM progress WHERE flow_run IN (SELECT key FROM flow_runs WHERE root_id = ?)",
    "DELETE FROM standings WHERE flow_run IN (SELECT key FROM flow_runs WHERE root_id = ?)",
    "DELETE FROM flow_runs WHERE root_id = ?",
)
#: Where the rows of a flow run go: the last of a piece, and the piece up to it.
_PIECES = (
    (
        "SELECT number FROM task_runs WHERE flow_run = ? ORDER BY number LIMIT 1 OFFSET ?",
        "DELETE FROM task_runs WHERE flow_run = ? AND number <= ?",
    ),
    (
        "SELECT number FROM state_changes WHERE flow_run = ? ORDER BY number LIMIT 1 OFFSET ?",
        "DELETE FROM state_changes WHERE flow_run = ? AND number <= ?",
    ),
    (
        "SELECT number FROM cache_entries WHERE flow_run = ? ORDER BY number LIMIT 1 OFFSET ?",
        "DELETE FROM cache_entries WHERE flow_run = ? AND number <= ?",
    ),
    (
        "SELECT number FROM large_results WHERE flow_run = ? ORDER BY number LIMIT 1 OFFSET ?",
        "DELETE FROM large_results WHERE flow_run = ? AND number <= ?",
    ),
    (  # a block has hundreds of records
        "SELECT block FROM blocks WHERE flow_run = ? ORDER BY block LIMIT 1 OFFSET ? / 100",
        "DELETE FROM blocks WHERE flow_run = ? AND block <= ?",
    ),
    (
        "SELECT position FROM log_entries WHERE flow_run = ? ORDER BY position LIMIT 1 OFFSET ?",
        "DELETE FROM log_entries WHERE flow_run = ? AND position <= ?",
    ),
)
_RESULT_PIECES = (  # a result that no state change names is none; one that is named and gone would be damage
    (
        "SELECT number FROM state_changes WHERE flow_run = ? AND result_checksum IS NOT NULL "
        "ORDER BY number LIMIT 1 OFFSET ?",
        "UPDATE state_changes SET result = NULL, result_checksum = NULL "
        "WHERE flow_run = ? AND number <= ? AND result_checksum IS NOT NULL",
    ),
    _PIECES[3],
)
#: The note itself goes after all else of a run.
_LAST_PIECE = (
    "SELECT flow_run FROM removed_runs WHERE flow_run = ? LIMIT 1 OFFSET ?",
    "DELETE FROM removed_runs WHERE flow_run = ? AND ? IS NOT NULL",
)
_LAST = 2**63 - 1


def remove_runs(path: Path, root_ids: Sequence[str], *, results_only: bool) -> None:
    """Remove flow runs at the top of a tree with all below them, or their results; give the space back.

    Raises:
        sqlite3.Error: what SQLite said; what was removed until then is gone.
    """
    with closing(connect(path, 5.0)) as connection:
        cursor = connection.cursor()
        try:
            if results_only:
                keys = [*_keys_below(cursor, root_ids)]
                _remove_rows(path, cursor, keys, _RESULT_PIECES)
                _remove_packed_results(path, cursor, keys)
            else:
                _hide(path, cursor, root_ids)
            removed = [key for (key,) in cursor.execute("SELECT flow_run FROM removed_runs").fetchall()]
            _remove_rows(path, cursor, removed, (*_PIECES, _LAST_PIECE))
        finally:
            if connection.in_transaction:
                with suppress(sqlite3.Error):
                    cursor.execute("ROLLBACK")
        give_space_back(path, connection)


def give_space_back(path: Path, connection: sqlite3.Connection) -> None:
    """Make the file as small as its content, as far as others leave it to us: they need not wait for it."""
    with suppress(sqlite3.OperationalError):
        (mode,) = connection.execute("PRAGMA auto_vacuum").fetchone()
        if mode == 0 and path.stat().st_size <= _VACUUM_BYTES:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("VACUUM")
        while mode and connection.execute("PRAGMA freelist_count").fetchone()[0]:
            connection.executescript("PRAGMA incremental_vacuum(1000)")  # 2 MB, and then others may write
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _hide(path: Path, cursor: sqlite3.Cursor, root_ids: Sequence[str]) -> None:
    for start in range(0, len(root_ids), _PIECE):
        begin(path, cursor)
        for root_id in root_ids[start : start + _PIECE]:
            for statement in _HIDE:
                cursor.execute(statement, (root_id,))
        reach("in-remove")
        cursor.execute("COMMIT")


def _remove_rows(path: Path, cursor: sqlite3.Cursor, keys: Sequence[int], pieces: Sequence[tuple[str, str]]) -> None:
    """Remove the rows of flow runs, about as many as a piece has in one transaction."""
    begin(path, cursor)
    room = _PIECE
    for key in keys:
        for find_last, remove in pieces:
            last = None
            while last != _LAST:
                (last,) = cursor.execute(find_last, (key, room)).fetchone() or (_LAST,)
                room -= cursor.execute(remove, (key, last)).rowcount
                if room <= 0:
                    reach("in-remove")
                    cursor.execute("COMMIT")
                    begin(path, cursor)
                    room = _PIECE
    reach("in-remove")
    cursor.execute("COMMIT")


def _remove_packed_results(path: Path, cursor: sqlite3.Cursor, keys: Sequence[int]) -> None:
    """Put blocks without results in the place of those with some, a piece of them in one transaction."""
    for key in keys:
        found = [block for (block,) in cursor.execute(statements.LIST_BLOCKS, (key,))]
        while found:
            begin(path, cursor)
            room = _PIECE_BYTES
            while found and room > 0:
                block = found.pop()
                row = cursor.execute(statements.READ_BLOCK, (block,)).fetchone()  # another process may have removed it
                if row is None:
                    continue
                room -= len(row[6])
                rest = without_results(row)
                if rest is not None:
                    cursor.execute(statements.REMOVE_BLOCK, (block,))
                    cursor.execute(statements.ADD_BLOCK, rest)
            reach("in-remove")
            cursor.execute("COMMIT")


def _keys_below(cursor: sqlite3.Cursor, root_ids: Sequence[str]) -> Iterator[int]:
    for root_id in root_ids:
        yield from [key for (key,) in cursor.execute("SELECT key FROM flow_runs WHERE root_id = ?", (root_id,))]
