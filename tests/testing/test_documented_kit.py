"""docs/testing.md says what is true: its tests pass, and its tables are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from localflow import testing
from localflow.capabilities import CAPABILITIES
from localflow.testing import Fault
from localflow.testing.checked.mailbox import PLACEHOLDERS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
MODULES = dict(re.findall(r"```python\n# (test_\w+\.py)\n(.*?)```", DOCUMENT, re.DOTALL))


def rows(first_column: str) -> list[list[str]]:
    """Return the rows of the table whose header begins with `first_column`."""
    table = DOCUMENT.partition(f"\n| {first_column} |")[2].split("\n\n")[0]
    return [[cell.strip().strip("`") for cell in line[1:-1].split("|")] for line in table.splitlines()[2:]]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", MODULES)
def test_modules_of_tests_pass(name: str) -> None:
    """Every test that is shown passes as it stands."""
    Path(name).write_text(MODULES[name])

    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("role", CAPABILITIES)
def test_capabilities_are_those_of_the_contracts(role: str) -> None:
    """Every capability is in the table of its role with its promise, and it is said whether all must hold it."""
    article = "an" if role == "executor" else "a"
    told = [(name, promise, by == "all") for name, by, promise in rows(f"of {article} `{role}`")]

    assert told == [(each.name, each.promise, each.is_required) for each in CAPABILITIES[role]]


def test_faults_are_those_there_are() -> None:
    """Every fault is in the table, and no other is."""
    exported = {name for name in testing.__all__ if isinstance(getattr(testing, name), type)}
    faults = {name for name in exported if issubclass(getattr(testing, name), Fault)} - {"Fault"}

    assert {name for name, *_ in rows("fault")} == faults


def test_fixtures_are_those_there_are() -> None:
    """Every fixture of the plugin is in the table, and no other is."""
    source = (Path(__file__).parents[2] / "localflow_pytest.py").read_text()

    assert {name for name, *_ in rows("fixture")} == set(re.findall(r"^def (localflow_\w+)", source, re.MULTILINE))


def test_placeholders_are_told() -> None:
    """What stands for places of the check is spoken of."""
    assert [placeholder for placeholder in PLACEHOLDERS if placeholder not in DOCUMENT] == []
