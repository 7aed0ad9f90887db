"""Rows A4 and A5: a task raises what is meant to end a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Place

EXECUTORS = ["ProcessExecutor(workers=1)", "ThreadExecutor(workers=1)", "SequentialExecutor()"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_fault_A4_an_exit_is_the_failure_of_its_task(place: Place, executor: str) -> None:
    """`sys.exit(0)` in a task fails that task, ends neither its worker nor the flow's body, and is no success."""
    place.write(f"""
from localflow.errors import TaskFailedError

@task
def pid():
    return os.getpid()

@task
def leave():
    sys.exit(0)

@flow(executor={executor})
def main():
    before = pid().result()
    future = leave()
    try:
        future.result()
    except TaskFailedError as error:
        note("raised", type(error).__name__)
    note("same worker", pid().result() == before)
    future.result()
""")

    done = place.localflow("run", "flows.py")

    leave = next(each for each in place.task_runs() if each["task"] == "leave")
    assert done.returncode == 1
    assert leave["state"]["type"] == "FAILED"
    assert leave["state"]["message"] == "Task run encountered an exception: SystemExit: task called sys.exit(0)"
    assert leave["cause"]["exception_type"] == "SystemExit"
    assert place.notes == ["raised TaskFailedError", "same worker True"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_fault_A5_what_is_no_exception_fails_its_task_only(place: Place, executor: str) -> None:
    """GeneratorExit, a class of the user's and, in a worker process, KeyboardInterrupt are failures like any other."""
    raised = ["GeneratorExit", "Own", *(["KeyboardInterrupt"] if "Process" in executor else [])]
    place.write(f"""
class Own(BaseException):
    pass

@task
def fail(error):
    raise error

@task
def follow(number):
    note(number, os.getpid())

@flow(executor={executor})
def main():
    for number, error in enumerate([{", ".join(raised)}]):
        fail(error).wait()
        follow(number).wait()
""")

    done = place.localflow("run", "flows.py")

    failed = [each for each in place.task_runs() if each["task"] == "fail"]
    assert done.returncode == 1
    assert [each["state"]["type"] for each in failed] == ["FAILED"] * len(raised)
    assert [each["cause"]["exception_type"] for each in failed] == raised
    assert [each["state"]["message"] for each in failed] == [
        f"Task run encountered an exception: {name}" for name in raised
    ]
    assert [note.split()[0] for note in place.notes] == [str(number) for number in range(len(raised))]
    assert len({note.split()[1] for note in place.notes}) == 1
