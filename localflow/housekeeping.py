"""Removes what is no longer wanted: flow runs that may go, and the files that dead engines have left.

A run is removed under a claim on it, so never while an engine is at work on it, nor just before one resumes it.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from localflow.locks import is_claim_of_nobody, take_claim
from localflow.masking import MASK, dotted
from localflow.retention import Rule
from localflow.states import FINAL_TYPES, NOT_READY
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from localflow.interfaces import StateStore
    from localflow.project import Project
    from localflow.records import FlowRunSummary

_log = logging.getLogger("localflow.housekeeping")

_AT_ONCE = 100  # runs that are claimed and removed together
_AT_AN_END = 20  # runs whose removal the end of a run may have to wait for: half a second
_DRAFT_SECONDS = 3600.0  # nobody takes so long to write a file
_DRAFT_ENDINGS = tuple(f"{draft}{part}" for draft in (".part", ".new") for part in ("", "-journal", "-wal", "-shm"))
_SET_ASIDE = ".damaged-"  # in the names of what a repair has copied aside, which nobody but the user removes
_ENGINES = "engines"  # the folder of claims of both stores
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own blocks are


# -- flow runs -------------------------------------------------------------------------------------------------------


class Removal(NamedTuple):
    """What became of the flow runs that were to be removed."""

    removed: list[FlowRunSummary]
    kept: list[FlowRunSummary]
    """Those that an engine is at work on."""


def remove_runs(store: StateStore, chosen: Sequence[FlowRunSummary], *, results_only: bool = False) -> Removal:
    """Remove flow runs that no other flow called, with all below them, or only their results.

    Raises:
        StoreError: the store cannot do so; what it had removed until then is gone.
    """
    removal = Removal([], [])
    for start in range(0, len(chosen), _AT_ONCE):
        with ExitStack() as claims:
            free: list[FlowRunSummary] = []
            for summary in chosen[start : start + _AT_ONCE]:
                claim = store.claim(summary.flow_run.id)
                if claim is None:
                    removal.kept.append(summary)
                else:
                    claims.callback(claim.release)
                    free.append(summary)
            if free:
                store.remove([summary.flow_run.id for summary in free], results_only=results_only)
            removal.removed.extend(free)
    return removal


def due_runs(options: Mapping[str, object], summaries: Sequence[FlowRunSummary], now: float) -> list[FlowRunSummary]:
    """Return the flow runs that the options of [retention] let go, the oldest first: never one that has not ended.

    Args:
        options: those of the settings; without any, no run is to go.
        summaries: all flow runs, the one recorded last first.
        now: in seconds since the epoch.
    """
    if not options:
        return []
    return [summary for summary in Rule.of_options(options).select(summaries, now) if has_ended(summary)]


def has_ended(summary: FlowRunSummary) -> bool:
    """Return whether a flow run is in a final state, or one that no engine goes on with: an incomplete copy."""
    change = summary.change
    if summary.flow_run.is_incomplete_copy:
        return True
    return change is not None and (change.type in FINAL_TYPES or change.name == NOT_READY)


def apply_retention(project: Project, store: StateStore) -> int:
    """Remove runs as [retention] says, twenty at most, and return how many; to be called when a run has ended.

    Costs nothing where nothing is configured, and what goes wrong is a warning: the run that has ended has nothing to
    do with it.
    """
    options = project.settings.retention
    if not options or not store.survives:
        return 0
    try:
        due = due_runs(options, store.list_flow_runs(), time.time())
        return len(remove_runs(store, due[:_AT_AN_END]).removed)
    except Exception as error:
        _log.warning("[retention] could not be applied: %s; see `localflow clean --dry-run`", error)
        return 0


# -- the store's files -----------------------------------------------------------------------------------------------


def store_path(project: Project, name: str | None = None) -> Path | None:
    """Return where the state store, or the one of a name, keeps its files; None if it has no option `path`."""
    name = name or project.settings.store
    key = dotted("stores", name, "path")
    for shown in project.show_store(name):
        if shown.key == key and isinstance(shown.value, str) and shown.value != MASK:
            return project.root / shown.value
    return None


def disk_usage(path: Path) -> int:
    """Return how many bytes of the disk a file, with the write-ahead log beside it, or a folder takes up."""
    if path.is_dir():
        files = [entry for entry in _entries(path) if not entry.is_dir(follow_symlinks=False)]
        return sum(_allocated(Path(entry.path)) for entry in files)
    return sum(_allocated(path.with_name(path.name + part)) for part in ("", "-wal"))


def _allocated(path: Path) -> int:
    try:
        return path.lstat().st_blocks * _BLOCK_BYTES
    except OSError:  # it has gone meanwhile
        return 0


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield all that is below a folder, following no links."""
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except OSError:
        return
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path))


# -- what dead engines have left -------------------------------------------------------------------------------------


def find_leftovers(project: Project, now: float) -> list[Path]:
    """Return named pipes that no engine listens at, claims of dead engines, and drafts of files that nobody can write.

    Looked at are the project's state folder and the place of its store, where they are ours alone.
    """
    folders = [project.state_directory]
    path = store_path(project)
    drafts: list[Path] = []
    if path is not None:  # where a repair that died had copies
        drafts += [path.with_name(f"{path.name}.repair"), path / ".repair"]
    if path is not None and path.is_dir() and (path / "store.json").exists():
        folders.append(path)
    elif path is not None:
        drafts += [path.with_name(path.name + ending) for ending in _DRAFT_ENDINGS]
    for folder in folders:
        drafts += [
            Path(entry.path)
            for entry in _entries(folder)
            if entry.name.endswith(_DRAFT_ENDINGS) and _SET_ASIDE not in entry.path
        ]
    pipes = [Path(entry.path) for entry in _entries(project.state_directory / "control")]
    claims = [Path(entry.path) for engines in _claim_folders(path) for entry in _entries(engines)]
    found = [draft for draft in drafts if _is_old_draft(draft, now)]
    found += [pipe for pipe in pipes if not pipe.name.endswith(_DRAFT_ENDINGS) and _is_abandoned(pipe)]
    found += [claim for claim in claims if is_claim_of_nobody(claim)]
    return sorted(set(found))


def _claim_folders(path: Path | None) -> list[Path]:
    """Return where engines have claims on what is in the store at `path`: beside a file, in a folder."""
    if path is None:
        return []
    return [path / _ENGINES] if path.is_dir() else [path.parent / _ENGINES]


def remove_leftovers(paths: Sequence[Path]) -> list[Path]:
    """Remove what `find_leftovers` found; return what could not be removed."""
    for path in paths:
        with suppress(OSError):
            if path.parent.name == _ENGINES:
                claim = take_claim(path)  # unless an engine was quicker: its claim must stay
                if claim is not None:
                    claim.release()
            elif stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
    return [path for path in paths if os.path.lexists(path)]


def _is_old_draft(path: Path, now: float) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    is_draft = stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        is_draft = path.name.endswith(".repair")
    return is_draft and status.st_uid == os.geteuid() and now - status.st_mtime > _DRAFT_SECONDS


def _is_abandoned(pipe: Path) -> bool:
    """Return whether nobody has a named pipe open for reading; nothing is changed about it."""
    try:
        if not stat.S_ISFIFO(pipe.lstat().st_mode):
            return False
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
    except OSError as error:
        return error.errno == errno.ENXIO
    return False
