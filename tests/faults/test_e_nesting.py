"""E8: flows in flows, in tasks, and in themselves: one tree, that is stopped, lost and resumed as one."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import eventually, own_processes

if TYPE_CHECKING:
    from tests.faults.conftest import Place

THREE_DEEP = """
@task
def work(name):
    note(name)
    if name == "inner 2":
        until(lambda: os.path.exists("go"), 60)
    return name

@flow
def inner():
    work(work("inner 1").result().replace("1", "2"))

@flow
def middle():
    work("middle 1").result()
    inner()
    work("middle 2")

@flow
def main():
    work("outer 1").result()
    middle()
    work("outer 2")
"""
NAMES = [f"{level} {number}" for level in ("outer", "middle", "inner") for number in (1, 2)]


def states(place: Place) -> dict[str, str]:
    """Return the state of each flow run by the name of its flow."""
    return {run["flow"]: run["state"]["name"] for run in place.read("runs")}


@pytest.mark.parametrize(("executor", "store"), [("process", "sqlite"), ("sequential", "json")], indirect=["store"])
def test_fault_E8_a_killed_tree_of_flows_is_lost_and_resumed_as_one(place: Place, store: str, executor: str) -> None:
    """After `kill -9` all of its flow runs are CRASHED `EngineLost`; what completed at any level never runs again."""
    program = place.start("-m", "localflow", "run", place.write(THREE_DEEP) + ":main", "--executor", executor)
    eventually(lambda: "inner 2" in place.notes)

    program.kill()
    program.wait()
    eventually(lambda: not own_processes())
    lost = states(place)
    (place.folder / "go").touch()
    done = place.localflow("resume", next(run["id"] for run in place.read("runs") if run["flow"] == "main"))

    assert lost == {"main": "EngineLost", "middle": "EngineLost", "inner": "EngineLost"}
    assert done.returncode == 0, done.stderr
    assert states(place) == dict.fromkeys(("main", "middle", "inner"), "Completed")
    assert place.counts == {name: 2 if name == "inner 2" else 1 for name in NAMES}


def test_fault_E8_ctrl_c_stops_the_whole_tree(place: Place) -> None:
    """All flow runs above and below what is at work end `Interrupted`, and go on when the tree is resumed."""
    program = place.start("-m", "localflow", "run", place.write(THREE_DEEP) + ":main", "--executor", "process")
    eventually(lambda: "inner 2" in place.notes)

    program.kill(signal.SIGINT)
    stopped = program.wait()
    interrupted = states(place)
    name = stopped.stderr.split("'")[1]
    (place.folder / "go").touch()
    done = place.localflow("resume", name)

    assert stopped.returncode == 130
    assert f"resume: localflow resume {name}\n" in stopped.stderr
    assert interrupted == {"main": "Interrupted", "middle": "Interrupted", "inner": "Interrupted"}
    assert done.returncode == 0, done.stderr
    assert place.counts == {name: 2 if name == "inner 2" else 1 for name in NAMES}


def test_fault_E8_a_flow_in_a_task_is_recorded_below_it(place: Place) -> None:
    """In a worker it has an engine of its own; what it records is in the store when the task run has ended."""
    place.write("""
@task
def work(x):
    return x + 1, os.getpid()

@flow
def part():
    return work(20)

@task
def whole():
    number, pid = part().result()
    assert pid == os.getpid()
    return number

@flow(executor="process")
def main():
    return whole().result()
""")

    done = place.localflow("run", "flows.py:main", "-j", "1")

    assert done.returncode == 0, done.stderr
    view = place.read("show", next(run["id"] for run in place.read("runs") if run["flow"] == "main"))
    assert view["result"] == 21
    [below] = view["subflow_runs"]
    assert (below["flow"], below["state"]["name"], below["executor"]) == ("part", "Completed", "sequential")
    assert below["parent_id"] == view["task_runs"][0]["id"]


@pytest.mark.parametrize(("through", "executor"), [("flow", "thread"), ("task", "sequential"), ("task", "process")])
def test_fault_E8_a_flow_that_calls_itself_without_end_is_refused(place: Place, through: str, executor: str) -> None:
    """At a depth of 20 the call fails in words, not with the stack of the interpreter, directly and through tasks."""
    place.write("""
@task
def between(through):
    return main(through).result()

@flow
def main(through: str):
    note("deeper")
    return between(through) if through == "task" else main(through)
""")

    done = place.localflow("run", "flows.py", "-p", f"through={through}", "--executor", executor)

    assert done.returncode == 1
    assert "FlowDepthError: flow 'main' was called 20 flows deep; does it call itself without end?" in done.stderr
    assert "RecursionError" not in done.stderr
    assert 20 <= len(place.notes) <= 21
    assert len(place.read("runs")) <= 21
