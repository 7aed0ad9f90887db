"""What every notifier must do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from localflow.interfaces import Cause, Notifier, Payload, StateChange, StateType
from localflow.testing.promises import belongs_to
from localflow.testing.stubs import make_change

_DEADLINE = 10.0

#: Returns what has arrived so far, one text for each notification.
Delivered = Callable[[], list[str]]


@belongs_to("delivery")
class NotifierContract:
    """Subclass it and give the two fixtures; what a notifier holds, it must release in `close`."""

    @pytest.fixture
    def notifier(self) -> Notifier:
        """Return a new notifier."""
        raise NotImplementedError("give a fixture `notifier` that returns a new notifier")

    @pytest.fixture
    def delivered(self) -> Delivered:
        """Return a function that returns what has arrived so far, one text for each notification."""
        raise NotImplementedError("give a fixture `delivered` that returns a function that lists what has arrived")

    @belongs_to("lifecycle")
    def test_is_a_notifier(self, notifier: Notifier) -> None:
        """It implements the interface."""
        assert isinstance(notifier, Notifier)

        tell(notifier)

    def test_tells_of_task_runs(self, notifier: Notifier, delivered: Delivered) -> None:
        """The name of the task run and its state arrive."""
        tell(notifier, make_change(StateType.CRASHED, task_run="add_project-1"))

        (text,) = arrived(delivered, 1)
        assert "add_project-1" in text
        assert "Crashed" in text

    def test_tells_of_flow_runs(self, notifier: Notifier, delivered: Delivered) -> None:
        """The name of the flow run and its state arrive."""
        tell(notifier, make_change(StateType.CANCELLED, "Interrupted", flow_run="witty-heron", task_run=None))

        (text,) = arrived(delivered, 1)
        assert "witty-heron" in text
        assert "Interrupted" in text

    def test_tells_each_change_once_and_in_order(self, notifier: Notifier, delivered: Delivered) -> None:
        """Several changes arrive one by one, as they happened."""
        names = [f"extract-{number}" for number in range(5)]

        tell(notifier, *(make_change(task_run=name) for name in names))

        texts = arrived(delivered, 5)
        assert [name for text, name in zip(texts, names, strict=True) if name in text] == names

    def test_takes_every_type_of_state(self, notifier: Notifier, delivered: Delivered) -> None:
        """It does not depend on which states it is configured for."""
        tell(notifier, *(make_change(type) for type in StateType))

        assert len(arrived(delivered, len(StateType))) == len(StateType)

    @belongs_to("discretion")
    def test_tells_no_values(self, notifier: Notifier, delivered: Delivered) -> None:
        """Parameters, arguments and results stay in the store."""
        change = make_change(StateType.COMPLETED, task_run=None)
        secret = Payload("json", b'"canary"')
        run = change.run.flow_run._replace(parameters={"token": "canary"}, arguments=secret)

        tell(notifier, change._replace(run=run, result=secret))

        (text,) = arrived(delivered, 1)
        assert "canary" not in text

    @belongs_to("safe_text")
    def test_takes_hostile_text(self, notifier: Notifier, delivered: Delivered) -> None:
        """Names and messages with control characters and broken Unicode arrive without them."""
        hostile = "\x1b]0;owned\x07\x9b2J\u202e\udcff\x00"
        cause = Cause("exception", hostile, hostile)

        tell(notifier, make_change(message=hostile, flow=hostile, flow_run=hostile, task_run=hostile, cause=cause))

        (text,) = arrived(delivered, 1)
        assert not {"\x1b", "\x07", "\x00", "\udcff"} & set(text)

    @belongs_to("safe_text")
    def test_takes_huge_messages(self, notifier: Notifier, delivered: Delivered) -> None:
        """A message of a megabyte is shortened."""
        tell(notifier, make_change(message="x" * 1_000_000))

        (text,) = arrived(delivered, 1)
        assert len(text) < 100_000

    @belongs_to("lifecycle")
    def test_leaves_no_thread_behind(self, notifier: Notifier) -> None:
        """After its close nothing of it is running."""
        before = set(threading.enumerate())

        tell(notifier, make_change())

        wait_until(lambda: set(threading.enumerate()) <= before)

    @belongs_to("lifecycle")
    def test_is_closed_without_having_told(self, notifier: Notifier, delivered: Delivered) -> None:
        """A run in which nothing happened that it wants to be told of ends like any other."""
        tell(notifier)

        assert delivered() == []


def tell(notifier: Notifier, *changes: StateChange) -> None:
    """Tell the notifier of changes and close it, as a run does: in a thread that did not make the notifier."""

    def tell_and_close() -> None:
        for change in changes:
            notifier.notify(change)
        notifier.close()

    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(tell_and_close).result()


def arrived(delivered: Delivered, count: int) -> list[str]:
    """Return what arrived as soon as it is `count` texts; fails when there are fewer in the end, or more."""
    wait_until(lambda: len(delivered()) >= count)
    texts = delivered()
    assert len(texts) == count
    return texts


def wait_until(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition()` holds; fails if it does not in time."""
    deadline = time.monotonic() + _DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
