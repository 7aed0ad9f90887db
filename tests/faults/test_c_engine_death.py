"""C5 and C6: the engine dies by `kill -9`; its workers die with it, and the run is taken up where it was."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.faults.conftest import Place, eventually, own_processes

BUSY_MACHINE = 3.0  # by how much everything may take longer than promised where others are at work
DEADLINE = 2.0  # seconds in which workers are gone, whatever they do

# What two workers are doing when the engine dies.
BUSY = {
    "idle": "",
    "sleeping": "time.sleep(60)",
    "computing": "while True: pass",
    "holding the GIL": "ctypes.PyDLL(None).sleep(60)",
    "with a grandchild": "subprocess.run(['sh', '-c', 'sleep 60'], start_new_session=True)",
}


@pytest.mark.parametrize("doing", BUSY)
def test_fault_C6_workers_die_with_the_engine(place: Place, doing: str) -> None:
    """Within two seconds no process is left, be the workers idle, asleep, computing or deaf; the run is free again."""
    place.write(f"""
@task
def work(number):
    note("begin", number)
    {BUSY[doing] or "pass"}

@flow(executor="process")
def main():
    wait(work.map(range(2)))
    note("waiting")
    time.sleep(60)
""")
    program = place.start("-m", "localflow", "run", "flows.py", "-j", "2")
    eventually(lambda: len(place.notes) == (3 if doing == "idle" else 2))
    if doing == "with a grandchild":
        eventually(lambda: sum(process.name() == "sleep" for process in own_processes()) == 2)
    assert len(own_processes()) >= 3

    program.kill()
    killed_at = time.monotonic()
    program.wait()

    eventually(lambda: not own_processes(), DEADLINE * BUSY_MACHINE)
    assert time.monotonic() - killed_at < DEADLINE * BUSY_MACHINE
    [run] = place.read("runs")
    assert (run["state"]["type"], run["state"]["name"]) == ("CRASHED", "EngineLost")


LAYERS = """
@task
def first():
    note("first")
    return 1

@task
def second(x):
    note("second")
    until(lambda: os.path.exists("go"), 60)
    return x + 1

@task
def third(x):
    note("third")
    return x + 1

@flow(executor="process")
def main():
    x = first.submit()
    x.wait()
    return third.submit(second.submit(x))
"""


@pytest.mark.parametrize(
    ("store", "victims"), [("sqlite", "engine"), ("json", "engine and workers")], indirect=["store"]
)
def test_fault_C5_a_run_whose_engine_was_killed_is_marked_and_resumed(place: Place, store: str, victims: str) -> None:
    """It is CRASHED `EngineLost`, notifiers know; what completed never runs again, what was cut off does."""
    (place.folder / "localflow.toml").write_text(
        '[notifiers.ops]\ntype = "command"\ncommand = ["sh", "-c", "cat >> told"]\non = ["EngineLost"]\n'
    )
    program = place.start("-m", "localflow", "run", place.write(LAYERS), "-j", "1")
    eventually(lambda: "second" in place.notes)
    assert place.read("runs")[0]["state"]["name"] == "Running"

    if victims == "engine and workers":
        for process in own_processes():
            process.send_signal(signal.SIGSTOP)
        for process in own_processes():
            process.kill()
    else:
        program.kill()
    program.wait()
    eventually(lambda: not own_processes())
    states, [run] = place.states(), place.read("runs")
    (place.folder / "go").touch()
    done = place.localflow("resume", "@last")

    assert (run["state"]["type"], run["state"]["name"]) == ("CRASHED", "EngineLost")
    told = [json.loads(line) for line in (place.folder / "told").read_text().splitlines()]
    assert {event["run_name"] for event in told} == {run["name"], "second-0"}
    assert states.pop("third-0", None) in (None, ("PENDING", "Pending"))  # a call that waits may not be stored yet
    assert states == {"first-0": ("COMPLETED", "Completed"), "second-0": ("CRASHED", "EngineLost")}
    assert done.returncode == 0, done.stderr
    assert place.counts == {"first": 1, "second": 2, "third": 1}
    assert set(place.states().values()) == {("COMPLETED", "Completed")}
    [second] = [each for each in place.task_runs() if each["name"] == "second-0"]
    assert [moment["name"] for moment in second["history"]] == [
        "Pending", "Running", "EngineLost", "Retrying", "Completed",
    ]  # fmt: skip
    assert second["attempt"] == 2


def test_fault_C5_a_run_whose_engine_lives_is_left_alone(place: Place) -> None:
    """Neither a reading verb nor `resume` takes a run from an engine that only does not move."""
    program = place.start("-m", "localflow", "run", place.write(LAYERS), "-j", "1")
    eventually(lambda: "second" in place.notes)

    program.kill(signal.SIGSTOP)
    try:
        states = place.states()
        refused = place.localflow("resume", "@last")
    finally:
        program.kill(signal.SIGCONT)
    (place.folder / "go").touch()
    done = program.wait()

    assert states["second-0"] == ("RUNNING", "Running")
    assert refused.returncode == 3
    assert f"by pid {program.pid}" in refused.stderr
    assert done.returncode == 0
    assert place.counts == {"first": 1, "second": 1, "third": 1}


def test_fault_C6_a_fork_of_the_engine_keeps_neither_workers_nor_the_run(place: Place) -> None:
    """A process that user code has forked holds all of the engine's descriptors, and still the run can be resumed."""
    place.write("""
@task
def work():
    note("work")
    until(lambda: os.path.exists("go"), 60)

@flow(executor="process")
def main():
    if os.path.exists("forked"):
        return work()
    future = work.submit()
    until(lambda: os.path.exists("oracle"))
    child = os.fork()
    if not child:
        open("forked", "w").write(str(os.getpid()))
        time.sleep(60)
        os._exit(0)
    future.wait()
""")
    program = place.start("-m", "localflow", "run", "flows.py", "-j", "1")
    eventually(lambda: (place.folder / "forked").exists() and (place.folder / "forked").read_text())
    child = int((place.folder / "forked").read_text())

    try:
        program.kill()
        program.process.wait()
        eventually(lambda: [process.pid for process in own_processes()] == [child], DEADLINE * BUSY_MACHINE)
        (place.folder / "go").touch()
        done = place.localflow("resume", "@last")
    finally:
        os.kill(child, signal.SIGKILL)

    assert done.returncode == 0, done.stderr
    assert place.counts == {"work": 2}
