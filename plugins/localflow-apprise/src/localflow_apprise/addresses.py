"""Addresses of apprise: checked, sent to, and never shown."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING
from urllib.parse import unquote

from localflow.printable import printable, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apprise import NotifyType

MASK = "***"

#: The loggers of apprise and of what it sends by: they name addresses, or parts of them.
_LOGGERS = (
    "apprise",
    "urllib3.connectionpool",
    "urllib3.util.retry",
    "requests_oauthlib.oauth1_auth",
    "oauthlib.oauth1",
)
_REASON_LIMIT = 300
_WHOLE_WORD = 4  # a part of an address shorter than that is masked only where it is a word of its own


class Address:
    """One address, and the service of apprise behind it."""

    def __init__(self, url: str, option: str) -> None:
        """Have apprise take the address.

        Args:
            url: the address.
            option: what it is called in errors.

        Raises:
            ValueError: apprise does not take it.
        """
        # It takes a third of a second to import, so it is done for those who have chosen this notifier alone.
        from apprise import Apprise, AppriseAsset

        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
        self._url = url
        self.label = f"{option} ({scheme[1].lower()}://{MASK})" if scheme else option
        # In the thread that asks, as long as the service itself takes: localflow sees to it that nobody waits for that.
        asset = AppriseAsset(async_mode=False, service_timeout=0)
        with _overheard() as said:
            service = Apprise.instantiate(url, asset=asset)
        if service is None:
            hint = "" if scheme else ", which begin like json:// or mailto://"
            raise ValueError(
                f"{self.label} is none of the addresses that apprise takes{hint}{self._worded(said, ': ')}"
            )
        self._apprise = Apprise(asset=asset)
        self._apprise.add(service)

    def send(self, title: str, body: str, kind: NotifyType) -> str:
        """Send a message and return what went wrong, or nothing."""
        from apprise import NotifyFormat

        with _overheard() as said:
            try:
                # As text: a service that takes HTML or Markdown gets it with their special characters escaped.
                was_sent = bool(
                    self._apprise.notify(
                        body=body or title,
                        title=title if body else "",
                        notify_type=kind,
                        body_format=NotifyFormat.TEXT,
                        interpret_escapes=False,
                    )
                )
            except Exception as error:
                return f"{type(error).__name__}{self._worded([str(error)], ': ')}"
        return "" if was_sent else self._worded(said) or "apprise could not deliver it and did not say why"

    def _worded(self, said: list[str], before: str = "") -> str:
        """Return what apprise has said as one line, without anything of the address."""
        text = " ".join(" ".join(said).split())
        text = printable(shortened(_without(self._url, text), _REASON_LIMIT))
        return f"{before}{text}" if text else ""


def _without(url: str, text: str) -> str:
    """Return a text with all parts of an address masked, quoted or not."""
    scheme, _, rest = url.rpartition("://") if "://" in url else ("", "", url)
    words = re.split(r"[/:@?&=+,;#\s]+", rest)
    parts = {rest, unquote(rest), *words, *map(unquote, words)} - {"", scheme}
    for part in sorted(parts, key=len, reverse=True):
        pattern = re.escape(part)
        text = re.sub(
            pattern if len(part) >= _WHOLE_WORD else rf"(?<!\w){pattern}(?!\w)", MASK, text, flags=re.IGNORECASE
        )
    return text


_heard: ContextVar[list[str] | None] = ContextVar("localflow_apprise_heard", default=None)


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """Keep what apprise logs in the block from all handlers, and give its warnings and errors."""
    said: list[str] = []
    token = _heard.set(said)
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_overhear)  # once: a filter that is there already is not added again
    try:
        yield said
    finally:
        _heard.reset(token)


def _overhear(record: logging.LogRecord) -> bool:
    said = _heard.get()
    if said is None:  # somebody else's
        return True
    if record.levelno >= logging.WARNING and record.name == "apprise":
        said.append(record.getMessage())
    return False
