"""The notifier `apprise`: tells of state changes by whatever apprise has an address for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Annotated

from localflow.events import DeliveryError
from localflow.interfaces import Notifier, Secret, StateChange, StateType
from localflow.states import NOT_READY
from localflow_apprise.addresses import Address
from localflow_apprise.wording import BODY, TITLE, Template, fields_of

if TYPE_CHECKING:
    from apprise import NotifyType


class AppriseNotifier(Notifier):
    """Sends a message to each of several addresses, to all of them at the same time.

    An address may hold secrets anywhere, so nothing of it is ever shown but the kind of service: not in errors and not
    in what apprise and the libraries below it log meanwhile.
    """

    def __init__(self, urls: Annotated[list[str], Secret()], title: str = TITLE, body: str = BODY) -> None:
        """Check and keep the options.

        Args:
            urls: addresses of apprise, such as `slack://TokenA/TokenB/TokenC/Channel`.
            title: a template for the first line; the fields are those of `wording.FIELDS`.
            body: a template for the text.

        Raises:
            ValueError: apprise does not take an address, or a template names an unknown field.
        """
        if not urls:
            raise ValueError("urls is empty; name at least one address")
        self._title, self._body = Template("title", title), Template("body", body)
        self._addresses = [Address(url, f"urls[{place}]") for place, url in enumerate(urls)]

    def notify(self, change: StateChange) -> None:
        """Send the message; raises DeliveryError if it did not reach all addresses."""
        fields = fields_of(change)
        title, body, kind = self._title.filled(fields), self._body.filled(fields), _kind(change)
        problems: dict[str, str] = {}

        def send(address: Address) -> None:
            problem = address.send(title, body, kind)
            if problem:
                problems[address.label] = problem

        # The last one here: for a single address there are no more threads. As daemons they hold up no program's end.
        *others, last = self._addresses
        threads = [threading.Thread(target=send, args=[address], daemon=True) for address in others]
        for thread in threads:
            thread.start()
        send(last)
        for thread in threads:
            thread.join()
        if problems:
            raise DeliveryError("; ".join(f"{label}: {problem}" for label, problem in sorted(problems.items())))


def _kind(change: StateChange) -> NotifyType:
    from apprise import NotifyType

    if change.type in (StateType.FAILED, StateType.CRASHED):
        return NotifyType.FAILURE
    if change.type is StateType.CANCELLED or change.name == NOT_READY:
        return NotifyType.WARNING
    return NotifyType.SUCCESS if change.type is StateType.COMPLETED else NotifyType.INFO
