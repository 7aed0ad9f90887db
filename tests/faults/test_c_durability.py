"""The durability contract as a user meets it: kill -9 again and again, two resumes at once, forks that live on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import psutil
import pytest

from localflow.project import Project
from tests.faults.conftest import eventually, own_processes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.conftest import Place, Program

BUSY_MACHINE = 3.0  # by how much everything may take longer than promised where others are at work
ROUNDS = 5  # of two resumes for each store
TAKE_OVER = 0.1  # seconds in which the claim of a dead engine can be had

TWO_HUNDRED = """
@task
def load(number):
    note("load", number)
    time.sleep(0.02)
    return number * number

@task
def scale(number, factor):
    note("scale", number)
    time.sleep(0.02)
    return number * factor + 1

@task
def add(number, numbers):
    note("add", number)
    return sum(numbers)

@task
def total(number, sums):
    note("total", number)
    return sum(sums)

@flow(executor="process")
def main():
    loaded = load.map(range(90))
    scaled = scale.map(loaded, unmapped(3))
    sums = [add.submit(n, scaled[5 * n : 5 * n + 5], wait_for=[loaded[n]]) for n in range(18)]
    return total.submit(1, [total.submit(0, sums[:9]), *sums[9:]])
"""


@pytest.mark.timeout(180)
def test_fault_C5_a_flow_of_200_tasks_killed_again_and_again_ends_as_if_undisturbed(
    place: Place, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No completed task runs twice, `runs` tells the truth each time, nothing is left, the result is the same."""
    temporary = place.folder / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    shared_memory = set(os.listdir("/dev/shm"))  # noqa: PTH208 - names alone
    seed = random.randrange(1_000_000)
    chance = random.Random(seed)
    told = f"seed {seed}"
    place.write(TWO_HUNDRED)
    command = ["run", "flows.py", "-j", "2"]
    rounds = 0
    known: set[str] = set()
    runs_of_known: Counter[str] = Counter()
    state = ""

    while state != "COMPLETED":
        rounds += 1
        assert rounds < 60, told
        program = place.start("-m", "localflow", *command)
        kill_at_some_time(place, program, chance)
        done = program.wait()
        eventually(lambda: not own_processes(), 2 * BUSY_MACHINE)

        [run] = place.read("runs")
        state = run["state"]["type"]
        if state != "COMPLETED":  # "Failed" if a worker was killed first, and the engine after its last record
            assert done.returncode == -signal.SIGKILL, told + done.stderr
            assert run["state"]["name"] in ("EngineLost", "Failed"), told + done.stderr
        types = {name: type_name for name, (type_name, _) in place.states().items()}
        assert "RUNNING" not in types.values(), told
        now = {name for name, type_name in types.items() if type_name == "COMPLETED"}
        assert known <= now, f"{told}: {known - now} were COMPLETED before"
        runs = Counter(map(_task_run, place.notes))
        assert [name for name, count in runs_of_known.items() if runs[name] > count] == [], told
        known, runs_of_known = now, Counter({name: runs[name] for name in now})
        command = ["resume", run["name"], "-j", "2"]

    squares = [number * number * 3 + 1 for number in range(90)]
    shown = place.read("show", "@last/total-1")
    assert shown["result"] == sum(squares), told
    assert rounds >= 4, told
    assert len(known) == 200, told
    assert list(temporary.iterdir()) == [], told
    assert {name for name in os.listdir("/dev/shm") if "localflow" in name} <= shared_memory, told  # noqa: PTH208
    assert leftovers(place.folder) == [], told


def _task_run(note: str) -> str:
    """Return the name of the task run that has left a note."""
    task, _, number = note.partition(" ")
    return f"{task}-{number}"


def kill_at_some_time(place: Place, program: Program, chance: random.Random) -> None:
    """Kill the engine after some more tasks have begun, in every third case some of its workers before that."""
    enough = len(place.notes) + chance.randint(5, 40)
    eventually(lambda: len(place.notes) >= enough or program.process.poll() is not None)
    time.sleep(chance.random() * 0.02)  # the fault itself: at any moment
    if chance.random() < 1 / 3:
        with suppress(psutil.NoSuchProcess):
            supervisors = psutil.Process(program.pid).children()
            workers = [worker for supervisor in supervisors for worker in supervisor.children()]
            for worker in chance.sample(workers, min(len(workers), chance.randint(1, 2))):
                worker.kill()
        time.sleep(chance.random() * 0.02)
    program.kill()


def leftovers(folder: Path) -> list[str]:
    """Return what is in the state folder beside the store itself; an empty file that was locked means nothing."""
    kept = ("localflow.db", "localflow.db-wal", "localflow.db-shm", "store.json", "journal.jsonl", "logs.jsonl")
    files = [path for path in (folder / ".localflow").rglob("*") if path.is_file()]
    strange = [path for path in files if path.name not in (*kept, ".gitignore")]
    return [str(path) for path in strange if path.parent.name != "engines" or path.stat().st_size]


WAITING = """
@task
def first():
    note("first")
    return 1

@task
def second(x):
    note("second", os.getpid())
    until(lambda: os.path.exists("go"), 60)
    return x + 1

@flow
def main():
    note("engine", os.getpid())
    return second(first())
"""


@pytest.mark.timeout(120)
def test_fault_D7_of_two_resumes_at_once_one_does_nothing(place: Place, store: str) -> None:
    """The second exits 3 naming the pid of the first, and runs nothing, neither of the flow nor of its tasks."""
    place.write(WAITING)
    program = place.start("-m", "localflow", "run", "flows.py")
    eventually(lambda: len(place.notes) == 3)
    program.kill()
    program.wait()

    for attempt in range(2, 2 + ROUNDS):
        known = len(place.notes)
        both = [place.start("-m", "localflow", "resume", "@last") for _ in range(2)]
        eventually(lambda known=known: len(place.notes) == known + 2)  # type: ignore[misc]
        eventually(lambda both=both: any(each.process.poll() is not None for each in both))  # type: ignore[misc]
        [loser] = [each for each in both if each.process.poll() is not None]
        [winner] = [each for each in both if each is not loser]
        refused = loser.wait()

        assert refused.returncode == 3, refused.stderr
        assert f"is being executed by pid {winner.pid} since " in refused.stderr
        assert place.notes[known] == f"engine {winner.pid}"
        assert place.notes[known + 1].startswith("second")
        if attempt < 1 + ROUNDS:
            winner.kill()
            winner.wait()
    (place.folder / "go").touch()
    done = winner.wait()

    assert done.returncode == 0, done.stderr
    assert len(place.notes) == 3 + 2 * ROUNDS
    [second] = [each for each in place.task_runs() if each["name"] == "second-0"]
    assert second["attempt"] == 1 + ROUNDS


def test_fault_D8_a_fork_of_a_dead_engine_does_not_hold_its_run(place: Place, store: str) -> None:
    """After kill -9 of an engine whose forked children live on, its run can be claimed within a tenth of a second."""
    place.write("""
@flow
def main():
    for _ in range(3):
        if not os.fork():
            note("fork", os.getpid())
            signal.pause()
    signal.pause()
""")
    program = place.start("-m", "localflow", "run", "flows.py")
    eventually(lambda: len(place.notes) == 3)
    forks = [int(line.split()[1]) for line in place.notes]
    [run] = place.read("runs")
    with closing(Project.load().open_store()) as opened:
        assert opened.claim(run["id"]) is None

        try:
            program.kill()
            killed_at = time.monotonic()
            while (claim := opened.claim(run["id"])) is None:
                assert time.monotonic() < killed_at + 10
                time.sleep(0.001)
            took = time.monotonic() - killed_at
            claim.release()
            assert set(forks) <= {process.pid for process in own_processes()}
            [shown] = place.read("runs")
        finally:
            for pid in forks:
                os.kill(pid, signal.SIGKILL)
    program.wait()

    assert took < TAKE_OVER * BUSY_MACHINE
    assert (shown["state"]["type"], shown["state"]["name"]) == ("CRASHED", "EngineLost")
