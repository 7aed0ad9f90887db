"""P13: `localflow runs` and `localflow show` on a state store with very many task runs."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measuring import Row, Session, in_process, run_python, seconds
from localflow.builtin.sqlite import SqliteStateStore
from localflow.names import random_id, random_name
from localflow.payloads import pack
from localflow.records import Execution, FlowRun, StateChange, TaskRun
from localflow.states import StateType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow.records import Record

BATCH = 5_000
NORMAL = 100  # task runs of a normal flow run


def fill(count: int, flow_runs: int) -> None:
    """Make a store in this folder with so many task runs, spread over so many flow runs, and one normal flow run."""
    store = SqliteStateStore()
    batch: list[Record] = []
    for _ in range(flow_runs):
        for record in flow_run(count // flow_runs):
            batch.append(record)
            if len(batch) >= BATCH:
                store.append(batch)
                batch = []
    store.append([*batch, *flow_run(NORMAL)])
    store.close()


def flow_run(count: int) -> Iterator[Record]:
    """Yield what a flow run with so many task runs leaves in the store."""
    id, now = random_id(), time.time()
    run = FlowRun(id, random_name(), "main", now, id, entry_point="/flows.py:main", executor="process", pid=1)
    result = pack(None)
    yield run
    yield StateChange(run, 1, StateType.RUNNING, "Running", "", now)
    for number in range(1, count + 1):
        task_run = TaskRun(run, number, f"step-{number - 1}", "step", number - 1, now)
        yield task_run
        yield StateChange(task_run, 1, StateType.RUNNING, "Running", "", now)
        yield StateChange(
            task_run, 2, StateType.COMPLETED, "Completed", "", now, "Running",
            execution=Execution("pid 1", 1, now, now, 0.001, 20_000_000), result=result,
        )  # fmt: skip
    yield StateChange(run, 2, StateType.COMPLETED, "Completed", "All states completed.", now, "Running")


def rows(session: Session) -> Iterator[Row]:
    """Read as a user does."""
    count = session.size(100_000, tiny=200, full=1_000_000)
    for flow_runs in (1, count // NORMAL):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as made:
            folder = Path(made)
            in_process(fill, count, flow_runs, folder=folder)
            for verb in (("runs",), ("show", "@last")):
                command = ["-m", "localflow", *verb]
                times = [seconds(lambda: run_python(*command, folder=folder)) for _ in range(session.repeat)]  # noqa: B023
                yield Row(
                    f"localflow {' '.join(verb)}, {count:,} task runs of {flow_runs:,} flow runs",
                    "-",
                    statistics.median(times),
                    unit=" s",
                    at_most=0.3,
                )
