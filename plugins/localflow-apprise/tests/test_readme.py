"""What the README says holds: its settings, its options and fields, and the message it shows."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import tomli
from localflow_apprise.notifier import AppriseNotifier
from localflow_apprise.wording import FIELDS

from localflow.interfaces import StateType
from localflow.project import Project
from localflow.testing import make_change

if TYPE_CHECKING:
    import pytest
    from conftest import Receiver

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_settings_are_valid(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """localflow takes the table, and apprise the addresses."""
    (settings,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (own_folder / "localflow.toml").write_text(settings)
    monkeypatch.setenv("OPS_SLACK_URL", "json://localhost/")

    Project.load().try_plugins()


def test_options_and_their_defaults_are_told() -> None:
    """The table has each option with its default, and no other."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", README, re.MULTILINE)

    told = {name: tomli.loads(f"it = {default[1:-1]}")["it"] for name, default in rows if default != "required"}

    parameters = inspect.signature(AppriseNotifier).parameters.values()
    assert [name for name, _ in rows] == [parameter.name for parameter in parameters]
    assert told == {each.name: each.default for each in parameters if each.default is not each.empty}


def test_fields_are_told() -> None:
    """The paragraph about templates names each field, and no other."""
    (paragraph,) = re.findall(r"^A template names fields in braces: (.*?)\. A brace", README, re.MULTILINE | re.DOTALL)

    assert set(re.findall(r"`(\w+)`", paragraph)) == set(FIELDS)


def test_message_looks_as_shown(receiver: Receiver) -> None:
    """A run that fails is told of in those words, but for the time it took."""
    (shown,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    title, _, body = shown.strip().partition("\n\n")
    change = make_change(
        StateType.FAILED, message=body.splitlines()[0], flow="Add Projects to DB", flow_run="swift-elk",
        task_run="add_project-1",
    )  # fmt: skip
    flow_run = change.run.flow_run._replace(host="build-7")

    AppriseNotifier([f"json://{receiver.address}/"]).notify(
        change._replace(run=change.run._replace(flow_run=flow_run))  # type: ignore[call-arg]
    )

    (message,) = receiver.messages
    assert message["title"] == title
    assert re.sub(r"after [\d.]+ s", "", message["message"]) == re.sub(r"after [\d.]+ s", "", body)
