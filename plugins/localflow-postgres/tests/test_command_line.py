"""What users do with runs in PostgreSQL, by the command line: real engines, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


FLOW = """
import os, time
from pathlib import Path

import numpy
from localflow import INPUTS, flow, task

@task
def begin(name):
    print("beginning", name)
    with open("calls.txt", "a") as file:
        file.write(f"{name}\\n")
    return name

@task
def hold(name):
    begin.fn(f"hold {name}")
    while not Path("go").exists():
        time.sleep(0.02)
    return name.upper()

@task(cache_policy=INPUTS)
def make_array(size):
    begin.fn("array")
    return numpy.arange(size)

@task
def total(array):
    return int(array.sum())

@flow
def main(name: str = "x"):
    return hold(begin(name))

@flow
def large(size: int = 1_000_000):
    return total(make_array(size))
"""


class Project:
    """A folder with a flow, whose runs go to the schema of the test."""

    def __init__(self, folder: Path, url: str, schema: str) -> None:
        self.folder = folder
        self._environment = os.environ | {"PGURL": url}
        (folder / "flows.py").write_text(FLOW)
        (folder / "localflow.toml").write_text(
            f'store = "postgres"\n[stores.postgres]\nurl = "env:PGURL"\nschema = "{schema}"\n'
        )
        self._started: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run localflow to its end; gives what it prints on stdout."""
        done = subprocess.run(
            [sys.executable, "-m", "localflow", *arguments], cwd=self.folder, env=self._environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        self.said = done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Run a verb that prints JSON."""
        return json.loads(self.run(*arguments, "--json"))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start localflow."""
        with (self.folder / "said.txt").open("a") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "localflow", *arguments], cwd=self.folder, env=self._environment,
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, text=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    def calls(self) -> list[str]:
        """Return which tasks have begun."""
        path = self.folder / "calls.txt"
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def go(self) -> None:
        """Let the tasks that hold go on."""
        (self.folder / "go").touch()

    def end(self) -> None:
        """End what was started."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def project(tmp_path: Path, database: str, schema: str) -> Iterator[Project]:
    """Make a project; afterwards no process is left in its folder."""
    project = Project(tmp_path, database, schema)
    yield project
    project.end()
    workers = [each for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == str(tmp_path)]
    assert not psutil.wait_procs(workers, timeout=10)[1]


@pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
def test_run_is_recorded_and_shown(project: Project, executor: str) -> None:
    """A run on each executor is listed, shown and has its log, in another process than the one that ran it."""
    project.go()
    out = project.run("run", "flows.py:main", "-p", "name=tea", "--executor", executor)

    assert "Completed" in out
    assert "recorded in postgresql://flow@" in project.said
    (listed,) = project.json("runs")
    assert (listed["flow"], listed["state"]["type"], listed["parameters"]) == ("main", "COMPLETED", {"name": "tea"})
    shown = project.json("show", "@last")
    assert [(each["name"], each["state"]["name"]) for each in shown["task_runs"]] == [
        ("begin-0", "Completed"),
        ("hold-0", "Completed"),
    ]
    assert "beginning tea" in project.run("logs", "@last/begin-0")
    assert "state store" in project.run("doctor")


def test_large_value_passes_from_worker_to_worker(project: Project) -> None:
    """An array of megabytes is stored, found again by its cache key, and is the same in the next task."""
    project.run("run", "flows.py:large", "--executor", "process")
    project.run("run", "flows.py:large", "--executor", "process")

    assert project.calls() == ["array"]
    states = [[each["state"]["name"] for each in project.json("show", run["id"])["task_runs"]]
              for run in project.json("runs")]  # fmt: skip
    assert states == [["Cached", "Completed"], ["Completed", "Completed"]]


def test_killed_engine_is_noticed_and_its_run_resumed(
    project: Project, wait_until: Callable[[Callable[[], object], str], None]
) -> None:
    """After kill -9 the run is EngineLost at once; resuming it runs only what had not completed."""
    engine = project.start("run", "flows.py:main", "-p", "name=tea", "--executor", "process")
    wait_until(lambda: "hold tea" in project.calls(), "the flow has not begun")
    engine.send_signal(signal.SIGKILL)
    engine.wait()

    (lost,) = project.json("runs")
    project.go()
    project.run("resume", lost["name"])

    assert (lost["state"]["type"], lost["state"]["name"]) == ("CRASHED", "EngineLost")
    assert project.calls() == ["tea", "hold tea", "hold tea"]
    assert project.json("show", "@last")["state"]["name"] == "Completed"


def test_run_that_goes_on_is_not_resumed(
    project: Project, wait_until: Callable[[Callable[[], object], str], None]
) -> None:
    """While an engine is alive its run is Running, and cannot be resumed or removed."""
    engine = project.start("run", "flows.py:main")
    wait_until(lambda: "hold x" in project.calls(), "the flow has not begun")

    (running,) = project.json("runs")
    project.run("resume", running["name"], code=3)
    assert "is being executed by pid" in project.said
    assert "its engine is at work" in (project.run("clean", running["name"]), project.said)[1]
    project.go()
    assert engine.wait(30) == 0

    assert running["state"]["name"] == "Running"
    assert [each["state"]["name"] for each in project.json("runs")] == ["Completed"]


def test_two_engines_share_the_store(project: Project, wait_until: Callable[[Callable[[], object], str], None]) -> None:
    """Two engines at once record their runs, and neither is disturbed by the death of the other."""
    engines = [project.start("run", "flows.py:main", "-p", f"name={name}") for name in ("tea", "ale")]
    wait_until(lambda: {"hold tea", "hold ale"} <= set(project.calls()), "the flows have not begun")
    engines[0].send_signal(signal.SIGKILL)
    engines[0].wait()
    states = {run["parameters"]["name"]: run["state"]["name"] for run in project.json("runs")}
    project.go()

    assert engines[1].wait(30) == 0
    assert states == {"tea": "EngineLost", "ale": "Running"}
    assert {run["state"]["name"] for run in project.json("runs")} == {"EngineLost", "Completed"}


def test_run_is_cancelled_from_another_process(
    project: Project, wait_until: Callable[[Callable[[], object], str], None]
) -> None:
    """`localflow cancel` reaches an engine whose records are in PostgreSQL, and tells how the run ended."""
    engine = project.start("run", "flows.py:main", "--executor", "process")
    wait_until(lambda: "hold x" in project.calls(), "the flow has not begun")

    told = project.run("cancel", "@last")

    assert "StateType.CANCELLED" in told
    assert engine.wait(30) == 130


def test_runs_are_removed(project: Project, ask: Callable[..., list[tuple[Any, ...]]]) -> None:
    """`localflow clean` removes all of a run, or its results alone."""
    project.go()
    for _ in range(2):
        project.run("run", "flows.py:main")
    newest, oldest = project.json("runs")

    project.run("clean", "--results", newest["id"])
    project.run("clean", oldest["id"])

    assert [run["id"] for run in project.json("runs")] == [newest["id"]]
    assert ask("SELECT count(*) FROM state_changes WHERE result IS NOT NULL") == [(0,)]


def test_password_is_not_shown(project: Project, server: Any) -> None:
    """Neither the settings nor an error of the command line shows the password; the exit code is that of a store."""
    project._environment["PGURL"] = server.url("runs", "nobody-there", "hush%23hush").replace("/tmp", "/nowhere")
    for verb, code in ((["runs"], 3), (["config", "show"], 0), (["run", "flows.py:main"], 3), (["doctor"], 3)):
        out = project.run(*verb, code=code)

        assert "hush" not in out + project.said
    project.run("runs", code=3)
    assert "cannot be reached" in project.said


def test_wrong_url_is_a_mistake_in_the_settings(project: Project) -> None:
    """A URL that is none is told with its place in localflow.toml, and without what it says."""
    project._environment["PGURL"] = "postgresql://flow:hush/1@localhost/runs"

    project.run("runs", code=2)

    assert "[stores.postgres] url is no PostgreSQL URL" in project.said
    assert "hush" not in project.said
