"""Copies flow runs from one state store to another, each tree of flow runs as a whole.

A small tree is one append. A large one takes several, of bounded size, and the first of them records the flow run at
the top as an incomplete copy: under another name, without its arguments, with a tag of ours, so that nobody takes it
for the run or resumes it. The last append puts the record itself in that place, together with the last state of the
run. So a copy that was broken off shows what it is; whoever copies again removes it first.

Both stores are claimed for the flow run meanwhile: no engine is at work on it in the one, and nobody takes the copy for
a run whose engine is lost in the other.

All is copied that a store can be asked for: of a run that has completed more than once that is the last result, and
those before it that can be found by their cache keys. Of several results under one key in one tree, the one of the
later call counts as the newer one.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal
from zlib import crc32

from localflow.errors import StoreError
from localflow.failpoints import reach
from localflow.large_values import FILE, Reference, mapped
from localflow.payloads import CONTENT, Payload
from localflow.records import INCOMPLETE, FlowRun, StateChange, TaskRun
from localflow.states import StateType
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from localflow.interfaces import StateStore
    from localflow.records import FlowRunSummary, LogEntry, Record

_MAX_RECORDS = 4_000  # of an append
_MAX_BYTES = 8 << 20  # of results and texts in an append, unless one alone has more


class Counts(NamedTuple):
    """What was copied of a tree of flow runs."""

    flow_runs: int = 0
    task_runs: int = 0
    state_changes: int = 0
    log_entries: int = 0
    results: int = 0


class CopiedTree(NamedTuple):
    """What became of a flow run that was to be copied."""

    summary: FlowRunSummary
    outcome: Literal["copied", "present", "refused"]
    """`present`: all of it was there already; `refused`: nothing was done, for a reason."""
    counts: Counts = Counts()
    reason: str = ""


def copy_trees(source: StateStore, target: StateStore, chosen: Iterable[FlowRunSummary]) -> Iterator[CopiedTree]:
    """Copy flow runs that no other flow called, with all below them; yield what became of each when it is done.

    Raises:
        StoreError: one of the stores fails; what was yielded before has been copied.
    """
    for summary in chosen:
        yield _copy_tree(source, target, summary)


def _copy_tree(source: StateStore, target: StateStore, summary: FlowRunSummary) -> CopiedTree:
    root = summary.flow_run
    if root.is_incomplete_copy:
        return CopiedTree(
            summary, "refused", reason=f"it is an incomplete copy itself; copy it to {source.location} anew"
        )
    with ExitStack() as claims:
        for store, reason in (
            (source, "its engine is at work; copy it when it has ended"),
            (target, f"somebody is at work on it in {target.location}"),
        ):
            claim = store.claim(root.id)
            if claim is None:
                return CopiedTree(summary, "refused", reason=reason)
            claims.callback(claim.release)
        runs = _tree(source, root.id)
        if root.id not in runs:
            return CopiedTree(summary, "refused", reason=f"it was removed from {source.location}")
        there = _tree(target, root.id)
        if there:
            if there.get(root.id, root).is_incomplete_copy:
                target.remove([root.id])
            elif _is_whole(source, target, runs, there):
                return CopiedTree(summary, "present")
            else:
                advice = f"remove it there if this one is to take its place: localflow clean {root.name}"
                return CopiedTree(summary, "refused", reason=f"another history of it is in {target.location}; {advice}")
        return CopiedTree(summary, "copied", _TreeCopy(source, target, runs[root.id]).write(runs.values()))


def _tree(store: StateStore, root_id: str) -> dict[str, FlowRun]:
    """Return the flow runs of a tree by their ids, the one at the top first, callers before those they called."""
    runs = [summary.flow_run for summary in reversed(store.list_flow_runs(root_id=root_id))]
    return {run.id: run for run in sorted(runs, key=lambda run: run.id != root_id)}


class _TreeCopy:
    """Writes a tree of flow runs to a store that has nothing of it."""

    def __init__(self, source: StateStore, target: StateStore, root: FlowRun) -> None:
        self._source = source
        self._target = target
        self._root = root
        folder = target.value_folder(root.id)
        self._takes_files = folder is not None and folder.path is not None
        self._pending: list[Record] = []
        self._bytes = 0
        self._has_begun = False
        self._task_runs = self._changes = self._log_entries = self._results = 0

    def write(self, runs: Iterable[FlowRun]) -> Counts:
        """Write all of it; what is there by half if that fails is removed again, if it can be."""
        flow_runs = list(runs)
        try:
            for flow_run in flow_runs:
                self._add(flow_run, 0)
            last = [change for flow_run in flow_runs for change in self._write_flow_run(flow_run)]
            self._append([*self._pending, *([self._root] if self._has_begun else []), *last])
        except BaseException:
            if self._has_begun:
                with suppress(StoreError):
                    self._target.remove([self._root.id])
            raise
        return Counts(len(flow_runs), self._task_runs, self._changes, self._log_entries, self._results)

    def _write_flow_run(self, flow_run: FlowRun) -> Iterator[StateChange]:
        """Write what belongs to a flow run, but yield the last state of the one at the top, which is to come last."""
        newest, completed_again = _survey(self._source, flow_run)
        for record in self._source.read(flow_run.id):
            if isinstance(record, TaskRun):
                self._task_runs += 1
                self._add(record, len(record.name))
            elif isinstance(record, StateChange):
                self._changes += 1
                change = self._with_result(record, completed_again)
                if flow_run.id == self._root.id and (record.run.number, record.sequence) == (0, newest):
                    yield change
                else:
                    self._add(change, len(change.message) + (len(change.result.data) if change.result else 0))
        for _, entry in self._source.read_logs(flow_run.id):
            self._log_entries += 1
            self._add(entry, len(entry.message))

    def _with_result(self, change: StateChange, completed_again: Mapping[int, int]) -> StateChange:
        """Return a change with the result that it came with, if that can be had."""
        if change.type is not StateType.COMPLETED:
            return change
        number = change.run.number
        if completed_again.get(number, change.sequence) == change.sequence:
            result = self._source.load_result(change.run.flow_run.id, number)
        else:
            result = _find_by_cache_key(self._source, change)
        if result is None:
            return change
        self._results += 1
        return change._replace(result=result if self._takes_files else _as_bytes(result))

    def _add(self, record: Record, size: int) -> None:
        if self._pending and (len(self._pending) >= _MAX_RECORDS or self._bytes + size > _MAX_BYTES):
            if not self._has_begun:
                self._pending[0] = _marked(self._root)
                self._has_begun = True
            self._append(self._pending)
            self._pending = []
            self._bytes = 0
            reach("copied-a-part")
        self._pending.append(record)
        self._bytes += size

    def _append(self, records: Sequence[Record]) -> None:
        self._target.append(records)


def _marked(root: FlowRun) -> FlowRun:
    """Return the record of a flow run of which only a part is there."""
    name = f"incomplete copy of {root.name}"
    return root._replace(name=name, arguments=None, entry_point="", tags=(*root.tags, INCOMPLETE))


def _survey(store: StateStore, flow_run: FlowRun) -> tuple[int, dict[int, int]]:
    """Return the sequence of a flow run's newest state, and of the last completion of runs that have several."""
    newest = 0
    completed = bytearray(1)  # by number; there may be a million
    again: dict[int, int] = {}
    for record in store.read(flow_run.id):
        if isinstance(record, StateChange):
            number = record.run.number
            if number == 0:
                newest = record.sequence
            if record.type is StateType.COMPLETED:
                if number >= len(completed):
                    completed.extend(bytes(number + 1 - len(completed)))
                if completed[number]:
                    again[number] = record.sequence
                completed[number] = 1
    return newest, again


def _find_by_cache_key(store: StateStore, change: StateChange) -> Payload | None:
    """Return the result of a completion that is not its run's last, if it can be found by its cache key."""
    if change.cache is None:
        return None
    now = float("-inf")
    while True:
        found = store.find_cached(change.cache.key, now)
        if found is None:
            return None
        if (found.task_run_id, found.timestamp) == (change.run.id, change.timestamp):
            return found.result
        if found.expires_at is None or found.expires_at <= now:
            return None
        now = found.expires_at  # then that one is not found any more, but those that are valid for longer


def _as_bytes(payload: Payload) -> Payload:
    """Return a result as its bytes, where it lies in a file. Raises StoreError."""
    if payload.format != FILE:
        return payload
    reference = Reference.of(payload.data)
    content = mapped(reference)
    if crc32(content) != reference.checksum:
        raise StoreError(f"{reference.file}: the file is not as it was written; see: localflow doctor")
    return Payload(CONTENT, bytes(content))


# -- is it there already? --------------------------------------------------------------------------------------------


def _is_whole(
    source: StateStore, target: StateStore, runs: Mapping[str, FlowRun], there: Mapping[str, FlowRun]
) -> bool:
    """Return whether two stores have the same records of a tree of flow runs."""
    return runs.keys() == there.keys() and all(
        _fingerprint(source.read(id)) == _fingerprint(target.read(id))
        and _log_fingerprint(source.read_logs(id)) == _log_fingerprint(target.read_logs(id))
        for id in runs
    )


def _fingerprint(records: Iterable[Record]) -> tuple[int, int]:
    """Return what tells two sets of records apart; stores give the changes of different runs in any order."""
    count = total = 0
    for record in records:
        count += 1
        total += int.from_bytes(_digest(record), "big")
    return count, total % (1 << 128)


def _log_fingerprint(entries: Iterable[tuple[int, LogEntry]]) -> bytes:
    whole = blake2b(digest_size=16)
    for _, entry in entries:
        whole.update(_digest(entry))
    return whole.digest()


def _digest(record: Record) -> bytes:
    if isinstance(record, FlowRun):
        record = record._replace(parameters=dict(record.parameters), versions=dict(record.versions))
        fields: tuple[object, ...] = tuple(record)
    elif isinstance(record, TaskRun):
        fields = record[1:]
    else:
        fields = (record.run.number, *record[1:])
    return blake2b(repr(fields).encode("utf-8", "surrogatepass"), digest_size=16).digest()
