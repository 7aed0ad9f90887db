"""E1 and E2: very many task runs, very long chains, very wide graphs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from localflow.graph import COMPLETED, FAILED, RunGraph

if TYPE_CHECKING:
    from tests.faults.conftest import Place

FEW = 20_000
MANY = 100_000
LONG = 10_000
KIB = 1_024
PENDING_BYTES = 2 * KIB  # of the engine's memory for a task run that waits
FINISHED_BYTES = 1 * KIB  # for one that has ended while its future is held
IN_FLIGHT = (
    512  # calls that are handed over before a worker is free for them: a number that does not grow with the flow
)
PATIENCE = 120.0

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_fault_E1_pending_task_runs_are_small_and_few_are_handed_over(place: Place, executor: str) -> None:
    """Whatever waits costs two kibibytes at most, and task runs are not RUNNING long before there is room for them."""
    place.write("""
@task
def hold(number):
    until(lambda: os.path.exists("go"), 100)

@task
def step(number, after=None):
    return number

def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

@flow
def main(count: int):
    wait(step.map(range(500)))
    held = hold.map(range(2))
    before = resident_bytes()
    waiting = [step.submit(number, held[0]) for number in range(count // 2)]
    free = [step.submit(number) for number in range(count // 2)]
    grown = resident_bytes() - before
    note("bytes", grown / count)
    note("running", sum(future.state.name == "Running" for future in [*waiting, *free]))
    open("go", "w").close()
    return sum(future.result() for future in [*waiting, *free])
""")

    done = place.localflow(
        "run", "flows.py", "-p", f"count={MANY}", "--executor", executor, "-j", "2", timeout=PATIENCE
    )

    assert done.returncode == 0, done.stderr
    told = dict(line.split() for line in place.notes)
    assert float(told["bytes"]) <= PENDING_BYTES
    assert int(told["running"]) <= IN_FLIGHT


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_fault_E1_finished_task_runs_are_smaller_than_pending_ones(place: Place, executor: str) -> None:
    """What has ended costs a kibibyte at most, though all of it was pending at once and every future is still there."""
    place.write("""
@task
def step(number):
    until(lambda: os.path.exists("go"), 100)
    return number

def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

@flow
def main(count: int):
    open("go", "w").close()
    wait(step.map(range(500)))
    os.remove("go")
    before = resident_bytes()
    futures = [step.submit(number) for number in range(count)]
    open("go", "w").close()
    wait(futures)
    note(f"bytes-of-{count}", resident_bytes() - before)
    return sum(future.result() for future in futures)
""")

    for count in (FEW, MANY):
        done = place.localflow(
            "run", "flows.py", "-p", f"count={count}", "--executor", executor, "-j", "2", timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr

    told = dict(line.split() for line in place.notes)
    grown = int(told[f"bytes-of-{MANY}"]) - int(told[f"bytes-of-{FEW}"])  # without what the store takes in any case
    assert grown / (MANY - FEW) <= FINISHED_BYTES, told


CHAIN = """
@task
def step(x):
    if x == 0 and not os.path.exists("mended"):
        raise ValueError("at the root")
    return x + 1

@flow
def main(count: int):
    sys.setrecursionlimit(200)
    last = step.submit(0)
    for _ in range(count - 1):
        last = step.submit(last)
    return last.result() if os.path.exists("mended") else None
"""


def test_fault_E2_a_long_chain_needs_no_recursion(place: Place) -> None:
    """10,000 task runs in a row are all blocked by the first one, told of, shown, and resumed; nothing recurses."""
    place.write(CHAIN)

    failed = place.localflow(
        "run", "flows.py", "-p", f"count={LONG}", "--executor", "thread", "-j", "2", timeout=PATIENCE
    )
    counts = [state for _, state in place.states().values()]
    (place.folder / "mended").touch()
    done = place.localflow("resume", "@last", timeout=PATIENCE)

    assert failed.returncode == 1
    assert counts == ["Failed"] + ["NotReady"] * (LONG - 1)
    assert f"step-9, step-10 and {LONG - 11:,} more\n" in failed.stderr
    assert len(failed.stderr.splitlines()) < 30
    assert done.returncode == 0, done.stderr
    result = place.read("show", "@last")["result"]
    assert result == LONG


def test_fault_E2_a_wide_graph_comes_together(place: Place) -> None:
    """One task run is the upstream of 10,000, and these are all upstreams of one; so it is where they are blocked."""
    place.write("""
@task
def root(fails):
    if fails:
        raise ValueError("at the root")
    return 1

@task
def leaf(x):
    return x

@task
def total(numbers):
    return sum(numbers)

@flow
def main(count: int, fails: bool):
    sys.setrecursionlimit(200)
    above = root.submit(fails)
    together = total.submit([leaf.submit(above) for _ in range(count)])
    return together.result() if not fails else None
""")

    for fails in ("false", "true"):
        done = place.localflow(
            "run", "flows.py", "-p", f"count={LONG}", "-p", f"fails={fails}", "--executor", "process", timeout=PATIENCE
        )

        view = place.read("show", "@last")
        if fails == "false":
            assert done.returncode == 0, done.stderr
            assert view["result"] == LONG
        else:
            assert done.returncode == 1
            names = [run["state"]["name"] for run in view["task_runs"]]
            assert names == ["Failed"] + ["NotReady"] * (LONG + 1)


@pytest.mark.parametrize("ending", [COMPLETED, FAILED], ids=["completed", "failed"])
@pytest.mark.parametrize("shape", ["chain", "fan"])
def test_fault_E2_the_end_of_a_root_is_passed_on_in_linear_time(shape: str, ending: int) -> None:
    """Ten times as many task runs take about ten times as long, not a hundred times."""
    small, large = (min(seconds_to_pass_on(shape, ending, size) for _ in range(3)) for size in (5_000, 50_000))

    assert large < 30 * small


def seconds_to_pass_on(shape: str, ending: int, size: int) -> float:
    """Return how much processor time a graph takes to end whole, once its root has."""
    graph = RunGraph()
    root = graph.add()
    nodes = [root]
    for _ in range(size):
        nodes.append(graph.add([nodes[-1] if shape == "chain" else root]))
    if shape == "fan":
        graph.add(nodes[1:])
    graph.ready.clear()
    began_at = time.thread_time()
    graph.end(root, ending)
    ended = 1
    while graph.ready or graph.blocked:
        while graph.ready:
            graph.end(graph.ready.popleft(), COMPLETED)
            ended += 1
        ended += len(graph.blocked)
        graph.blocked.clear()
    assert ended == size + (2 if shape == "fan" else 1)
    return time.thread_time() - began_at
