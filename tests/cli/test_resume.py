"""`localflow resume`: what it needs, what it says and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Cli

FLOWS = '''
import os, time
from pathlib import Path
from localflow import flow, task


def note(word):
    with open("log", "a") as file:
        file.write(f"{word}\\n")


@task
def quick(n):
    note(f"quick{n}")
    return n


@task
def held(n):
    note(f"held{n}")
    while not Path("go").exists():
        time.sleep(0.01)
    if Path("bad").exists():
        raise ValueError("bad")
    return n


@flow
def main(count: int = 3):
    """Quick tasks, then one that is held."""
    return sum(each.result() for each in [*quick.map(range(count)), held(10)])


if __name__ == "__main__":
    main(2)
'''


@pytest.fixture
def flows() -> str:
    """Write the flow file and return its name."""
    Path("flows.py").write_text(FLOWS)
    return "flows.py"


@pytest.fixture
def kill_in_the_middle(flows: str) -> Callable[..., int]:
    """Return what runs a program until its last task is at work, and then kills it."""

    def kill(*arguments: str, signum: int = signal.SIGKILL) -> int:
        process = subprocess.Popen(
            [sys.executable, *(arguments or ("-m", "localflow", "run", flows))],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while "held10" not in notes() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signum)
        process.wait()
        return process.pid

    return kill


def notes() -> list[str]:
    """Return what has run."""
    log = Path("log")
    return log.read_text().split() if log.exists() else []


def test_a_killed_run_is_resumed_without_any_preparation(
    cli: Cli, kill_in_the_middle: Callable[..., int], read_json: Any
) -> None:
    """`localflow runs` says that its engine is lost, and `resume @last-failed` finishes it."""
    pid = kill_in_the_middle()

    (run,) = read_json("runs")
    assert run["state"] == {
        "type": "CRASHED", "name": "EngineLost", "message": f"its engine, in process {pid}, is gone",
    }  # fmt: skip
    shown = {each["name"]: each["state"]["name"] for each in read_json("show", "@last")["task_runs"]}
    assert shown == {"quick-0": "Completed", "quick-1": "Completed", "quick-2": "Completed", "held-0": "EngineLost"}

    Path("go").touch()
    done = cli("resume", "@last-failed")

    assert done.returncode == 0, done.stderr
    assert done.stdout == "State(name='Completed', type=StateType.COMPLETED)\n"
    assert "reuse 3, run 1\n" in done.stderr
    assert "run held-0: it was running when its engine went away" in done.stderr
    assert sorted(notes()) == ["held10", "held10", "quick0", "quick1", "quick2"]
    (run,) = read_json("runs")
    assert (run["state"]["name"], read_json("show", "@last")["attempt"]) == ("Completed", 2)


def test_the_loss_is_told_once(cli: Cli, kill_in_the_middle: Callable[..., int]) -> None:
    """By the first command that meets it."""
    kill_in_the_middle()

    first, second = cli("runs"), cli("runs")

    assert first.stderr.count("is EngineLost: its engine") == 1
    assert first.stderr.startswith("flow run ")
    assert second.stderr == ""


def test_a_script_is_resumed_with_the_parameters_it_gave(
    cli: Cli, flows: str, kill_in_the_middle: Callable[..., int]
) -> None:
    """`python script.py` needs no other preparation than `localflow run`; its own main part is not run."""
    kill_in_the_middle(flows)
    Path("go").touch()

    done = cli("resume", "@last")

    assert done.returncode == 0, done.stderr
    assert sorted(notes()) == ["held10", "held10", "quick0", "quick1"]


def test_a_flow_in_a_package_is_imported_as_part_of_it(cli: Cli, kill_in_the_middle: Callable[..., int]) -> None:
    """So that its relative imports work."""
    package = Path("package")
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "numbers.py").write_text("LAST = 10\n")
    (package / "flows.py").write_text(
        FLOWS.replace("from localflow import", "from .numbers import LAST\nfrom localflow import").replace(
            "10)", "LAST)"
        )
    )
    Path("program.py").write_text("from package.flows import main\nmain(1)\n")
    kill_in_the_middle("program.py")
    Path("go").touch()

    done = cli("resume", "@last")

    assert done.returncode == 0, done.stderr


def test_a_flow_from_stdin_is_resumed_from_the_file_that_is_named(
    cli: Cli, flows: str, kill_in_the_middle: Callable[..., int]
) -> None:
    """What it was defined in is gone; the error says what to do."""
    kill_in_the_middle("-c", FLOWS)
    Path("go").touch()

    gone, named = cli("resume", "@last"), cli("resume", "@last", "--flow", flows)

    assert gone.returncode == 2
    assert "was defined in <string>, which is not there any more" in gone.stderr
    assert "--flow FILE[:FLOW]" in gone.stderr
    assert named.returncode == 0, named.stderr


def test_after_an_interrupt_it_goes_on(cli: Cli, kill_in_the_middle: Callable[..., int]) -> None:
    """Ctrl-C loses nothing that completed."""
    kill_in_the_middle(signum=signal.SIGINT)
    Path("go").touch()

    done = cli("resume", "@last")

    assert done.returncode == 0, done.stderr
    assert sorted(notes()) == ["held10", "held10", "quick0", "quick1", "quick2"]


def test_the_plan_alone_runs_nothing(cli: Cli, kill_in_the_middle: Callable[..., int]) -> None:
    """It is a table with a reason for each task run, or JSON."""
    kill_in_the_middle()
    before = notes()

    table, plan = cli("resume", "@last", "--plan"), cli("resume", "@last", "--plan", "--json")

    assert table.returncode == plan.returncode == 0
    assert table.stdout.startswith("reuse 3, run 1\n")
    assert "held-0    run    it was running when its engine went away" in table.stdout
    content = json.loads(plan.stdout)
    assert (content["reuse"], content["run"]) == (3, 1)
    assert [(each["name"], each["action"]) for each in content["task_runs"]] == [
        ("quick-0", "reuse"), ("quick-1", "reuse"), ("quick-2", "reuse"), ("held-0", "run"),
    ]  # fmt: skip
    assert notes() == before


def test_a_run_that_is_going_on_is_refused_with_the_name_of_its_process(cli: Cli, flows: str) -> None:
    """Exit code 3, and nothing is run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "localflow", "run", flows], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        while "held10" not in notes() and time.monotonic() < deadline:
            time.sleep(0.01)
        done = cli("resume", "@last")
    finally:
        Path("go").touch()
        process.wait()

    assert done.returncode == 3
    assert f"is being executed by pid {process.pid} since " in done.stderr
    assert notes().count("held10") == 1


def test_strict_refuses_changed_code_before_anything_runs(
    cli: Cli, flows: str, kill_in_the_middle: Callable[..., int]
) -> None:
    """Without it, what has changed is run again, and the plan says so."""
    kill_in_the_middle()
    Path("go").touch()
    Path(flows).write_text(FLOWS.replace("return n\n\n\n@task\ndef held", "return n + 0\n\n\n@task\ndef held"))
    before = notes()

    strict = cli("resume", "@last", "--strict")

    assert strict.returncode == 2
    assert "code has changed since quick-0, quick-1, quick-2 completed" in strict.stderr
    assert notes() == before
    done = cli("resume", "@last")
    assert done.returncode == 0
    assert "run quick-0 and 2 more: its code has changed" in done.stderr
    assert "task run 'quick-0' completed before, but its code has changed since" in done.stderr


def test_a_resumed_run_that_fails_again_says_so(cli: Cli, kill_in_the_middle: Callable[..., int]) -> None:
    """And can be resumed again."""
    kill_in_the_middle()
    Path("go").touch()
    Path("bad").touch()

    failed = cli("resume", "@last")
    Path("bad").unlink()
    done = cli("resume", "@last")

    assert failed.returncode == 1
    assert "ValueError: bad" in failed.stderr
    assert done.returncode == 0
    assert notes().count("held10") == 3


def test_it_runs_on_the_executor_it_ran_on_or_another_that_is_named(
    cli: Cli, flows: str, kill_in_the_middle: Callable[..., int], read_json: Any
) -> None:
    """The recorded one is kept without being named."""
    kill_in_the_middle("-m", "localflow", "run", flows, "--executor", "thread")
    Path("go").touch()
    Path("bad").touch()

    cli("resume", "@last")
    assert read_json("runs")[0]["executor"] == "thread"
    Path("bad").unlink()
    cli("resume", "@last", "--executor", "process", "-j", "1")
    assert read_json("runs")[0]["executor"] == "process"


def test_a_file_that_has_gone_is_named(cli: Cli, flows: str, kill_in_the_middle: Callable[..., int]) -> None:
    """Exit code 2, and the run is as it was."""
    kill_in_the_middle()
    Path(flows).unlink()

    done = cli("resume", "@last")

    assert done.returncode == 2
    assert "no such file" in done.stderr
    assert "flows.py" in done.stderr
