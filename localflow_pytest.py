"""Fixtures for the tests of flows and of plugins; pytest finds them by itself wherever localflow is installed.

    def test_totals(localflow_run):
        run = localflow_run(totals, [1, 2])

        assert run.state.is_completed()
        assert run.history("add-0") == ["Pending", "Running", "Completed"]

What flows of a test run on, and where their states go, are fixtures as well: a test module or a conftest.py that has a
fixture `localflow_executor` or `localflow_store` of its own has its flows use that, so a plugin's tests do not differ
from a flow's. Nothing here is done unless a test asks for it, and nothing is imported before.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from localflow.interfaces import Executor, StateStore
    from localflow.testing.flow_tests import FlowRunner

_KEPT = "LOCALFLOW_DISABLE_PLUGINS"


@pytest.fixture
def localflow_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the test works in, without settings: neither a localflow.toml nor variables.

    `LOCALFLOW_DISABLE_PLUGINS` alone stays: it says what is wrong with what is installed, not how flows are to run.
    """
    for name in [name for name in os.environ if name.startswith("LOCALFLOW_") and name != _KEPT]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def localflow_store(localflow_folder: Path) -> Iterator[StateStore]:
    """The state store of the test's flows, in memory; override it to have them use another one."""
    from localflow.builtin.memory import MemoryStateStore

    store = MemoryStateStore()
    yield store
    store.close()


@pytest.fixture
def localflow_executor() -> str | Executor | None:
    """What the test's flows and tasks run on: a name, an executor or, for what they name themselves, None."""
    return "sequential"


@pytest.fixture
def localflow_run(
    localflow_folder: Path, localflow_store: StateStore, localflow_executor: str | Executor | None
) -> Iterator[FlowRunner]:
    """Runs a flow with arguments and gives its final state with what was recorded; async flows, too."""
    from localflow.testing.flow_tests import FlowRunner
    from localflow.testing.harness import harness

    with harness(localflow_executor, localflow_store) as runs:
        yield FlowRunner(runs)


@pytest.fixture
def localflow_no_leaks() -> Iterator[None]:
    """Fails a test that leaves processes, threads or open files behind.

    For a whole module: `pytestmark = pytest.mark.usefixtures("localflow_no_leaks")`.
    """
    from localflow.testing.leaks import LeakError, no_leaks

    try:
        with no_leaks():
            yield
    except LeakError as error:
        pytest.fail(str(error), pytrace=False)
