"""A state store of plain files: a directory for each flow run, with a journal that `jq` reads.

    store.json                    says that the directory is a store, and of which format
    <flow run id>/journal.jsonl   one line for each `append`, subflows included: {"records": [...], "crc": "..."}
    <flow run id>/logs.jsonl      its log, one line for each `append`, likewise
    <flow run id>/results/        large results, each complete before the line that names it
    cache/                        where results are found by their cache keys, in files named by the keys' digests
    engines/                      what the engines lock whose flow runs are being executed
    unfinished/                   an empty file for each flow run that may be unfinished, or have a subflow that is
    .removed/                     flow runs whose removal has begun

An append is one line in the journal of the flow run at the top, so a run and its subflows change together. Records of
several such trees in one append are one line in each of their journals: each line is all or none, they are not so
together. Engines write journals of their own, so they never wait for each other. A run that is recorded again is one
more line, too, and the last one counts.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from localflow.builtin.storage.claims import FLOW_RUN_ID, Claims
from localflow.builtin.storage.entries import flow_run_of
from localflow.builtin.storage.failures import not_an_id, os_failure
from localflow.builtin.storage.lifetime import Lifetime
from localflow.builtin.storage.marker import FORMAT_VERSION, open_directory
from localflow.builtin.storage.removed_runs import RemovedRuns
from localflow.builtin.storage.result_cache import ResultCache
from localflow.builtin.storage.run_directory import RunDirectory
from localflow.builtin.storage.unfinished import UnfinishedTrees
from localflow.builtin.storage.value_files import VALUES, ValueFiles
from localflow.errors import CorruptStoreError, StoreError
from localflow.interfaces import Folder, StateStore
from localflow.states import FINAL_TYPES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from localflow.interfaces import CachedResult, Claim, FlowRunSummary, LogEntry, Payload, Record

MAX_OPEN_JOURNALS = 16

_CACHE, _ENGINES, _UNFINISHED, _REMOVED = "cache", "engines", "unfinished", ".removed"

logger = logging.getLogger(__name__)


class JsonStateStore(StateStore):
    """Keeps records in directories below `path`, which is made if it is missing.

    Every commit is safe against the death of any process, with durability `full` against power loss too.
    """

    format_version: ClassVar[int] = FORMAT_VERSION

    def __init__(
        self, path: Path = Path(".localflow/runs"), durability: Literal["process", "full"] = "process"
    ) -> None:
        self._path = Path(path).absolute()
        self._power_safe = durability == "full"
        self._lifetime = Lifetime(self.location)
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._directories: dict[str, RunDirectory] = {}
        self._written: OrderedDict[str, RunDirectory] = OrderedDict()  # those open for writing, used last at the end
        self._root_ids: dict[str, str] = {}  # of subflow runs: the flow run at the top
        self._told: set[str] = set()  # the damage that was told
        self._claims = Claims(self._path / _ENGINES)
        self._values = ValueFiles(self._value_path, power_safe=self._power_safe)
        self._unfinished = UnfinishedTrees(self._path / _UNFINISHED, power_safe=self._power_safe)
        self._cache = ResultCache(self._path / _CACHE, power_safe=self._power_safe)
        self._removed = RemovedRuns(self._path / _REMOVED, self._cache, self._unfinished, power_safe=self._power_safe)
        open_directory(self._path, migrate=self._list_unfinished)
        self._cache.tidy()
        self._removed.finish()

    @classmethod
    def repair(
        cls, path: Path = Path(".localflow/runs"), durability: Literal["process", "full"] = "process"
    ) -> list[str]:
        """Mend the files that a store with these options would open; return what was done."""
        from localflow.builtin.storage.journal_repair import repair_journals

        return repair_journals(Path(path).absolute())

    @property
    def location(self) -> str:
        """The path of the directory."""
        return str(self._path)

    def append(self, records: Sequence[Record]) -> None:
        """Add records as one line in the journal of the flow run at the top of theirs."""
        batches: dict[str, list[Record]] = {}
        for record in records:
            batches.setdefault(flow_run_of(record).root_id, []).append(record)
        with self._write_lock:
            self._lifetime.check()
            for root_id in batches:
                if not _is_id(root_id):
                    raise not_an_id(root_id)
            if len(batches) > 1:  # what can be refused is refused before the first line
                for root_id, batch in batches.items():
                    self._directory(root_id).refuse(batch)
            for root_id, batch in batches.items():
                place = self._for_writing(root_id).append(self._values.keep(batch))
                self._cache.add(batch, place)

    def list_flow_runs(
        self, limit: int | None = None, *, root_id: str | None = None, unfinished: bool = False
    ) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, last created first, but for those in damaged journals.

        A warning names the damage; it is raised where `root_id` asks for these flow runs alone.
        """
        listed: list[str] = []
        with self._read_lock:
            self._lifetime.check()
            if root_id is not None:
                summaries = self._directory(root_id).summaries() if _is_id(root_id) else []
            else:
                listed = self._unfinished.root_ids() if unfinished else self._names()
                summaries = self._summaries(listed)
                if not unfinished:  # a power loss may have taken a file that says so
                    missing = {summary.flow_run.root_id for summary in summaries if _is_unfinished(summary)}
                    for each in missing.difference(self._unfinished.root_ids()):
                        self._unfinished.add(each)
        if unfinished:
            summaries = [summary for summary in summaries if _is_unfinished(summary)]
            if root_id is None:
                self._unlist(set(listed) - {summary.flow_run.root_id for summary in summaries})
        summaries.sort(key=lambda summary: summary.flow_run.created_at)
        return summaries[::-1][:limit]

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Yield a flow run, its task runs by number, then all state changes, all as of one instant."""
        with self._read_lock:
            self._lifetime.check()
            directory = self._find(flow_run_id)
            return iter(directory.read(flow_run_id) if directory else ())

    def read_chosen(
        self, flow_run_id: str, numbers: Collection[int] = (), *, called: str | None = None
    ) -> Iterator[Record]:
        """Yield the records of some runs, all as of one instant; the others are looked at, but not made."""
        with self._read_lock:
            self._lifetime.check()
            directory = self._find(flow_run_id)
            return iter(directory.read(flow_run_id, numbers, called) if directory else ())

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the result that a run has last completed with, if it was recorded."""
        with self._read_lock:
            self._lifetime.check()
            directory = self._find(flow_run_id)
            result = directory.load_result(flow_run_id, number) if directory else None
            return None if result is None else self._values.found(result)

    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Return the newest result recorded with this cache key that has not expired at `now`."""
        with self._read_lock:
            self._lifetime.check()
            found = (self._directory(hint.root).find_cached(hint, now) for hint in self._cache.hints(key, now))
            cached = next((cached for cached in found if cached is not None), None)
            return None if cached is None else cached._replace(result=self._values.found(cached.result))

    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Yield a flow run's log entries after a position, with theirs, all as of one instant."""
        with self._read_lock:
            self._lifetime.check()
            directory = self._find(flow_run_id)
            return iter(directory.read_log(flow_run_id, after) if directory else ())

    def claim(self, flow_run_id: str) -> Claim | None:
        """Take hold of a flow run, by a lock on a file in `engines/`."""
        self._lifetime.check()
        claim = self._claims.take(flow_run_id)
        if claim is not None:
            self._values.sweep(flow_run_id, self._directory(flow_run_id).results)
        return claim

    def value_folder(self, root_id: str) -> Folder:
        """Return a folder in the directory of the tree of flow runs."""
        return self._values.folder(root_id)

    def remove(self, root_ids: Sequence[str], *, results_only: bool = False) -> None:
        """Remove trees of flow runs: each is first moved aside, so that none is ever there by half."""
        with self._write_lock, self._read_lock:
            self._lifetime.check()
            for root_id in root_ids:
                if not _is_id(root_id) or not self._directory(root_id).exists():
                    continue
                directory = self._directories.pop(root_id)
                self._written.pop(root_id, None)
                directory.close()
                if results_only:
                    directory.remove_results(self._cache)
                    self._values.remove(root_id)
                else:
                    self._removed.add(self._path / root_id)

    def check(self) -> list[str]:
        """Look at every line of every journal and log, and at every file of a result."""
        problems: list[str] = []
        for name in self._names():
            with self._read_lock:
                self._lifetime.check()
                problems += self._directory(name).problems()
        return problems

    def close(self) -> None:
        """Release the journals that are open."""
        with self._write_lock, self._read_lock:
            if self._lifetime.end():
                for directory in self._written.values():
                    directory.close()

    def _for_writing(self, root_id: str) -> RunDirectory:
        """Return the directory to write to, closing the one unused for longest if too many are open."""
        directory = self._written[root_id] = self._directory(root_id)
        self._written.move_to_end(root_id)
        if len(self._written) > MAX_OPEN_JOURNALS:
            self._written.popitem(last=False)[1].close()
        return directory

    def _find(self, flow_run_id: str) -> RunDirectory | None:
        """Return the directory that holds a flow run's records."""
        if not _is_id(flow_run_id):
            return None
        directory = self._directory(flow_run_id)
        if directory.exists():
            return directory
        if flow_run_id not in self._root_ids:
            self._summaries(self._names())  # which learns the ids of all subflows
        root_id = self._root_ids.get(flow_run_id)
        return self._directory(root_id) if root_id and self._directory(root_id).exists() else None

    def _directory(self, root_id: str) -> RunDirectory:
        directory = self._directories.get(root_id)
        if directory is None:
            new = RunDirectory(self._path / root_id, self._unfinished, self._values, power_safe=self._power_safe)
            directory = self._directories.setdefault(root_id, new)  # the one of a quicker thread, if there was one
        return directory

    def _value_path(self, root_id: str) -> Path:
        return self._path / root_id / VALUES

    def _names(self) -> list[str]:
        """Return the names of the directories of flow runs."""
        try:
            with os.scandir(self._path) as places:
                names = [place.name for place in places if place.is_dir(follow_symlinks=False)]
        except OSError as error:
            raise os_failure(self._path, error) from error
        return sorted(filter(_is_id, names))

    def _summaries(self, names: Iterable[str]) -> list[FlowRunSummary]:
        """Return the flow runs in the directories of these names, but for damaged ones."""
        summaries = []
        for name in names:
            try:
                found = self._directory(name).summaries()
            except CorruptStoreError as error:
                if str(error) not in self._told:
                    self._told.add(str(error))
                    logger.warning("flow run %s is left out: %s", name, error)
                continue
            except StoreError:
                if self._directory(name).exists():
                    raise
                continue  # removed by another process meanwhile
            for summary in found:
                summaries.append(summary)
                self._root_ids[summary.flow_run.id] = name
        return summaries

    def _unlist(self, root_ids: Iterable[str]) -> None:
        """Take flow runs off the list of unfinished ones whose writers died when they were about to do so."""
        with self._write_lock:
            for root_id in root_ids:
                with suppress(StoreError):  # those that are damaged, and those that have gone meanwhile
                    self._directory(root_id).unlist_if_finished()

    def _list_unfinished(self) -> None:
        """Make the list of what may be unfinished, in a store of format 1."""
        for name in self._names():
            try:
                is_unfinished = any(map(_is_unfinished, self._directory(name).summaries()))
            except CorruptStoreError:  # it may be
                is_unfinished = True
            if is_unfinished:
                self._unfinished.add(name)


def _is_id(name: str) -> bool:
    """Return whether this may be the id of a flow run at the top, and so the name of its directory."""
    return FLOW_RUN_ID.fullmatch(name) is not None and name not in (_CACHE, _ENGINES, _UNFINISHED)


def _is_unfinished(summary: FlowRunSummary) -> bool:
    return summary.change is None or summary.change.type not in FINAL_TYPES
