"""What `localflow doctor` looks at, each section with a verdict; and what it can mend."""

from __future__ import annotations

import os
import platform
import shlex
import stat
import sys
import time
from typing import TYPE_CHECKING, Literal, TypeAlias

from localflow.errors import ConfigError, CorruptStoreError, LocalflowError, StoreError
from localflow.housekeeping import disk_usage, find_leftovers, remove_leftovers, store_path
from localflow.limits import slots_held
from localflow.liveness import mark_lost
from localflow.plugins import installed_plugins
from localflow.project import Project
from localflow.strays import find_strays, kill_stray
from localflow.tomlfile import shown_path
from localflow.typed import NamedTuple
from localflow.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from localflow.records import FlowRunSummary, StateChange
    from localflow.strays import Stray

Verdict: TypeAlias = Literal["ok", "attention", "cannot be used", "damaged"]

_SHOWN = 20  # things of a kind that are named
_SETTLING_SECONDS = 2.0


class Section(NamedTuple):
    """What was looked at, and what is wrong with it."""

    name: str
    facts: dict[str, object]
    """Plain JSON-safe values by heading."""
    problems: list[str]
    """What needs attention, each with the next move."""
    is_damaged: bool = False
    is_unusable: bool = False
    """Whether it cannot be looked at: nobody knows what is wrong in it."""

    @property
    def verdict(self) -> Verdict:
        """Whether all is well."""
        if self.is_damaged:
            return "damaged"
        if self.is_unusable:
            return "cannot be used"
        return "attention" if self.problems else "ok"


_UNSEEN = Section("dead runs", {"not looked for": "the state store cannot be read"}, [])


class Checkup:
    """Looks at everything there is; each section is looked at anew when it is asked for.

    Args:
        mends: whether what is wrong is to be mended where that is possible.
    """

    def __init__(self, *, mends: bool = False) -> None:
        self.done: list[str] = []
        """What has been mended."""
        self.lost: list[StateChange] = []
        """What has been recorded of runs whose engine is gone, for the notifiers."""
        self.project: Project | None = None
        self._mends = mends

    def sections(self) -> Iterator[Section]:
        """Yield one section after the other; those after the settings only if these are right."""
        yield _versions()
        configuration, self.project = _configuration()
        yield configuration
        if self.project is not None:
            yield from self._store_and_runs(self.project)
            yield self._strays()
            yield _limits(self.project)
            yield self._leftovers(self.project)

    def _store_and_runs(self, project: Project) -> Iterator[Section]:
        section, dead = self._look_into_store(project)
        if self._mends and section.is_damaged:
            try:
                self.done += project.repair_store()
            except LocalflowError as error:
                section.problems.append(f"not repaired: {error}")
            else:
                section, dead = self._look_into_store(project)
        yield section
        yield dead

    def _look_into_store(self, project: Project) -> tuple[Section, Section]:
        """Return the sections about the state store, and about the runs in it whose engine is gone."""
        path = store_path(project)
        facts: dict[str, object] = {"store": project.settings.store}
        problems: list[str] = []
        runs = Section("dead runs", {}, [])
        if path is not None:
            facts["path"] = str(path)
            if not os.path.lexists(path):
                facts["path"] = f"{path} (nothing is recorded yet)"
                return Section("state store", facts, problems), runs
            facts |= {"bytes": disk_usage(path), "wal_bytes": disk_usage(path.with_name(path.name + "-wal"))}
            if path.is_dir():
                del facts["wal_bytes"]
            problems += _wrong_rights(path, project.state_directory)
        try:
            store = project.open_store()
        except StoreError as error:
            return _refused(facts, problems, error), _UNSEEN
        try:
            facts["format"] = getattr(store, "format_version", None)
            wrong = store.check()
            if not wrong:
                self.lost = mark_lost(store)
                runs = _dead_runs(self.lost, store.list_flow_runs(unfinished=True))
        except CorruptStoreError as error:
            wrong = [str(error)]
        except StoreError as error:
            return _refused(facts, problems, error), _UNSEEN
        finally:
            store.close()
        if wrong:
            shown = [*wrong[:_SHOWN], *([f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else [])]
            advice = "copy what is readable into a sound store: localflow doctor --repair"
            return Section("state store", facts, [*problems, *shown, advice], is_damaged=True), _UNSEEN
        return Section("state store", facts, problems), runs

    def _strays(self) -> Section:
        strays = _settled_strays()
        if self._mends:
            for stray in [stray for stray in strays if stray.is_worker]:
                if kill_stray(stray):
                    self.done.append(f"killed worker {stray.pid} of engine {stray.engine}, which is gone")
            strays = [stray for stray in find_strays() if stray in strays]
        workers = [stray for stray in strays if stray.is_worker]
        others = [stray for stray in strays if not stray.is_worker]
        problems = [
            f"worker {stray.pid} has outlived its engine, process {stray.engine}; end it: localflow doctor --repair"
            for stray in workers
        ]
        problems += [
            f"process {stray.pid} ({stray.name}) was started by a task of engine {stray.engine}, which is gone; "
            f"if it is not meant to go on: kill {stray.pid}"
            for stray in others
        ]
        return Section("stray processes", {"workers": len(workers), "started by tasks": len(others)}, problems)

    def _leftovers(self, project: Project) -> Section:
        left = find_leftovers(project, time.time())
        if self._mends and left:
            kept = remove_leftovers(left)
            self.done += [f"removed {shown_path(path)}" for path in left if path not in kept]
            left = kept
        problems = [f"{shown_path(path)} was left by a dead engine" for path in left[:_SHOWN]]
        if left:
            problems.append("remove them: localflow doctor --repair")
        return Section("leftovers", {"files": len(left)}, problems)


def _refused(facts: dict[str, object], problems: list[str], error: StoreError) -> Section:
    """Return the section about a state store that cannot be read: it is damaged, or it cannot be reached."""
    is_damaged = isinstance(error, CorruptStoreError)
    return Section("state store", facts, [*problems, str(error)], is_damaged, is_unusable=not is_damaged)


def _versions() -> Section:
    import sqlite3

    listing = installed_plugins().listing()
    facts: dict[str, object] = {
        "localflow": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "sqlite": sqlite3.sqlite_version,
        "platform": platform.platform(),
        "plugins": ", ".join(
            dict.fromkeys(f"{each.plugin} ({each.distribution} {each.version})" for each in listing if each.name)
        ),
    }
    return Section("versions", facts, list(dict.fromkeys(each.problem for each in listing if each.problem)))


def _configuration() -> tuple[Section, Project | None]:
    try:
        project = Project.load()
        project.try_plugins()
    except ConfigError as error:
        return Section("configuration", {}, list(error.problems)), None
    except LocalflowError as error:
        return Section("configuration", {}, [str(error)]), None
    file = project.settings.file
    return Section("configuration", {"file": str(file) if file else "none, the defaults are in force"}, []), project


def _wrong_rights(path: Path, state_directory: Path) -> list[str]:
    """Return what is wrong with owner and mode of a store's files, and of the folder around them if it is ours."""
    wrong = []
    around = [path.parent] if path.parent == state_directory else []
    for place in (*around, path, *(path.with_name(path.name + part) for part in ("-wal", "-shm"))):
        try:
            status = place.lstat()
        except OSError:
            continue
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid():
            wrong.append(f"{place} belongs to user {status.st_uid}, you are user {os.geteuid()}")
        elif mode & 0o077:
            wrong.append(f"others may read or write {place} (mode {mode:04o}): chmod go-rwx {shlex.quote(str(place))}")
    return wrong


def _settled_strays() -> list[Stray]:
    """Return the strays that stay: when an engine is killed, the supervisor ends its workers within a second."""
    strays = find_strays()
    until = time.monotonic() + _SETTLING_SECONDS
    while strays and time.monotonic() < until:
        time.sleep(0.1)
        strays = [stray for stray in find_strays() if stray in strays]
    return strays


def _dead_runs(lost: list[StateChange], unfinished: list[FlowRunSummary]) -> Section:
    """Return the section about runs whose engine is gone, which have just been marked."""
    names = [change.run.name for change in lost if change.run.flow_run is change.run and _is_top(change)]
    tops = [summary.flow_run for summary in unfinished if summary.flow_run.parent_id is None]
    at_work = sum(not flow_run.is_incomplete_copy for flow_run in tops)
    return Section(
        "dead runs",
        {"at work": at_work, "whose engine is gone": len(names)},
        [f"the engine of {name!r} was gone; it is EngineLost now, go on: localflow resume {name}" for name in names],
    )


def _is_top(change: StateChange) -> bool:
    return change.run.flow_run.parent_id is None


def _limits(project: Project) -> Section:
    directory = project.state_directory / "limits"
    facts: dict[str, object] = {}
    problems = []
    for tag, limit in project.settings.limits.items():
        try:
            held = slots_held(directory, tag)
        except OSError as error:
            problems.append(f"the files of limit {tag!r} cannot be opened: {error}")
            continue
        facts[tag] = f"{held} of {limit} held"
    return Section("limits", facts, problems)
