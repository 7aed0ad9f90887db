"""The contract of the notifier that is checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from localflow.testing import NotifierContract

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.interfaces import Notifier
    from localflow.testing.checked.mailbox import Mailbox
    from localflow.testing.checked.subject import Subject


class TestNotifier(NotifierContract):
    """What every notifier must do."""

    @pytest.fixture
    def notifier(self, localflow_subject: Subject) -> Notifier:
        """Make the notifier."""
        return localflow_subject.notifier()

    @pytest.fixture
    def delivered(self, localflow_mailbox: Mailbox) -> Callable[[], list[str]]:
        """Look into the mailbox."""
        if not localflow_mailbox.is_addressed:
            pytest.skip("nobody sees what it delivers; have it deliver to the check by {http}, {file} or {command}")
        return localflow_mailbox.delivered
