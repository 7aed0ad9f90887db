"""Filing: records go through a spool where that is safe, and by and by from all spools into the database.

What an engine records of the flow runs that it has claimed goes into the spool of its process, and is committed by
that; a thread files it a moment later, many commits in one transaction, what is packed as blocks and the rest as rows.
Everything else (flow runs themselves, what is too large for the spool, what is recorded without a claim) goes straight
into the database, after all that is in the spool. Readers file first, so they see all that was ever committed, in
whatever process.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from bisect import bisect_right
from contextlib import closing, suppress
from itertools import chain
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING

from localflow.builtin.storage.directory import make_private_directory
from localflow.builtin.storage.failures import MisfitError, os_failure
from localflow.builtin.storage.ledgers import Ledgers
from localflow.builtin.storage.repair import beside, stamp
from localflow.builtin.storage.spool import LARGEST_ENTRY, FoundSpool, Mark, Spool, TornEntryError
from localflow.builtin.storage.spooled import entry_of, packed_records, records_of, spooled, unspooled
from localflow.errors import CorruptStoreError, StoreError
from localflow.interfaces import LogEntry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from localflow.builtin.storage.spooled import Entry
    from localflow.builtin.storage.writing import Writer
    from localflow.interfaces import Claim, Record

_log = logging.getLogger("localflow.stores")

#: How long the records of a commit lie in the spool, at least; then they are filed with all that have come since.
DELAY_SECONDS = 0.05
#: How long nobody looks whether the database has been removed: a look is a system call, at which others take over.
_LOOK_SECONDS = 0.001


class Filing:
    """Records on their way into the database at `path`, which `writer` writes.

    Locks, in the order in which they are taken: `_appending` keeps appends in order; `_writing` is held by who uses the
    writer. The backlog needs none: who appends adds at its end, who files cuts off its beginning, each in one step.
    """

    def __init__(self, path: Path, writer: Writer, *, uses_spool: bool) -> None:
        """Begin; raises StoreError if there is something to be filed and that cannot be done."""
        self._path = path
        self._writer = writer
        self._directory = spool_directory(path)
        self._uses_spool = uses_spool
        self._spool: Spool | None = None
        self._ledgers = Ledgers(self._ends, self._newest)
        """Of the trees on which this process has a claim: nobody else records anything of them."""
        self._backlog: list[tuple[Mark, Entry]] = []
        """What lies in the spool and is not filed, with where it ends there."""
        self._failure: StoreError | None = None
        """Why the thread could not file."""
        self._appending = threading.Lock()
        self._writing = threading.Lock()
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._look_at = 0.0
        """When to look again whether the database is still there."""
        self._forget_removed()
        self.file_others()

    # -- adding ------------------------------------------------------------------------------------------------------

    def append(self, records: Sequence[Record]) -> None:
        """Commit records. Raises StoreError."""
        with self._appending:
            if self._failure is not None:
                self._failure = None
                self.file()
            now = time.monotonic()
            if now > self._look_at:
                self._writer.refuse_removed()
                self._look_at = now + _LOOK_SECONDS
            entry = entry_of(records, self._ledgers) if self._ledgers else None
            content = spooled(entry) if entry is not None else None
            spool = self._spool_for(content) if content is not None else None
            if entry is None or content is None or spool is None:
                self.file()
                try:
                    self.write(records)
                    self._ledgers.learn(records)
                except BaseException:  # also if it was stopped after the commit
                    self._ledgers.forget()
                    raise
                return
            before = spool.mark
            try:
                spool.add(content)
            finally:  # also if it was stopped just after that
                if spool.mark is not before:
                    self._backlog.append((spool.mark, entry))
            if not self._wanted.is_set():
                self._wanted.set()

    def write(self, records: Sequence[Record]) -> None:
        """Insert records into the database at once. Raises StoreError."""
        with self._writing:
            self._writer.transact(lambda box: self._writer.insert(records, box))

    def _ends(self, flow_run_id: str) -> tuple[int, int] | None:
        self.file()
        with self._writing:
            return self._writer.ends(flow_run_id)

    def _newest(self, flow_run_id: str, number: int) -> int:
        with self._writing:
            return self._writer.newest(flow_run_id, number)

    def take_claim(self, flow_run_id: str, claim: Claim) -> Claim:
        """Let records of a flow run, on which there is this claim, go through the spool until it is released."""
        if not self._uses_spool:
            return claim
        self.file_others()  # an engine may have died since the store was opened
        with self._appending:
            if self._spool is None:  # now, before there are so many threads and files that it cannot be made
                self._make_spool()
            if self._spool is not None:
                self._ledgers.add_tree(flow_run_id)
        return _FilingClaim(self, flow_run_id, claim)

    def end_claim(self, flow_run_id: str) -> None:
        """File what was recorded under a claim; a failure is told with the next append, or at the end."""
        with self._appending:
            self._ledgers.discard_tree(flow_run_id)
        self._file_or_fail()

    def _spool_for(self, content: bytes) -> Spool | None:
        """Return the spool, with room for this entry; None if it cannot go there."""
        if len(content) > LARGEST_ENTRY:
            return None
        if self._spool is None:
            self._make_spool()
        elif not self._spool.has_room(content):
            self.file(anew=True)
        return self._spool

    def _make_spool(self) -> None:
        try:
            make_private_directory(self._directory)
            spool = Spool(self._directory)
            thread = threading.Thread(target=self._run, name="localflow-filing", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # there are too many threads already
                spool.remove()
                raise
        except (OSError, RuntimeError) as error:
            # Then everything goes straight into the database, which tells whether the disk is full.
            self._uses_spool = False
            self._ledgers.clear()
            _log.debug("no spool in %s: %s", self._directory, error)
            return
        self._spool, self._thread = spool, thread

    # -- filing ------------------------------------------------------------------------------------------------------

    def file(self, *, anew: bool = False) -> None:
        """File what is in the spool of this process; with `anew` the spool begins anew. Raises StoreError.

        Who begins it anew has the lock for appending.
        """
        if not (self._backlog or anew):
            return
        with self._writing:
            spool = self._spool
            assert spool is not None  # or there would be no backlog
            batches = self._backlog[:]
            if not batches and not anew:  # another thread has filed it
                return
            end = Mark(spool.mark.generation + 1) if anew else batches[-1][0]

            def work(box: bool) -> None:
                filed = self._writer.filed(spool.name) or Mark()  # others file, too
                done = bisect_right(batches, filed, key=itemgetter(0))
                self._insert([entry for _, entry in batches[done:]], box)
                self._writer.set_filed(spool.name, max(end, filed))

            try:
                self._writer.transact(work)
                del self._backlog[: len(batches)]  # not before: who finds nothing there reads without waiting
                if anew:
                    spool.begin_anew()
            except BaseException:
                if anew and (self._writer.filed(spool.name) or Mark()).generation > spool.mark.generation:
                    self._backlog.clear()  # stopped after the commit: what is added from now on must count
                    spool.begin_anew()
                raise

    def _insert(self, entries: Sequence[Entry], box: bool) -> None:
        left = self._writer.insert_packs(chain.from_iterable(map(attrgetter("packs"), entries)))
        records = [record for pack in left for record in packed_records(pack)]  # older than any other of its task run
        records += chain.from_iterable(map(attrgetter("others"), entries))
        self._writer.insert(records, box, are_known_to_fit=True)

    def file_all(self) -> None:
        """File what is in all spools, so that readers see it. Raises StoreError."""
        self.file()
        try:
            self.file_others()
        except CorruptStoreError:
            raise
        except StoreError as error:
            _log.warning("what other processes have recorded last is not shown: %s", error)

    def file_others(self) -> None:
        """File what is in the spools of other processes, and remove those whose process has died. Raises StoreError."""
        for path in spools_in(self._directory):
            if self._spool is not None and path.name == self._spool.name:
                continue
            try:
                found = FoundSpool(path)
            except FileNotFoundError:  # its process has ended meanwhile
                continue
            except OSError as error:
                raise os_failure(path, error) from error
            with closing(found), self._writing:
                self._file_found(found)
                if found.is_orphaned and found.is_there():
                    found.remove()
                    self._writer.transact(lambda _, name=found.name: self._writer.forget_spools([name]))  # type: ignore[misc]

    def _file_found(self, found: FoundSpool) -> None:
        try:
            if found.mark() > (self._writer.filed(found.name) or Mark()):
                self._writer.transact(lambda box: self._insert_found(found, box))
        except TornEntryError as error:
            if found.is_orphaned and found.is_of_this_boot():
                raise CorruptStoreError(found.path, str(error)) from None
            if found.is_orphaned:
                self._file_what_fits(found)
        except MisfitError:  # anything else, such as a full disk, may be over the next time
            if not found.is_orphaned or (found.is_of_this_boot() and self._writer.filed(found.name) is not None):
                raise
            self._file_what_fits(found)

    def _insert_found(self, found: FoundSpool, box: bool) -> None:
        if not found.is_there():  # its process has filed everything and removed it
            return
        filed = self._writer.filed(found.name) or Mark()
        mark = found.mark()
        if mark <= filed:
            return
        if mark.generation != filed.generation:
            raise MisfitError(f"state store {self._path} is older than what is in {found.path}")
        self._insert([unspooled(content) for content in found.contents(filed.end, mark.end)], box)
        self._writer.set_filed(found.name, mark)

    def _file_what_fits(self, found: FoundSpool) -> None:
        """File what the database can take: it has lost commits with a power loss, or has been repaired."""
        lost = 0

        def work(box: bool) -> None:
            nonlocal lost
            lost = 0
            for content in found.sound_contents():
                for record in records_of(unspooled(content)):
                    if not isinstance(record, LogEntry) and self._writer.continues(record):
                        self._writer.insert([record], box)
                    else:
                        lost += 1

        self._writer.transact(work)
        _log.warning(
            "state store %s has lost what was recorded last before a power loss or a repair; of what process had "
            "in %s, %d records are there already or do not fit any more",
            *(self._path, found.path, lost),
        )

    def _forget_removed(self) -> None:
        """Forget spools whose process died as it removed them."""
        removed = [name for name in self._writer.known_spools() if not (self._directory / name).exists()]
        if removed:
            self._writer.transact(lambda _: self._writer.forget_spools(removed))

    def forget_keys(self) -> None:
        """Look up flow runs anew: some may have been removed."""
        with self._appending, self._writing:
            self._writer.forget()
            self._ledgers.forget()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._closing.wait(DELAY_SECONDS)
            self._wanted.clear()
            if self._closing.is_set():  # looked at last, or the end might be what was cleared
                return
            self._file_or_fail()

    def _file_or_fail(self) -> None:
        try:
            self.file()
        except StoreError as error:
            self._failure = error
        except Exception as error:
            _log.exception("what is in the spool could not be filed")
            self._failure = StoreError(f"state store {self._path} cannot be written: {error!r}")

    def close(self) -> None:
        """File everything and remove the spool. Raises StoreError; then the spool stays for the next opening."""
        self._closing.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
        spool, filed = self._spool, False
        if spool is None:
            return
        try:
            self.file()
            filed = True
        finally:
            self._spool = None
            if filed:
                spool.remove()
            else:
                spool.close()
        with suppress(StoreError):  # all is filed; the next opening forgets the spool
            self._writer.transact(lambda _: self._writer.forget_spools([spool.name]))


class _FilingClaim:
    """A claim at whose release everything recorded under it is filed."""

    def __init__(self, filing: Filing, flow_run_id: str, claim: Claim) -> None:
        self._filing = filing
        self._flow_run_id = flow_run_id
        self._claim = claim
        self._pid = os.getpid()

    def release(self) -> None:
        """File, and let the flow run go; in a forked child nothing happens."""
        try:
            if self._pid == os.getpid():
                self._filing.end_claim(self._flow_run_id)
        finally:
            self._claim.release()


def spool_directory(path: Path) -> Path:
    """Return where the spools of the database at `path` are."""
    return path.with_name(path.name + "-spool")


def spools_in(directory: Path) -> Iterator[Path]:
    """Yield the spools that are there."""
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - at every look into the store
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from (directory / name for name in names)


def set_torn_aside(path: Path) -> list[str]:
    """Put aside the spools of the database at `path` that are damaged; return what was done, a line for each."""
    done = []
    for place in spools_in(spool_directory(path)):
        with closing(FoundSpool(place)) as found:
            if found.is_orphaned and found.is_torn():
                aside = beside(path, stamp())
                place.rename(aside)
                done.append(f"put {place}, in which commits are damaged, aside as {aside}")
    return done
