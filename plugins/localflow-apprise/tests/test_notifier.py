"""The notifier `apprise` against a real receiver: it keeps the contract, says what it should, and hides addresses."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import pytest
from localflow_apprise.notifier import AppriseNotifier

from localflow.events import DeliveryError
from localflow.interfaces import StateType
from localflow.testing import NotifierContract, make_change

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Receiver

    from localflow.interfaces import Notifier


class TestContract(NotifierContract):
    """What localflow asks of every notifier."""

    @pytest.fixture
    def notifier(self, receiver: Receiver) -> Notifier:
        """Send to the receiver."""
        return AppriseNotifier([f"json://{receiver.address}/"])

    @pytest.fixture
    def delivered(self, receiver: Receiver) -> Callable[[], list[str]]:
        """Return what lists the title and text of what has arrived."""
        return lambda: [f"{message['title']}\n{message['message']}" for message in receiver.messages]


# -- what is said ----------------------------------------------------------------------------------------------------


def test_title_and_text_tell_what_happened(receiver: Receiver) -> None:
    """The title names run and state, the text has the message, the flow and where it ran."""
    notifier = AppriseNotifier([f"json://{receiver.address}/"])

    notifier.notify(
        make_change(StateType.FAILED, message="ValueError: boom", flow="etl", flow_run="witty-heron", task_run="load-0")
    )

    (message,) = receiver.messages
    assert message["title"] == "task run 'load-0' is Failed"
    assert message["message"].splitlines()[0] == "ValueError: boom"
    assert "task run 'load-0' of flow run 'witty-heron' of 'etl' on " in message["message"]


@pytest.mark.parametrize(
    ("type", "name", "expected"),
    [
        (StateType.COMPLETED, "Completed", "success"),
        (StateType.FAILED, "TimedOut", "failure"),
        (StateType.CRASHED, "WorkerLost", "failure"),
        (StateType.CANCELLED, "Interrupted", "warning"),
        (StateType.PENDING, "NotReady", "warning"),
        (StateType.RUNNING, "Retrying", "info"),
    ],
)
def test_kind_of_the_message_is_that_of_the_state(
    receiver: Receiver, type: StateType, name: str, expected: str
) -> None:
    """Services show failures, warnings and successes as such."""
    AppriseNotifier([f"json://{receiver.address}/"]).notify(make_change(type, name))

    assert [message["type"] for message in receiver.messages] == [expected]


def test_templates_are_filled(receiver: Receiver) -> None:
    """Title and text are what the options say, with fields in their places and doubled braces as one."""
    notifier = AppriseNotifier(
        [f"json://{receiver.address}/"], title="{flow_run}: {state}", body="{{{task}}} at attempt {attempt}\n{message}"
    )

    notifier.notify(make_change(StateType.CRASHED, flow_run="witty-heron", task_run="load-0", message="gone"))

    (message,) = receiver.messages
    assert message["title"] == "witty-heron: Crashed"
    assert message["message"] == "{load} at attempt 1\ngone"


def test_message_without_text_is_sent(receiver: Receiver) -> None:
    """A template that comes out empty leaves the title as the text."""
    AppriseNotifier([f"json://{receiver.address}/"], body="").notify(make_change(task_run="load-0"))

    (message,) = receiver.messages
    assert "load-0" in message["message"]


def test_names_are_escaped(receiver: Receiver) -> None:
    """What a terminal would act on is written out; a message keeps its lines."""
    notifier = AppriseNotifier([f"json://{receiver.address}/"])

    notifier.notify(make_change(StateType.FAILED, task_run="a\nb\x1b[31m", message="one\ntwo\u202e"))

    (message,) = receiver.messages
    assert message["title"] == r"task run 'a\nb\x1b[31m' is Failed"
    assert message["message"].splitlines()[:2] == ["one", r"two\u202e"]


def test_markup_of_names_is_no_markup(receiver: Receiver) -> None:
    """A service that takes HTML gets names with its special characters escaped."""
    notifier = AppriseNotifier([f"json://{receiver.address}/?format=html"])

    notifier.notify(make_change(StateType.FAILED, message="<script>alert(1)</script>"))

    (message,) = receiver.messages
    assert "<script>" not in message["message"]
    assert "&lt;script&gt;" in message["message"]


# -- several addresses -----------------------------------------------------------------------------------------------


def test_all_addresses_are_told(receiver: Receiver) -> None:
    """Each gets the message once."""
    notifier = AppriseNotifier([f"json://{receiver.address}/{name}" for name in "abc"])

    notifier.notify(make_change())

    assert sorted(receiver.paths) == ["/a", "/b", "/c"]


def test_a_slow_address_does_not_hold_up_the_others(receiver: Receiver) -> None:
    """While one does not answer, the others have the message already."""
    receiver.gate.clear()
    notifier = AppriseNotifier([f"json://{receiver.address}/{name}" for name in ("a", "held", "b")])
    telling = threading.Thread(target=notifier.notify, args=[make_change()])

    telling.start()
    _wait_until(lambda: sorted(receiver.paths) == ["/a", "/b"])
    was_waiting = telling.is_alive()
    receiver.gate.set()
    telling.join()

    assert was_waiting


def test_failure_of_one_address_is_told_and_the_others_get_it(receiver: Receiver) -> None:
    """The error says which address did not take it, by its place, and why."""
    receiver.statuses["/bad"] = 500
    notifier = AppriseNotifier([f"json://{receiver.address}/{name}" for name in ("good", "bad", "fine")])

    with pytest.raises(DeliveryError) as caught:
        notifier.notify(make_change())

    assert str(caught.value).startswith("urls[1] (json://***): Failed to send JSON POST notification:")
    assert "500" in str(caught.value)
    assert sorted(receiver.paths) == ["/bad", "/fine", "/good"]


def test_delivery_can_succeed_after_a_failure(receiver: Receiver) -> None:
    """A failure is of that message alone."""
    receiver.statuses["/hook"] = 503
    notifier = AppriseNotifier([f"json://{receiver.address}/hook"])
    with pytest.raises(DeliveryError):
        notifier.notify(make_change())
    receiver.statuses.clear()

    notifier.notify(make_change())

    assert len(receiver.bodies) == 2


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_failing_delivery_shows_no_secret(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing of an address is in the error or its causes, nor is anything logged, however much is asked for."""
    caplog.set_level(1)
    logging.getLogger("apprise").setLevel(1)
    secrets = ["hunter2", "canary-path", "canary-header", "canary-parameter", "canary-user"]
    user, password, path, header, parameter = (secrets[index] for index in (4, 0, 1, 2, 3))
    receiver.statuses[f"/{path}?token={parameter}"] = 500
    url = f"json://{user}:{password}@{receiver.address}/{path}?+X-Key={header}&-token={parameter}"
    notifier = AppriseNotifier([url])

    with pytest.raises(DeliveryError) as caught:
        notifier.notify(make_change())

    shown = f"{caught.value} {caught.value.__cause__} {caught.value.__context__} {caplog.text} {capfd.readouterr()}"
    assert [secret for secret in [*secrets, receiver.address] if secret in shown] == []
    assert receiver.paths == [f"/{path}?token={parameter}"]


def test_unreachable_host_is_not_shown(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """Where nobody listens the error says so without the address."""
    caplog.set_level(1)
    address = receiver.address
    receiver.server_close()

    with pytest.raises(DeliveryError, match=r"^urls\[0\] \(json://\*\*\*\): A Connection error occurred") as caught:
        AppriseNotifier([f"json://{address}/hook"]).notify(make_change())

    assert "127.0.0.1" not in f"{caught.value}{caplog.text}"


def test_logs_of_others_go_on(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """What a program logs by apprise itself is its own affair."""
    AppriseNotifier([f"json://{receiver.address}/"]).notify(make_change())

    logging.getLogger("apprise").warning("mine")

    assert "mine" in caplog.text


# -- what is refused before anything runs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("no-such-service://hunter2/canary", "urls[1] (no-such-service://***)"),
        ("hunter2 canary", "urls[1]"),
        ("", "urls[1]"),
        ("slack://hunter2/canary", "urls[1] (slack://***)"),
        ("json://", "urls[1] (json://***)"),
    ],
)
def test_address_that_apprise_does_not_take_is_refused(url: str, label: str, caplog: pytest.LogCaptureFixture) -> None:
    """The error names its place among the others and nothing of it."""
    caplog.set_level(1)

    with pytest.raises(ValueError, match="is none of the addresses that apprise takes") as caught:
        AppriseNotifier(["json://localhost/", url])

    assert str(caught.value).startswith(f"{label} is none of the addresses")
    assert "hunter2" not in f"{caught.value}{caplog.text}"
    assert "canary" not in f"{caught.value}{caplog.text}"


def test_no_address_is_refused() -> None:
    """Without an address nobody would be told."""
    with pytest.raises(ValueError, match="urls is empty; name at least one address"):
        AppriseNotifier([])


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{runs} ended", r"body names an unknown field \{runs\}; did you mean 'run'"),
        ("{run.__class__}", r"body names an unknown field \{run.__class__\}"),
        ("{} ended", r"body names an unknown field \{\}"),
        ("{run!r}", r"body must name \{run\} alone"),
        ("{duration:.3f}", r"body must name \{duration\} alone"),
        ("{run", "body is no template"),
    ],
)
def test_wrong_template_is_refused(template: str, told: str) -> None:
    """Templates name fields and nothing else."""
    with pytest.raises(ValueError, match=told):
        AppriseNotifier(["json://localhost/"], body=template)


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
