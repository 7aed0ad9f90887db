"""What was written for version 1 of the plugin interface works: an old plugin, and all that it may have relied on."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pluggy
import pytest
import tomli

import localflow
from localflow import hookspecs, interfaces
from localflow.hookspecs import RegisterExecutor, RegisterNotifier, RegisterStateStore
from localflow.interfaces import API_VERSION
from localflow.plugins import Plugins, Source
from tests.faults.conftest import eventually

PLUGINS = Path(__file__).parent / "plugins"
OLD = PLUGINS / "old_plugin_v1"
#: The records, methods and declarations of version 1: what is in this file is never taken back, only added to.
API = json.loads((PLUGINS / "api_1.json").read_text())
LOCALFLOW = Path(localflow.__file__).parents[1]

SETTINGS = """
executor = "old"
store = "old"
[executors.old]
threads = 3
[stores.old]
path = "runs.pickles"
[notifiers.old]
on = ["Completed", "Failed"]
"""
FLOW = """
import os
import sys
from pathlib import Path
from localflow import INPUTS, flow, get_run_logger, task

@task(cache_policy=INPUTS)
def double(number):
    get_run_logger().info("doubling %d", number)
    return number * 2

@task
def add_up(numbers):
    if not Path("go").exists():
        raise ValueError("not yet")
    return sum(numbers)

@flow
def main():
    return add_up(double.map([1, 2, 3]))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the old plugin, as pip would lay it out, and write a project that uses nothing else."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "localflow_old.py").write_bytes((OLD / "localflow_old.py").read_bytes())
    project = tomli.loads((OLD / "pyproject.toml").read_text())["project"]
    metadata = site / f"localflow_old-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: localflow-old\nVersion: {project['version']}\n")
    entry_points = "".join(f"{name} = {target}\n" for name, target in project["entry-points"]["localflow"].items())
    (metadata / "entry_points.txt").write_text(f"[localflow]\n{entry_points}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(LOCALFLOW)]))
    (tmp_path / "localflow.toml").write_text(SETTINGS)
    (tmp_path / "main.py").write_text(FLOW)
    return tmp_path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of localflow to its end."""
    command = [sys.executable, "-m", "localflow", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def shape(function: Any) -> list[str]:
    """Return the parameters of a function: how each may be given, and whether it must be."""
    return [
        f"{parameter.kind.name.lower()} {parameter.name}{'' if parameter.default is parameter.empty else '='}"
        for parameter in inspect.signature(function).parameters.values()
    ]


def function_of(path: str) -> Any:
    """Return the function behind a name such as `Executor.submit`, of a property the one that gives its value."""
    owner, name = path.split(".")
    found = inspect.getattr_static(getattr(interfaces, owner), name)
    return found.fget if isinstance(found, property) else found


# -- the old plugin --------------------------------------------------------------------------------------------------


def test_old_plugin_is_installed_as_ever(project: Path) -> None:
    """All three of its names are listed, and nothing is wrong with it."""
    done = run("plugins", "--json")

    ours = [entry for entry in json.loads(done.stdout) if entry["distribution"] == "localflow-old"]
    assert [(entry["role"], entry["name"], entry["problem"]) for entry in ours] == [
        ("executor", "old", None),
        ("state store", "old", None),
        ("notifier", "old", None),
    ]
    assert done.stderr == ""


def test_flow_runs_on_the_old_plugin(project: Path) -> None:
    """A flow fails, is resumed and is answered from the cache on it; commands read it back, the notifier is told."""
    failed = run("run", "main.py")
    logs = run("logs", "@last")
    (project / "go").touch()
    resumed = run("resume", "@last-failed")
    result = json.loads(run("show", "@last/add_up-0", "--json").stdout)["result"]
    again = run("run", "main.py")
    task_runs = json.loads(run("show", "@last", "--json").stdout)["task_runs"]

    assert (failed.returncode, resumed.returncode, again.returncode) == (1, 0, 0), failed.stderr + resumed.stderr
    assert sorted(line.rpartition(" | ")[2] for line in logs.stdout.splitlines()) == [
        "doubling 1",
        "doubling 2",
        "doubling 3",
    ]
    assert "reuse 3, run 1" in resumed.stderr
    assert result == 12
    assert [task_run["state"]["name"] for task_run in task_runs] == ["Cached", "Cached", "Cached", "Completed"]
    assert task_runs[-1]["worker"] in ("old 0", "old 1", "old 2")
    assert len(json.loads(run("runs", "--json").stdout)) == 2
    eventually(lambda: run("doctor").returncode == 0)  # other tests have strays for a moment, on the whole machine
    told = (project / "told.txt").read_text().splitlines()
    assert "add_up-0 is Failed" in told
    assert "add_up-0 is Completed" in told


def test_what_the_old_store_does_not_know_is_refused(project: Path) -> None:
    """A command that needs a method of which it has only the default says so, and nothing is lost."""
    (project / "go").touch()
    run("run", "main.py")

    done = run("clean", "@last")

    assert done.returncode == 3
    assert "does not know how to remove runs" in done.stderr
    assert len(json.loads(run("runs", "--json").stdout)) == 1


# -- growing ---------------------------------------------------------------------------------------------------------


def test_the_version_is_the_one_that_is_kept() -> None:
    """Another version needs a plugin and a list of its own here, beside those that are kept as long as it is taken."""
    assert API_VERSION == 1


@pytest.mark.parametrize("name", API["records"])
def test_records_only_grow(name: str) -> None:
    """Its fields are where they were, those that could be left out still can, and new ones can be left out."""
    record = getattr(interfaces, name)
    fields = [field.rstrip("=") for field in API["records"][name]]
    optional = {field.rstrip("=") for field in API["records"][name] if field.endswith("=")}

    assert list(record._fields[: len(fields)]) == fields
    assert optional | set(record._fields[len(fields) :]) <= record._field_defaults.keys()


def test_every_record_is_kept() -> None:
    """Whatever named tuple crosses the interface is among those that only grow."""
    crossing = {
        name
        for name in interfaces.__all__
        if isinstance(value := getattr(interfaces, name), type) and issubclass(value, tuple) and name != "AtLeast"
    }

    assert crossing == API["records"].keys()


@pytest.mark.parametrize("path", API["calls"])
def test_what_a_plugin_calls_only_grows(path: str) -> None:
    """Its parameters are where they were, and new ones can be left out."""
    now, then = shape(function_of(path)), API["calls"][path]

    assert now[: len(then)] == then
    assert [parameter for parameter in now[len(then) :] if not parameter.endswith("=")] == []


@pytest.mark.parametrize("path", API["implements"])
def test_what_a_plugin_implements_stays(path: str) -> None:
    """Its parameters are as they were, not one more: an old plugin's method would not take it."""
    assert shape(function_of(path)) == API["implements"][path]


def test_every_method_is_kept() -> None:
    """Whatever a plugin may implement is among what stays, from the moment it is there."""
    names = ("Executor", "StateStore", "Notifier", "Claim")
    implemented = {
        f"{name}.{attribute}"
        for name in names
        for attribute, value in vars(getattr(interfaces, name)).items()
        if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    }

    assert implemented == API["implements"].keys()


@pytest.mark.parametrize("name", ["Executor", "StateStore", "Notifier"])
def test_no_method_is_demanded_that_was_not(name: str) -> None:
    """A method that came later has a default, and so has an attribute."""
    interface = getattr(interfaces, name)
    demanded = set(API["demands"][name])

    assert interface.__abstractmethods__ == demanded
    assert [attribute for attribute in interface.__annotations__ if attribute not in vars(interface)] == []


@pytest.mark.parametrize("protocol", [RegisterExecutor, RegisterStateStore, RegisterNotifier])
def test_register_grows_by_keywords_only(protocol: Any) -> None:
    """A name and a factory, by place or by name; whatever is added is a keyword that can be left out."""
    _self, *parameters = shape(protocol.__call__)

    assert parameters[:2] == ["positional_or_keyword name", "positional_or_keyword factory"]
    assert [each for each in parameters[2:] if not (each.startswith("keyword_only") and each.endswith("="))] == []


def test_hooks_of_the_version_stay() -> None:
    """Each hook is there and gives `register`; it may give more, which an old plugin need not take."""
    for hook in API["hooks"]:
        assert "positional_or_keyword register" in shape(getattr(hookspecs, hook))


def test_an_implementation_may_take_less_than_the_hook_gives() -> None:
    """One without any argument is a plugin like any other, as one with `register` is when there is more one day."""
    module = type(sys)("modest")
    module.localflow_register_executors = hookspecs.hookimpl(_take_nothing)  # type: ignore[attr-defined]
    plugins = Plugins()

    plugins.add(module, Source("modest", "localflow-modest", "1"))

    plugins.check()
    assert plugins.problems() == []


def test_a_hook_that_gives_more_is_taken_by_the_old_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one more argument in the specification the old plugin registers what it always has."""
    monkeypatch.syspath_prepend(str(OLD))
    import localflow_old

    class Grown:
        @staticmethod
        @hookspecs.hookspec
        def localflow_register_executors(register: RegisterExecutor, settings: object) -> None: ...

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(Grown)
    registered: dict[str, object] = {}

    manager.register(localflow_old)
    manager.hook.localflow_register_executors(register=registered.__setitem__, settings=None)
    sys.modules.pop("localflow_old")

    assert registered == {"old": "localflow_old:OldExecutor"}


def _take_nothing() -> None:
    return None
