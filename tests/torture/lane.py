"""One lane of the torture: kills programs one after the other, resumes them, and looks at everything after each kill.

A flow run lives in a folder of its own, until it is COMPLETED in spite of all; then comes the next one.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
import uuid
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from localflow.errors import LocalflowError
from tests.torture import invariants, kills
from tests.torture.invariants import Recorded
from tests.torture.place import MARK, Place
from tests.torture.workload import TASK_RUNS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from localflow.interfaces import Claim, StateStore
    from tests.torture.kills import Kill

LIMIT = 60.0  # seconds for a program that is not killed
GONE = 3.0  # seconds in which no process is left of a program
MAX_LAUNCHES = 60  # for one flow run
PROCESS_SHARE = 0.8  # of the flow runs, the rest is on threads

#: What else happens to a store: several engines are at work on it at once, each with its own run; no more can be
#: written from some moment on, as if the disk were full; appends fail although all is written.
VARIANTS = ("shared", "full", "faulty")


@dataclass
class Figures:
    """What a lane has done and seen."""

    kills: Counter[str] = field(default_factory=Counter)
    """By kind and victim."""
    failpoints: Counter[str] = field(default_factory=Counter)
    """By name, those of the kills that were at one."""
    launches: int = 0
    resumes: int = 0
    runs: int = 0
    executions: int = 0
    lost_attempts: int = 0
    """Attempts that had begun and were lost: they ran again."""
    longest_survival: float = 0.0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        by_kind = ", ".join(f"{count} {kind}" for kind, count in self.kills.most_common())
        return (
            f"{self.kills.total()} kills ({by_kind}) in {self.launches} launches, {self.resumes} of them resumes, of "
            f"{self.runs} flow runs; {self.executions} task executions, {self.lost_attempts} of them lost and done "
            f"again; processes lived at most {self.longest_survival:.2f} s longer than their engine; "
            f"{self.seconds:.0f} s; {len(self.violations)} violations"
        )

    def count(self, kill: Kill) -> None:
        """Count a kill that has hit."""
        self.kills[f"{kill.kind} {kill.victim}"] += 1
        if kill.failpoint:
            self.failpoints[kill.failpoint.partition(":")[0]] += 1

    def add(self, other: Figures) -> None:
        """Add those of another lane; the seconds are those of the slower one."""
        self.kills.update(other.kills)
        self.failpoints.update(other.failpoints)
        self.launches += other.launches
        self.resumes += other.resumes
        self.runs += other.runs
        self.executions += other.executions
        self.lost_attempts += other.lost_attempts
        self.longest_survival = max(self.longest_survival, other.longest_survival)
        self.seconds = max(self.seconds, other.seconds)
        self.violations += other.violations

    def as_json(self) -> dict[str, Any]:
        """Return them as plain data."""
        return {**vars(self), "kills": dict(self.kills), "failpoints": dict(self.failpoints)}

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> Figures:
        """Return them as they were."""
        return cls(**{**data, "kills": Counter(data["kills"]), "failpoints": Counter(data["failpoints"])})


class Lane:
    """Tortures one store."""

    def __init__(
        self,
        folder: Path,
        store: str,
        seed: str,
        *,
        variant: str = "",
        keep: Path | None = None,
        in_store_only: bool = False,
    ) -> None:
        """Keep what is given.

        Args:
            folder: where flow runs get folders of their own.
            store: the name of the store.
            seed: what all that is drawn by chance is drawn from.
            variant: what else is done to the store, one of VARIANTS.
            keep: where the folders go in which a violation was found.
            in_store_only: whether to kill at failpoints of the store alone.
        """
        self.figures = Figures()
        self._folder = folder
        self._store = f"faulty-{store}" if variant == "faulty" else store
        self._kind = store
        self._variant = variant
        self._seed = seed
        self._keep = keep
        self._in_store_only = in_store_only
        self._mark = os.environ[MARK] = uuid.uuid4().hex
        self._expected: dict[str, str] = {}
        self._usual: dict[str, kills.Usual] = {}
        self._patience = 1.0

    def run(self, count: int, *, until_violation: bool = False) -> Figures:
        """Kill so often, and see the last run through to its end; or stop at the first violation."""
        began_at = time.monotonic()
        while self.figures.kills.total() < count and not (until_violation and self.figures.violations):
            self._see_through(count, until_violation)
        self.figures.seconds = time.monotonic() - began_at
        return self.figures

    def _usual_times(self, executor: str) -> kills.Usual:
        """Return how long an undisturbed run takes; the first one tells what the results are."""
        if executor not in self._usual:
            place = self._place(f"undisturbed-{executor}")
            began_at = time.monotonic()
            program = place.start("run", "workload.py:layers", "--executor", executor)
            while not place.noted() and program.poll() is None:
                time.sleep(0.002)
            worked_at = time.monotonic()
            if program.wait(LIMIT):
                raise RuntimeError(f"the undisturbed run failed:\n{place.said()[-2000:]}")
            self._usual[executor] = kills.Usual(worked_at - began_at, time.monotonic() - worked_at)
            store = place.open_store()
            assert store is not None
            with closing(store):
                results = Recorded(store, place).results
            if len(results) != TASK_RUNS + 2 or results != (self._expected or results):
                raise RuntimeError(f"the undisturbed runs differ: {results}, {self._expected}")
            self._expected = results
            shutil.rmtree(place.folder)
        return self._usual[executor]

    def _see_through(self, count: int, until_violation: bool) -> None:
        """Begin a flow run and resume it until it is COMPLETED."""
        number = self.figures.runs = self.figures.runs + 1
        place = self._place(str(number))
        chance = random.Random(f"{self._seed}:{number}")
        executor = "process" if chance.random() < PROCESS_SHARE else "thread"
        usual = self._usual_times(executor)
        watch = Watch(place, self._expected, self._mark, self.figures)
        for launch in range(1, MAX_LAUNCHES + 1):
            found = watch.violations
            kill = kills.choose(
                chance, self._kind, executor, usual, is_first=watch.run_id is None, left=watch.left,
                patience=self._patience, in_store_only=self._in_store_only,
                fills_up=self._variant == "full",
            )  # fmt: skip
            wanted = self.figures.kills.total() < count
            where = f"seed {self._seed}, run {number} on {executor}, launch {launch}: {kill if wanted else 'no kill'}"
            left, hits = watch.left, self.figures.kills.total()
            self._launch(place, watch, kill if wanted else None, executor, chance)
            # How busy others keep the machine changes: a kill that comes too early or too late tells.
            if kill.kind != "failpoint" and wanted:
                if self.figures.kills.total() == hits:
                    self._patience = max(0.1, self._patience * 0.8)
                elif watch.left == left:
                    self._patience = min(10.0, self._patience * 1.25)
            if found:
                told = f"{where}: {'; '.join(found)}"
                self.figures.violations.append(told)
                print(told, flush=True)
                if self._keep is not None:
                    shutil.copytree(
                        place.folder,
                        self._keep / f"{self._seed}-{number}-{launch}",
                        ignore=shutil.ignore_patterns("control"),
                    )
                break
            if watch.is_over:
                break
        else:
            self.figures.violations.append(f"seed {self._seed}, run {number}: not COMPLETED after {launch} launches")
        for pid in kills.survivors(self._mark):
            os.kill(pid, 9)
        self.figures.executions += watch.executions
        self.figures.lost_attempts += watch.lost_attempts
        shutil.rmtree(place.folder)

    def _launch(
        self, place: Place, watch: Watch, kill: kills.Kill | None, executor: str, chance: random.Random
    ) -> None:
        """Start or resume the run, kill it, and look at what is left."""
        self.figures.launches += 1
        self.figures.resumes += watch.run_id is not None
        verb = ("resume", watch.run_id) if watch.run_id else ("run", "workload.py:layers", "--executor", executor)
        known, lost = place.noted(), watch.lost_workers
        program = place.start(*verb, failpoint=kill.failpoint if kill else "", fails=kill is not None)
        try:
            if kill is None:
                program.wait(LIMIT)
            elif victim := kills.perform(
                kill, program, chance, LIMIT, lambda: place.noted() > known, place.largest_file
            ):
                self.figures.count(kill._replace(victim=victim))
        except subprocess.TimeoutExpired:
            watch.violations.append(f"it was not over after {LIMIT} seconds:\n{place.said()[-2000:]}")
            program.kill()
            program.wait()
        watch.look(program.returncode, may_refuse=kill is not None and self._may_refuse(kill))
        if kill is not None and kill.victim == "worker" and kill.failpoint and watch.lost_workers > lost:
            self.figures.count(kill)
        if program.returncode == kills.STORE_EXIT_CODE and self._variant == "faulty":
            self.figures.kills["failing append"] += 1

    def _may_refuse(self, kill: kills.Kill) -> bool:
        return kill.kind == "full" or self._variant == "faulty"

    def _place(self, name: str) -> Place:
        shared = self._folder.parent / "shared" if self._variant == "shared" else None
        return Place(self._folder / name, self._store, shared)


class Watch:
    """Looks at a flow run after each kill, and knows what was true before."""

    def __init__(self, place: Place, expected: dict[str, str], mark: str, figures: Figures) -> None:
        self.run_id: str | None = None
        """The id of the flow run, once it is recorded."""
        self.violations: list[str] = []
        self.is_over = False
        self.left = 1.0
        """Which part of the task runs has not completed."""
        self.executions = 0
        self.lost_attempts = 0
        self.lost_workers = 0
        self._place = place
        self._expected = expected
        self._mark = mark
        self._figures = figures
        self._settled: dict[str, int] = {}
        """Of the task runs that had COMPLETED: how often they had begun."""

    def look(self, code: int, *, may_refuse: bool = False) -> None:
        """Look at everything after a program has ended with this exit code; one that the store refused may it be."""
        self._wait_until_gone()
        try:
            self.violations += self._problems(code, may_refuse)
        except LocalflowError as error:
            self.violations.append(f"the store cannot be read: {error}")

    def _wait_until_gone(self) -> None:
        began_at = time.monotonic()
        while left := kills.survivors(self._mark):
            if time.monotonic() > began_at + GONE:
                self.violations.append(f"alive after {GONE} seconds: {left}")
                for pid in left:
                    os.kill(pid, 9)
                return
            time.sleep(0.002)
        self._figures.longest_survival = max(self._figures.longest_survival, time.monotonic() - began_at)

    def _problems(self, code: int, may_refuse: bool) -> Iterator[str]:
        place, store = self._place, self._place.open_store()
        if store is None:
            if place.oracle() or place.acks() or (code >= 0 and not may_refuse):
                yield f"there is no store (exit code {code}): {place.said()[-2000:]}"
            return
        with closing(store):
            before = Recorded(store, place)
            yield from invariants.is_sound(before, self._expected)
            yield from invariants.shown_is_stored(before, place)
            yield from invariants.ran_as_recorded(before, place)
            if before.root is not None:
                claim = self._claim(store, before.root.flow_run.id)
                if claim is None:
                    yield "the run cannot be claimed though its engine is dead"
                else:
                    claim.release()
        yield from self._is_true(code, before, may_refuse)
        store = place.open_store()
        assert store is not None
        with closing(store):
            marked = Recorded(store, place)
        yield from invariants.is_sound(marked, self._expected)
        yield from invariants.lost_is_marked(marked, place)
        yield from self._is_settled(marked)
        if marked.root is not None:
            self.run_id = marked.root.flow_run.id
            self.is_over = marked.root.change is not None and marked.root.change.name == "Completed"
        if self.is_over:
            yield from self._at_the_end(marked)
        yield from place.strange_files(at_the_end=self.is_over and place.is_alone)

    def _claim(self, store: StateStore, run_id: str) -> Claim | None:
        """Take hold of the run; whoever else looks at the store may mark it as lost just now."""
        until = time.monotonic() + (0.0 if self._place.is_alone else GONE)
        while (claim := store.claim(run_id)) is None and time.monotonic() < until:
            time.sleep(0.002)
        return claim

    def _is_true(self, code: int, before: Recorded, may_refuse: bool) -> Iterator[str]:
        """Yield what `localflow runs` says that is not so; it marks what was lost.

        If others share the store, they may be about to mark it just now: then look again.
        """
        until = time.monotonic() + (0.0 if self._place.is_alone else GONE)
        while found := list(self._untruths(code, before, may_refuse)):
            if time.monotonic() > until:
                yield from found
                return
            time.sleep(0.01)

    def _untruths(self, code: int, before: Recorded, may_refuse: bool) -> Iterator[str]:
        answer, shown = self._place.runs()
        if answer:
            yield f"`localflow runs` exits with {answer}"
            return
        was_completed = before.root is not None and before.flow_runs["layers"].is_completed
        own = {each.flow_run.id for each in before.summaries}
        states = [
            (each["state"]["type"], each["state"]["name"])
            for each in shown
            if each["parent_id"] is None and (self._place.is_alone or each["id"] in own)
        ]
        wanted: tuple[str, str]
        if before.root is None:
            if states or code == 0:
                yield f"nothing is recorded, exit code {code}, `localflow runs` says {states}"
            return
        if was_completed:
            wanted = ("COMPLETED", "Completed")
        elif code not in (0, 1) and before.flow_runs["layers"].state != "Failed":
            wanted = ("CRASHED", "EngineLost")
        else:
            wanted = ("FAILED", "Failed")
        if states != [wanted]:
            yield f"exit code {code}, `localflow runs` says {states}, not {wanted}"
        if code == 0 and not was_completed:
            yield f"exit code 0, but it is {states}: {self._place.said()[-2000:]}"
        if code > 1 and not (may_refuse and code == kills.STORE_EXIT_CODE):
            yield f"exit code {code}: {self._place.said()[-2000:]}"

    def _is_settled(self, marked: Recorded) -> Iterator[str]:
        """Yield what had COMPLETED and has not any more, or has run again."""
        begun = Counter(note.name for note in self._place.oracle() if note.kind == "S")
        for name, count in self._settled.items():
            if name not in marked.completed:
                yield f"{name} was COMPLETED, now it is not"
            if begun[name] != count:
                yield f"{name} was COMPLETED and has run again"
        self._settled = {name: begun[name] for name in marked.completed}
        self.left = 1 - len(self._settled) / TASK_RUNS
        self.executions = begun.total()
        lost = [
            (name, change.attempt)
            for name, run in marked.task_runs.items()
            for change in run.changes
            if change.name in invariants.LOST
        ]
        self.lost_workers = sum(
            change.name == "WorkerLost" for run in marked.task_runs.values() for change in run.changes
        )
        attempts = {(note.name, note.attempt) for note in self._place.oracle()}
        self.lost_attempts = sum(attempt in attempts for attempt in lost)

    def _at_the_end(self, marked: Recorded) -> Iterator[str]:
        if marked.results != self._expected:
            yield f"the results differ from those of an undisturbed run: {marked.results}"
        if left := [each.name for each in self._place.temporary.iterdir()]:
            yield f"left in TMPDIR: {left}"
        if left := [name for name in os.listdir("/dev/shm") if "localflow" in name]:  # noqa: PTH208 - names alone
            yield f"left in /dev/shm: {left}"
