"""The command line as a whole: exit codes, streams, what it imports, and what it does with wrong input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from localflow.version import __version__

if TYPE_CHECKING:
    from conftest import Cli


def test_version_and_help_are_data(cli: Cli) -> None:
    """They go to stdout with exit code 0; every verb is in the help."""
    version, overview, verb = cli("--version"), cli("--help"), cli("run", "-h")

    assert (version.returncode, version.stdout, version.stderr) == (0, f"localflow {__version__}\n", "")
    assert (overview.returncode, overview.stderr) == (0, "")
    for name in ("run", "runs", "show", "plugins", "config"):
        assert f"\n  {name} " in overview.stdout
    assert verb.stdout.startswith("Usage: localflow run [OPTIONS] FILE[:FLOW]\n")


def test_the_console_script_is_the_same_as_the_module() -> None:
    """Both end with the code that `main` returns."""
    script = Path(sys.executable).with_name("localflow")
    if not script.exists():
        pytest.skip("localflow is not installed beside this Python")

    done = subprocess.run([script, "show"], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr == "error: Missing argument 'RUN[/TASK]'.\ntry: localflow show --help\n"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["show", "--help"]])
def test_nothing_heavy_is_imported_to_answer_a_question(arguments: list[str]) -> None:
    """Whole libraries wait for the verb that needs them."""
    heavy = ["rich", "pluggy", "cloudpickle", "psutil", "sqlite3", "tomli", "asyncio", "localflow.project"]
    program = (
        "import sys; from localflow.cli import main; code = main(sys.argv[1:]); "
        f"loaded = sorted(set(sys.modules) & set({heavy})); sys.exit(f'loaded: {{loaded}}' if loaded else code)"
    )

    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Usage: localflow [OPTIONS] COMMAND"),
        (["config"], "Usage: localflow config [OPTIONS] COMMAND"),
        (["rnu"], "error: unknown command 'rnu'; did you mean 'run'?"),
        (["xyzzy"], "error: unknown command 'xyzzy'; try: localflow --help"),
        (["config", "shwo"], "error: unknown command 'shwo'; did you mean 'show'?"),
        (["--nonsense"], "error: No such option"),
        (["run"], "error: Missing argument 'FILE[:FLOW]'"),
        (["run", "missing.py"], "error: no such file: 'missing.py'"),
        (["run", "."], "error: '.' is a folder"),
        (["run", "flow.py:nope"], "error: 'flow.py' holds no flow 'nope'"),
        (["run", "broken.py"], "error: 'broken.py' is not valid Python"),
        (["run", "flow.py", "-p", "n"], "error: -p takes NAME=VALUE, not 'n'"),
        (["run", "flow.py", "-p", "=3"], "error: -p takes NAME=VALUE, not '=3'"),
        (["run", "flow.py", "-p", "n=1", "-p", "n=2"], "error: -p n is given twice"),
        (["run", "flow.py", "-p", "n=x"], "error: parameter 'n': expected int, got 'x'"),
        (["run", "flow.py", "-p", "m=1"], "error: flow 'main' has no parameter 'm'"),
        (["run", "flow.py"], "error: flow 'main' needs a value for n: -p n=VALUE"),
        (["run", "flow.py", "-p", "n=1", "-j", "0"], "error: Invalid value for '-j'"),
        (["run", "flow.py", "-p", "n=1", "--executor", "threat"], "unknown executor 'threat'; did you mean 'thread'?"),
        (["run", "flow.py", "-p", "n=1", "extra"], "error: Got unexpected extra argument"),
        (["run", "\x1b]0;x\x07\n.py"], r"error: no such file: '\x1b]0;x\x07\n.py'"),
        (["runs", "-n", "0"], "error: Invalid value for '-n'"),
        (["runs", "--jsno"], "error: No such option"),
        (["show", "@last"], "error: no flow run is recorded in "),
        (["show", "brave-otter", "--json"], "error: no flow run is recorded in "),
    ],
)
def test_wrong_input_is_exit_code_2_and_changes_nothing(
    cli: Cli, own_folder: Path, arguments: list[str], message: str
) -> None:
    """One message on stderr, no traceback, no state directory, no code of the user's run."""
    (own_folder / "flow.py").write_text("from localflow import flow\n@flow\ndef main(n: int): print('entered')\n")
    (own_folder / "broken.py").write_text("def f(:")
    before = sorted(own_folder.iterdir())

    done = cli(*arguments, PYTHONDONTWRITEBYTECODE="1")

    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert sorted(own_folder.iterdir()) == before


@pytest.mark.parametrize(
    ("settings", "environment", "messages"),
    [
        (
            'executor = "threat"\n[executors.process]\nworker = 1\n',
            {},
            [
                "localflow.toml:1: unknown executor 'threat'; did you mean 'thread'?",
                "localflow.toml:3: [executors.process] unknown option 'worker'; did you mean 'workers'?",
            ],
        ),
        ("x = [", {}, ["localflow.toml:1:"]),
        ("", {"LOCALFLOW_STORE": "sqlitte"}, ["LOCALFLOW_STORE: unknown state store 'sqlitte'"]),
        ("", {"LOCALFLOW_NONSENSE": "1"}, ["LOCALFLOW_NONSENSE: unknown variable"]),
    ],
)
def test_wrong_settings_stop_a_run_before_it_begins(
    cli: Cli, own_folder: Path, settings: str, environment: dict[str, str], messages: list[str]
) -> None:
    """All mistakes at once, each with its place; not even the user's file is executed."""
    (own_folder / "localflow.toml").write_text(settings)
    (own_folder / "flow.py").write_text("open('executed', 'w').close()")

    done = cli("run", "flow.py", **environment)

    assert done.returncode == 2
    assert done.stdout == ""
    assert [line[: len(message)] for line, message in zip(done.stderr.splitlines(), messages, strict=False)] == messages
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in own_folder.iterdir()) == ["flow.py", "localflow.toml"]


@pytest.mark.parametrize("verb", ["runs", "show @last", "config show", "config validate"])
def test_wrong_settings_stop_every_other_verb_too(cli: Cli, own_folder: Path, verb: str) -> None:
    """`config show` cannot say what is in force either."""
    (own_folder / "localflow.toml").write_text("\nexecuter = 1\n")

    done = cli(*verb.split())

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "localflow.toml:2: unknown key 'executer'; did you mean 'executor'?\n"


def test_a_reader_that_has_seen_enough_is_no_error(own_folder: Path) -> None:
    """`localflow plugins | head -1` ends quietly."""
    reading, writing = os.pipe()
    os.close(reading)

    done = subprocess.run(
        [sys.executable, "-m", "localflow", "plugins"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", "> /dev/null"])
def test_closed_streams_do_no_harm(own_folder: Path, redirection: str) -> None:
    """A verb that succeeds still exits with 0."""
    command = f'"{sys.executable}" -m localflow plugins {redirection}'

    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert "Traceback" not in done.stderr
