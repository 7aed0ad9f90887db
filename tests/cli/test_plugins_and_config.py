"""`localflow plugins` and `localflow config` show what is installed and what is in force."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Cli

SETTINGS = """
executor = "thread"
[executors.thread]
workers = 3
[notifiers.ops]
type = "webhook"
url = "https://user:hunter2@example.org/hook?key=hunter2"
"""


@pytest.fixture
def broken_plugin(own_folder: Path) -> dict[str, str]:
    """Install a plugin whose import fails, and return the environment in which it is found."""
    site = own_folder / "site"
    metadata = site / "acme_plugin-2.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-plugin\nVersion: 2.0\n")
    (metadata / "entry_points.txt").write_text("[localflow]\nacme = acme_plugin\n")
    (site / "acme_plugin.py").write_text("import no_such_module_anywhere")
    return {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}


def test_plugins_lists_every_name_with_its_distribution(cli: Cli, read_json: Any) -> None:
    """As a table, and as JSON."""
    table = cli("plugins")
    listing = read_json("plugins")

    lines = [line.split() for line in table.stdout.splitlines()]
    assert lines[0] == ["ROLE", "NAME", "PLUGIN", "DISTRIBUTION", "VERSION", "CAPABILITIES"]
    assert [(each["role"], each["name"]) for each in listing] == [
        ("executor", "futures"), ("executor", "process"), ("executor", "sequential"), ("executor", "thread"),
        ("state store", "json"), ("state store", "memory"), ("state store", "sqlite"),
        ("notifier", "command"), ("notifier", "log"), ("notifier", "webhook"),
    ]  # fmt: skip
    assert {each["distribution"] for each in listing} == {"localflow-engine"}
    assert len(lines) == 1 + len(listing)


def test_a_broken_plugin_is_named_with_its_reason(cli: Cli, broken_plugin: dict[str, str]) -> None:
    """In the table, and with JSON on stderr as well; the others are listed as ever."""
    done = cli("plugins", "--json", **broken_plugin)
    table = cli("plugins", **broken_plugin)

    assert done.returncode == 0
    assert done.stderr.startswith("warning: plugin 'acme' of distribution 'acme-plugin' failed to load:")
    assert "no_such_module_anywhere" in done.stderr
    assert '"problem": "plugin \'acme\' of distribution' in done.stdout
    assert '"name": "sequential"' in done.stdout
    [row] = [line for line in table.stdout.splitlines() if "acme-plugin" in line]
    assert "cannot be used: plugin 'acme' of distribution 'acme-plugin' failed to load: ModuleNotFoundError" in row


def test_config_validate_warns_of_broken_plugins_that_nobody_needs(cli: Cli, broken_plugin: dict[str, str]) -> None:
    """The settings are valid all the same."""
    done = cli("config", "validate", **broken_plugin)

    assert (done.returncode, done.stdout) == (0, "there is no localflow.toml here; the defaults are valid\n")
    assert done.stderr.startswith("warning: plugin 'acme' of distribution 'acme-plugin' failed to load:")


def test_config_show_prints_what_is_in_force(cli: Cli, own_folder: Path, read_json: Any) -> None:
    """Defaults too, secrets masked."""
    (own_folder / "localflow.toml").write_text(SETTINGS)

    shown = cli("config", "show")
    values = read_json("config", "show")

    assert 'executor = "thread"\n' in shown.stdout
    assert "executors.thread.workers = 3\n" in shown.stdout
    assert "hunter2" not in shown.stdout + str(values)
    assert values["executors.thread.workers"] == 3
    assert values["store"] == "sqlite"
    assert len(shown.stdout.splitlines()) == len(values)


def test_config_show_origin_says_where_each_value_comes_from(cli: Cli, own_folder: Path) -> None:
    """A file with its line, a variable, or the default."""
    (own_folder / "localflow.toml").write_text(SETTINGS)

    done = cli("config", "show", "--origin", LOCALFLOW_STORE="memory")

    origins = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()}
    assert origins["executor"] == "localflow.toml:2"
    assert origins["executors.thread.workers"] == "localflow.toml:4"
    assert origins["store"] == "LOCALFLOW_STORE"
    assert origins["notifiers.log.on"] == "default"


def test_config_show_origin_as_json(read_json: Any) -> None:
    """The value and its origin side by side."""
    values = read_json("config", "show", "--origin")

    assert values["executor"] == {"value": "sequential", "origin": "default"}


def test_config_validate_says_that_all_is_well(cli: Cli, own_folder: Path) -> None:
    """It names the file that it read, from a folder below as well, or says that there is none."""
    without = cli("config", "validate")
    (own_folder / "localflow.toml").write_text(SETTINGS)
    with_file = cli("config", "validate")

    assert (without.returncode, without.stdout) == (0, "there is no localflow.toml here; the defaults are valid\n")
    assert (with_file.returncode, with_file.stdout) == (0, "localflow.toml is valid\n")
