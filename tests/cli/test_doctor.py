"""`localflow doctor`: what it finds, what it mends, and how it ends."""

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

import psutil
import pytest

from localflow.locks import make_private_directory, take_lock
from localflow.project import Project
from localflow.records import FlowRun, StateChange
from localflow.states import StateType
from localflow.strays import VARIABLE, find_strays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cli.conftest import Cli

SECTIONS = [
    *("versions", "configuration", "state store", "dead runs", "stray processes", "limits", "leftovers"),
]
DATABASE = Path(".localflow/localflow.db")


@pytest.fixture(autouse=True)
def _no_strays_of_others() -> None:
    """Wait for the workers that other tests leave for a moment: strays are looked for on the whole machine."""
    deadline = time.monotonic() + 10.0
    while find_strays() and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.fixture(params=["sqlite", "json"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Use each store that survives."""
    name: str = request.param
    monkeypatch.setenv("LOCALFLOW_STORE", name)
    return name


@pytest.fixture
def look(cli: Cli) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Return how `doctor --json` ends and what it says, sections by their names."""

    def look(*options: str, **environment: str) -> tuple[int, dict[str, Any]]:
        done = cli("doctor", "--json", *options, **environment)
        assert done.stdout, done.stderr
        said = json.loads(done.stdout)
        return done.returncode, {each["name"]: each for each in said["sections"]} | {"repairs": said["repairs"]}

    return look


def record(name: str = "a", type: StateType = StateType.COMPLETED) -> None:
    """Record a flow run."""
    with closing(Project.load().open_store()) as store:
        run = FlowRun(f"id-{name}", name, "main", time.time(), f"id-{name}")
        store.append([run, StateChange(run, 1, type, type.value.capitalize(), "", time.time())])


def damage(store: str) -> Path:
    """Damage the store; return the file."""
    path = DATABASE if store == "sqlite" else Path(".localflow/runs/id-a/journal.jsonl")
    data = bytearray(path.read_bytes())
    data[:90] = b"G" * 90
    path.write_bytes(data)
    return path


def names() -> set[str]:
    """Return the runs that are recorded."""
    with closing(Project.load().open_store()) as store:
        assert store.check() == []
        return {summary.flow_run.name for summary in store.list_flow_runs()}


def test_all_is_well_where_nothing_is(cli: Cli) -> None:
    """Each section has its verdict, and nothing is made by looking."""
    done = cli("doctor")

    assert done.returncode == 0, done.stdout
    assert [line for line in done.stdout.splitlines() if line[0] != " "] == [f"{name}: ok" for name in SECTIONS]
    assert "nothing is recorded yet" in done.stdout
    assert not Path(".localflow").exists()


def test_all_is_well_after_a_run(cli: Cli, store: str, tutorial: str, look: Any) -> None:
    """A run leaves nothing to complain of; sizes and versions are told."""
    cli("run", tutorial, "-p", 'names=["x"]', "--executor", "process")

    code, found = look()

    assert code == 0, found
    assert list(found) == [*SECTIONS, "repairs"]
    assert {each["verdict"] for name, each in found.items() if name != "repairs"} == {"ok"}
    assert found["state store"]["facts"]["bytes"] > 0
    assert found["state store"]["facts"]["format"] >= 2
    assert found["versions"]["facts"]["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert "builtin (localflow" in found["versions"]["facts"]["plugins"]


def test_wrong_settings_need_attention(look: Any) -> None:
    """All mistakes are listed, and what depends on the settings is not looked at."""
    Path("localflow.toml").write_text("[limits]\na = 0\n[retention]\nkeep = 1\n")

    code, found = look()

    assert code == 1
    assert found["configuration"]["verdict"] == "attention"
    assert len(found["configuration"]["problems"]) == 2
    assert "state store" not in found


def test_rights_of_others_need_attention(store: str, look: Any) -> None:
    """What others may read is told, with the way to end it."""
    record()
    path = DATABASE if store == "sqlite" else Path(".localflow/runs")
    path.chmod(0o755)

    code, found = look()

    assert code == 1
    assert f"chmod go-rwx {path.absolute()}" in found["state store"]["problems"][0]


def test_damaged_store_is_told_and_left_as_it_is(store: str, look: Any) -> None:
    """Exit code 3, and what to do."""
    record("a")
    record("b")
    path = damage(store)
    before = path.read_bytes()

    code, found = look()

    assert code == 3
    assert found["state store"]["verdict"] == "damaged"
    assert any("localflow doctor --repair" in problem for problem in found["state store"]["problems"])
    assert path.read_bytes() == before


def test_damaged_store_is_repaired(cli: Cli, store: str) -> None:
    """What can be saved is, what was there is copied aside, and all is well afterwards."""
    record("a")
    record("b")
    damage(store)

    done = cli("doctor", "--repair")

    assert done.returncode == 0, done.stdout
    assert "repaired: saved " in done.stdout
    assert "as it was" in done.stdout
    assert names() == ({"a", "b"} if store == "sqlite" else {"b"})
    assert cli("doctor").returncode == 0


def test_store_with_an_engine_at_work_is_not_repaired(store: str, look: Any) -> None:
    """The engine's run is named; nothing is changed."""
    record("a")
    with closing(Project.load().open_store()) as opened:
        claim = opened.claim("id-b")
        path = damage(store)
        before = path.read_bytes()
        code, found = look("--repair")
        assert claim is not None
        claim.release()

    assert code == 3
    assert "not repaired: " in found["state store"]["problems"][-1]
    assert "flow run id-b" in found["state store"]["problems"][-1]
    assert path.read_bytes() == before


def test_run_whose_engine_is_gone_is_marked(store: str, look: Any) -> None:
    """It is told once, with the way to go on; the next time all is well."""
    record("lost", StateType.RUNNING)
    record("fine")

    code, found = look()

    assert code == 1
    assert found["dead runs"]["problems"] == [
        "the engine of 'lost' was gone; it is EngineLost now, go on: localflow resume lost"
    ]
    with closing(Project.load().open_store()) as opened:
        (lost,) = [each for each in opened.list_flow_runs() if each.flow_run.name == "lost"]
    assert lost.change is not None
    assert lost.change.name == "EngineLost"
    assert look()[0] == 0


def test_run_at_work_is_well(store: str, look: Any) -> None:
    """As long as its claim is held a run is at work."""
    record("busy", StateType.RUNNING)
    with closing(Project.load().open_store()) as opened:
        claim = opened.claim("id-busy")
        code, found = look()
        assert claim is not None
        claim.release()

    assert code == 0
    assert found["dead runs"]["facts"]["at work"] == 1


@pytest.fixture
def stray() -> Iterator[Callable[[str], psutil.Process]]:
    """Start a process of an engine that is gone; `worker` or anything else."""
    begun = []

    def start(kind: str) -> psutil.Process:
        code = "# localflow.builtin.process.supervisor\n" if kind == "worker" else ""
        command = [sys.executable, "-c", f"{code}import time; time.sleep(60)"]
        begun.append(subprocess.Popen(command, env={**os.environ, VARIABLE: "1:1"}))
        return psutil.Process(begun[-1].pid)

    yield start
    for process in begun:
        process.kill()
        process.wait()


def test_stray_worker_is_told_and_killed(stray: Callable[[str], psutil.Process], look: Any) -> None:
    """Only when asked to."""
    process = stray("worker")

    code, found = look()
    assert code == 1
    assert any(f"worker {process.pid} has outlived" in problem for problem in found["stray processes"]["problems"])
    assert process.status() != psutil.STATUS_ZOMBIE

    code, found = look("--repair")
    assert f"killed worker {process.pid} of engine 1, which is gone" in found["repairs"]
    assert process.status() == psutil.STATUS_ZOMBIE


def test_what_a_task_left_running_is_told_and_spared(stray: Callable[[str], psutil.Process], look: Any) -> None:
    """It may be wanted."""
    process = stray("other")

    code, found = look("--repair")

    assert code == 1
    assert any(f"kill {process.pid}" in problem for problem in found["stray processes"]["problems"])
    assert process.status() != psutil.STATUS_ZOMBIE


def test_limits_are_told_with_what_is_held(look: Any) -> None:
    """How many slots there are, and how many are taken now."""
    from localflow.limits import Limits

    Path("localflow.toml").write_text("[limits]\ndatabase = 2\nnetwork = 1\n")
    limits = Limits(Path(".localflow/limits").absolute(), {"database": 2}, lambda token, permit: None)
    limits.ask("me", ["database"])
    try:
        code, found = look()
    finally:
        limits.close()

    assert code == 0
    assert found["limits"]["facts"] == {"database": "1 of 2 held", "network": "0 of 1 held"}


def test_leftovers_are_told_and_removed(look: Any) -> None:
    """Pipes and drafts of dead engines go with --repair."""
    make_private_directory(Path(".localflow/control").absolute())
    os.mkfifo(".localflow/control/gone")

    code, found = look()
    assert (code, found["leftovers"]["facts"]["files"]) == (1, 1)

    code, found = look("--repair")
    assert code == 0
    assert found["repairs"] == ["removed .localflow/control/gone"]
    assert not Path(".localflow/control/gone").exists()


def test_death_in_the_middle_of_a_repair(cli: Cli, look: Any) -> None:
    """After kill -9 the store is damaged as before or mended, and the next repair ends well."""
    record("a")
    damage("sqlite")

    for arrival in (1, 2, 3, 1):  # the last in what finishes the one before
        killed = cli("doctor", "--repair", LOCALFLOW_FAILPOINT=f"in-repair:{arrival}")
        assert killed.returncode == -signal.SIGKILL
        assert look()[0] == 3

    code, found = look("--repair")
    assert code == 0, found
    assert names() == {"a"}
    assert [path.name for path in Path(".localflow").glob("*.repair*")] == []


def test_store_of_a_plugin_that_knows_no_repair(cli: Cli, look: Any) -> None:
    """The store in memory is always well, and nothing is asked of it."""
    code, found = look("--repair", LOCALFLOW_STORE="memory")

    assert code == 0
    assert "path" not in found["state store"]["facts"]


UNREACHABLE = """
from localflow import hookimpl
from localflow.builtin.memory import MemoryStateStore
from localflow.errors import StoreError


class Remote(MemoryStateStore):
    def __init__(self, at: str = "open") -> None:
        super().__init__()
        self.at = at
        if at == "open":
            raise StoreError("the server does not answer; start it")

    def check(self):
        raise StoreError("the server does not answer any more; start it")


@hookimpl
def localflow_register_state_stores(register):
    register("remote", Remote)
"""


@pytest.mark.parametrize("at", ["open", "check"])
def test_store_that_cannot_be_reached_is_not_called_damaged(
    look: Any, own_folder: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Nobody knows whether it is damaged; there is nothing to repair, and the exit code is that of store trouble."""
    metadata = own_folder / "site" / "remote-0.1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: remote\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text("[localflow]\nremote = remote_plugin\n")
    (own_folder / "site" / "remote_plugin.py").write_text(UNREACHABLE)
    (own_folder / "localflow.toml").write_text(f'store = "remote"\n[stores.remote]\nat = "{at}"\n')
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(own_folder / "site"), os.environ.get("PYTHONPATH", "")]))

    code, found = look("--repair")

    assert (code, found["state store"]["verdict"], found["repairs"]) == (3, "cannot be used", [])
    (problem,) = found["state store"]["problems"]
    assert problem.startswith("the server does not answer")


def test_lock_is_free_again_after_looking() -> None:
    """Counting what is held takes free slots for an instant only."""
    from localflow.limits import slots_held

    directory = Path(".localflow/limits").absolute()
    make_private_directory(directory)

    assert slots_held(directory, "tag") == 0
    lock = take_lock(directory / "other.0")
    assert lock is not None
    lock.release()
