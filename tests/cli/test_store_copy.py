"""`localflow store copy`: runs go from one store to another, and can be used there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from localflow.builtin.sqlite import SqliteStateStore
from localflow.testing.store_records import make_completed, make_flow_run, make_running, make_task_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.conftest import Cli

FLOW = """
from pathlib import Path

from localflow import INPUTS, flow, task


@task(cache_policy=INPUTS)
def load(name):
    with open("calls.txt", "a") as file:
        file.write(f"{name}\\n")
    return name * 100_000


@task
def store(text):
    if not Path("ready").exists():
        raise RuntimeError("not ready")
    return len(text)


@flow
def below(name):
    return store(load(name))


@flow
def main(name: str = "x"):
    return below(name).result()
"""

SETTINGS = """
[stores.archive]
type = "json"
path = "archive"

[stores.same]
type = "sqlite"
path = ".localflow/localflow.db"
"""


@pytest.fixture
def project(own_folder: Path) -> Path:
    """Write a flow and a table of a second store."""
    (own_folder / "flows.py").write_text(FLOW)
    (own_folder / "localflow.toml").write_text(SETTINGS)
    return own_folder


@pytest.fixture
def running(project: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Have an engine at work."""
    (project / "slow.py").write_text(
        "import time\nfrom pathlib import Path\nfrom localflow import flow\n@flow\ndef main():\n"
        "    Path('begun').touch()\n    time.sleep(60)\n"
    )
    engine = subprocess.Popen([sys.executable, "-m", "localflow", "run", "slow.py"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not Path("begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield engine
    engine.kill()
    engine.wait()


def test_runs_are_copied_and_shown_alike(cli: Cli, project: Path, read_json: Any) -> None:
    """All that can be shown of a run and of what it called is shown of its copy."""
    for name in ("tea", "ale"):
        cli("run", "flows.py:main", "-p", f"name={name}")

    done = cli("store", "copy", "sqlite", "archive", "--json")

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [each["parameters"]["name"] for each in told["copied"]] == ["tea", "ale"]
    assert told["copied"][0]["counts"]["flow_runs"] == 2
    assert done.stderr.count("copied flow run ") == 2
    below = next(run for run in read_json("runs") if run["parent_id"] is not None)
    for verb in (["runs"], ["show", "@last"], ["show", below["id"]], ["logs", "@last"]):
        copied, original = cli(*verb, "--json", LOCALFLOW_STORE="archive"), cli(*verb, "--json")
        assert (copied.returncode, copied.stdout) == (0, original.stdout)


def test_copy_is_resumed(cli: Cli, project: Path) -> None:
    """A failed run goes on in the store that it was copied to, and answers from the results there."""
    assert cli("run", "flows.py:main").returncode == 1
    assert cli("store", "copy", "sqlite", "archive").returncode == 0
    (project / ".localflow" / "localflow.db").unlink()
    (project / "ready").touch()

    done = cli("resume", "@last", LOCALFLOW_STORE="archive")

    assert done.returncode == 0, done.stderr
    assert (project / "calls.txt").read_text() == "x\n"


def test_cache_is_copied(cli: Cli, project: Path) -> None:
    """What is cached in the one store is found in the other."""
    (project / "ready").touch()
    cli("run", "flows.py:main")
    cli("store", "copy", "sqlite", "archive")

    assert cli("run", "flows.py:main", LOCALFLOW_STORE="archive").returncode == 0

    assert (project / "calls.txt").read_text() == "x\n"


def test_what_is_there_is_passed_by(cli: Cli, project: Path, read_json: Any) -> None:
    """Copying again does nothing and says so; --run copies one run."""
    for name in ("tea", "ale"):
        cli("run", "flows.py:main", "-p", f"name={name}")
    newest = next(run for run in read_json("runs") if run["parent_id"] is None)

    first = cli("store", "copy", "sqlite", "archive", "--run", "@last")
    second = cli("store", "copy", "sqlite", "archive")

    assert first.stderr.count("copied flow run ") == 1
    assert f"copied flow run '{newest['name']}': 2 flow runs, 2 task runs" in first.stderr
    assert f"flow run '{newest['name']}' is there already" in second.stderr
    assert second.stderr.count("copied flow run ") == 1
    assert (first.returncode, second.returncode) == (0, 0)


def test_running_run_is_refused(cli: Cli, running: subprocess.Popen[bytes]) -> None:
    """A run that goes on is left alone, with a message and the exit code of store trouble."""
    done = cli("store", "copy", "sqlite", "archive", "--json")

    assert done.returncode == 3
    assert "was not copied: its engine is at work; copy it when it has ended" in done.stderr
    assert "1 of 1 flow runs were not copied" in done.stderr
    assert [each["reason"][:21] for each in json.loads(done.stdout)["refused"]] == ["its engine is at work"]
    assert cli("runs", LOCALFLOW_STORE="archive").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sqlite", "sqlite"], "'sqlite' cannot be copied to itself"),
        (["sqlite", "same"], "'sqlite' and 'same' are both "),
        (["sqlite", "memory"], "the state store 'memory' keeps nothing"),
        (["sqlite", "archiv"], "archive"),
        (["sqlite", "archive", "--run", "no-such"], "no flow run 'no-such'"),
        (["sqlite", "archive", "--run", "BELOW"], "is part of another one; copy all of it: --run "),
    ],
)
def test_mistakes_are_told(cli: Cli, project: Path, read_json: Any, arguments: list[str], message: str) -> None:
    """What cannot be copied is a mistake in the command: exit code 2, and nothing is written."""
    cli("run", "flows.py:main")
    below = next(run for run in read_json("runs") if run["parent_id"] is not None)

    done = cli("store", "copy", *(argument.replace("BELOW", below["id"]) for argument in arguments))

    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert not (project / "archive").exists() or cli("runs", LOCALFLOW_STORE="archive").stdout == ""


@pytest.fixture
def large(project: Path) -> str:
    """Record a run whose copy takes several appends, and return its name."""
    run = make_flow_run(id="large", entry_point="flows.py:main")
    tasks = [make_task_run(run, number) for number in range(1, 4_101)]
    with closing(SqliteStateStore(project / ".localflow" / "localflow.db")) as store:
        store.append([run, make_running(run), *tasks, make_completed(run)])
    return run.name


def test_half_a_copy_is_nothing_to_resume(cli: Cli, large: str, read_json: Any) -> None:
    """After kill -9 it is not taken for a run that failed or has lost its engine, and the next move is told."""
    killed = cli("store", "copy", "sqlite", "archive", LOCALFLOW_FAILPOINT="copied-a-part:1")

    told = {verb: cli(verb, "large", LOCALFLOW_STORE="archive") for verb in ("resume", "cancel")}
    last = cli("resume", "@last-failed", LOCALFLOW_STORE="archive")
    listed = json.loads(cli("runs", "--json", LOCALFLOW_STORE="archive").stdout)

    assert killed.returncode == -signal.SIGKILL
    name = f"'incomplete copy of {large}' is an incomplete copy"
    assert (told["resume"].returncode, told["cancel"].returncode) == (2, 2)
    assert told["resume"].stderr == f"error: flow run {name}; repeat: localflow store copy FROM TO\n"
    assert f"{name}, there is nothing to cancel" in told["cancel"].stderr
    assert "no flow run that failed, crashed or was interrupted is recorded" in last.stderr
    assert [run["state"]["name"] for run in listed] == ["Pending"]
    assert cli("clean", "large", LOCALFLOW_STORE="archive").returncode == 0
    assert cli("runs", LOCALFLOW_STORE="archive").stdout == ""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_copy_that_is_stopped_leaves_nothing(cli: Cli, large: str, signum: signal.Signals, code: int) -> None:
    """A signal ends it in good order: what is there by half is removed."""
    command = [sys.executable, "-m", "localflow", "store", "copy", "sqlite", "archive", "--json"]
    environment = {**os.environ, "LOCALFLOW_FAILPOINT": "copied-a-part:1:stop"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as copying:
        os.waitid(os.P_PID, copying.pid, os.WSTOPPED | os.WNOWAIT)
        copying.send_signal(signum)
        copying.send_signal(signal.SIGCONT)
        stdout, stderr = copying.communicate(timeout=50)

    assert copying.returncode == code, stderr
    assert json.loads(stdout)["copied"] == []
    assert cli("runs", LOCALFLOW_STORE="archive").stdout == ""


def test_what_was_copied_before_an_error_is_told(cli: Cli, project: Path) -> None:
    """The JSON has the runs that are there, although the copy of a later one has failed."""
    (project / "ready").touch()
    for name in ("x", "x" * 20):
        cli("run", "flows.py:main", "-p", f"name={name}")
    for file in Path(".localflow/localflow.db-values").rglob("*"):  # what the second returned
        if file.is_file():
            file.unlink()

    done = cli("store", "copy", "sqlite", "archive", "--json")

    assert done.returncode == 3, done.stderr
    assert "localflow.db-values" in done.stderr
    assert [each["parameters"]["name"] for each in json.loads(done.stdout)["copied"]] == ["x"]


def test_nothing_is_made_of_a_store_that_is_not_there(cli: Cli, project: Path) -> None:
    """A store to copy from that does not exist is not made."""
    done = cli("store", "copy", "archive", "sqlite")

    assert (done.returncode, done.stdout) == (0, "")
    assert "no flow run is recorded in" in done.stderr
    assert not (project / "archive").exists()
