"""The notifier `log`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import localflow
from localflow.builtin.log import LogNotifier
from localflow.interfaces import Notifier, StateType
from localflow.testing import NotifierContract, make_change

if TYPE_CHECKING:
    from collections.abc import Callable


class TestContract(NotifierContract):
    @pytest.fixture
    def notifier(self) -> Notifier:
        """Log to the logging of the test."""
        return LogNotifier()

    @pytest.fixture
    def delivered(self, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
        """Read the log."""
        caplog.set_level(logging.INFO, "localflow")
        return lambda: [record.getMessage() for record in caplog.records]


def test_line_of_a_task_run(caplog: pytest.LogCaptureFixture) -> None:
    """The line names the task run, its flow run, the state and its message."""
    message = "Task run encountered an exception: IntegrityError: CHECK constraint failed"

    LogNotifier().notify(make_change(task_run="add_project-1", message=message))

    assert caplog.messages == [f"task run 'add_project-1' of flow run 'brave-otter' is Failed: {message}"]


def test_line_of_a_flow_run(caplog: pytest.LogCaptureFixture) -> None:
    """A flow run is named alone; without a message there is no colon."""
    LogNotifier().notify(make_change(task_run=None))

    assert caplog.messages == ["flow run 'brave-otter' is Failed"]


@pytest.mark.parametrize(
    ("type", "name", "level"),
    [
        (StateType.FAILED, "Failed", logging.ERROR),
        (StateType.FAILED, "TimedOut", logging.ERROR),
        (StateType.CRASHED, "WorkerLost", logging.ERROR),
        (StateType.CRASHED, "EngineLost", logging.INFO),  # the flow run is told of as an error
        (StateType.CANCELLED, "Cancelled", logging.WARNING),
        (StateType.PENDING, "NotReady", logging.WARNING),
        (StateType.PENDING, "Pending", logging.INFO),
        (StateType.RUNNING, "Running", logging.INFO),
        (StateType.COMPLETED, "Completed", logging.INFO),
    ],
)
def test_level_follows_the_state(caplog: pytest.LogCaptureFixture, type: StateType, name: str, level: int) -> None:
    """What failed is an error, what was stopped or is blocked a warning, the rest an information."""
    caplog.set_level(logging.INFO, "localflow")

    LogNotifier().notify(make_change(type, name))

    assert [(record.name, record.levelno) for record in caplog.records] == [("localflow", level)]


def test_stays_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A message of several lines cannot pass for several entries."""
    LogNotifier().notify(make_change(message="first\ntask run 'x' is Completed", task_run="a\rb"))

    (line,) = caplog.messages
    assert line == r"task run 'a\rb' of flow run 'brave-otter' is Failed: first\ntask run 'x' is Completed"


def test_sets_up_no_logging() -> None:
    """In a program without logging, errors come out on stderr by themselves and the root logger stays bare."""
    code = """if True:
        import logging
        from localflow.builtin.log import LogNotifier
        from localflow.interfaces import StateType
        from localflow.testing import make_change
        LogNotifier().notify(make_change())
        LogNotifier().notify(make_change(StateType.COMPLETED))
        assert not logging.getLogger().handlers and not logging.getLogger("localflow").handlers
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(localflow.__file__).parents[1])}

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert done.stderr == "task run 'load-0' of flow run 'brave-otter' is Failed\n"
    assert done.returncode == 0
