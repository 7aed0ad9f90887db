"""E3 to E6: what a flow cannot mean, and what it did not mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import LIMIT

if TYPE_CHECKING:
    from tests.faults.conftest import Place


def test_fault_E3_a_cycle_cannot_be_written(place: Place) -> None:
    """A future is there only after its call, so no call waits for itself, not even by a list that it is put in later.

    There are no dependencies by name, which alone could make a cycle.
    """
    place.write("""
@task
def step(*inputs):
    return len(inputs)

@flow
def main():
    first = step.submit()
    late = [first]
    second = step.submit(late, wait_for=late)
    late.append(second)
    endless = [second]
    endless.append(endless)
    third = step.submit(second, wait_for=endless)
    late.append(third)
    return [first, second, third]
""")

    done = place.localflow("run", "flows.py", "--executor", "thread")

    assert done.returncode == 0, done.stderr
    assert set(place.states().values()) == {("COMPLETED", "Completed")}
    assert [run["upstreams"] for run in place.task_runs()] == [[], ["step-0"], ["step-1"]]


def test_fault_E4_a_future_of_a_finished_run_stands_for_its_data(place: Place) -> None:
    """Its value is used if it completed; if it did not, what is called with it is blocked, as in its own run."""
    place.write("""
@task
def good():
    return 20

@task
def bad():
    raise ValueError("not good")

@task
def add(x, y=1):
    note("add", x + y)
    return x + y

kept = []

@flow
def earlier():
    kept.extend([good.submit(), bad.submit()])

@flow
def main():
    add.submit(kept[0])
    add.submit(1, wait_for=kept[:1])
    add.submit(kept[1])
    add.submit(1, wait_for=kept[1:])
    add.map(kept)

earlier()
""")

    done = place.localflow("run", "flows.py:main", "--executor", "process")

    assert done.returncode == 1
    assert place.counts == {"add 21": 2, "add 2": 1}
    completed, blocked = ("COMPLETED", "Completed"), ("PENDING", "NotReady")
    assert list(place.states().values()) == [completed, completed, blocked, blocked, completed, blocked]


def test_fault_E4_a_future_of_a_live_run_is_refused(place: Place) -> None:
    """The call says which two runs it is about, and what to do; neither run hangs or fails because of it."""
    place.write("""
kept = []

@task
def slow():
    until(lambda: os.path.exists("go"))
    return 1

@task
def use(x):
    return x

@flow
def earlier():
    kept.append(slow.submit())

@flow
def main():
    for call in (lambda: use.submit(kept[0]), lambda: use(1, wait_for=kept), lambda: use.map([kept[0]])):
        try:
            call()
        except Exception as error:
            note(type(error).__name__)
            print(error)
    open("go", "w").close()
    return use.submit(2)

thread = threading.Thread(target=lambda: note(earlier().name))
thread.start()
until(lambda: kept)
print(main())
thread.join()
""")

    done = place.run("flows.py", LOCALFLOW_EXECUTOR="thread")

    assert done.returncode == 0, done.stderr
    assert sorted(place.notes) == ["Completed", "ForeignFutureError", "ForeignFutureError", "ForeignFutureError"]
    earlier, main = (run["id"] for run in sorted(place.read("runs"), key=lambda run: run["flow"]))
    told = done.stdout.splitlines()[:3]
    assert all("'slow-0'" in line and earlier in line and main in line for line in told)
    assert "State(name='Completed'" in done.stdout


def test_fault_E4_what_cannot_be_waited_for_is_a_type_error(place: Place) -> None:
    """A call, a map and a call of a flow name the parameter and what was found in it; `None` is no wait at all."""
    place.write("""
@task
def slow(x=0):
    return x

@flow
def part():
    note("part")

@flow
def main():
    future = slow.submit(wait_for=None)
    for wrong in ([None], 3, "text", slow, lambda: 0, {"a": object()}, (future, [future, None])):
        for call in (slow.submit, slow, lambda wait_for: slow.map([1], wait_for=wait_for), part):
            try:
                call(wait_for=wrong)
            except TypeError as error:
                assert str(error).startswith("wait_for takes futures, states and collections of these, not "), error
                note("refused")
    return future
""")

    done = place.localflow("run", "flows.py:main", "--executor", "thread")

    assert done.returncode == 0, done.stderr
    assert place.notes == ["refused"] * 7 * 4
    assert place.states() == {"slow-0": ("COMPLETED", "Completed")}


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_fault_E5_a_task_that_calls_tasks_holds_no_second_worker(place: Place, executor: str) -> None:
    """In a task a call is a plain call, however deep; `submit` and `map`, which could wait for one, are refused."""
    place.write("""
@task
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

@task
def nested(method):
    fib.submit(3) if method == "submit" else fib.map([3, 4])

@flow
def main():
    numbers = fib.map([12, 12, 12, 12])
    nested.map(["submit", "map"])
    assert [number.result() for number in numbers] == [144] * 4
""")
    done = place.localflow("run", "flows.py", "--executor", executor, "-j", "2")

    assert done.returncode == 1
    runs = place.task_runs()
    assert [run["state"]["name"] for run in runs] == ["Completed"] * 4 + ["Failed"] * 2
    for method, run in zip(("submit", "map"), runs[4:], strict=True):
        told = f"OutsideFlowError: 'fib.{method}(...)' was called inside a task; call it in the body of a flow"
        assert told in run["state"]["message"]


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_fault_E6_a_body_that_raises_loses_nothing_that_it_has_started(place: Place, executor: str) -> None:
    """The flow has FAILED only when all its task runs have ended; what was blocked is told."""
    place.write("""
@task
def slow():
    until(lambda: os.path.exists("go"))
    note("slow")

@task
def bad():
    raise ValueError("first")

@task
def after(x):
    note("after")

@flow
def main():
    after.submit(slow.submit())
    after.submit(bad.submit())
    threading.Timer(0.2, lambda: open("go", "w").close()).start()
    raise RuntimeError("in the body")
""")

    done = place.localflow("run", "flows.py", "--executor", executor, "-j", "2")

    assert done.returncode == 1
    assert place.notes == ["slow", "after"]
    assert place.states() == {
        "slow-0": ("COMPLETED", "Completed"),
        "after-0": ("COMPLETED", "Completed"),
        "bad-0": ("FAILED", "Failed"),
        "after-1": ("PENDING", "NotReady"),
    }
    for told in ("RuntimeError: in the body", "ValueError: first", "not run because of 'bad-0': after-1"):
        assert told in done.stderr


@pytest.mark.parametrize("executor", ["sequential", "thread"])
def test_fault_E6_a_failure_that_nobody_awaits_fails_the_flow(place: Place, executor: str) -> None:
    """Futures that are dropped count like all others."""
    place.write("""
@task
def bad():
    raise ValueError("unseen")

@task
def good():
    return 1

@flow
def main():
    bad.submit()
    good.submit()
""")

    done = place.localflow("run", "flows.py", "--executor", executor, timeout=LIMIT)

    assert done.returncode == 1
    assert "message='1/2 states failed.'" in done.stdout
    assert "task run 'bad-0' is Failed" in done.stderr
    assert "ValueError: unseen" in done.stderr


def test_fault_E6_a_failure_that_the_flow_completes_with_is_told(place: Place) -> None:
    """A flow that returns a value has COMPLETED; what failed in it is listed all the same, awaited or not."""
    place.write("""
@task
def bad():
    raise ValueError("unseen")

@flow
def main():
    bad.submit()
    return 5
""")

    done = place.localflow("run", "flows.py")

    assert done.returncode == 0
    assert "\n1 task run did not complete: bad-0\nsee: localflow show " in done.stderr
