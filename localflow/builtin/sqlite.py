"""The default state store: one SQLite file that several processes write and read at the same time.

Records are only ever inserted, on the one connection that writes; those of an engine at work go through a spool, see
`filing`. Reading has connections of its own: with SQLite's write-ahead log readers and the writer do not wait for each
other.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from localflow.builtin.storage import reading, rows
from localflow.builtin.storage.blocks import BlockReader
from localflow.builtin.storage.checksums import DamagedRowError
from localflow.builtin.storage.claims import Claims
from localflow.builtin.storage.database import connect, open_database, sqlite_failure
from localflow.builtin.storage.filing import Filing
from localflow.builtin.storage.lifetime import Lifetime
from localflow.builtin.storage.schema import FORMAT_VERSION
from localflow.builtin.storage.value_files import ValueFiles
from localflow.builtin.storage.writing import Writer
from localflow.errors import CorruptStoreError
from localflow.interfaces import Folder, LogEntry, StateStore

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from localflow.interfaces import CachedResult, Claim, FlowRunSummary, Payload, Record, Standing


class SqliteStateStore(StateStore):
    """Keeps records in the SQLite file at `path`, which is made if it is missing.

    Every commit is safe against the death of any process, with durability `full` against power loss too.
    """

    format_version: ClassVar[int] = FORMAT_VERSION

    def __init__(
        self, path: Path = Path(".localflow/localflow.db"), durability: Literal["process", "full"] = "process"
    ) -> None:
        self._path = Path(path).absolute()
        self._lifetime = Lifetime(self.location)
        self._reader = open_database(self._path)
        try:
            self._writer = Writer(self._path, power_safe=durability == "full")
            try:
                # A spool is not safe against power loss.
                self._filing = Filing(self._path, self._writer, uses_spool=durability == "process")
            except BaseException:
                self._writer.close()
                raise
        except BaseException:
            self._reader.close()
            raise
        self._read_lock = threading.Lock()
        self._blocks = BlockReader()
        self._claims = Claims(self._path.parent / "engines")
        self._values = _values_of(self._path, power_safe=durability == "full")

    @classmethod
    def repair(
        cls, path: Path = Path(".localflow/localflow.db"), durability: Literal["process", "full"] = "process"
    ) -> list[str]:
        """Mend the file that a store with these options would open; return what was done."""
        from localflow.builtin.storage.database_repair import repair_database

        return repair_database(Path(path).absolute(), cls)

    @property
    def location(self) -> str:
        """The path of the file."""
        return str(self._path)

    def append(self, records: Sequence[Record]) -> None:
        """Add records in one transaction, or commit them to the spool of this process."""
        self._lifetime.check()
        self._filing.append(self._values.keep(records))

    def list_flow_runs(
        self, limit: int | None = None, *, root_id: str | None = None, unfinished: bool = False
    ) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, last recorded first."""
        with self._reading() as reader:
            return reading.summaries(reader, limit, root_id, unfinished)

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Yield a flow run, its task runs by number, then all state changes, all as of one instant."""
        self._lifetime.check()
        return self._read(flow_run_id)

    def read_chosen(
        self, flow_run_id: str, numbers: Collection[int] = (), *, called: str | None = None
    ) -> Iterator[Record]:
        """Yield the records of some runs, all as of one instant, without a look at most of the others."""
        self._lifetime.check()
        return self._read_chosen(flow_run_id, numbers, called)

    def read_standings(self, flow_run_id: str) -> list[Standing]:
        """Return how the task runs of a flow run stand, as it was kept when it ended, or counted."""
        with self._reading() as reader:
            run = reading.find_run(reader, flow_run_id)
            return [] if run is None else reading.standings(reader, run)

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the result that a run has last completed with, if it was recorded."""
        with self._reading() as reader:
            result = reading.result(reader, flow_run_id, number, self._blocks)
            return None if result is None else self._values.found(result)

    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Return the newest result recorded with this cache key that has not expired at `now`."""
        with self._reading() as reader:
            (key_in_row,) = rows.boxed((key,))
            found = reading.cached_result(reader, key_in_row, now, self._blocks)
            return None if found is None else found._replace(result=self._values.found(found.result))

    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Yield a flow run's log entries after a position, with theirs, all as of one instant."""
        self._lifetime.check()
        return self._read_logs(flow_run_id, after)

    def claim(self, flow_run_id: str) -> Claim | None:
        """Take hold of a flow run by a lock on a file in `engines`, beside the database."""
        self._lifetime.check()
        claim = self._claims.take(flow_run_id)
        if claim is None:
            return None
        try:
            claim = self._filing.take_claim(flow_run_id, claim)
            self._values.sweep(flow_run_id, lambda: self._references_of(flow_run_id))
        except BaseException:
            claim.release()
            raise
        return claim

    def value_folder(self, root_id: str) -> Folder:
        """Return a folder beside the database, in which each tree of flow runs has one of its own."""
        return self._values.folder(root_id)

    def remove(self, root_ids: Sequence[str], *, results_only: bool = False) -> None:
        """Remove flow runs at the top of a tree with all below them, in transactions of bounded size."""
        with self._failures():
            self._lifetime.check()
            self._filing.file_all()
            self._writer.refuse_removed()
            from localflow.builtin.storage.removal import remove_runs

            remove_runs(self._path, root_ids, results_only=results_only)
        for root_id in root_ids:
            self._values.remove(root_id)
        self._filing.forget_keys()

    def check(self) -> list[str]:
        """Read everything; return a line for each thing that is wrong."""
        problems = self.check_database()
        if not problems:
            from localflow.builtin.storage.audit import references

            with self._snapshot() as connection:
                problems = self._values.problems(references(connection))
        return problems

    def _references_of(self, root_id: str) -> list[Payload]:
        from localflow.builtin.storage.audit import references

        with self._snapshot() as connection:
            return [*references(connection, root_id)]

    def check_database(self) -> list[str]:
        """Read everything but the files of large results; return a line for each thing that is wrong."""
        from localflow.builtin.storage.audit import wrongs

        self._lifetime.check()
        with self._snapshot() as connection:
            return list(wrongs(connection))

    def close(self) -> None:
        """Release the file; the last process to do so folds the write-ahead log into it."""
        with self._read_lock:
            if self._lifetime.end():
                try:
                    self._filing.close()
                finally:
                    self._reader.close()
                    self._writer.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for short reads, to which the store is as it is at the first SELECT."""
        with self._read_lock, self._failures():
            self._lifetime.check()
            self._filing.file_all()
            self._reader.execute("BEGIN")  # or a run that ends between two SELECTs would seem damaged
            try:
                yield self._reader
            finally:
                self._reader.execute("COMMIT")

    def _read(self, flow_run_id: str) -> Iterator[Record]:
        with self._snapshot() as connection:
            run = reading.find_run(connection, flow_run_id)
            if run is not None:
                yield from reading.records(connection, run)

    def _read_chosen(self, flow_run_id: str, numbers: Collection[int], called: str | None) -> Iterator[Record]:
        with self._snapshot() as connection:
            run = reading.find_run(connection, flow_run_id)
            if run is not None:
                yield from reading.chosen_records(connection, run, numbers, called)

    def _read_logs(self, flow_run_id: str, after: int) -> Iterator[tuple[int, LogEntry]]:
        with self._snapshot() as connection:
            run = reading.find_run(connection, flow_run_id)
            if run is not None:
                yield from reading.log_entries(connection, run, after)

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """Give a connection of its own, to which the store is as it is at the first SELECT."""
        with self._failures(), closing(connect(self._path)) as connection:
            self._filing.file_all()
            connection.execute("BEGIN")
            yield connection

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise sqlite_failure(self._path, error) from error
        except DamagedRowError as error:
            raise CorruptStoreError(self._path, str(error)) from error
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise CorruptStoreError(self._path, f"a row makes no sense ({error!r})") from error


def _values_of(path: Path, *, power_safe: bool) -> ValueFiles:
    folder = path.with_name(f"{path.name}-values")
    return ValueFiles(folder.joinpath, power_safe=power_safe)
