"""Rows A11 and A12: workers that die when they have nothing to do, and workers that cannot start."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Place


def test_fault_A11_a_worker_that_dies_idle_is_replaced(place: Place) -> None:
    """No task is affected by the death of a worker that has nothing to do; one warning tells of it."""
    place.write("""
@task
def pid(number):
    note("ran", number)
    return os.getpid()

@flow(executor=ProcessExecutor(workers=1))
def main():
    first = pid(0).result()
    os.kill(first, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{first}"))
    assert pid(1).result() != first
""")

    done = place.localflow("run", "flows.py")

    assert done.returncode == 0, done.stderr
    assert {state for state, _ in place.states().values()} == {"COMPLETED"}
    assert place.notes == ["ran 0", "ran 1"]
    assert done.stderr.count("killed by SIGKILL while it was idle; it is replaced") == 1


def test_fault_A11_a_result_that_was_sent_before_the_death_counts(place: Place) -> None:
    """Workers that die each time they have sent a result complete their tasks, each of which runs once."""
    place.write("""
@task
def work(number):
    note("ran", number)
    return number

@flow(executor=ProcessExecutor(workers=2))
def main():
    return work.map(range(20))
""")

    done = place.localflow("run", "flows.py", LOCALFLOW_FAILPOINT="result-sent:1")

    assert done.returncode == 0, done.stderr
    assert {state for state, _ in place.states().values()} == {"COMPLETED"}
    assert [place.counts[f"ran {number}"] for number in range(20)] == [1] * 20


def test_fault_A11_an_object_that_kills_when_it_is_deleted_harms_nobody_after_its_task(place: Place) -> None:
    """A result whose `__del__` is a segmentation fault, in the worker that has sent it, is a result."""
    place.write("""
class Bomb:
    def __reduce__(self):
        return int, (7,)

    def __del__(self):
        note("exploded")
        ctypes.string_at(0)

@task
def work(number):
    note("ran", number)
    return Bomb()

@flow(executor=ProcessExecutor(workers=2))
def main():
    assert [future.result() for future in work.map(range(6))] == [7] * 6
""")

    done = place.localflow("run", "flows.py")

    assert done.returncode == 0, done.stderr
    assert [place.counts[f"ran {number}"] for number in range(6)] == [1] * 6
    assert place.counts["exploded"] == 6


CANNOT_START = {
    "raises": ('raise ValueError("no licence")', "the initializer failed: ValueError: no licence"),
    "exits": ('print("libfoo.so is missing", file=sys.stderr); os._exit(3)', "while starting: libfoo.so is missing"),
}


@pytest.mark.parametrize("name", CANNOT_START)
def test_fault_A12_workers_that_cannot_start_end_the_run(place: Place, name: str) -> None:
    """After three starts, with a pause before each further one, every task is told why; the run fails."""
    statement, words = CANNOT_START[name]
    place.write(f"""
def refuse():
    note("start", time.monotonic())
    {statement}

@task
def work(number):
    note("ran")

@flow(executor=ProcessExecutor(workers=1, initializer=refuse))
def main():
    work.map(range(5))
""")

    done = place.localflow("run", "flows.py", timeout=20)

    task_runs = place.task_runs()
    starts = [float(note.split()[1]) for note in place.notes]
    assert done.returncode == 1
    assert {each["state"]["name"] for each in task_runs} == {"WorkerLost"}
    assert all(each["state"]["message"].startswith("cannot start workers: ") for each in task_runs)
    assert all(each["state"]["message"].endswith(words) for each in task_runs)
    assert f"cannot start workers: {task_runs[0]['state']['message'].partition(': ')[2]}" in done.stderr
    assert len(starts) == 3
    assert starts[1] - starts[0] >= 0.1
    assert starts[2] - starts[1] >= 0.5


def test_fault_A12_one_failed_start_costs_nothing_but_a_pause(place: Place) -> None:
    """A start that goes well the second time is no failure of anybody's."""
    place.write("""
def refuse_once():
    if not os.path.exists("tried"):
        open("tried", "w").close()
        raise OSError("not yet")

@task
def work(number):
    return number

@flow(executor=ProcessExecutor(workers=1, initializer=refuse_once))
def main():
    return work.map(range(5))
""")

    done = place.localflow("run", "flows.py")

    assert done.returncode == 0, done.stderr
    assert "a worker could not start, which is tried again: the initializer failed: OSError: not yet" in done.stderr


@pytest.mark.parametrize(
    ("script", "words"),
    [
        pytest.param(None, "FileNotFoundError: [Errno 2] No such file or directory", id="missing"),
        pytest.param("#!/bin/sh\necho broken installation >&2\nexit 3\n", "exit status 3", id="broken"),
    ],
)
def test_fault_A12_a_python_that_does_not_start_ends_the_run(place: Place, script: str | None, words: str) -> None:
    """Where the interpreter cannot be executed, or ends at once, the run fails and says so; it does not hang."""
    python = place.folder / "python"
    if script is not None:
        python.write_text(script)
        python.chmod(0o755)
    place.write(f"""
sys.executable = {str(python)!r}

@task
def work(number):
    note("ran")

@flow(executor=ProcessExecutor(workers=2))
def main():
    work.map(range(5))
""")

    done = place.localflow("run", "flows.py", timeout=20)

    assert done.returncode == 1
    for task_run in place.task_runs():
        assert task_run["state"]["name"] == "WorkerLost"
        assert task_run["state"]["message"].startswith("cannot start workers: ")
        assert words in task_run["state"]["message"]
    assert place.notes == []


# Each thread wants so much address space that the limit allows exactly so many: a real refusal of the system's.
FEW_THREADS = """
import resource
def allow_threads(count):
    threading.stack_size(1 << 30)
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmSize"))
    size = int(line.split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (size + (count << 30) + (1 << 29), resource.RLIM_INFINITY))
"""

needs_limits = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS keeps threads from starting on Linux only")


@needs_limits
def test_fault_A12_fewer_threads_than_wanted_do_the_work(place: Place) -> None:
    """A thread executor that gets two threads of eight does all tasks with them, warns once, and tries again later."""
    place.write(f"""{FEW_THREADS}
@task
def work(number):
    time.sleep(0.05)
    note(threading.current_thread().name, number)

together = threading.Barrier(8)

@task
def meet():
    together.wait(10)

@flow(executor=ThreadExecutor(workers=8))
def main():
    allow_threads(2)
    wait(work.map(range(20)))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    [meet() for _ in range(8)]
""")

    done = place.localflow("run", "flows.py", timeout=20)

    assert done.returncode == 0, done.stderr
    assert sorted(int(note.split()[1]) for note in place.notes) == list(range(20))
    assert 1 <= len({note.split()[0] for note in place.notes}) <= 2
    assert done.stderr.count("threads are at work, more cannot be started: can't start new thread") == 1


@needs_limits
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_fault_A12_without_any_thread_tasks_crash_and_say_so(place: Place, kind: str) -> None:
    """A thread executor that gets no thread at all crashes its tasks instead of keeping them for ever."""
    place.write(f"""{FEW_THREADS}
@task
{kind} work(number):
    note("ran")

@flow(executor=ThreadExecutor(workers=8))
def main():
    allow_threads(0)
    work.map(range(5))
""")

    done = place.localflow("run", "flows.py", timeout=20)

    assert done.returncode == 1
    for task_run in place.task_runs():
        assert (task_run["state"]["type"], task_run["state"]["name"]) == ("CRASHED", "WorkerLost")
        assert task_run["state"]["message"] == "cannot start a thread for the task: can't start new thread"
    assert place.notes == []


@needs_limits
def test_fault_A12_without_a_thread_for_its_delay_a_retry_comes_at_once(place: Place) -> None:
    """What cannot wait for its time in a thread of its own is done too soon, with a warning, rather than never."""
    place.write(f"""{FEW_THREADS}
@task(retries=1, retry_delay_seconds=0.5)
def fails_once():
    note("ran")
    if len(open("oracle").readlines()) == 1:
        raise ValueError("not yet")

@task
def work():
    pass

@flow(executor=ThreadExecutor(workers=1))
def main():
    work().wait()
    allow_threads(0)
    return fails_once()
""")

    done = place.localflow("run", "flows.py", timeout=20)

    assert done.returncode == 0, done.stderr
    assert place.notes == ["ran", "ran"]
    assert "nothing can be done later, such as flow timeouts, for now: can't start new thread" in done.stderr


@needs_limits
def test_fault_A12_without_a_thread_that_watches_it_a_timeout_counts_at_the_end(place: Place) -> None:
    """A task that no thread watches runs, with a warning, and is TimedOut when it has returned."""
    place.write(f"""{FEW_THREADS}
@task(timeout_seconds=0.2)
def work():
    time.sleep(0.4)
    note("returned")

@flow(executor=ThreadExecutor(workers=1))
def main():
    allow_threads(1)
    return work()
""")

    done = place.localflow("run", "flows.py", timeout=20)

    assert done.returncode == 1
    assert place.states() == {"work-0": ("FAILED", "TimedOut")}
    assert place.notes == ["returned"]
    assert "timeouts are not watched for now, for no thread can be started: can't start new thread" in done.stderr
