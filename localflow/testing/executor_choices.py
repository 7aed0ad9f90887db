"""The part of an executor's contract that is about what it declares: each declaration is held to what it means."""

from __future__ import annotations

import fcntl
import threading
import time
from typing import TYPE_CHECKING

from localflow.states import TIMED_OUT
from localflow.testing import workloads
from localflow.testing.outcomes import OutcomeContract
from localflow.testing.promises import belongs_to

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localflow.interfaces import Executor
    from localflow.testing.running import CallRunner

DEADLINE = 10.0
TIMEOUT = 0.3
LONG = 30.0
"""How long a call would go on that nobody stops, in seconds."""
LATE = 10.0
"""How long one goes on that is to be given up."""


class ChoiceContract(OutcomeContract):
    """What an executor must do if it says so; part of `ExecutorContract`."""

    @belongs_to("shares_memory")
    def test_objects_are_the_very_same(self, runner: CallRunner) -> None:
        """With shared memory a call is given the very object, and its outcome has the very object it returned."""
        given = object()

        [outcome] = runner.run(runner.call(workloads.identity, given))

        assert outcome.state.result() is given

    @belongs_to("runs_in_caller")
    def test_a_call_runs_where_it_is_submitted(self, runner: CallRunner, executor: Executor) -> None:
        """The call runs in the submitting thread and is answered before `submit` returns."""
        call = runner.call(threading.get_ident)
        answered: list[int] = []

        def submit() -> None:
            executor.submit([call])
            answered.extend([outcome.state.result() for outcome in runner.outcomes] + [threading.get_ident()])

        thread = threading.Thread(target=submit)
        thread.start()
        thread.join()

        assert len(answered) == 2
        assert answered[0] == answered[1]

    @belongs_to("kills_on_timeout")
    def test_a_call_past_its_timeout_is_stopped(self, runner: CallRunner, tmp_path: Path) -> None:
        """Its code does not go on after the outcome: what it holds is let go long before it would have ended."""
        held = tmp_path / "held"
        call = runner.call(workloads.hold_lock, str(held), str(tmp_path / "release"), LONG)
        began_at = time.monotonic()

        [outcome] = runner.run(call._replace(timeout_seconds=TIMEOUT))

        assert outcome.state.name == TIMED_OUT
        eventually(lambda: not held.exists() or _is_free(held))
        assert time.monotonic() - began_at < LONG

    @belongs_to("gives_up_late_calls")
    def test_a_late_call_is_given_up_in_time(self, runner: CallRunner, tmp_path: Path) -> None:
        """It is answered at its timeout while its code still runs, and nothing more is reported of it."""
        begun, release = tmp_path / "begun", tmp_path / "release"
        call = runner.call(workloads.begin_and_wait, str(begun), str(release), LATE)
        began_at = time.monotonic()

        try:
            [outcome] = runner.run(call._replace(timeout_seconds=TIMEOUT))
            elapsed = time.monotonic() - began_at
        finally:
            release.touch()
        runner.run(runner.call(workloads.identity, 1))

        assert outcome.state.name == TIMED_OUT
        assert elapsed < LATE / 2
        assert len(runner.outcomes) == 2


def eventually(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition()` is true; fails if that takes too long."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)


def _is_free(path: Path) -> bool:
    """Return whether nobody holds the lock of a file."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
