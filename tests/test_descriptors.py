"""What a task writes straight to descriptors 1 and 2 is recorded and comes out where it should."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from localflow import flow, task
from localflow.project import Project

HEAD = """
import ctypes, os, signal, subprocess, sys, threading, time
from localflow import flow, get_run_logger, task
"""

DEADLINE = 20.0


def run_program(source: str, code: int = 0, **environment: str) -> tuple[str, str]:
    """Run a program of its own with pipes for stdout and stderr; return what came out of them."""
    Path("program.py").write_text(HEAD + source)
    done = subprocess.run(
        [sys.executable, "program.py"], capture_output=True, encoding="utf-8", timeout=50, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def recorded() -> list[tuple[str, str, str]]:
    """Return run, source and message of what the newest flow run has said."""
    with closing(Project.load().open_store()) as store:
        flow_run = store.list_flow_runs()[0].flow_run
        return [(entry.run.name, entry.source, entry.message) for _, entry in store.read_logs(flow_run.id)]


def test_raw_writes_and_children_belong_to_their_task() -> None:
    """os.write, a child process, C code and what Python has buffered in bytes are recorded in order, once."""
    out, err = run_program("""
@task
def write(n):
    os.write(1, b"raw %d\\n" % n)
    subprocess.run(["sh", "-c", f"echo child {n}; echo complaint {n} >&2"], check=True)
    ctypes.CDLL(None).puts(b"C %d" % n)
    sys.stdout.buffer.write(b"bytes %d\\n" % n)
    os.write(2, b"no line end")

@flow
def main():
    os.write(1, b"body\\n")
    write(1)
    os.write(1, b"between\\n")
    write(2)
main()
""")

    for n in (1, 2):
        mine = [(source, message) for run, source, message in recorded() if run == f"write-{n - 1}"]
        assert sorted(m for s, m in mine if s == "stdout") == [f"C {n}", f"bytes {n}", f"child {n}", f"raw {n}"]
        assert [m for s, m in mine if s == "stderr"] == [f"complaint {n}", "no line end"]
    assert len(recorded()) == 12
    expected = ["body", *(f"{each} 1" for each in ("C", "bytes", "child", "raw")), "between"]
    assert sorted(out.splitlines()[:6]) == sorted(expected)
    assert err == "complaint 1\nno line endcomplaint 2\nno line end"


def test_text_and_raw_writes_keep_their_order() -> None:
    """What a task prints after a child has written comes after it."""
    out, _ = run_program("""
@task
def talk():
    for n in range(3):
        print("text", n, flush=True)
        os.write(1, b"raw %d\\n" % n)

@flow
def main():
    talk()
main()
""")

    expected = [f"{each} {n}" for n in range(3) for each in ("text", "raw")]
    assert out.splitlines() == expected
    assert [message for _, _, message in recorded()] == expected


def test_a_long_task_keeps_nothing_back() -> None:
    """What a task writes is out while it goes on."""
    Path("program.py").write_text(
        HEAD
        + """
@task
def wait():
    os.write(1, b"begun\\n")
    sys.stdin.readline()

@flow
def main():
    wait()
main()
"""
    )
    command = [sys.executable, "program.py"]

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()  # the test's own timeout is its deadline
        still_at_work = process.poll() is None
        process.stdin.write("go on\n")

    assert (line, still_at_work, process.returncode) == ("begun\n", True, 0)


def test_what_was_written_before_a_crash_is_out() -> None:
    """A task that dies by SIGKILL has lost nothing that it wrote a good while before."""
    out, _ = run_program(
        """
@task
def die():
    os.write(1, b"last words\\n")
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)

@flow
def main():
    die()
main()
""",
        code=-signal.SIGKILL,
    )

    assert out == "last words\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_what_was_written_before_a_signal_is_out(signum: signal.Signals) -> None:
    """A task that is told to stop has lost nothing."""
    Path("program.py").write_text(
        HEAD
        + """
@task
def stop():
    os.write(1, b"last words\\n")
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(30)

@flow
def main():
    stop()
main()
"""
    )

    command = [sys.executable, "program.py", str(int(signum))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)

    assert done.stdout == "last words\n"
    assert ("stop-0", "stdout", "last words") in recorded()


def test_a_child_that_outlives_its_task_is_heard_until_the_run_ends() -> None:
    """What a child writes after its task has ended is passed on, and is nobody's."""
    out, _ = run_program("""
@task
def start():
    return subprocess.Popen(["sh", "-c", "read line; echo late"], stdin=subprocess.PIPE)

@flow
def main():
    child = start().result()
    child.communicate(b"go\\n")
    child.wait()
main()
""")

    assert out == "late\n"
    assert recorded() == []


def test_much_output_takes_no_memory_and_loses_nothing() -> None:
    """A hundred megabytes of a child arrive whole, and the memory they took meanwhile is given back."""
    Path("program.py").write_text(
        HEAD
        + """
def used():
    for entry in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{entry}"
        if os.path.islink(path) and "localflow-output" in os.readlink(path):
            yield os.stat(path).st_blocks * 512

@task
def flood():
    subprocess.run(["sh", "-c", f"yes {'x' * 10_000} | head -c 104857600"], check=True)

@flow
def main():
    flood()
    print(max(used()), file=sys.stderr)
main()
"""
    )

    with subprocess.Popen([sys.executable, "program.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        size = 0
        while piece := process.stdout.read(1 << 20):
            size += len(piece)
        left = int(process.stderr.read().split()[-1])

    assert size == 104857600
    assert left < 20_000_000
    assert "... truncated" in recorded()[-1][2] or "... truncated" in recorded()[-2][2]


def test_a_file_that_is_started_over_is_still_read() -> None:
    """A shell that opens /dev/stderr anew is heard."""
    _, err = run_program("""
@task
def complain():
    os.write(2, b"a long line before the short one\\n")
    subprocess.run(["sh", "-c", "sleep 0.5; echo short > /dev/stderr"], check=True)

@flow
def main():
    complain()
main()
""")

    assert err == "a long line before the short one\nshort\n"


def test_a_variable_leaves_the_descriptors_alone() -> None:
    """With LOCALFLOW_CAPTURE_DESCRIPTORS=0 raw writes pass unrecorded, prints are recorded all the same."""
    source = """
before = os.fstat(1)
@task
def write():
    assert os.path.samestat(before, os.fstat(1)) == (os.environ.get("LOCALFLOW_CAPTURE_DESCRIPTORS") == "0")
    os.write(1, b"raw\\n")
    print("text")

@flow
def main():
    write()
assert main().is_completed()
"""

    out, _ = run_program(source, LOCALFLOW_CAPTURE_DESCRIPTORS="0")
    assert sorted(out.splitlines()) == ["raw", "text"]
    assert [message for _, _, message in recorded()] == ["text"]

    run_program(source)
    assert sorted(message for _, _, message in recorded()) == ["raw", "text"]


def test_a_terminal_is_left_alone() -> None:
    """A task whose stdout is a terminal has the terminal itself."""
    Path("program.py").write_text(
        HEAD
        + """
@task
def look():
    assert os.isatty(1) and os.isatty(2)
    os.write(1, b"raw\\n")
    print("text")

@flow
def main():
    look()
assert main().is_completed()
"""
    )
    ours, theirs = pty.openpty()
    try:
        subprocess.run([sys.executable, "program.py"], stdout=theirs, stderr=theirs, timeout=50, check=True)
        os.set_blocking(ours, False)
        shown = os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)

    assert shown == b"raw\r\ntext\r\n"
    assert [message for _, _, message in recorded()] == ["text"]


def test_flows_that_run_at_once_leave_the_descriptors_as_they_were() -> None:
    """Of two flow runs in one process one captures; both end well, and the descriptors lead where they led."""
    out, _ = run_program("""
barrier = threading.Barrier(2)

@task
def write(n):
    barrier.wait()
    os.write(1, b"raw %d\\n" % n)

@flow
def main(n):
    write(n)

threads = [threading.Thread(target=main, args=(n,)) for n in range(2)]
before = os.fstat(1)
for thread in threads: thread.start()
for thread in threads: thread.join()
assert os.path.samestat(before, os.fstat(1))
""")

    assert sorted(out.splitlines()) == ["raw 0", "raw 1"]


def test_descriptors_lead_back_soon_after_the_last_task() -> None:
    """A flow whose tasks are done for now has its descriptors back after a moment."""
    before = os.fstat(1)
    during: list[bool] = []

    @task
    def look() -> None:
        during.append(os.path.samestat(before, os.fstat(1)))

    @flow
    def main() -> None:
        look()
        deadline = time.monotonic() + DEADLINE
        while not os.path.samestat(before, os.fstat(1)) and time.monotonic() < deadline:
            time.sleep(0.01)
        during.append(os.path.samestat(before, os.fstat(1)))

    main()

    assert during == [os.isatty(1), True]
