"""Takes trees of flow runs out of the tables, each in a transaction of its own, or their results alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow_postgres import statements
from localflow_postgres.encoding import int_array, to_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from localflow_postgres.writing import Writer


def remove_runs(writer: Writer, root_ids: Sequence[str], *, results_only: bool) -> None:
    """Remove trees; ids that are not at the top of one are passed by. Raises StoreError."""

    def remove(connection: psycopg.Connection, root_id: str) -> str:
        connection.execute(statements.BEGIN)
        # After this nobody writes to them any more: who comes later finds them gone.
        locked = connection.execute(statements.LOCK_TREE, (to_text(root_id),)).fetchall()
        keys = (int_array(key for (key,) in locked),)
        if locked and results_only:
            connection.execute(statements.REMOVE_RESULTS, keys)
            connection.execute(statements.REMOVE_PARTS, keys)
        elif locked:
            for statement in statements.REMOVE_ALL:
                connection.execute(statement, keys)
        (number,) = connection.execute(statements.XID).fetchone() or ("",)
        return str(number)

    for root_id in root_ids:
        writer.transact(lambda connection, root_id=root_id: remove(connection, root_id))  # type: ignore[misc]
    writer.forget()
