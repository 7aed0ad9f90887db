"""The plugin `postgres` of localflow: records of runs in a PostgreSQL database that several machines may share.

`store` is what the interface asks for and puts the rest together:

    place        where the database is, in words without its password
    connections  opening them, lending them out, and keeping forked children off them
    schema       the tables
    encoding, rows, statements    records as rows, and back
    writing, reading, claims, removal, audit    what is done with them
    failures     what goes wrong, worded
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow import hookimpl

if TYPE_CHECKING:
    from localflow.hookspecs import RegisterStateStore

#: The version of the plugin interface this plugin is written for.
localflow_api = 1


@hookimpl
def localflow_register_state_stores(register: RegisterStateStore) -> None:
    """Register the state store `postgres`."""
    register("postgres", "localflow_postgres.store:PostgresStateStore")
