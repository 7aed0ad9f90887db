"""The state store `postgres`."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

import psycopg

from localflow.interfaces import AtLeast, StateStore, StoreError
from localflow_postgres import reading
from localflow_postgres.audit import wrongs
from localflow_postgres.claims import Claims
from localflow_postgres.connections import Readers, connect, failure
from localflow_postgres.place import Place
from localflow_postgres.removal import remove_runs
from localflow_postgres.schema import FORMAT_VERSION, prepare_schema
from localflow_postgres.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from localflow.interfaces import (
        CachedResult,
        Claim,
        FlowRunSummary,
        LogEntry,
        Payload,
        Record,
        Standing,
    )

T = TypeVar("T")


class PostgresStateStore(StateStore):
    """Keeps records in a schema of a PostgreSQL database, which the engines of several machines may share."""

    format_version: ClassVar[int] = FORMAT_VERSION

    def __init__(
        self, url: str, schema: str = "localflow", connect_timeout: Annotated[float, AtLeast(1)] = 10.0
    ) -> None:
        """Open the store; the schema and its tables are made if they are missing.

        Args:
            url: `postgresql://user:password@host:5432/database`, or `host=... dbname=...`, as libpq reads them.
            schema: where the tables are: stores with different ones share nothing.
            connect_timeout: seconds for making a connection, and for a server that starts again to be there.

        Raises:
            ValueError: the URL or the schema is none.
            StoreError: the database cannot be used.
        """
        self._place = Place(url, schema, connect_timeout)
        self._pid = os.getpid()
        self._is_closed = False
        with closing(connect(self._place)) as connection:
            try:
                prepare_schema(connection, self._place)
            except psycopg.Error as error:
                raise failure(self._place, error) from error
        self._writer = Writer(self._place)
        self._readers = Readers(self._place)
        self._claims = Claims(self._place)

    @property
    def location(self) -> str:
        """Server, database and schema; never the password."""
        return self._place.location

    def append(self, records: Sequence[Record]) -> None:
        """Add records in one transaction."""
        self._check_open()
        if records:
            self._writer.append(records, self._claims.keep)

    def list_flow_runs(
        self, limit: int | None = None, *, root_id: str | None = None, unfinished: bool = False
    ) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, last recorded first."""
        return self._ask(lambda connection: reading.summaries(connection, limit, root_id, unfinished))

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Yield a flow run, its task runs by number, then all state changes, all as of one instant."""
        self._check_open()
        return self._yield(lambda connection: reading.records(connection, flow_run_id))

    def read_chosen(
        self, flow_run_id: str, numbers: Collection[int] = (), *, called: str | None = None
    ) -> Iterator[Record]:
        """Yield the records of some runs, all as of one instant, without a look at most of the others."""
        self._check_open()
        return self._yield(lambda connection: reading.chosen_records(connection, flow_run_id, numbers, called))

    def read_standings(self, flow_run_id: str) -> list[Standing]:
        """Return how the task runs of a flow run stand, counted by the server."""
        return self._ask(lambda connection: reading.standings(connection, flow_run_id))

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the result that a run has last completed with, if it was recorded."""
        return self._ask(lambda connection: reading.result(connection, flow_run_id, number))

    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Return the newest result recorded with this cache key that has not expired at `now`."""
        return self._ask(lambda connection: reading.cached_result(connection, key, now))

    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Yield a flow run's log entries after a position, with theirs, all as of one instant."""
        self._check_open()
        return self._yield(lambda connection: reading.log_entries(connection, flow_run_id, after))

    def claim(self, flow_run_id: str) -> Claim | None:
        """Take hold of a flow run by an advisory lock of the server's."""
        self._check_open()
        return self._claims.take(flow_run_id)

    def remove(self, root_ids: Sequence[str], *, results_only: bool = False) -> None:
        """Remove flow runs at the top of a tree with all below them; the space is used again after a VACUUM."""
        self._check_open()
        remove_runs(self._writer, root_ids, results_only=results_only)

    def check(self) -> list[str]:
        """Look at all tables; return a line for each thing that is wrong."""
        self._check_open()
        return list(self._yield(wrongs))

    def close(self) -> None:
        """Close all connections; in a forked child, nothing happens to those of its parent."""
        if not self._is_closed and os.getpid() == self._pid:
            self._is_closed = True
            self._claims.close()
            self._writer.close()
            self._readers.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError(f"{self._place.named} is closed; open it again to use it")
        if os.getpid() != self._pid:
            raise StoreError(
                f"{self._place.named} was opened by process {self._pid} and is used in its forked child "
                f"{os.getpid()}; open it again there"
            )

    def _ask(self, work: Callable[[psycopg.Connection], T]) -> T:
        self._check_open()
        with self._failures():
            return self._readers.ask(work)

    def _yield(self, work: Callable[[psycopg.Connection], Iterator[T]]) -> Iterator[T]:
        with self._failures(), self._readers.snapshot() as connection:
            yield from work(connection)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise failure(self._place, error) from error
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{self._place.named} has a row that makes no sense ({error!r}); see: localflow doctor"
            ) from error
