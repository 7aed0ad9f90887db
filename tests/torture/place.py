"""A folder where the workload runs: its settings, the plugins it finds, and what was noted there without the store."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections import defaultdict
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.torture import faulty

if TYPE_CHECKING:
    from localflow.interfaces import FlowRun, StateStore

HERE = Path(__file__).parent
FAILING_PART = "0.05"  # of the appends of a faulty store
MARK = "TORTURE_MARK"  # in the environment of every process that a lane starts

SETTINGS = """
store = "tortured"

[stores.tortured]
type = "{store}"
path = "{path}"

[executors.process]
workers = 4

[executors.thread]
workers = 4

[notifiers.told]
type = "told"

[notifiers.lost]
type = "command"
command = ["sh", "-c", "cat >> lost"]
on = ["EngineLost", "WorkerLost"]
flows = ["layers"]
"""

STORE_PATHS = {"sqlite": "localflow.db", "faulty-sqlite": "localflow.db", "in-place": "in-place"}

_ID = "[0-9a-f]+"
_KNOWN = [
    re.compile(rf"\.localflow/{each}")
    for each in (
        r"\.gitignore",
        r"localflow\.db(-wal|-shm)?",
        r"localflow\.db-spool",
        rf"control(/{_ID})?",
        rf"engines(/{_ID})?",
        r"runs",
        rf"runs/engines(/{_ID})?",
        rf"runs/unfinished(/{_ID})?",
        r"runs/cache",
        r"runs/(\.gitignore|store\.json)",
        rf"runs/{_ID}(/journal\.jsonl|/logs\.jsonl|/results(/[0-9a-f-]+)?)?",
        r"in-place",
    )
]
_DRAFT = re.compile(r".*\.(part|new)(-journal|-wal|-shm)?|.*\.db-spool/[0-9a-f]{16}")


class Note(NamedTuple):
    """A line of the oracle: an attempt of a task has begun (S) or ended (E)."""

    kind: str
    name: str
    attempt: int


class Place:
    """A folder with the workload in it, for one flow run until it is COMPLETED."""

    def __init__(self, folder: Path, store: str, shared: Path | None = None) -> None:
        """Make the folder; the store is in `shared` if that is given, else there, too."""
        self.folder = folder
        self._state = (shared or folder) / ".localflow"
        self.is_alone = shared is None
        self.temporary = folder / "temporary"
        self.temporary.mkdir(parents=True)
        shutil.copy(HERE / "workload.py", folder)
        path = self._state / STORE_PATHS.get(store, "runs")
        (folder / "localflow.toml").write_text(SETTINGS.format(store=store, path=path))

    def start(self, *arguments: str, failpoint: str = "", fails: bool = False) -> subprocess.Popen[bytes]:
        """Start a verb; what it says is added to the file `said`; if it `fails`, a faulty store does its worst."""
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
        if fails:
            environment[faulty.VARIABLE] = FAILING_PART
        if failpoint:
            environment["LOCALFLOW_FAILPOINT"] = failpoint
        with (self.folder / "said").open("ab") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "localflow", *arguments],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=self.folder, env=environment,
            )  # fmt: skip

    def said(self, start: int = 0) -> str:
        """Return what the verbs have said, from a place in it on."""
        path = self.folder / "said"
        return path.read_text(errors="replace")[start:] if path.exists() else ""

    def open_store(self) -> StateStore | None:
        """Open the store as a verb would, but mark nothing; None if there is none yet."""
        from localflow.housekeeping import store_path
        from localflow.project import Project

        with chdir(self.folder):
            project = Project.load()
            path = store_path(project)
            return project.open_store() if path is not None and path.exists() else None

    def largest_file(self) -> int:
        """Return how large the largest file is below the state folder that grows, in bytes; a spool does not."""
        sizes = [0]
        for path in self._state.rglob("*"):
            if path.parent.name.endswith("-spool"):
                continue
            with suppress(FileNotFoundError):
                sizes.append(path.lstat().st_size)
        return max(sizes)

    def is_own(self, run: FlowRun) -> bool:
        """Return whether a flow run was begun here; others may be in the same store."""
        return run.entry_point.startswith(f"{self.folder}{os.sep}")

    def runs(self) -> tuple[int, list[dict[str, Any]]]:
        """Return what `localflow runs --json` answers, in this very process: its exit code and the flow runs."""
        from localflow.cli.app import run_app

        shown = StringIO()
        with (
            chdir(self.folder),
            redirect_stdout(shown),
            (self.folder / "said").open("a") as said,
            redirect_stderr(said),
        ):
            code = run_app(["runs", "--json"])
        return code, json.loads(shown.getvalue()) if code == 0 else []

    # -- what was noted ----------------------------------------------------------------------------------------------

    def oracle(self) -> list[Note]:
        """Return what tasks have noted."""
        words = (line.split() for line in self._lines("oracle"))
        return [Note(kind, name, int(attempt)) for kind, name, attempt, _ in words]

    def noted(self) -> int:
        """Return how many bytes tasks have noted."""
        try:
            return (self.folder / "oracle").stat().st_size
        except FileNotFoundError:
            return 0

    def acks(self) -> dict[str, set[str]]:
        """Return of which task runs the flow was shown results, and the digests of these."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for line in self._lines("acks"):
            name, digest = line.split()
            found[name].add(digest)
        return found

    def told(self) -> set[tuple[str, int, str]]:
        """Return what the notifier was told: ids of runs, sequences, names of states."""
        return {(run, int(sequence), name) for run, sequence, name in map(str.split, self._lines("told"))}

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    # -- what is left ------------------------------------------------------------------------------------------------

    def strange_files(self, *, at_the_end: bool) -> list[str]:
        """Return what is in the state folder under a name that nobody expects, or open to others.

        Before the end, drafts may be there, of files that a killed process was writing, and its spool.
        """
        found = []
        folders = {self.folder / ".localflow", self._state}
        paths = {path: path.relative_to(folder.parent) for folder in folders for path in folder.rglob("*")}
        for path, name in sorted((path, str(relative)) for path, relative in paths.items()):
            is_draft = not at_the_end and _DRAFT.fullmatch(name)
            if not (is_draft or any(known.fullmatch(name) for known in _KNOWN)):
                found.append(f"strange file {name}")
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
            if stat.S_IMODE(status.st_mode) != wanted:
                found.append(f"{name} has mode {stat.S_IMODE(status.st_mode):04o}")
        return found


def install_plugins(folder: Path, *modules: str) -> None:
    """Install modules of this folder as distributions with a plugin, as pip would do it."""
    for module in modules:
        info = folder / f"localflow_{module}-1.0.dist-info"
        info.mkdir(parents=True)
        shutil.copy(HERE / f"{module}.py", folder / f"localflow_{module}.py")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: localflow-{module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[localflow]\n{module} = localflow_{module}\n")
