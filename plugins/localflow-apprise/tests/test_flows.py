"""Flows with the settings of a user, in processes of their own: who is told, and what is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Receiver

SETTINGS = """
[notifiers.ops]
type = "apprise"
urls = ["env:OPS_URL", "json://{address}/canary-path"]
title = "{{run}} is {{state}}"
on = ["Failed"]
"""
FLOW = """
from localflow import flow, task

@task
def divide(number):
    return 1 / number

@flow
def main(number: float):
    divide(number)
"""


@pytest.fixture
def project(own_folder: Path, receiver: Receiver) -> Path:
    """Return a folder with a flow and the settings, one address of which comes from the environment."""
    (own_folder / "localflow.toml").write_text(SETTINGS.format(address=receiver.address))
    (own_folder / "main.py").write_text(FLOW)
    return own_folder


def localflow(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of localflow to its end."""
    command = [sys.executable, "-m", "localflow", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=50, check=False
    )


def test_flow_tells_of_what_failed(project: Path, receiver: Receiver) -> None:
    """Both addresses are told of the task run and the flow run that failed, and of nothing that did not."""
    url = f"json://{receiver.address}/from-environment"

    good = localflow("run", "main.py", "-p", "number=1", OPS_URL=url)
    bad = localflow("run", "main.py", "-p", "number=0", OPS_URL=url)

    assert (good.returncode, bad.returncode) == (0, 1), good.stderr + bad.stderr
    told = sorted(zip(receiver.paths, (message["title"] for message in receiver.messages), strict=True))
    flow_run = json.loads(localflow("show", "@last", "--json", OPS_URL=url).stdout)["name"]
    assert told == sorted(
        (path, f"{run} is Failed") for path in ("/canary-path", "/from-environment") for run in ("divide-0", flow_run)
    )


def test_failing_delivery_is_logged_and_changes_nothing(project: Path, receiver: Receiver) -> None:
    """The run ends as it would, and what is logged has nothing of the addresses."""
    receiver.statuses["/canary-path"] = 500
    url = f"json://canary-user:hunter2@{receiver.address}/"

    done = localflow("run", "main.py", "-p", "number=0", OPS_URL=url)

    assert done.returncode == 1
    assert "notifier 'ops' failed: DeliveryError: urls[1] (json://***): Failed to send JSON" in done.stderr
    assert [secret for secret in ("canary", "hunter2", receiver.address) if secret in done.stdout + done.stderr] == []


def test_settings_are_shown_without_addresses(project: Path, receiver: Receiver) -> None:
    """`config show` masks them, those that stand in the file as well."""
    url = f"json://{receiver.address}/hunter2"

    shown = localflow("config", "show", OPS_URL=url)
    as_json = localflow("config", "show", "--json", OPS_URL=url)

    assert 'notifiers.ops.urls = "***"' in shown.stdout
    assert json.loads(as_json.stdout)["notifiers.ops.urls"] == "***"
    for printed in (shown, as_json):
        assert "canary" not in printed.stdout + printed.stderr
        assert "hunter2" not in printed.stdout + printed.stderr


@pytest.mark.parametrize(
    ("urls", "told"),
    [
        ('["slack://hunter2/canary"]', "[notifiers.ops] urls[0] (slack://***) is none of the addresses"),
        ('"json://hunter2/canary"', "[notifiers.ops] urls must be an array of strings, got *** (string)"),
        ("[]", "[notifiers.ops] urls is empty"),
        ('["env:OPS_URL"]', "[notifiers.ops] urls: environment variable OPS_URL is not set"),
    ],
)
def test_mistakes_are_told_before_anything_runs(own_folder: Path, urls: str, told: str) -> None:
    """A wrong address is an error of the configuration, with file and line, and is not repeated."""
    (own_folder / "localflow.toml").write_text(f'[notifiers.ops]\ntype = "apprise"\nurls = {urls}\n')

    done = localflow("config", "validate")

    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.startswith("localflow.toml:")
    assert "hunter2" not in done.stderr
    assert "canary" not in done.stderr
