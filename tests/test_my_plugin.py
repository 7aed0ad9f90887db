"""The sample plugin, installed for real: what its README says holds, and its own tests pass."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import localflow

SOURCE = Path(__file__).parents[1] / "examples" / "my_plugin"
LOCALFLOW = Path(localflow.__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the plugin and install it into a folder of its own, without the network."""
    pytest.importorskip("pip")
    pytest.importorskip("hatchling")
    source, target = tmp_path_factory.mktemp("source") / "my_plugin", tmp_path_factory.mktemp("installed")
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", str(target), str(source)]

    done = subprocess.run(pip, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder with the localflow.toml and the flow of the plugin's README."""
    blocks = dict(re.findall(r"```(toml|python)\n(.*?)```", (SOURCE / "README.md").read_text(), re.DOTALL))
    (tmp_path / "localflow.toml").write_text(blocks["toml"])
    (tmp_path / "double.py").write_text(blocks["python"])
    return tmp_path


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the plugin is installed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(LOCALFLOW)])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=False)


def test_flow_runs_on_the_plugin(installed: Path, project: Path) -> None:
    """The executor and the notifier that localflow.toml selects do what the README says."""
    done = run(installed, "double.py")

    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 2, 4]\n", "")
    events = [json.loads(line) for line in (project / "journal" / "events.jsonl").read_text().splitlines()]
    assert sorted(event["run_name"] for event in events if event["kind"] == "task_run") == [
        "double-0",
        "double-1",
        "double-2",
    ]
    assert [event["flow"] for event in events if event["kind"] == "flow_run"] == ["main"]
    assert {event["state"]["name"] for event in events} == {"Completed"}


def test_options_are_checked_against_the_plugin(installed: Path, project: Path) -> None:
    """A misspelt option of the plugin is an error of the configuration, with a suggestion, before anything runs."""
    settings = project / "localflow.toml"
    settings.write_text(settings.read_text().replace("niceness", "nicenes"))

    done = run(installed, "-m", "localflow", "run", "double.py")

    assert done.returncode == 2
    assert "[executors.background] unknown option 'nicenes'; did you mean 'niceness'?" in done.stderr
    assert not (project / "journal").exists()


def test_plugin_is_listed(installed: Path, project: Path) -> None:
    """`localflow plugins` names what it registers and the distribution it comes from."""
    done = run(installed, "-m", "localflow", "plugins", "--json")

    assert done.returncode == 0, done.stderr
    ours = [entry for entry in json.loads(done.stdout) if entry["distribution"] == "localflow-my-plugin"]
    assert {(entry["role"], entry["name"]) for entry in ours} == {("executor", "nice"), ("notifier", "file")}


def test_workers_are_shown(installed: Path, project: Path) -> None:
    """The name that the executor gives its workers is recorded."""
    run(installed, "double.py")

    done = run(installed, "-m", "localflow", "show", "@last", "--json")

    workers = {task_run["worker"] for task_run in json.loads(done.stdout)["task_runs"]}
    assert workers
    assert workers <= {"nice_0 (niceness 5)", "nice_1 (niceness 5)"}


def test_without_the_plugin_the_settings_are_refused(project: Path, tmp_path: Path) -> None:
    """Where it is not installed, the error lists what is."""
    done = run(tmp_path, "-m", "localflow", "run", "double.py")

    assert done.returncode == 2
    assert "unknown executor 'nice'; installed: " in done.stderr


@pytest.mark.parametrize("arguments", [("nice", "--only", "calls"), ("file", "-o", "path={file}")])
def test_it_holds_what_it_promises(installed: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """`localflow plugins check` finds nothing broken in what was installed."""
    done = run(installed, "-m", "localflow", "plugins", "check", *arguments, "--json")

    assert done.returncode == 0, done.stdout + done.stderr
    assert {each["verdict"] for each in json.loads(done.stdout)["capabilities"]} == {"held"}


def test_its_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    """The contracts that the plugin's tests subclass hold for what was installed."""
    shutil.copytree(SOURCE, tmp_path / "my_plugin", ignore=shutil.ignore_patterns("src", "__pycache__"))

    done = run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=my_plugin", "my_plugin")

    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
