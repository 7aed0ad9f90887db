"""Rows A8 to A10: tasks that do not end, and what tasks have started."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psutil

from tests.faults.conftest import eventually

if TYPE_CHECKING:
    from tests.faults.conftest import Place

LIMIT = 1.0
HANGS = {
    "sleeps": "time.sleep(60)",
    "ignores_sigterm": "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
    "spins": "exec('while True: pass')",
}

# A task's children: of its group, one that has lost its parent, a fork, and one in a session of its own.
START_CHILDREN = """
def start_children():
    def forked(leave=lambda: None):
        pid = os.fork()
        if not pid:
            leave()
            time.sleep(60)
            os._exit(0)
        return pid
    note("child", subprocess.Popen(["sleep", "60"]).pid)
    orphan = subprocess.run(["sh", "-c", "sleep 60 >/dev/null & echo $!"], stdout=subprocess.PIPE, text=True)
    note("child", orphan.stdout.strip())
    note("child", forked())
    note("child", forked(os.setsid))
"""


def is_alive(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def children(place: Place) -> list[int]:
    """Return the pids of what tasks have started."""
    return [int(note.split()[1]) for note in place.notes if note.startswith("child")]


def seconds(task_run: dict[str, Any]) -> float:
    """Return how long a task run took."""
    begin, end = (datetime.fromisoformat(task_run[each]) for each in ("started_at", "ended_at"))
    return (end - begin).total_seconds()


def hang(place: Place, statements: dict[str, str]) -> list[dict[str, Any]]:
    """Run a flow whose tasks of these names never end by themselves; return their runs."""
    tasks = "".join(
        f"""
@task(timeout_seconds={LIMIT})
def {name}():
    note(os.getpid())
    {statement}
"""
        for name, statement in statements.items()
    )
    place.write(f"""{tasks}
@task
def innocent():
    return 1

@flow(executor=ProcessExecutor(workers={len(statements) + 1}))
def main():
    {"; ".join(f"{name}()" for name in statements)}
    innocent()
""")

    done = place.localflow("run", "flows.py")

    *hung, innocent = place.task_runs()
    assert done.returncode == 1
    assert innocent["state"]["type"] == "COMPLETED"
    assert len(place.notes) == len(statements)
    assert not any(is_alive(int(pid)) for pid in place.notes)
    return hung


def assert_timed_out(task_run: dict[str, Any]) -> None:
    """Check that a task run ended TimedOut, at most a second too late."""
    assert (task_run["state"]["type"], task_run["state"]["name"]) == ("FAILED", "TimedOut")
    assert task_run["state"]["message"] == f"Task run exceeded timeout of {LIMIT} second(s)"
    assert LIMIT <= seconds(task_run) < LIMIT + 1


def test_fault_A8_a_task_past_its_timeout_is_killed(place: Place) -> None:
    """Code that sleeps, that ignores SIGTERM, that never rests is killed within a second after its timeout."""
    for task_run in hang(place, HANGS):
        assert_timed_out(task_run)


def test_fault_A8_a_task_past_its_timeout_is_tried_again(place: Place) -> None:
    """A timeout costs an attempt; the next one begins with all the time there is, in another worker."""
    place.write(f"""
@task(timeout_seconds={LIMIT}, retries=1)
def hang_once():
    note(os.getpid())
    if not os.path.exists("second"):
        open("second", "w").close()
        time.sleep(60)
    time.sleep(0.3)

@flow(executor=ProcessExecutor(workers=1))
def main():
    return hang_once()
""")

    done = place.localflow("run", "flows.py")

    (task_run,) = place.task_runs()
    assert done.returncode == 0, done.stderr
    assert task_run["attempt"] == 2
    assert [state["name"] for state in task_run["history"]][-3:] == ["AwaitingRetry", "Retrying", "Completed"]
    assert len(set(place.notes)) == 2


def test_fault_A9_c_code_that_holds_the_gil_is_killed_too(place: Place) -> None:
    """The engine's clock alone decides: nothing in the worker has to run for it."""
    (task_run,) = hang(place, {"holds_the_gil": "ctypes.PyDLL(None).sleep(60)"})

    assert_timed_out(task_run)


def test_fault_A10_what_a_task_has_started_is_killed_at_its_timeout(place: Place) -> None:
    """Children, orphans of its group, forks that hold its pipes and sessions of their own end with the worker."""
    seen_after = start_and(place, "@task(timeout_seconds=1)", "time.sleep(60)")

    assert place.states() == {"starts-0": ("FAILED", "TimedOut")}
    assert seen_after < 2
    assert len(children(place)) == 4
    eventually(lambda: not any(map(is_alive, children(place))), seconds=2)


def test_fault_A10_what_a_task_has_started_dies_with_its_worker(place: Place) -> None:
    """They hide no death, and end with it.

    What has left the session and, by the death, its parent may be missed: a limit that is documented, and told when
    the run ends. It is found where the death is noticed in time, so there is nothing to check.
    """
    seen_after = start_and(place, "@task", "os.kill(os.getpid(), signal.SIGKILL)")

    *family, stranger = children(place)
    assert place.states() == {"starts-0": ("CRASHED", "WorkerLost")}
    assert seen_after < 1
    eventually(lambda: not any(map(is_alive, family)), seconds=2)
    with suppress(ProcessLookupError):
        os.kill(stranger, signal.SIGKILL)


def start_and(place: Place, decorator: str, end: str) -> float:
    """Run a task that starts children and comes to an end; return how long after that the flow knew."""
    place.write(f"""{START_CHILDREN}
{decorator}
def starts():
    start_children()
    note("began", time.time())
    {end}

@flow(executor=ProcessExecutor(workers=1))
def main():
    starts().wait()
    note("seen", time.time())
""")

    done = place.localflow("run", "flows.py")

    at = {words[0]: float(words[1]) for note in place.notes if (words := note.split())[0] in ("began", "seen")}
    assert done.returncode == 1
    return at["seen"] - at["began"]


def test_fault_A10_what_a_completed_task_leaves_running_is_left_alone_and_told(place: Place) -> None:
    """After a task that completed its children go on, and one warning names them."""
    place.write(f"""{START_CHILDREN}
@task
def starts():
    start_children()

@flow(executor=ProcessExecutor(workers=1))
def main():
    return starts()
""")

    done = place.localflow("run", "flows.py")
    alive = [pid for pid in children(place) if is_alive(pid)]
    for pid in alive:
        os.kill(pid, signal.SIGKILL)

    (warning,) = (line for line in done.stderr.splitlines() if "left processes running" in line)
    assert done.returncode == 0, done.stderr
    assert sorted(alive) == sorted(children(place))
    assert {int(word.strip(",")) for word in warning.split() if word.strip(",").isdigit()} >= set(alive)
    eventually(lambda: not any(map(is_alive, alive)))
