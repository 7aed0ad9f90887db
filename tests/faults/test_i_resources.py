"""Little is left of descriptors, processes, shared memory or room in /tmp, output is endless; nothing stays behind."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from localflow.large_values import DRAFT
from tests.faults.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.conftest import Place

WORK = """
@task
def work(number):
    time.sleep(0.02)
    note("work", number)
    return number

@flow
def main():
    return sum(future.result() for future in [work(number) for number in range(12)])
"""
FOUR_WORKERS = {"LOCALFLOW_EXECUTOR": "process", "LOCALFLOW_EXECUTORS__PROCESS__WORKERS": "4"}


# -- I1: descriptors -------------------------------------------------------------------------------------------------


def allowing(files: int) -> Callable[[], None]:
    """Return what limits a program's descriptors."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


@pytest.mark.parametrize("files", [20, 32, 48, 64])
def test_fault_I1_few_descriptors_make_few_workers_or_a_failure_with_advice(place: Place, files: int) -> None:
    """With those for one worker at least all tasks run, with fewer none; both times the limit is named, once."""
    place.write(WORK)

    done = place.start("-m", "localflow", "run", "flows.py", before=allowing(files), **FOUR_WORKERS).wait(20)

    advice = f"raise ulimit -n (have {files}, need 10 for each worker)"
    if done.returncode == 0:
        assert sorted(place.notes) == sorted(f"work {number}" for number in range(12))
        assert done.stderr.count(advice) == (files < 64)
        assert files > 20
    else:
        assert done.returncode == 1
        assert "cannot start workers: OSError: [Errno 24] Too many open files" in done.stderr
        assert advice in done.stderr
        assert place.notes == []
        assert files < 48
        assert {state for state, _ in place.states().values()} <= {"CRASHED", "PENDING"}


LEAK = """
@task
def work(number):
    return number

@flow
def main():
    wait([work(number) for number in range(3)])
    leaked = []
    try:
        for _ in range(1000):
            leaked.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    meanwhile = [work(number).result() for number in range(10)]
    for each in leaked:
        os.close(each)
    note("leaked", 10 < len(leaked) < 1000)
    note("sum", sum(meanwhile) + sum(work.map(range(100)).result()))
"""


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_fault_I1_a_flow_that_leaks_descriptors_loses_no_result(place: Place, executor: str) -> None:
    """What needs no new descriptor goes on: tasks are dispatched and recorded all the same."""
    place.write(LEAK)

    program = place.start("-m", "localflow", "run", "flows.py", "--executor", executor, before=allowing(100))
    done = program.wait(20)

    assert done.returncode == 0, done.stderr
    assert place.notes == ["leaked True", f"sum {sum(range(10)) + sum(range(100))}"]
    assert [state for state, _ in place.states().values()] == ["COMPLETED"] * 113


# -- I2: nothing stays behind ----------------------------------------------------------------------------------------

BUSY = """
import subprocess

@task(retries=1)
def work(number):
    print("x" * 100_000)
    if number == 3 and get_run_context().task_run.attempt == 1:
        raise ValueError(3)
    return bytes(300_000)

@task
def die(how):
    bytes(how == "segv" and faulthandler._sigsegv() or os._exit(1))

@task(timeout_seconds=0.3)
def hang():
    time.sleep(60)

@flow
def main():
    work.map(range(8))
    if sys.argv[1:] == ["process"]:
        wait([die("segv"), die("exit"), hang()])

main()
"""


@pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
def test_fault_I2_no_names_are_left_behind(place: Place, executor: str) -> None:
    """Neither in /dev/shm nor in TMPDIR, and in the store's folder those that a run of one task leaves there, too."""
    (place.folder / "tmp").mkdir()
    place.write("@flow\ndef main():\n    task(print)(1)\n\nmain()", "small.py")
    place.write(BUSY)
    environment = {"TMPDIR": str(place.folder / "tmp"), "LOCALFLOW_EXECUTOR": executor}
    place.run("small.py", **environment)
    store, shared = names(place.folder / ".localflow"), names(Path("/dev/shm"))

    done = place.run("flows.py", executor, **environment)

    assert done.returncode == 0, done.stderr
    eventually(lambda: names(Path("/dev/shm")) <= shared)  # other programs have theirs for moments
    assert names(place.folder / "tmp") == set()
    left = names(place.folder / ".localflow") - store
    assert {name for name in left if not name.startswith(("results", "localflow.db-values"))} == set()
    assert [name for name in left if name.endswith(DRAFT)] == []


def names(folder: Path) -> set[str]:
    """Return the files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} if folder.exists() else set()


# -- I3: floods ------------------------------------------------------------------------------------------------------

FLOOD = """
@task
def flood(kind, size):
    line = {"lines": b"x" * 99 + b"\\n", "binary": bytes(range(1, 256)), "endless": b"y" * 128}[kind]
    piece = line * 500
    for _ in range(size // len(piece)):
        os.write(1, piece)

@task
def tick():
    return time.monotonic()

@flow(executor=ProcessExecutor(workers=3))
def main(size: int):
    wait([tick(), tick(), tick()])
    floods = [flood("lines", size), flood("binary", size // 8)]
    slowest = 0
    while not all(future.done() for future in floods):
        begun = time.monotonic()
        tick().result()
        slowest = max(slowest, time.monotonic() - begun)
    wait([flood("endless", size // 8)])
    note("slowest", slowest)
"""


def test_fault_I3_a_flood_of_output_is_bounded_and_holds_nobody_up(place: Place) -> None:
    """Of each task ten megabytes are recorded and shown, with a note of how much more there was; others go on."""
    place.write(FLOOD)
    size = 40_000_000

    with (place.folder / "shown").open("wb") as shown:
        finished = subprocess.run(
            [sys.executable, "-m", "localflow", "run", "flows.py", "-p", f"size={size}"],
            cwd=place.folder, stdout=shown, stderr=subprocess.STDOUT, timeout=40,
        )  # fmt: skip
    logs = place.localflow("logs", "@last/flood-0").stdout

    assert finished.returncode == 0
    assert float(place.notes[0].split()[1]) < 15.0  # half a second on an idle machine, but others may be at work
    *lines, last = logs.splitlines()
    kept = sum(line.endswith("x" * 99) for line in lines) * 100
    assert 4_000_000 < kept < 11_000_000  # each line costs more than its text
    assert last.endswith(f"... truncated {size - kept} bytes")
    shown_text = (place.folder / "shown").read_text()
    assert f"... truncated {size - kept} bytes\n" in shown_text
    assert len(shown_text) < 80_000_000
    if sys.platform == "linux":
        assert (place.folder / ".localflow" / "localflow.db").stat().st_size < 120_000_000


# -- I4: texts that are no UTF-8 -------------------------------------------------------------------------------------

ODD = """
@task
def write():
    os.write(1, bytes(range(256)) + b"\\n")
    sys.stdout.buffer.write(bytes(range(0x80, 0x100)) + b"\\n")
    sys.stdout.flush()

@task
def say():
    print("\\udcff and \\ud800 €")
    get_run_logger().info("log \\udcff €")
    return "\\udcff €"

@flow
def main():
    write().wait()
    return say().result()

if __name__ == "__main__":
    note(ascii(main().result()))
"""


@pytest.mark.parametrize("executor", ["process", "sequential"])
def test_fault_I4_any_bytes_and_any_text_can_be_said_and_read_again(place: Place, executor: str) -> None:
    """All bytes, lone surrogates and signs that the locale lacks are escaped where they cannot be shown, and kept."""
    bare = {"LC_ALL": "C", "LANG": "", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    lenient = {**bare, "PYTHONIOENCODING": "ascii:backslashreplace"}  # so that the user's own print() is no failure
    place.write(ODD)

    done = place.run("flows.py", LOCALFLOW_EXECUTOR=executor, **(bare if executor == "process" else lenient))
    shown = place.localflow("logs", "@last", **bare)
    lines = place.read("logs", "@last", **bare)
    said = [line["message"] for line in lines if line["run"] == "say-0"]
    written = "".join(line["message"] for line in lines if line["run"] == "write-0")

    assert done.returncode == 0, done.stderr
    assert "xdcff and " in (done.stdout + done.stderr).replace("udcff", "xdcff")
    assert "\\u20ac" in done.stdout
    assert place.notes == [ascii("\udcff €")]
    assert shown.returncode == 0
    assert len(said) == 2
    assert said[0].endswith(" €")
    assert said[1].startswith("log ")
    assert said[1].endswith(" €")
    assert "\\x80\\x81" in written
    assert "ABC" in written


# -- I5: processes, /dev/shm, /tmp -----------------------------------------------------------------------------------


#: A user that has no processes, for root, whom no limit stops; the capability is for reading Python in root's folders.
NOBODY = 54321
CAPABILITY = "-all,+dac_read_search"
AS_NOBODY = [
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
    f"--inh-caps={CAPABILITY}", f"--ambient-caps={CAPABILITY}", f"--bounding-set={CAPABILITY}",
]  # fmt: skip


@pytest.mark.skipif(
    os.getuid() == 0 and shutil.which("setpriv") is None, reason="root may have any number of processes"
)
@pytest.mark.parametrize("more", [2, 5, 12])
def test_fault_I5_few_processes_make_few_workers_or_a_failure_with_advice(place: Place, more: int) -> None:
    """Where the user may have so many processes and threads more, tasks run or the limit is named; nobody hangs."""
    place.write(WORK)
    command = [sys.executable, "-m", "localflow", "run", "flows.py"]
    if os.getuid() == 0:
        if subprocess.run([*AS_NOBODY, "true"], capture_output=True).returncode:
            pytest.skip("root may not become another user here")
        os.chown(place.folder, NOBODY, NOBODY)
        command = [*AS_NOBODY, *command]
    limit = more if os.getuid() == 0 else threads_of_user() + more

    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *command],
        cwd=place.folder, env={**os.environ, **FOUR_WORKERS}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip

    if done.returncode == 0:
        assert len(place.notes) == 12
        assert more > 1
    else:
        assert f"raise ulimit -u (have {limit}, " in done.stderr or "can't start new thread" in done.stderr
        assert place.notes == []
        assert more < 12


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NPROC, (int(sys.argv[1]),) * 2)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def threads_of_user() -> int:
    """Return how many processes and threads this user has."""
    own = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and entry.stat().st_uid == os.getuid()]
    return sum(len(list((entry / "task").iterdir())) for entry in own)


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="needs root for a mount of its own")
@pytest.mark.parametrize("missing", ["/dev/shm", "/tmp"])
def test_fault_I5_nothing_needs_shared_memory_or_room_in_tmp(place: Place, missing: str) -> None:
    """Without /dev/shm, and with a full /tmp, all executors work: nothing is kept there, nor any POSIX semaphore."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mounts of its own are allowed here")
    program = place.folder / "flows.py"
    home = Path("/run") / place.folder.name if missing == "/tmp" else place.folder
    place.write(WORK + "\nassert main().result() == 66\nopen('done', 'w').close()\n")
    home.mkdir(exist_ok=True)
    try:
        if home != place.folder:
            shutil.copy(program, home)
        hide = f"mount -t tmpfs -o size=4k,mode=0555 none {missing} && head -c 9k /dev/zero > {missing}/full; cd {home}"
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", f"{hide} && {sys.executable} flows.py"],
            capture_output=True, text=True, timeout=40, env={**os.environ, **FOUR_WORKERS},
        )  # fmt: skip

        assert done.returncode == 0, done.stderr
        assert (home / "done").exists()
    finally:
        if home != place.folder:
            shutil.rmtree(home)
