"""Rows A1 to A3 and A14: a worker dies in the middle of a task."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Place


def only(task_runs: list[dict[str, Any]], task: str) -> dict[str, Any]:
    """Return the one task run of a task."""
    (found,) = (each for each in task_runs if each["task"] == task)
    return found


def test_fault_A1_a_killed_worker_costs_its_own_task_only(place: Place) -> None:
    """The task is CRASHED and says by what, twenty others run exactly once, two workers are back within 2 seconds."""
    place.write("""
@task
def victim():
    until(lambda: os.path.exists("begun"))
    note("killed", time.monotonic())
    os.kill(os.getpid(), signal.SIGKILL)

@task
def innocent(number):
    open("begun", "w").close()
    time.sleep(0.1)
    note("innocent", number)
    note("worker", os.getpid(), time.monotonic())

@flow(executor=ProcessExecutor(workers=2))
def main():
    victim()
    innocent.map(range(20))
""")

    done = place.localflow("run", "flows.py")

    task_runs = place.task_runs()
    victim = only(task_runs, "victim")
    pid = victim["cause"]["pid"]
    assert done.returncode == 1
    assert (victim["state"]["type"], victim["state"]["name"]) == ("CRASHED", "WorkerLost")
    assert re.fullmatch(
        rf"worker {pid} killed by SIGKILL after \d+\.\ds while running 'victim-0' \(attempt 1/1\)",
        victim["state"]["message"],
    )
    assert victim["state"]["message"] in done.stderr
    assert victim["cause"]["signal"] == signal.SIGKILL
    assert victim["attempt"] == 1
    assert victim["peak_rss_bytes"] > 1 << 20
    assert {each["state"]["type"] for each in task_runs if each is not victim} == {"COMPLETED"}
    assert [place.counts[f"innocent {number}"] for number in range(20)] == [1] * 20
    assert replaced_after(place) < 2


def replaced_after(place: Place) -> float:
    """Return how many seconds after the kill a new worker had done its first task."""
    (killed_at,) = (float(note.split()[1]) for note in place.notes if note.startswith("killed"))
    seen = [(float(at), pid) for note in place.notes if note.startswith("worker") for _, pid, at in [note.split()]]
    first: dict[str, float] = {}
    for at, pid in seen:
        first.setdefault(pid, at)
    assert len(first) == 2
    return max(first.values()) - killed_at


CRASHES = {
    "SIGSEGV": "ctypes.string_at(0)",
    "SIGABRT": "os.abort()",
    "SIGBUS": "os.kill(os.getpid(), signal.SIGBUS)",
    "SIGILL": "os.kill(os.getpid(), signal.SIGILL)",
}


def test_fault_A2_a_crash_of_c_code_leaves_its_stack(place: Place) -> None:
    """Segmentation fault, abort, bus error and illegal instruction are named, with the function that was at work."""
    tasks = "".join(
        f"""
@task
def dies_of_{name}():
    {statement}
"""
        for name, statement in CRASHES.items()
    )
    place.write(f"""{tasks}
@task
def innocent():
    return 1

@flow(executor=ProcessExecutor(workers=2))
def main():
    {"; ".join(f"dies_of_{name}()" for name in CRASHES)}
    for _ in range(4):
        innocent()
""")

    done = place.localflow("run", "flows.py")

    task_runs = place.task_runs()
    assert done.returncode == 1
    for name in CRASHES:
        dead = only(task_runs, f"dies_of_{name}")
        assert (dead["state"]["type"], dead["state"]["name"]) == ("CRASHED", "WorkerLost")
        assert f"killed by {name} after" in dead["state"]["message"]
        assert dead["cause"]["signal"] == signal.Signals[name]
        assert f"in dies_of_{name}" in dead["cause"]["traceback_text"]
    assert [each["state"]["type"] for each in task_runs if each["task"] == "innocent"] == ["COMPLETED"] * 4


STATUSES = (0, 1, 99, 255)


def test_fault_A3_a_task_that_ends_its_process_is_never_completed(place: Place) -> None:
    """`os._exit` is a crash whatever the status, and the status is told."""
    place.write("""
@task
def leave(status):
    os._exit(status)

@task
def innocent():
    return 1

@flow(executor=ProcessExecutor(workers=2))
def main():
    [leave(status) for status in (0, 1, 99, 255)]
    innocent()
""")

    done = place.localflow("run", "flows.py", timeout=10)

    *left, innocent = place.task_runs()
    assert done.returncode == 1
    assert innocent["state"]["type"] == "COMPLETED"
    for status, task_run in zip(STATUSES, left, strict=True):
        assert (task_run["state"]["type"], task_run["state"]["name"]) == ("CRASHED", "WorkerLost")
        assert f"exited with status {status} without returning a result" in task_run["state"]["message"]
        assert task_run["cause"]["exit_code"] == status


@pytest.mark.timeout(120)
def test_fault_A14_nothing_wears_out_in_a_storm_of_kills(place: Place) -> None:
    """After fifty rounds of kills in one engine there are as many descriptors and threads, and as much memory."""
    place.write("""
import psutil

@task
def victim():
    os.kill(os.getpid(), signal.SIGKILL)

@task
def innocent(number):
    note("innocent", number)

@task
def pause():
    print("what is said is stored by a thread of its own")
    time.sleep(0.1)

def figures():
    engine = psutil.Process()
    wait([pause() for _ in range(2)])  # so that both workers are there
    return engine.num_fds(), engine.num_threads(), len(engine.children(recursive=True)), engine.memory_info().rss

@flow(executor=ProcessExecutor(workers=2))
def main():
    for number in range(60):
        futures = [victim(), *(innocent(4 * number + each) for each in range(4))]
        assert [future.wait(10).type.name for future in futures] == ["CRASHED"] + 4 * ["COMPLETED"]
        if number == 9:
            before = figures()
    after = figures()
    print(*before, *after)
    return "all rounds"
""")

    done = place.localflow("run", "flows.py", timeout=100)

    assert done.returncode == 0, done.stderr
    fds, threads, processes, rss, *after = map(int, done.stdout.splitlines()[-2].split())
    print(f"before {fds, threads, processes, rss}, after {after}")
    assert after[:3] == [fds, threads, processes]
    assert after[3] < 1.05 * rss
    assert [place.counts[f"innocent {number}"] for number in range(240)] == [1] * 240
