"""The plugin of pytest by which a check is run: makes the subject, and reports each test as a line of JSON.

The lines are written as it goes, so that a check of which a plugin kills the process, or which it keeps from ending, is
known up to there.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from localflow.states import type_and_text
from localflow.testing.checked.mailbox import Mailbox
from localflow.testing.checked.subject import Order, Subject, error_of
from localflow.testing.promises import capability_of
from localflow.testing.stubs import make_change

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

OPTION = "--localflow-check"
_REASON_LIMIT = 2_000
_LOG_DEADLINE = 2.0

_key: pytest.StashKey[_Check] = pytest.StashKey()


class _Check:
    """The check of this process."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.folder = tempfile.TemporaryDirectory(prefix="localflow-check-")
        self.mailbox = Mailbox(Path(self.folder.name))
        self.subject: Subject | None = None
        self._has_listened = False
        self._report = os.open(order.report, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def tell(self, **fields: object) -> None:
        """Write a line."""
        os.write(self._report, json.dumps(fields).encode() + b"\n")

    def begin(self) -> None:
        """Make the subject once, and tell what it promises."""
        place = Path(self.folder.name) / "first"
        place.mkdir()
        self.subject = Subject(self.order, self.mailbox)
        self.tell(promises=self.subject.promises(place))

    def find_delivery(self) -> None:
        """Take the log for what the notifier delivers to, if one notification arrives there.

        To be called from within a test, once it has begun: whatever the notifier does then is told of that test.
        """
        if self._has_listened or self.mailbox.is_addressed:
            return
        assert self.subject is not None
        self.mailbox.listen_to_log()
        notifier = self.subject.notifier()
        try:
            try:
                notifier.notify(make_change())
            finally:
                notifier.close()
        except (Exception, SystemExit) as error:
            self.mailbox.forget_log()
            pytest.fail(
                f"notify raised {type_and_text(error)}; have it deliver to the check by {{http}}, {{file}} or "
                "{command} in an option, in the place of where it delivers to now",
                pytrace=False,
            )
        self._has_listened = True
        deadline = time.monotonic() + _LOG_DEADLINE
        while not self.mailbox.delivered() and time.monotonic() < deadline:
            time.sleep(0.01)
        if not self.mailbox.delivered():
            self.mailbox.forget_log()

    def end(self) -> None:
        """Let everything go."""
        self.mailbox.close()
        self.folder.cleanup()
        os.close(self._report)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the file with the order."""
    parser.addoption(OPTION, required=True, help="the file that says what is checked")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin the check; what keeps it from beginning is told, and ends it."""
    check = session.config.stash[_key] = _Check(Order.read(session.config.getoption(OPTION)))
    try:
        check.begin()
    except Exception as error:
        check.tell(**error_of(error))
        pytest.exit("it cannot be checked", returncode=2)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the check."""
    check = session.config.stash.get(_key, None)
    if check is not None:
        check.end()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell which tests there are, and leave out those that are done."""
    check = config.stash[_key]
    items[:] = [item for item in items if capability_of(_function(item)) in check.order.only]
    check.tell(tests=[[item.nodeid, capability_of(_function(item)), _sentence(item)] for item in items])
    items[:] = [item for item in items if item.nodeid not in check.order.done]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tell which test begins, and that it has ended."""
    check = item.config.stash[_key]
    check.tell(begun=item.nodeid)
    yield
    check.tell(ended=item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell how each part of a test went; the parts are its fixtures, the test, and its fixtures again."""
    report = yield
    if report.when == "call" or not report.passed:
        item.config.stash[_key].tell(test=item.nodeid, outcome=report.outcome, reason=_reason(report))
    return report


@pytest.fixture
def localflow_subject(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """Return what is checked, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    subject = request.config.stash[_key].subject
    assert subject is not None
    return subject


@pytest.fixture
def localflow_mailbox(request: pytest.FixtureRequest) -> Iterator[Mailbox]:
    """Return the place where notifications arrive, empty."""
    check = request.config.stash[_key]
    check.find_delivery()
    mailbox = check.mailbox
    mailbox.clear()
    yield mailbox
    mailbox.clear()


def _function(item: pytest.Item) -> object:
    return getattr(item, "function", None)


def _sentence(item: pytest.Item) -> str:
    """Return what a test is about, and with which parameters."""
    document = getattr(_function(item), "__doc__", None) or item.name
    sentence = " ".join(document.split("\n\n")[0].split())
    parameters = item.name.partition("[")[2].removesuffix("]")
    return f"{sentence} [{parameters}]" if parameters else sentence


def _reason(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    where = {"setup": "before the test: ", "teardown": "after the test: "}.get(report.when or "", "")
    return f"{where}{text}"[:_REASON_LIMIT]
