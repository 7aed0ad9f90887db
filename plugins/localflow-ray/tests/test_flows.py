"""Flows on the executor `ray`: they say nothing of Ray but its name, and end as they do on any other executor."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from localflow_ray.executor import RayExecutor

from localflow import flow, get_run_context, get_run_logger, task, unmapped, wait
from localflow.interfaces import Payload
from localflow.payloads import unpack
from localflow.project import Project
from localflow.testing import harness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow.testing.harness import Harness

pytestmark = pytest.mark.usefixtures("ray_there")

LARGE = 1 << 18
"""So many numbers take 2 MiB."""


@pytest.fixture
def runs() -> Iterator[Harness]:
    """Run flows on Ray, with states in memory."""
    with harness(RayExecutor(workers=2)) as runs:
        yield runs


@task
def add(*numbers: int) -> int:
    """Add up."""
    return sum(numbers)


@task
def make_array(count: int, start: int = 0) -> Any:
    """Make an array."""
    return np.arange(start, start + count)


@task
def look_at(array: Any) -> tuple[int, bool, bool]:
    """Return the sum, and whether the memory may be written to and is the array's own."""
    return int(array.sum()), bool(array.flags.writeable), bool(array.flags.owndata)


# -- order and values ------------------------------------------------------------------------------------------------


def test_the_tutorial(runs: Harness, tmp_path: Path) -> None:
    """One bad row among good ones fails alone; all others are in the database."""

    @task
    def create_tables(db_file: str) -> None:
        with sqlite3.connect(db_file) as connection:
            connection.execute("CREATE TABLE projects (name TEXT CHECK (length(name) >= 4))")
        connection.close()

    @task
    def add_project(db_file: str, name: str) -> None:
        with sqlite3.connect(db_file, timeout=30) as connection:
            connection.execute("INSERT INTO projects VALUES (?)", (name,))
        connection.close()

    @flow(name="Add Projects to DB")
    def main(names: list[str], db_file: str) -> None:
        table = create_tables(db_file)
        for name in names:
            add_project(db_file, name, wait_for=[table])

    state = main(["orion", "", "critically-important"], str(tmp_path / "example.db"))

    assert str(state) == "State(name='Failed', type=StateType.FAILED, message='1/4 states failed.')"
    connection = sqlite3.connect(tmp_path / "example.db")
    assert sorted(connection.execute("SELECT name FROM projects")) == [("critically-important",), ("orion",)]
    connection.close()


@pytest.mark.parametrize("seed", range(3))
def test_random_graphs_give_what_plain_python_gives(runs: Harness, seed: int) -> None:
    """Whatever depends on whatever, each task gets the values of those before it."""
    chance = random.Random(seed)
    graph = [[chance.randrange(node) for _ in range(chance.randrange(4))] if node else [] for node in range(60)]
    expected: list[int] = []
    for node, upstreams in enumerate(graph):
        expected.append(node + sum(expected[upstream] for upstream in upstreams))

    @flow
    def main() -> Any:
        futures: list[Any] = []
        for node, upstreams in enumerate(graph):
            futures.append(add(node, *(futures[upstream] for upstream in upstreams)))
        return futures

    assert main().result() == expected


def test_map_makes_a_run_for_each_item(runs: Harness) -> None:
    """Items and what is passed whole arrive, in order."""

    @flow
    def main() -> Any:
        return add.map(range(20), unmapped(100))

    assert main().result() == [100 + number for number in range(20)]


def test_functions_of_a_closure_and_async_ones(runs: Harness) -> None:
    """What a function has caught goes with it, and async tasks are run to their end."""
    factor = 3

    @task
    async def times(number: int) -> int:
        return number * factor

    @flow
    def main() -> Any:
        return [times(number) for number in range(5)]

    assert main().result() == [0, 3, 6, 9, 12]


# -- large values ----------------------------------------------------------------------------------------------------


def test_dependents_map_a_large_result(runs: Harness) -> None:
    """An array is not copied for the tasks that get it: they see the object store, which nobody may write to."""

    @flow
    def main() -> Any:
        array = make_array(LARGE)
        return [look_at(array), look_at(array)]

    assert main().result() == [(sum(range(LARGE)), False, False)] * 2


def test_large_results_inside_containers_are_one_object(runs: Harness) -> None:
    """A large result that is there twice among the arguments arrives as one object, at any depth."""

    @task
    def are_same(first: Any, others: dict[str, list[Any]]) -> tuple[bool, int]:
        return first is others["deep"][0], int(first[-1])

    @flow
    def main() -> Any:
        array = make_array(LARGE)
        return are_same(array, {"deep": [array, 1]})

    assert main().result() == (True, LARGE - 1)


def test_large_arguments_are_as_they_were_when_they_were_passed(runs: Harness) -> None:
    """An array of the flow is written once for many calls, and anew when it has changed."""
    array = np.zeros(LARGE)

    @flow
    def main() -> Any:
        first = [look_at(array) for _ in range(3)]
        wait(first)
        array[0] = 1.0
        return [*first, look_at(array)]

    assert [total for total, _, _ in main().result()] == [0, 0, 0, 1]


def test_large_results_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the state store as those of any executor: found there by another process, and by resuming."""
    monkeypatch.chdir(tmp_path)

    @flow(executor=RayExecutor(workers=2))
    def main() -> Any:
        return make_array(LARGE, 5)

    result = main().result()

    store = Project.load().open_store()
    try:
        [summary] = store.list_flow_runs()
        recorded = store.load_result(summary.flow_run.id, 1)
        assert isinstance(recorded, Payload)
        assert recorded.format == "file"
        assert (unpack(recorded) == np.arange(5, LARGE + 5)).all()
    finally:
        store.close()
    assert (result == np.arange(5, LARGE + 5)).all()


def test_what_is_not_persisted_stays_on_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is written for it while the flow runs, dependents get it, and its value can be had afterwards."""
    monkeypatch.chdir(tmp_path)
    written: list[Path] = []

    @flow(executor=RayExecutor(workers=2))
    def main() -> Any:
        array = make_array.with_options(persist_result=False)(LARGE)
        total = look_at(array)
        total.result()
        written.extend(path for path in (tmp_path / ".localflow").rglob("*") if path.stat().st_size >= LARGE * 8)
        return array, total

    array, total = main().result()

    assert written == []
    assert total == (sum(range(LARGE)), False, False)
    assert (array == np.arange(LARGE)).all()


def test_values_pass_between_executors(runs: Harness) -> None:
    """A flow may have tasks on Ray and in worker processes, with large results of both."""
    elsewhere = "process"

    @flow
    def main() -> Any:
        here = make_array(LARGE)
        there = make_array.with_options(executor=elsewhere)(LARGE)
        return look_at.with_options(executor=elsewhere)(here), look_at(there)

    runs_on_both = harness(None)
    with runs_on_both:
        (first, _, _), (second, _, _) = main.with_options(executor=RayExecutor(workers=2))().result()

    assert first == second == sum(range(LARGE))


def test_a_large_result_that_cannot_be_pickled_has_failed(runs: Harness) -> None:
    """The message names the task and what is at fault."""

    @task
    def make_lock() -> Any:
        import threading

        return {"lock": threading.Lock(), "array": np.zeros(LARGE)}

    @flow
    def main() -> Any:
        return make_lock()

    state = main()

    assert state.is_failed()
    assert "result['lock'] (_thread.lock) cannot be pickled" in runs.task_run("make_lock-0").moments[-1].message


# -- failures --------------------------------------------------------------------------------------------------------


def test_an_exception_comes_back_with_its_traceback(runs: Harness) -> None:
    """It is raised by `result()`, its frames and what the task was called with are recorded, its dependents blocked."""

    @task
    def divide(number: int, by: int) -> float:
        return number / by

    @flow
    def main() -> None:
        add(divide(1, by=0))

    state = main()

    with pytest.raises(ZeroDivisionError):
        state.result()
    cause = runs.task_run("divide-0").cause
    assert cause is not None
    assert "return number / by" in cause.traceback_text
    assert runs.history("add-0") == ["Pending", "NotReady"]


def test_an_argument_that_cannot_travel_is_named(runs: Harness) -> None:
    """The call fails with the name of the argument, and nothing is sent."""
    connection = sqlite3.connect(":memory:")

    @task
    def use(connection: Any) -> None: ...

    @flow
    def main() -> None:
        use(connection)

    main()
    connection.close()

    message = runs.task_run("use-0").moments[-1].message
    assert message.startswith("Task 'use': argument 'connection' (sqlite3.Connection) cannot be sent to a worker")


def test_retries_of_a_failure(runs: Harness, tmp_path: Path) -> None:
    """A task is tried again by localflow, with each attempt on record."""

    @task(retries=2)
    def fail_twice() -> int:
        attempt = get_run_context().task_run.attempt
        if attempt < 3:
            raise ConnectionError("busy")
        return attempt

    @flow
    def main() -> Any:
        return fail_twice()

    assert main().result() == 3
    assert runs.history("fail_twice-0") == [
        *("Pending", "Running", "AwaitingRetry", "Retrying", "AwaitingRetry", "Retrying", "Completed")
    ]


# -- what tasks say --------------------------------------------------------------------------------------------------


def test_what_tasks_say_is_recorded_under_each(runs: Harness) -> None:
    """Prints and log records of tasks that run at the same time are told apart."""

    @task
    def talk(name: str) -> None:
        for number in range(20):
            print(f"{name} prints {number}")
            get_run_logger().info("%s logs %s", name, number)

    @flow
    def main() -> None:
        talk.map(["ann", "bob", "cyd"])

    main()

    for number, name in enumerate(["ann", "bob", "cyd"]):
        messages = [entry.message for entry in runs.logs(f"talk-{number}")]
        assert messages == [f"{name} {verb} {n}" for n in range(20) for verb in ("prints", "logs")]


def test_what_goes_past_python_is_recorded_as_well(runs: Harness) -> None:
    """Child processes and C code write to descriptors; that is the task's, too, and the next one's is apart."""

    @task
    def shout(name: str) -> None:
        print(f"{name} prints")
        os.write(1, f"{name} writes\n".encode())
        subprocess.run(["echo", name, "echoes"], check=True)
        print(f"{name} ends", file=sys.stderr)

    @flow
    def main() -> None:
        for name in ("ann", "bob", "cyd"):
            shout(name).wait()

    main()

    for number, name in enumerate(["ann", "bob", "cyd"]):
        entries = runs.logs(f"shout-{number}")
        assert sorted((entry.source, entry.message) for entry in entries) == [
            ("stderr", f"{name} ends"),
            ("stdout", f"{name} echoes"),
            ("stdout", f"{name} prints"),
            ("stdout", f"{name} writes"),
        ]


def test_what_a_task_says_is_there_while_it_runs(runs: Harness, tmp_path: Path) -> None:
    """One need not wait for the end of a long task to see what it says."""
    release = tmp_path / "release"

    @task
    def talk(release: str) -> None:
        print("working")
        deadline = time.monotonic() + 30
        while not Path(release).exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    @flow
    def main() -> bool:
        future = talk(str(release))
        deadline = time.monotonic() + 20
        while not runs.logs("talk-0") and time.monotonic() < deadline:
            time.sleep(0.01)
        was_done = future.done()
        release.touch()
        return was_done

    assert main().result() is False
    assert [entry.message for entry in runs.logs("talk-0")] == ["working"]


def test_a_worker_tells_where_it_is(runs: Harness) -> None:
    """The worker's pid, CPU time and memory are recorded."""

    @task
    def pid() -> int:
        return os.getpid()

    @flow
    def main() -> Any:
        return pid()

    expected = main().result()

    execution = runs.task_run("pid-0").execution
    assert execution is not None
    assert execution.pid == expected != os.getpid()
    assert execution.cpu_seconds is not None
    assert execution.peak_rss_bytes is not None
