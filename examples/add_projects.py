"""One bad row does not stop the good ones.

Fills a table of projects. A name shorter than four letters violates the table's CHECK, so that one task fails; the
others run all the same, and the flow's final state says what happened.

    python examples/add_projects.py '["orion", "", "critically-important"]'
    localflow run examples/add_projects.py -p 'project_names=["orion", "", "critically-important"]'

You should see

    State(name='Failed', type=StateType.FAILED, message='1/4 states failed.')

the exit code 1, and the projects `orion` and `critically-important` in example.db.

The tasks share one sqlite connection, so they run in this process: on the sequential executor, the default.
"""

import json
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime

from localflow import flow, task

PROJECTS_TABLE = """
    CREATE TABLE IF NOT EXISTS projects (
        id integer PRIMARY KEY,
        name text NOT NULL CHECK (length(name) >= 4),
        begin_date text
    )
"""


@task
def create_tables(connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute(PROJECTS_TABLE)


@task
def add_project(connection: sqlite3.Connection, name: str) -> int | None:
    """Insert one project and return its id."""
    with connection:
        row = (name, datetime.now(UTC).isoformat())
        return connection.execute("INSERT INTO projects (name, begin_date) VALUES (?, ?)", row).lastrowid


@flow(name="Add Projects to DB")
def main(project_names: list[str], db_file: str = "example.db") -> None:
    # Whatever executor runs the tasks, it may do so in another thread than this one.
    with closing(sqlite3.connect(db_file, check_same_thread=False)) as connection:
        tables = create_tables(connection)
        projects = [add_project(connection, name, wait_for=[tables]) for name in project_names]
        # A flow waits for its tasks, but only after its body; the connection must stay open until they have ended.
        for run in [tables, *projects]:
            run.wait()


if __name__ == "__main__":
    state = main(json.loads(sys.argv[1]))
    print(state)
    sys.exit(0 if state.is_completed() else 1)
