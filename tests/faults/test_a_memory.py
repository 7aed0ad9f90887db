"""Rows A6 and A7: workers that need more memory than there is, and workers that are replaced."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.conftest import Place

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
LIMIT = 200 << 20

# The kernel's files, written by the program: it may use 60 MiB, and nothing has been killed.
FAKED = """
from pathlib import Path
from localflow.builtin.process import memory
Path("groups").write_text("0::/\\n")
Path("memory.max").write_text(str(60 << 20))
Path("memory.events").write_text("oom 0\\noom_kill 0\\n")
memory.PROCESS_GROUPS, memory.CONTROL_GROUPS = Path("groups"), Path.cwd()
"""


def test_fault_A6_a_kill_for_want_of_memory_is_told_when_the_kernel_counts_it(place: Place) -> None:
    """The death that the counter explains is OOMKilled; the next one, which it does not explain, is WorkerLost."""
    place.write(f"""{FAKED}
@task
def dies(kills):
    Path("memory.events").write_text(f"oom 0\\noom_kill {{kills}}\\n")
    os.kill(os.getpid(), signal.SIGKILL)

@flow(executor=ProcessExecutor(workers=1))
def main():
    dies(1).wait()
    dies(1)
""")

    done = place.localflow("run", "flows.py")

    killed, lost = place.task_runs()
    assert done.returncode == 1
    assert (killed["state"]["type"], killed["state"]["name"]) == ("CRASHED", "OOMKilled")
    assert re.search(
        r"killed by SIGKILL after .*; peak RSS \d+\.\d MiB of 60\.0 MiB limit, out of memory",
        killed["state"]["message"],
    )
    assert killed["cause"]["signal"] == 9
    assert (lost["state"]["type"], lost["state"]["name"]) == ("CRASHED", "WorkerLost")
    assert "memory" not in lost["state"]["message"]


def test_fault_A6_a_kill_of_a_worker_that_had_nearly_all_memory_is_perhaps_for_that(place: Place) -> None:
    """What is not proven is said as what it is: possible; another signal has nothing to do with memory."""
    place.write(f"""{FAKED}
@task
def dies(signum):
    used = bytearray(80 << 20)
    os.kill(os.getpid(), signum)

@flow(executor=ProcessExecutor(workers=1))
def main():
    dies(signal.SIGKILL).wait()
    dies(signal.SIGTERM)
""")

    place.localflow("run", "flows.py")

    killed, terminated = place.task_runs()
    message = killed["state"]["message"]
    assert [each["state"]["name"] for each in (killed, terminated)] == ["WorkerLost", "WorkerLost"]
    assert re.search(r"; peak RSS \d+\.\d MiB of 60\.0 MiB limit, possibly out of memory$", message)
    assert killed["peak_rss_bytes"] > 80 << 20
    assert "memory" not in terminated["state"]["message"]


@pytest.fixture
def container() -> Iterator[Path]:
    """A control group of 200 MiB; its folder takes pids in `cgroup.procs`."""
    is_version_1 = (V1 / "memory.limit_in_bytes").exists()
    folder = (V1 if is_version_1 else V2) / f"localflow-test-{uuid.uuid4().hex}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here, which takes root: {error}")
    try:
        (folder / ("memory.limit_in_bytes" if is_version_1 else "memory.max")).write_text(str(LIMIT))
    except OSError as error:
        folder.rmdir()
        pytest.skip(f"memory cannot be limited here: {error}")
    yield folder
    eventually(lambda: not (folder / "cgroup.procs").read_text())  # what has ended leaves a little later
    folder.rmdir()


def test_fault_A6_the_kernel_kills_a_worker_in_a_real_container(place: Place, container: Path) -> None:
    """In a control group with too little memory the culprit is OOMKilled; the engine and the others go on."""
    place.write("""
@task
def grows():
    kept = []
    while True:
        kept.append(bytearray(10 << 20))

@task
def innocent(number):
    time.sleep(0.05)
    note("innocent", number)

@flow(executor=ProcessExecutor(workers=2))
def main():
    grows()
    innocent.map(range(10))
""")

    program = place.start(
        "-m", "localflow", "run", "flows.py",
        before=lambda: (container / "cgroup.procs").write_text(str(os.getpid())) and None,
    )  # fmt: skip
    done = program.wait()

    grows, *innocent = place.task_runs()
    assert done.returncode == 1, done.stderr
    assert (grows["state"]["type"], grows["state"]["name"]) == ("CRASHED", "OOMKilled")
    assert re.search(r"; peak RSS \d+\.\d MiB of 200\.0 MiB limit, out of memory$", grows["state"]["message"])
    assert {each["state"]["type"] for each in innocent} == {"COMPLETED"}
    assert [place.counts[f"innocent {number}"] for number in range(10)] == [1] * 10


MATRIX = [(1, 1, 10), (2, 1, 30), (2, 2, 60), (2, 7, 200), (8, 2, 60), (8, 7, 200)]


def test_fault_A7_workers_are_replaced_after_so_many_tasks(place: Place) -> None:
    """Whatever the numbers of workers, tasks and tasks for each worker: all complete, once, by enough workers."""
    place.write(f"""
@task
def work(workers, most, number):
    note(workers, most, number, os.getpid())

@flow
def part(workers, most, count):
    work.with_options(executor=ProcessExecutor(workers=workers, max_tasks_per_worker=most)).map(
        workers, most, range(count)
    )

@flow
def main():
    for workers, most, count in {MATRIX}:
        part(workers, most, count)
""")

    done = place.localflow("run", "flows.py")

    assert done.returncode == 0, done.stderr
    for workers, most, count in MATRIX:
        notes = [note.split()[2:] for note in place.notes if note.startswith(f"{workers} {most} ")]
        pids = [pid for _, pid in notes]
        assert sorted(int(number) for number, _ in notes) == list(range(count))
        assert len(set(pids)) >= count / most
        assert max(pids.count(pid) for pid in set(pids)) <= most


def test_fault_A7_calls_during_the_replacement_are_not_lost(place: Place) -> None:
    """Threads that call tasks while workers come and go get all their results."""
    place.write("""
@task
def square(number):
    return number * number

@flow(executor=ProcessExecutor(workers=2, max_tasks_per_worker=1))
def main():
    futures = []
    for number in range(40):
        futures.append(square(number))
        if number % 4 == 3:
            futures[-1].wait()
    assert [future.result() for future in futures] == [number * number for number in range(40)]
""")

    done = place.localflow("run", "flows.py")

    assert done.returncode == 0, done.stderr


def test_fault_A7_a_task_that_outgrows_the_limit_crashes_alone(place: Place) -> None:
    """At `worker_memory_limit` the worker is killed; both numbers are told; the other worker is not touched."""
    place.write("""
@task
def grows():
    used = bytearray(150 << 20)
    time.sleep(60)

@task
def innocent(number):
    time.sleep(0.2)
    note("innocent", number, os.getpid())

@flow(executor=ProcessExecutor(workers=2, worker_memory_limit="100 MiB"))
def main():
    grows()
    innocent.map(range(8))
""")

    done = place.localflow("run", "flows.py", timeout=20)

    grows, *innocent = place.task_runs()
    assert done.returncode == 1
    assert (grows["state"]["type"], grows["state"]["name"]) == ("CRASHED", "OOMKilled")
    assert re.fullmatch(
        r"worker \d+ killed after \d\.\ds while running 'grows-0' \(attempt 1/1\); "
        r"it used 1[5-9]\d\.\d MiB, its worker_memory_limit is 100\.0 MiB",
        grows["state"]["message"],
    )
    assert grows["cause"]["pid"] == grows["pid"]
    assert {each["state"]["type"] for each in innocent} == {"COMPLETED"}
    assert sorted(int(note.split()[1]) for note in place.notes) == list(range(8))


def test_fault_A7_a_worker_that_leaks_is_replaced_between_tasks(place: Place) -> None:
    """What earlier tasks have left costs no later task anything: the worker is replaced as soon as it has ended one."""
    place.write("""
kept = []

@task
def leak(number):
    import builtins
    builtins.kept = getattr(builtins, "kept", [])
    builtins.kept.append(bytearray(40 << 20))
    note(os.getpid(), number)

@flow(executor=ProcessExecutor(workers=1, worker_memory_limit=100 << 20))
def main():
    leak.map(range(9))
""")

    done = place.localflow("run", "flows.py")

    pids = [note.split()[0] for note in place.notes]
    assert done.returncode == 0, done.stderr
    assert len(pids) == 9
    assert 3 <= len(set(pids)) <= 5  # 20 MiB and two times 40 are below the limit


@pytest.mark.parametrize("size", ["much", "2 elephants", "-1 GB", "0"])
def test_fault_A7_a_memory_limit_that_is_none_is_refused(place: Place, size: str) -> None:
    """A mistake in the text is told with the file before anything runs."""
    (place.folder / "localflow.toml").write_text(
        f'executor = "process"\n[executors.process]\nworker_memory_limit = "{size}"\n'
    )
    place.write("""
@flow
def main():
    note("ran")
""")

    done = place.localflow("run", "flows.py")

    assert done.returncode == 2
    assert "localflow.toml:" in done.stderr
    assert (
        f"worker_memory_limit must be a number of bytes >= 1 or a text such as '2 GiB' or '500 MB', got '{size}'"
        in (" ".join(done.stderr.split()))
    )
    assert place.notes == []
