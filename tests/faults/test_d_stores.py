"""D: both stores that survive, with several engines at once and with values out of the ordinary."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.json_files import JsonStateStore
from localflow.builtin.sqlite import SqliteStateStore
from localflow.interfaces import Cause, Execution, Payload, StateChange, TaskRun
from localflow.testing.store_records import (
    ODD_TEXTS,
    ODD_VALUES,
    make_completed,
    make_flow_run,
    make_log_entry,
    make_task_run,
)

if TYPE_CHECKING:
    from pathlib import Path

    from localflow.interfaces import StateStore
    from tests.faults.conftest import Place

FLOW = """
@task
def load(number):
    note(os.environ["ENGINE"], number)
    return number * 2

@flow
def main(count: int):
    get_run_logger().info("begun")
    return sum(future.result() for future in [load.submit(number) for number in range(count)])
"""


def open_store(place: Place, store: str) -> StateStore:
    """Open the store of the programs."""
    if store == "sqlite":
        return SqliteStateStore(place.folder / ".localflow" / "localflow.db")
    return JsonStateStore(place.folder / ".localflow" / "runs")


def run_at_once(place: Place, engines: int, tasks: int) -> list[str]:
    """Run engines at once, see that each comes to its good end, and return what they said."""
    place.write(FLOW)
    arguments = ["-m", "localflow", "run", "flows.py", "-p", f"count={tasks}", "--executor", "thread"]
    programs = [place.start(*arguments, ENGINE=f"engine-{number}") for number in range(engines)]
    done = [program.wait(90) for program in programs]
    assert [each.returncode for each in done] == [0] * engines, done[0].stderr
    return [each.stderr for each in done]


def assert_all_there(place: Place, store: str, engines: int, tasks: int) -> None:
    """Assert that every row of every engine is there once: runs, changes in their sequence, results, log entries."""
    with closing(open_store(place, store)) as opened:
        assert opened.check() == []
        summaries = opened.list_flow_runs()
        assert len(summaries) == engines
        for summary in summaries:
            assert summary.change is not None
            assert summary.change.name == "Completed"
            id = summary.flow_run.id
            records = list(opened.read(id))
            task_runs = [record for record in records if isinstance(record, TaskRun)]
            assert [task_run.number for task_run in task_runs] == list(range(1, tasks + 1))
            changes = [(record.run.number, record.sequence) for record in records if isinstance(record, StateChange)]
            assert sorted(changes) == [(number, sequence) for number in range(tasks + 1) for sequence in (1, 2)]
            assert all(opened.load_result(id, number) is not None for number in range(tasks + 1))
            assert [entry.message for _, entry in opened.read_logs(id)] == ["begun"]
    assert sorted(place.counts.values()) == [1] * engines * tasks


def test_fault_D6_four_engines_on_one_store(place: Place, store: str) -> None:
    """Four engines with 200 tasks each write one store at once: none fails, nothing is lost or there twice."""
    run_at_once(place, 4, 200)

    assert_all_there(place, store, 4, 200)


@pytest.mark.timeout(120)
def test_fault_D6_two_engines_with_2000_tasks_on_one_sqlite_store(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two engines with 2,000 tasks each on one SQLite store complete, and nobody hears of a locked database."""
    monkeypatch.setenv("LOCALFLOW_STORE", "sqlite")

    said = run_at_once(place, 2, 2000)

    assert "locked" not in "".join(said)
    assert_all_there(place, "sqlite", 2, 2000)


def test_fault_D12_odd_values_are_the_same_in_both_stores(tmp_path: Path) -> None:
    """Surrogates, NUL, large integers, NaN and long names come back from both stores as they were recorded."""
    run = make_flow_run(parameters={text: list(ODD_VALUES) for text in ODD_TEXTS}, name=ODD_TEXTS[-1], code="\udcff")
    tasks = [
        make_task_run(run, number, name=text, tags=(text,), inputs=text) for number, text in enumerate(ODD_TEXTS, 1)
    ]
    changes = [
        make_completed(
            task,
            1,
            message=task.name,
            execution=Execution(task.name, 2**63, -0.0, float("inf"), 5e-324, -(2**70)),
            cause=Cause("exception", task.name, task.name, signal=2**64),
            result=Payload("json", task.name.encode("utf-8", "surrogatepass")),
        )
        for task in tasks
    ]
    said = [make_log_entry(task, task.name) for task in tasks]

    for store in SqliteStateStore(tmp_path / "state" / "localflow.db"), JsonStateStore(tmp_path / "state" / "runs"):
        with closing(store):
            store.append([run, *tasks, *changes, *said])

            recorded = [run, *tasks, *(change._replace(result=None) for change in changes)]
            assert list(store.read(run.id)) == recorded
            assert [entry for _, entry in store.read_logs(run.id)] == said
            assert [store.load_result(run.id, task.number) for task in tasks] == [each.result for each in changes]
            assert store.check() == []
