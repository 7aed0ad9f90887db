"""A state store of plain files: a directory for each flow run, with a journal that `jq` reads.

    store.json                    says that the directory is a store, and of which format
    <flow run id>/journal.jsonl   one line for each `append`, subflows included: {"records": [...], "crc": "..."}
    <flow run id>/logs.jsonl      its log, one line for each `append`, likewise
    <flow run id>/results/        large results, each complete before the line that names it
    cache/                        where results are found by their cache keys, in files named by the keys' digests

An append is one line in the journal of the flow run at the top, so a run and its subflows change together. Records of
several such trees in one append are one line in each of their journals: each line is all or none, they are not so
together. Engines write journals of their own, so they never wait for each other.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from localflow.builtin.storage.directory import make_state_directory, sole_maker, write_private_file
from localflow.builtin.storage.encoding import from_json, to_json
from localflow.builtin.storage.entries import flow_run_of
from localflow.builtin.storage.failures import no_permission, os_failure
from localflow.builtin.storage.lifetime import Lifetime
from localflow.builtin.storage.result_cache import ResultCache
from localflow.builtin.storage.run_directory import RunDirectory
from localflow.errors import CorruptStoreError, StoreError, StoreVersionError
from localflow.interfaces import StateStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localflow.interfaces import CachedResult, FlowRunSummary, LogEntry, Payload, Record

FORMAT_VERSION = 1
MAX_OPEN_JOURNALS = 16

_MARKER = "store.json"
_FORMAT = "localflow state store"
_ID = re.compile(r"[a-z0-9-]{1,64}")


class JsonStateStore(StateStore):
    """Keeps records in directories below `path`, which is made if it is missing.

    Every commit is safe against the death of any process, with durability `full` against power loss too.
    """

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
        self._cache = ResultCache(self._path / "cache", power_safe=self._power_safe)
        _open_directory(self._path)

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
                if not _ID.fullmatch(root_id):
                    raise StoreError(f"'{root_id}' is no flow run's id: at most 64 lower-case letters, digits and -")
            if len(batches) > 1:  # what can be refused is refused before the first line
                for root_id, batch in batches.items():
                    self._directory(root_id).check(batch)
            for root_id, batch in batches.items():
                place = self._for_writing(root_id).append(batch)
                self._cache.add(batch, place)

    def list_flow_runs(self, limit: int | None = None) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, last created first."""
        with self._read_lock:
            self._lifetime.check()
            summaries = self._all_summaries()
        summaries.sort(key=lambda summary: summary.flow_run.created_at)
        return summaries[::-1][:limit]

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Yield a flow run, its task runs by number, then all state changes, all as of one instant."""
        with self._read_lock:
            self._lifetime.check()
            directory = self._find(flow_run_id)
            return iter(directory.read(flow_run_id) if directory else ())

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the newest recorded result of a run."""
        with self._read_lock:
            self._lifetime.check()
            directory = self._find(flow_run_id)
            return directory.load_result(flow_run_id, number) if directory else None

    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Return the newest result recorded with this cache key that has not expired at `now`."""
        with self._read_lock:
            self._lifetime.check()
            found = (self._directory(hint.root).find_cached(hint, now) for hint in self._cache.hints(key, now))
            return next((cached for cached in found if cached is not None), None)

    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Yield a flow run's log entries after a position, with theirs, all as of one instant."""
        with self._read_lock:
            self._lifetime.check()
            directory = self._find(flow_run_id)
            return iter(directory.read_log(flow_run_id, after) if directory else ())

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
        if not _ID.fullmatch(flow_run_id):
            return None
        directory = self._directory(flow_run_id)
        if directory.exists():
            return directory
        if flow_run_id not in self._root_ids:
            self._all_summaries()  # which learns the ids of all subflows
        root_id = self._root_ids.get(flow_run_id)
        return self._directory(root_id) if root_id else None

    def _directory(self, root_id: str) -> RunDirectory:
        directory = self._directories.get(root_id)
        if directory is None:
            new = RunDirectory(self._path / root_id, power_safe=self._power_safe)
            directory = self._directories.setdefault(root_id, new)  # the one of a quicker thread, if there was one
        return directory

    def _all_summaries(self) -> list[FlowRunSummary]:
        try:
            with os.scandir(self._path) as places:
                names = sorted(place.name for place in places if place.is_dir(follow_symlinks=False))
        except OSError as error:
            raise os_failure(self._path, error) from error
        summaries = []
        for name in names:
            if _ID.fullmatch(name):
                for summary in self._directory(name).summaries():
                    summaries.append(summary)
                    self._root_ids[summary.flow_run.id] = name
        return summaries


def _open_directory(path: Path) -> None:
    """Make the directory a store, or see that it is one that can be written."""
    make_state_directory(path)
    marker = path / _MARKER
    try:
        if not marker.exists():
            with sole_maker(path):
                if not marker.exists():
                    _make_store(marker)
        text = marker.read_text()
        with marker.open("r+b"):  # a file system may be read-only whatever the modes of its files say
            pass
    except OSError as error:
        raise os_failure(path, error) from error
    _check_format(marker, text)
    if not os.access(path, os.W_OK | os.X_OK):
        raise no_permission(path, "no right to make files in it")


def _make_store(marker: Path) -> None:
    strangers = sorted({place.name for place in marker.parent.iterdir()} - {".gitignore", f"{_MARKER}.part"})
    if strangers:
        raise StoreError(
            f"{marker.parent} is no state store: it holds '{strangers[0]}' but no {_MARKER}; "
            "name a directory that is new or empty"
        )
    content = to_json({"format": _FORMAT, "version": FORMAT_VERSION}) + "\n"
    write_private_file(marker, content.encode(), sync=True)


def _check_format(marker: Path, text: str) -> None:
    try:
        content = from_json(text)
        format, version = content["format"], content["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptStoreError(marker, "the file is not as it was written") from error
    if format != _FORMAT:
        raise StoreError(f"{marker} belongs to another application; name another path")
    if version != FORMAT_VERSION:
        raise StoreVersionError(marker.parent, version, FORMAT_VERSION)
