"""Rows A4 and A5: a task raises what is meant to end a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Place


@pytest.mark.parametrize("statement", ["sys.exit(0)", "raise SystemExit"])
def test_fault_A4_an_exit_is_the_failure_of_its_task(place: Place, statement: str) -> None:
    """`sys.exit(0)` in a task fails that task, ends neither its worker nor the flow's body, and is no success."""
    place.write(f"""
from localflow.errors import TaskFailedError

@task
def pid():
    return os.getpid()

@task
def leave():
    {statement}

@flow(executor=ProcessExecutor(workers=1))
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
    words = "task called sys.exit(0)" if "0" in statement else "task called sys.exit()"
    assert done.returncode == 1
    assert leave["state"]["type"] == "FAILED"
    assert leave["state"]["message"] == f"Task run encountered an exception: SystemExit: {words}"
    assert leave["cause"]["exception_type"] == "SystemExit"
    assert place.notes == ["raised TaskFailedError", "same worker True"]


RAISED = ("KeyboardInterrupt", "GeneratorExit", "Own")


def test_fault_A5_what_is_no_exception_fails_its_task_only(place: Place) -> None:
    """KeyboardInterrupt, GeneratorExit and a class of the user's fail their tasks; what follows runs, in the worker."""
    place.write("""
class Own(BaseException):
    pass

@task
def fail(error):
    raise error

@task
def follow(number):
    note("followed", number, os.getpid())

@flow(executor=ProcessExecutor(workers=1))
def main():
    for number, error in enumerate((KeyboardInterrupt, GeneratorExit, Own)):
        fail(error)
        follow(number)
""")

    done = place.localflow("run", "flows.py")

    task_runs = place.task_runs()
    failed = [each for each in task_runs if each["task"] == "fail"]
    assert done.returncode == 1
    assert [each["state"]["type"] for each in failed] == ["FAILED"] * 3
    assert [each["cause"]["exception_type"] for each in failed] == [*RAISED]
    assert [each["state"]["message"] for each in failed] == [
        f"Task run encountered an exception: {name}" for name in RAISED
    ]
    assert [note.split()[1] for note in place.notes] == ["0", "1", "2"]
    assert len({note.split()[2] for note in place.notes}) == 1
