"""Row A13: a worker is killed in the middle of a large frame, in either direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Place

MEGABYTES = 64
COMMON = f"""
SIZE = {MEGABYTES} << 20

def kill_soon(pid, seconds):
    # a process of its own session: it outlives whom it kills
    script = f"sleep {{seconds}}; kill -9 {{pid}}"
    subprocess.Popen(["sh", "-c", script], start_new_session=True)

@task
def innocent(number):
    note("innocent", number)
    return number
"""

# The copies take some 50 ms, and the way through the pipe as long again.
RESULT = """
@task
def send(seconds):
    kill_soon(os.getpid(), seconds)
    return bytes(SIZE)

@flow(executor=ProcessExecutor(workers=2))
def main():
    for number, milliseconds in enumerate((10, 30, 50, 80, 110)):
        future = send(milliseconds / 1000)
        others = innocent.map([2 * number, 2 * number + 1])
        assert future.wait(20).is_final()
        assert future.state.type.name != "COMPLETED" or len(future.result()) == SIZE
        others.wait()
"""

# A stopped worker leaves nearly all of the argument in the engine; let go on, it has read a part of it when it dies.
ARGUMENT = """
@task
def pid():
    return os.getpid()

@task
def receive(data):
    return len(data)

@flow(executor=ProcessExecutor(workers=1))
def main():
    data = bytes(SIZE)
    for number, milliseconds in enumerate((0, 2, 5, 10, 20)):
        worker = pid().result()
        os.kill(worker, signal.SIGSTOP)
        future = receive(data)
        until(lambda: future.state.is_running())
        time.sleep(0.2)  # it is packed and on its way
        if milliseconds:
            os.kill(worker, signal.SIGCONT)
            time.sleep(milliseconds / 1000)
        os.kill(worker, signal.SIGKILL)
        assert future.wait(20).is_final()
        assert future.state.type.name != "COMPLETED" or future.result() == SIZE
        innocent(2 * number).wait(), innocent(2 * number + 1).wait()
"""


@pytest.mark.parametrize("source", [RESULT, ARGUMENT], ids=["result", "argument"])
def test_fault_A13_half_a_frame_is_nothing(place: Place, source: str) -> None:
    """The task ends CRASHED, or COMPLETED with all of it; nobody else is disturbed, nothing hangs."""
    place.write(COMMON + source)

    done = place.localflow("run", "flows.py", timeout=30)

    task_runs = [each for each in place.task_runs() if each["task"] in ("send", "receive")]
    ended = {(each["state"]["type"], each["state"]["name"]) for each in task_runs}
    assert done.returncode in (0, 1)
    assert "AssertionError" not in done.stderr
    assert len(task_runs) == 5
    assert ("CRASHED", "WorkerLost") in ended
    assert ended <= {("COMPLETED", "Completed"), ("CRASHED", "WorkerLost")}
    assert [place.counts[f"innocent {number}"] for number in range(10)] == [1] * 10


def test_fault_A13_a_worker_that_does_not_read_delays_nobody(place: Place) -> None:
    """While one stopped worker leaves 64 MB of an argument unread, the other does what there is to do."""
    place.write(f"""{COMMON}
@task
def pid():
    time.sleep(0.1)
    return os.getpid()

@task
def receive(data):
    return len(data)

@flow(executor=ProcessExecutor(workers=2))
def main():
    stopped, _ = [future.result() for future in (pid(), pid())]
    os.kill(stopped, signal.SIGSTOP)
    data = bytes(SIZE)
    stuck = [receive(data) for _ in range(2)]
    began = time.monotonic()
    innocent(0).wait(20)
    note("took", time.monotonic() - began)
    os.kill(stopped, signal.SIGCONT)
    wait(stuck, 20)
""")

    done = place.localflow("run", "flows.py", timeout=30)

    (took,) = (float(note.split()[1]) for note in place.notes if note.startswith("took"))
    assert done.returncode == 0, done.stderr
    assert took < 2
