"""Notifications: queues, deadlines and failures of notifiers."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import localflow
from localflow.interfaces import Notifier, StateChange, StateType
from localflow.notifications import Notifications, Subscription
from localflow.testing import RecordingNotifier, make_change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOGGER = "localflow.notifications"


class SlowNotifier(RecordingNotifier):
    """Waits in each call until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def notify(self, change: StateChange) -> None:
        """Remember the change and wait."""
        super().notify(change)
        self.released.wait()


@pytest.fixture
def slow() -> Iterator[SlowNotifier]:
    """Return a notifier that hangs until the end of the test."""
    notifier = SlowNotifier()
    yield notifier
    notifier.released.set()


@contextlib.contextmanager
def quickly(seconds: float = 1.0) -> Iterator[None]:
    """Fail if the block takes long."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return as soon as the condition holds, fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# -- telling ---------------------------------------------------------------------------------------------------------


def test_every_change_is_told_in_order() -> None:
    """What is published arrives completely by the end of `close`, which has nothing to complain of."""
    notifier = RecordingNotifier()
    notifications = Notifications([Subscription("ops", notifier)])
    changes = [make_change(sequence=number) for number in range(2, 502)]

    notifications.publish(changes[:300])
    notifications.publish(changes[300:])
    undelivered = notifications.close()

    assert notifier.changes == changes
    assert undelivered == 0


def test_every_notifier_is_told() -> None:
    """Several notifiers hear of the same change."""
    notifiers = [RecordingNotifier(), RecordingNotifier()]
    notifications = Notifications([Subscription(f"n{i}", notifier) for i, notifier in enumerate(notifiers)])

    notifications.publish([make_change()])
    notifications.close()

    assert [len(notifier.changes) for notifier in notifiers] == [1, 1]


def test_telling_does_not_wait_for_the_end() -> None:
    """A notifier hears of a change while the run goes on."""
    notifier = RecordingNotifier()
    notifications = Notifications([Subscription("ops", notifier)])

    notifications.publish([make_change()])

    assert notifier.wait_for_changes(1)
    notifications.close()


def test_no_thread_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with nothing to tell starts no thread, not even to end."""
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", started.append)
    notifications = Notifications([Subscription("ops", IdleNotifier(), on=frozenset({"Failed"}))])

    notifications.publish([make_change(StateType.COMPLETED)])
    notifications.close()

    assert started == []


class IdleNotifier(Notifier):
    """Has nothing to do and nothing to close."""

    def notify(self, change: StateChange) -> None:
        """Do nothing."""


@pytest.mark.parametrize("changes", [0, 1])
def test_notifiers_are_closed_at_the_end(changes: int) -> None:
    """A notifier can release what it holds, whether it was told something or not."""
    notifier = RecordingNotifier()
    notifications = Notifications([Subscription("ops", notifier)])

    notifications.publish([make_change()] * changes)
    notifications.close()

    assert notifier.is_closed


def test_closing_twice_is_harmless() -> None:
    """The second close has nothing to do, and changes after the end count as dropped."""
    notifier = RecordingNotifier()
    notifications = Notifications([Subscription("ops", notifier)])
    notifications.publish([make_change()])
    notifications.close()

    notifications.publish([make_change()])

    assert notifications.close() == 1
    assert len(notifier.changes) == 1


# -- filters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "type", "name", "is_told"),
    [
        (None, StateType.RUNNING, "Running", True),
        ({"Failed"}, StateType.FAILED, "Failed", True),
        ({"Failed"}, StateType.FAILED, "TimedOut", True),
        ({"TimedOut"}, StateType.FAILED, "TimedOut", True),
        ({"TimedOut"}, StateType.FAILED, "Failed", False),
        ({"Failed", "Crashed"}, StateType.CRASHED, "WorkerLost", True),
        ({"Failed"}, StateType.COMPLETED, "Completed", False),
        ({"NotReady"}, StateType.PENDING, "Pending", False),
        (set(), StateType.FAILED, "Failed", False),
    ],
)
def test_on_matches_names_and_types(on: set[str] | None, type: StateType, name: str, is_told: bool) -> None:
    """A state is wanted by its name or by its capitalised type, and `wants` knows it beforehand."""
    notifier = RecordingNotifier()
    notifications = Notifications([Subscription("ops", notifier, None if on is None else frozenset(on))])

    notifications.publish([make_change(type, name)])
    notifications.close()

    assert bool(notifier.changes) is is_told
    assert notifications.wants(name, type) is is_told


def test_wants_is_true_if_anybody_wants_it() -> None:
    """The engine prepares a change for the one notifier out of several that wants it."""
    subscriptions = [Subscription(on, RecordingNotifier(), frozenset({on})) for on in ("Failed", "TimedOut")]
    notifications = Notifications(subscriptions)

    assert notifications.wants("Failed", StateType.FAILED)
    assert not notifications.wants("Completed", StateType.COMPLETED)
    assert not Notifications([]).wants("Failed", StateType.FAILED)
    notifications.close()


@pytest.mark.parametrize(
    ("flows", "flow", "is_told"),
    [
        ({"etl"}, "etl", True),
        ({"etl"}, "report", False),
        ({"etl-*", "report"}, "etl-nightly", True),
        ({"etl-*"}, "ETL-nightly", False),
        ({"Add [x]"}, "Add [x]", True),
    ],
)
def test_flows_are_names_or_patterns(flows: set[str], flow: str, is_told: bool) -> None:
    """A flow is chosen by its very name, or by a pattern."""
    notifier = RecordingNotifier()
    notifications = Notifications([Subscription("ops", notifier, flows=frozenset(flows))])

    notifications.publish([make_change(flow=flow)])
    notifications.close()

    assert bool(notifier.changes) is is_told


def test_min_duration_keeps_short_runs_quiet() -> None:
    """Only runs that took at least so long are told."""
    notifier = RecordingNotifier()
    notifications = Notifications([Subscription("ops", notifier, min_duration=60.0)])
    changes = [make_change(seconds=seconds) for seconds in (59.0, 61.0)]

    notifications.publish(changes)
    notifications.close()

    assert notifier.changes == changes[1:]


def test_clock_set_back_hides_nothing() -> None:
    """A run that seems to have ended before it began is told like any other."""
    notifier = RecordingNotifier()
    notifications = Notifications([Subscription("ops", notifier)])

    notifications.publish([make_change(seconds=-100.0)])
    notifications.close()

    assert len(notifier.changes) == 1


# -- failing notifiers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit(3), KeyboardInterrupt()])
def test_failures_are_counted_and_logged_once(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a notifier raises, the next change is told too, and the log names it once."""
    notifier = RecordingNotifier(error)
    notifications = Notifications([Subscription("ops", notifier)])

    notifications.publish([make_change(), make_change(), make_change()])
    undelivered = notifications.close()

    assert undelivered == len(notifier.changes) == 3
    assert notifier.is_closed
    ((logger, level, line),) = caplog.record_tuples
    assert (logger, level) == (LOGGER, logging.ERROR)
    assert line.startswith(f"notifier 'ops' failed: {type(error).__name__}")


def test_failure_of_one_does_not_touch_another() -> None:
    """Notifiers do not know of each other."""
    good = RecordingNotifier()
    bad = RecordingNotifier(ValueError("boom"))
    notifications = Notifications([Subscription("bad", bad), Subscription("good", good)])

    notifications.publish([make_change(), make_change()])

    assert notifications.close() == 2
    assert len(good.changes) == 2


def test_error_text_cannot_forge_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Control characters in an exception's message are escaped."""
    notifications = Notifications([Subscription("ops", RecordingNotifier(ValueError("a\n\x1b[2Jb")))])

    notifications.publish([make_change()])
    notifications.close()

    assert r"ValueError: a\n\x1b[2Jb" in caplog.messages[0]


def test_traceback_is_there_for_who_asks(caplog: pytest.LogCaptureFixture) -> None:
    """At level DEBUG the author of a notifier sees where it failed."""
    caplog.set_level(logging.DEBUG, LOGGER)
    notifications = Notifications([Subscription("ops", RecordingNotifier(ValueError("boom")))])

    notifications.publish([make_change()])
    notifications.close()

    assert "Traceback" in caplog.text
    assert "raise self._error" in caplog.text


def test_failing_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A notifier whose close raises has delivered all the same."""

    class BadCloser(RecordingNotifier):
        def close(self) -> None:
            raise OSError("cannot close")

    notifications = Notifications([Subscription("ops", BadCloser())])
    notifications.publish([make_change()])

    assert notifications.close() == 0
    assert "notifier 'ops' failed: OSError: cannot close" in caplog.text


def test_unprintable_exception_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    """An exception whose `str()` raises is still counted and named."""

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    notifications = Notifications([Subscription("ops", RecordingNotifier(Unprintable()))])
    notifications.publish([make_change()])

    assert notifications.close() == 1
    assert "Unprintable" in caplog.text


# -- slow notifiers --------------------------------------------------------------------------------------------------


def test_publishing_does_not_wait_for_a_slow_notifier(slow: SlowNotifier) -> None:
    """Thousands of changes are published while the first is still being told."""
    notifications = Notifications([Subscription("ops", slow)])

    with quickly():
        notifications.publish([make_change()] * 5_000)

    slow.released.set()
    assert notifications.close() == 0
    assert len(slow.changes) == 5_000


def test_hanging_notifier_is_muted(slow: SlowNotifier, caplog: pytest.LogCaptureFixture) -> None:
    """After the deadline nothing more is told, with one warning, and the end of the run does not wait."""
    notifications = Notifications([Subscription("ops", slow)], deadline=0.5)

    wait_until(lambda: notifications.publish([make_change()]) or bool(caplog.messages))
    notifications.publish([make_change()] * 10)
    with quickly(0.4):
        undelivered = notifications.close()

    assert undelivered >= 12
    assert len(slow.changes) == 1
    assert caplog.messages == ["notifier 'ops' did not return within 0.5 seconds; it is told nothing more"]


def test_slow_notifier_is_muted_when_it_returns(caplog: pytest.LogCaptureFixture) -> None:
    """A call that exceeds the deadline is the last one, although it ends; the notifier is closed."""

    class Sluggish(RecordingNotifier):
        def notify(self, change: StateChange) -> None:
            super().notify(change)
            threading.Event().wait(0.1)

    notifier = Sluggish()
    notifications = Notifications([Subscription("ops", notifier)], deadline=0.05)

    notifications.publish([make_change()] * 3)
    wait_until(lambda: notifier.is_closed)

    assert notifications.close() == 2
    assert len(notifier.changes) == 1
    assert "did not return within 0.05 seconds" in caplog.text


def test_close_waits_no_longer_than_the_deadline(caplog: pytest.LogCaptureFixture) -> None:
    """Several hanging notifiers share one deadline at the end of the run, and each gets a warning."""
    notifiers = [SlowNotifier() for _ in range(4)]
    notifications = Notifications([Subscription(f"n{i}", n) for i, n in enumerate(notifiers)], deadline=0.3)
    notifications.publish([make_change()])

    with quickly(0.6):
        undelivered = notifications.close()

    assert undelivered == 4
    assert sum("did not finish within 0.3 seconds at the end of the run" in line for line in caplog.messages) == 4
    for notifier in notifiers:
        notifier.released.set()


def test_hanging_notifier_does_not_hold_up_another(slow: SlowNotifier) -> None:
    """Each notifier has its own thread."""
    good = RecordingNotifier()
    notifications = Notifications([Subscription("slow", slow), Subscription("good", good)], deadline=0.2)

    notifications.publish([make_change()] * 3)

    assert len(good.wait_for_changes(3)) == 3
    assert notifications.close() == 3


def test_full_queue_drops_the_newest(slow: SlowNotifier, caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit is dropped and counted, with one warning; what was waiting is told."""
    notifications = Notifications([Subscription("ops", slow)])
    notifications.publish([make_change(sequence=2)])
    slow.wait_for_changes(1)

    notifications.publish([make_change(sequence=number) for number in range(3, 12_003)])
    slow.released.set()
    undelivered = notifications.close()

    assert undelivered == 2_000
    assert [change.sequence for change in slow.changes] == list(range(2, 10_003))
    warnings = ["notifier 'ops' has 10000 notifications waiting; more are dropped until it catches up"]
    assert caplog.messages == warnings


def test_warnings_are_written_before_close_returns(slow: SlowNotifier) -> None:
    """A program that ends right after `close` has still said what went wrong, though its logging takes a while."""
    written: list[str] = []

    class Ponderous(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            threading.Event().wait(0.1)
            written.append(record.getMessage())

    handler = Ponderous()
    logging.getLogger(LOGGER).addHandler(handler)
    notifications = Notifications([Subscription("ops", slow)], deadline=0.05)
    notifications.publish([make_change()])

    notifications.close()
    logging.getLogger(LOGGER).removeHandler(handler)

    assert len(written) == 1


def test_hanging_log_handler_blocks_nobody(slow: SlowNotifier) -> None:
    """When the logging of the program is what hangs, publishing and closing still return."""
    entered, released = threading.Event(), threading.Event()

    class Hanging(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entered.set()
            released.wait()

    handler = Hanging()
    logging.getLogger(LOGGER).addHandler(handler)
    bad = RecordingNotifier(ValueError("boom"))
    notifications = Notifications([Subscription("slow", slow), Subscription("bad", bad)], deadline=0.1)
    try:
        notifications.publish([make_change()])
        entered.wait()
        with quickly():
            notifications.publish([make_change()] * 12_000)
        with quickly(2.0):
            notifications.close()
    finally:
        released.set()
        logging.getLogger(LOGGER).removeHandler(handler)


def test_program_ends_although_a_notifier_hangs() -> None:
    """The thread of an abandoned notifier does not keep the interpreter alive."""
    code = """if True:
        import time
        from localflow.interfaces import Notifier
        from localflow.notifications import Notifications, Subscription
        from localflow.testing import make_change

        class Hanging(Notifier):
            def notify(self, change):
                time.sleep(3600)

        notifications = Notifications([Subscription("ops", Hanging())], deadline=0.1)
        notifications.publish([make_change()])
        print(notifications.close())
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(localflow.__file__).parents[1])}

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30, check=False
    )

    assert (done.returncode, done.stdout) == (0, "1\n")
    assert done.stderr.startswith("notifier 'ops' did not finish within 0.1 seconds at the end of the run")


def test_publishing_from_several_threads_loses_nothing() -> None:
    """The counts are right whoever publishes."""
    notifier = RecordingNotifier()
    notifications = Notifications([Subscription("ops", notifier)])
    threads = [threading.Thread(target=notifications.publish, args=([make_change()] * 500,)) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert notifications.close() == 0
    assert len(notifier.changes) == 4_000
