"""`localflow clean`: what it removes, what it keeps, and what it says of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from localflow.payloads import Payload
from localflow.project import Project
from localflow.records import FlowRun, StateChange, TaskRun
from localflow.states import StateType

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

DAY = 86_400.0
FILES = {"sqlite": ".localflow/localflow.db", "json": ".localflow/runs"}


@pytest.fixture(params=["sqlite", "json"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Use each store that survives."""
    name: str = request.param
    monkeypatch.setenv("LOCALFLOW_STORE", name)
    return name


def record(
    name: str, *, age: float = 0.0, type: StateType = StateType.COMPLETED, state: str = "", result: int = 10
) -> None:
    """Record a flow run that ended so many seconds ago, with a task that has a result of so many bytes."""
    with closing(Project.load().open_store()) as store:
        at = time.time() - age
        run = FlowRun(f"id-{name}", name, "main", at - 1, f"id-{name}")
        task = TaskRun(run, 1, "work-0", "work", 0, at - 1)
        data = Payload("json", b"1" * result)
        store.append([run, task, StateChange(task, 1, StateType.COMPLETED, "Completed", "", at, result=data)])
        store.append([StateChange(run, 1, type, state or type.value.capitalize(), "", at)])


def recorded() -> set[str]:
    """Return the names of the runs that are recorded, which must be sound."""
    with closing(Project.load().open_store()) as store:
        assert store.check() == []
        return {summary.flow_run.name for summary in store.list_flow_runs()}


def result_of(name: str) -> Payload | None:
    """Return the result of the task of a run."""
    with closing(Project.load().open_store()) as store:
        return store.load_result(f"id-{name}", 1)


def test_without_a_choice_nothing_is_removed(cli: Cli) -> None:
    """That is a mistake of the command, which says what may be chosen."""
    record("a")

    done = cli("clean")

    assert done.returncode == 2
    assert all(option in done.stderr for option in ("RUN", "--older-than", "--keep-last", "--state", "[retention]"))
    assert recorded() == {"a"}


def test_old_runs_are_removed(cli: Cli, store: str) -> None:
    """Those that ended longer ago go, the others stay, and the number is told."""
    record("old", age=40 * DAY)
    record("young", age=DAY)

    done = cli("clean", "--older-than", "30d")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("removed 1 run, ")
    assert recorded() == {"young"}


def test_newest_runs_are_kept(cli: Cli, store: str) -> None:
    """With --keep-last all but the newest go."""
    for number, name in enumerate("abcd"):
        record(name, age=10 - number)

    assert cli("clean", "--keep-last", "2").returncode == 0
    assert recorded() == {"c", "d"}


@pytest.mark.parametrize(("state", "left"), [("failed", {"good"}), ("TimedOut", {"good", "bad"})])
def test_states_choose_by_name_or_type(cli: Cli, state: str, left: set[str]) -> None:
    """A type means all of its names, whatever the case of the letters."""
    record("good")
    record("bad", type=StateType.FAILED)
    record("late", type=StateType.FAILED, state="TimedOut")

    assert cli("clean", "--state", state).returncode == 0
    assert recorded() == left


def test_name_of_a_state_that_a_flow_gave_itself(cli: Cli) -> None:
    """What is recorded is known."""
    record("odd", state="Partly")

    assert cli("clean", "--state", "partly").returncode == 0
    assert recorded() == set()


def test_unknown_state_is_a_mistake(cli: Cli) -> None:
    """The one that was meant is named, and nothing goes."""
    record("a")

    done = cli("clean", "--state", "Complete")

    assert done.returncode == 2
    assert "did you mean 'Completed'?" in done.stderr
    assert recorded() == {"a"}


@pytest.mark.parametrize("age", ["30", "1y", "d", "-3d"])
def test_unknown_duration_is_a_mistake(cli: Cli, age: str) -> None:
    """Nothing is guessed about how old."""
    done = cli("clean", f"--older-than={age}")

    assert done.returncode == 2
    assert "write 90s, 15m, 12h, 30d or 2w" in done.stderr


def test_runs_are_removed_by_name(cli: Cli, store: str) -> None:
    """Several may be named, and what else is given must hold of them as well."""
    record("a", type=StateType.FAILED)
    record("b")
    record("c")

    assert cli("clean", "a", "b", "--state", "completed").returncode == 0
    assert recorded() == {"a", "c"}


def test_part_of_a_run_is_not_removed_alone(cli: Cli) -> None:
    """A run that another flow called goes with that one only."""
    (Path.cwd() / "flows.py").write_text(
        "from localflow import flow\n@flow\ndef sub(): return 1\n@flow\ndef main(): return sub()\n"
    )
    cli("run", "flows.py:main")
    with closing(Project.load().open_store()) as store:
        child, top = sorted(store.list_flow_runs(), key=lambda each: each.flow_run.parent_id is None)

    done = cli("clean", child.flow_run.name)
    assert done.returncode == 2
    assert f"remove all of it: localflow clean {top.flow_run.name}" in done.stderr

    assert cli("clean", top.flow_run.name).returncode == 0
    assert recorded() == set()


def test_results_are_removed_alone(cli: Cli, store: str) -> None:
    """The history stays; that resume has nothing to answer from any more is said."""
    record("a", result=300_000)

    done = cli("clean", "--results", "a")

    assert done.returncode == 0
    assert done.stdout.startswith("removed the results of 1 run, ")
    assert "not answered from by `localflow resume`" in done.stderr
    assert recorded() == {"a"}
    assert result_of("a") is None


def test_space_comes_back(cli: Cli, store: str, read_json: Any) -> None:
    """As much as the results took, and it is said how much."""
    record("large", result=3_000_000)
    record("small")

    done = read_json("clean", "large")

    assert done["bytes_freed"] > 2_500_000
    assert result_of("small") is not None


def test_dry_run_removes_nothing(cli: Cli, store: str) -> None:
    """It shows what would go as `runs` does."""
    record("a")
    record("b", type=StateType.FAILED)

    done = cli("clean", "--state", "failed", "--dry-run")

    assert done.returncode == 0
    assert "b" in done.stdout.splitlines()[1]
    assert "would remove 1 run" in done.stderr
    assert recorded() == {"a", "b"}


def test_json_lists_what_goes_and_what_stays(cli: Cli, read_json: Any) -> None:
    """With --dry-run and without the same runs are listed."""
    record("a")
    record("b")

    seen = read_json("clean", "a", "--dry-run")
    done = read_json("clean", "a")

    assert (seen["dry_run"], done["dry_run"]) == (True, False)
    assert [run["name"] for run in seen["removed"]] == [run["name"] for run in done["removed"]] == ["a"]
    assert seen["bytes_freed"] is None
    assert recorded() == {"b"}


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_run_at_work_is_kept(cli: Cli, store: str, options: tuple[str, ...]) -> None:
    """As long as its engine lives a run stays, and that is said."""
    record("done")
    record("busy", type=StateType.RUNNING)
    with closing(Project.load().open_store()) as opened:
        claim = opened.claim("id-busy")
        done = cli("clean", "--keep-last", "0", *options)
        assert claim is not None
        claim.release()

    assert done.returncode == 0
    assert "kept 'busy': its engine is at work" in done.stderr
    assert recorded() == ({"busy"} if not options else {"busy", "done"})


def test_run_whose_engine_is_gone_may_go(cli: Cli, store: str) -> None:
    """It is Crashed by then."""
    record("lost", type=StateType.RUNNING)

    assert cli("clean", "--state", "crashed").returncode == 0
    assert recorded() == set()


def test_settings_say_what_goes(cli: Cli, store: str) -> None:
    """Without options [retention] is applied; what may be resumed stays if `states` says so."""
    Path("localflow.toml").write_text('[retention]\nolder_than = "30d"\nkeep_last = 1\nstates = ["Completed"]\n')
    record("failed", age=40 * DAY, type=StateType.FAILED)
    record("old", age=40 * DAY)
    record("young", age=DAY)

    done = cli("clean")

    assert done.returncode == 0, done.stderr
    assert recorded() == {"failed", "young"}


def test_options_win_over_settings(cli: Cli) -> None:
    """With options only they count."""
    Path("localflow.toml").write_text('[retention]\nolder_than = "1d"\n')
    record("old", age=40 * DAY)
    record("failed", age=40 * DAY, type=StateType.FAILED)

    assert cli("clean", "--state", "failed").returncode == 0
    assert recorded() == {"old"}


def test_nothing_recorded_is_nothing_to_remove(cli: Cli) -> None:
    """No store is made for it."""
    done = cli("clean", "--keep-last", "3")

    assert (done.returncode, done.stdout) == (0, "no run to remove\n")
    assert not Path(".localflow").exists()


def test_leftovers_of_dead_engines_go(cli: Cli) -> None:
    """Pipes that nobody listens at and old drafts are removed with the runs, and counted."""
    record("a")
    Path(".localflow/control").mkdir()
    os.mkfifo(".localflow/control/gone")
    draft = Path(".localflow/half.part")
    draft.touch()
    os.utime(draft, (time.time() - 7200,) * 2)

    seen = cli("clean", "--keep-last", "5", "--dry-run")
    assert "would remove 2 files that dead engines have left" in seen.stderr
    assert draft.exists()

    done = cli("clean", "--keep-last", "5")
    assert "removed 2 files" in done.stderr
    assert not draft.exists()
    assert not Path(".localflow/control/gone").exists()
    assert recorded() == {"a"}


@pytest.mark.parametrize("what", [(), ("--results",)], ids=["runs", "results"])
@pytest.mark.parametrize("arrival", [1, 2])
def test_death_in_the_middle_leaves_each_run_whole_or_none_of_it(
    cli: Cli, store: str, arrival: int, what: tuple[str, ...]
) -> None:
    """After kill -9 the store opens, each run is there as a whole or not at all, and a second try ends well."""
    for name in "abc":
        record(name, result=300_000)

    killed = cli("clean", "--keep-last", "0", *what, LOCALFLOW_FAILPOINT=f"in-remove:{arrival}")

    assert killed.returncode in (-signal.SIGKILL, 0)
    assert arrival > 1 or killed.returncode == -signal.SIGKILL
    for name in recorded():
        with closing(Project.load().open_store()) as opened:
            records = list(opened.read(f"id-{name}"))
            assert len(records) == 4  # the run, its task and a state of each
            loaded = opened.load_result(f"id-{name}", 1)
            assert loaded is None if what and loaded is None else len(loaded.data) == 300_000
    if what:
        assert recorded() == {"a", "b", "c"}

    assert cli("clean", "--keep-last", "0", *what).returncode == 0
    assert recorded() == (set("abc") if what else set())
    assert [result_of(name) for name in "abc"] == [None] * 3


def test_two_at_once_do_not_disturb_each_other(store: str) -> None:
    """What one has claimed the other keeps or finds gone; nothing is left and nothing fails."""
    for number in range(30):
        record(f"run-{number}")
    command = [sys.executable, "-m", "localflow", "clean", "--keep-last", "0"]

    begun = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [process.communicate(timeout=40) for process in begun]

    assert [process.returncode for process in begun] == [0, 0], ended
    assert recorded() == set()


def test_every_run_applies_the_settings_at_its_end(cli: Cli, store: str) -> None:
    """With [retention] the history stays short by itself, and the run that has ended is part of it."""
    Path("localflow.toml").write_text("[retention]\nkeep_last = 2\n")
    Path("flows.py").write_text("from localflow import flow\n@flow\ndef main(): return 1\n")
    for name in "abc":
        record(name)

    ended = cli("run", "flows.py")

    assert ended.returncode == 0, ended.stderr
    assert len(recorded()) == 2
    assert "c" in recorded()
