"""`localflow plugins new` writes plugins that work at once: installed, tested, and used by a flow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli
from packaging.requirements import Requirement

import localflow
from localflow.errors import UsageError
from localflow.interfaces import API_VERSION
from localflow.scaffold import write_plugin
from localflow.version import DISTRIBUTION, __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

LOCALFLOW = Path(localflow.__file__).parents[1]
NAMES = {"executor": "crew2", "store": "shoe-box", "notifier": "pigeon"}
SETTINGS = """
executor = "crew2"
store = "shoe-box"
[executors.crew2]
workers = 3
[stores.shoe-box]
path = "runs.db"
[notifiers.pigeon]
path = "told.log"
on = ["Failed"]
"""
FLOW = """
from localflow import flow, task

@task
def divide(number):
    return 12 / number

@flow
def main():
    divide.map([3, 0])
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have the command line write one plugin for each role, and return the folder they are in."""
    folder = tmp_path_factory.mktemp("written") / "new folder"
    for role, name in NAMES.items():
        done = run("-m", "localflow", "plugins", "new", role, name, "--directory", str(folder))
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def installed(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the plugins and install them into a folder of their own, without the network."""
    pytest.importorskip("pip")
    pytest.importorskip("hatchling")
    target = tmp_path_factory.mktemp("installed")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    sources = [str(path) for path in sorted(written.iterdir())]

    done = run("-m", "pip", "install", "--quiet", *offline, "--target", str(target), *sources)

    assert done.returncode == 0, done.stderr
    return target


def run(*arguments: str, site: Path | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python, where the plugins in `site` are installed."""
    paths = [str(path) for path in (site, LOCALFLOW) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100, check=False)


def files_in(folder: Path) -> dict[str, str]:
    """Return the files of a folder with what is in them."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def project_of(folder: Path) -> dict[str, Any]:
    """Return the table `project` of a distribution."""
    project: dict[str, Any] = tomli.loads((folder / "pyproject.toml").read_text())["project"]
    return project


# -- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "name"), NAMES.items())
def test_distribution_is_named_after_the_plugin(written: Path, role: str, name: str) -> None:
    """The distribution, its package, its entry point and its class have the name, and nothing has the placeholder."""
    folder = written / f"localflow-{name}"
    package = f"localflow_{name.replace('-', '_')}"

    files = files_in(folder)

    project = project_of(folder)
    assert project["name"] == f"localflow-{name}"
    assert project["entry-points"]["localflow"] == {name: package}
    assert {f"src/{package}/__init__.py", f"src/{package}/{role}.py", f"tests/test_{role}.py"} <= files.keys()
    assert f"class {name.title().replace('-', '')}" in files[f"src/{package}/{role}.py"]
    assert [place for place, text in files.items() if "myname" in (place + text).lower() or "myrole" in text] == []


@pytest.mark.parametrize("name", NAMES.values())
def test_distribution_needs_this_localflow(written: Path, name: str) -> None:
    """What it depends on is the distribution of localflow, in a version such as this one, and the API is this one."""
    folder = written / f"localflow-{name}"

    (requirement,) = map(Requirement, project_of(folder)["dependencies"])

    (stated,) = re.findall(r"^localflow_api = (\d+)$", "\n".join(files_in(folder).values()), re.MULTILINE)
    assert requirement.name == DISTRIBUTION
    assert requirement.specifier.contains(__version__)
    assert int(stated) == API_VERSION


def test_what_is_written_is_told(tmp_path: Path) -> None:
    """The files are printed, as JSON too, and the way to try the plugin is said."""
    told = run("-m", "localflow", "plugins", "new", "notifier", "one", cwd=tmp_path)
    as_json = run("-m", "localflow", "plugins", "new", "notifier", "two", "--json", cwd=tmp_path)

    assert sorted(told.stdout.splitlines()) == sorted(
        f"localflow-one/{p}" for p in files_in(tmp_path / "localflow-one")
    )
    assert "pip install -e 'localflow-one[test]'" in told.stderr
    listed = json.loads(as_json.stdout)
    assert listed["folder"] == "localflow-two"
    assert sorted(listed["files"]) == sorted(f"localflow-two/{p}" for p in files_in(tmp_path / "localflow-two"))


# -- what is refused -------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A second plugin of the name is refused with exit code 2, and the first stays as it is."""
    arguments = ["-m", "localflow", "plugins", "new", "executor", "crew"]
    run(*arguments, cwd=tmp_path)
    (tmp_path / "localflow-crew" / "README.md").write_text("mine")

    done = run(*arguments, cwd=tmp_path)

    assert done.returncode == 2
    assert "localflow-crew is there already and stays as it is" in done.stderr
    assert (tmp_path / "localflow-crew" / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("My_Plugin", "; did you mean 'my-plugin'?"),
        ("localflow-Dask", "; did you mean 'dask'?"),
        ("9lives", ""),
        ("../up", "; did you mean 'up'?"),
        ("", ""),
        ("a--b", "; did you mean 'a-b'?"),
        ("caf\u00e9", "; did you mean 'caf'?"),
        ("line\nbreak", "; did you mean 'line-break'?"),
        ("x" * 41, f"; did you mean '{'x' * 40}'?"),
    ],
)
def test_names_that_fit_nowhere_are_refused(tmp_path: Path, name: str, hint: str) -> None:
    """A name must do for a distribution, a package and a class; the error says what it may be."""
    with pytest.raises(UsageError, match="is no name for a plugin") as caught:
        write_plugin("executor", name, tmp_path)

    assert str(caught.value).endswith(f"at most 40 characters{hint}")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("executor", "Crew"), "'Crew' is no name for a plugin"),
        (("store", "sqlite"), "there is a state store 'sqlite' already, of plugin 'builtin'"),
        (("pigeon", "crew"), "'pigeon' is not one of 'executor', 'store', 'notifier'"),
        (("executor", "thread"), "there is an executor 'thread' already, of plugin 'builtin'"),
        (("executor",), "NAME"),
        ((), "Missing argument '{executor|store|notifier}'. Choose from: executor, store, notifier\n"),
    ],
)
def test_mistakes_end_with_exit_code_2(tmp_path: Path, arguments: Sequence[str], told: str) -> None:
    """What cannot be made is said in one line, and nothing is written."""
    done = run("-m", "localflow", "plugins", "new", *arguments, cwd=tmp_path)

    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_name_of_what_is_installed_is_refused(installed: Path, tmp_path: Path) -> None:
    """Two distributions of one name cannot be installed beside each other, whatever their roles."""
    same_role = run("-m", "localflow", "plugins", "new", "notifier", "pigeon", site=installed, cwd=tmp_path)
    other_role = run("-m", "localflow", "plugins", "new", "store", "pigeon", site=installed, cwd=tmp_path)
    itself = run("-m", "localflow", "plugins", "new", "executor", "engine", cwd=tmp_path)

    assert (same_role.returncode, other_role.returncode, itself.returncode) == (2, 2, 2)
    assert "a notifier 'pigeon' already, of plugin 'pigeon' of distribution 'localflow-pigeon'" in same_role.stderr
    assert "a package localflow_pigeon is installed already" in other_role.stderr
    assert f"'{DISTRIBUTION}' is localflow itself" in itself.stderr
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """Where a file is in the way, the error says what and where."""
    (tmp_path / "file").write_text("")

    with pytest.raises(UsageError, match=r"file.* cannot be written: Not a directory"):
        write_plugin("notifier", "pigeon", tmp_path / "file" / "below")


# -- what was written works ------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("role", "name"), NAMES.items())
def test_its_tests_pass(written: Path, installed: Path, role: str, name: str) -> None:
    """The contract of its role and a flow that uses it pass, and they are the tests that ran."""
    folder = written / f"localflow-{name}"

    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", site=installed, cwd=folder)

    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= {"executor": 40, "store": 80, "notifier": 10}[role]


@pytest.mark.timeout(120)
def test_its_promises_are_held(installed: Path, tmp_path: Path) -> None:
    """`localflow plugins check` says so of the notifier, with the option that docs/plugins.md gives one of files."""
    command = ["plugins", "check", "pigeon", "-o", "path={file}", "--json"]

    done = run("-m", "localflow", *command, site=installed, cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "held" in done.stdout
    assert not {"broken", "not checked"} & set(re.findall(r'"verdict": "([\w ]+)"', done.stdout))


@pytest.mark.timeout(120)
def test_types_are_complete(written: Path) -> None:
    """mypy has nothing to say about any of them, as strict as their settings make it."""
    pytest.importorskip("mypy")

    for folder in sorted(written.iterdir()):
        done = run("-m", "mypy", cwd=folder)

        assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_flow_uses_all_three(installed: Path, tmp_path: Path) -> None:
    """A flow runs on the executor, is recorded by the store, and the notifier is told of what failed."""
    (tmp_path / "localflow.toml").write_text(SETTINGS)
    (tmp_path / "main.py").write_text(FLOW)

    ended = run("-m", "localflow", "run", "main.py", site=installed, cwd=tmp_path)

    shown = run("-m", "localflow", "show", "@last", "--json", site=installed, cwd=tmp_path)
    assert ended.returncode == 1, ended.stderr
    task_runs = json.loads(shown.stdout)["task_runs"]
    assert [task_run["state"]["name"] for task_run in task_runs] == ["Completed", "Failed"]
    assert {task_run["worker"] for task_run in task_runs} <= {f"crew2_{number}" for number in range(3)}
    assert (tmp_path / "runs.db").stat().st_mode & 0o077 == 0
    told = (tmp_path / "told.log").read_text().splitlines()
    assert [line.partition(" ")[2].partition(" of ")[0] for line in told] == ["divide-1", shown_name(shown.stdout)]


def shown_name(shown: str) -> str:
    """Return the name of the flow run that `show --json` has printed."""
    name: str = json.loads(shown)["name"]
    return name
