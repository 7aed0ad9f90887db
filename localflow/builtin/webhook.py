"""The notifier `webhook`: posts each state change as JSON to a URL."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated
from urllib.parse import SplitResult, unquote, urlsplit

from localflow.events import DeliveryError, Event, describe
from localflow.interfaces import AtLeast, Notifier, StateChange
from localflow.printable import printable, shortened
from localflow.version import __version__

if TYPE_CHECKING:
    from http.client import HTTPConnection

_BACKOFFS = (0.25, 1.0, None)  # seconds after each failed try
_REASON_LIMIT = 300


class WebhookNotifier(Notifier):
    """Posts state changes as JSON.

    Where another try may help (no connection, no answer, a status of 500 or more), there are up to three. Redirects
    are not followed, certificates are verified, proxies are taken from the environment. The header `Idempotency-Key`
    is the event's id, the same at every try. Of the URL only the host is ever shown: the rest may be a secret.
    """

    def __init__(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        timeout: Annotated[float, AtLeast(0.1)] = 5.0,
    ) -> None:
        """Check and keep the options.

        Args:
            url: where to post; a user and password in it are sent as basic authentication.
            headers: headers to add, or to replace those that localflow sends.
            timeout: seconds for one notification, all tries together. More than 10 has no effect: localflow gives up
                a notifier that takes longer.
        """
        self._url = _checked_url(url)
        self._headers = _checked_headers(headers or {})
        self._timeout = timeout

    def notify(self, change: StateChange) -> None:
        """Post the change; raises DeliveryError unless a status of 200 to 299 comes back."""
        import json
        from http.client import HTTPException

        event = describe(change)
        body = json.dumps(event).encode()
        headers = self._request_headers(event)
        until = time.monotonic() + self._timeout
        for backoff in _BACKOFFS:
            try:
                status = self._post(body, headers, until)
            except (OSError, HTTPException) as error:
                problem = shortened(str(error) or type(error).__name__, _REASON_LIMIT)
                may_retry = True
            else:
                if 200 <= status < 300:
                    return
                problem = _worded_status(status)
                may_retry = status >= 500
            if not may_retry or backoff is None or time.monotonic() + backoff >= until:
                break
            time.sleep(backoff)
        raise DeliveryError(f"POST to {_address(self._url)}: {printable(problem)}")

    def _post(self, body: bytes, headers: dict[str, str], until: float) -> int:
        import threading

        remaining = until - time.monotonic()
        connection, target, proxy_headers = _connection(self._url, remaining)
        # A socket's timeout is for one read; this one is for all of them, whatever slowly drips in.
        timer = threading.Timer(remaining, _hang_up, (connection,))
        timer.daemon = True
        timer.start()
        try:
            connection.request("POST", target, body, headers | proxy_headers)
            with connection.getresponse() as response:
                status = response.status
        except Exception:
            if time.monotonic() < until:
                raise
        finally:
            timer.cancel()
            connection.close()
        if time.monotonic() >= until:  # checked here too: an answer that was cut off may still look like one
            raise TimeoutError(f"no answer within {self._timeout:g} seconds")
        return status

    def _request_headers(self, event: Event) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"localflow/{__version__}",
            "Idempotency-Key": event["id"],
            **_basic_authentication("Authorization", self._url),
        }
        replaced = {name.lower() for name in self._headers}
        return {name: value for name, value in headers.items() if name.lower() not in replaced} | self._headers


def _connection(url: SplitResult, timeout: float) -> tuple[HTTPConnection, str, dict[str, str]]:
    """Return a connection to the host or its proxy, the target of the request and the headers for the proxy."""
    from http.client import HTTPConnection, HTTPSConnection

    host, port = url.hostname or "", _port(url)
    target = f"{url.path or '/'}{'?' if url.query else ''}{url.query}"
    proxy = _proxy(url)
    connection_type = HTTPSConnection if url.scheme == "https" else HTTPConnection
    if proxy is None:
        return connection_type(host, port, timeout=timeout), target, {}
    connection = connection_type(proxy.hostname or "", proxy.port or 80, timeout=timeout)
    proxy_headers = _basic_authentication("Proxy-Authorization", proxy)
    if url.scheme == "https":
        connection.set_tunnel(host, port, proxy_headers)
        return connection, target, {}
    return connection, _address(url) + target, proxy_headers


def _proxy(url: SplitResult) -> SplitResult | None:
    from urllib.request import getproxies, proxy_bypass

    address = getproxies().get(url.scheme)
    if not address or proxy_bypass(f"{url.hostname}:{_port(url)}"):
        return None
    return urlsplit(address if "://" in address else f"//{address}")


def _hang_up(connection: HTTPConnection) -> None:
    import socket

    with contextlib.suppress(AttributeError, OSError):  # not connected yet, or no longer
        connection.sock.shutdown(socket.SHUT_RDWR)


def _basic_authentication(header: str, url: SplitResult) -> dict[str, str]:
    from base64 import b64encode

    if url.username is None:
        return {}
    credentials = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
    return {header: f"Basic {b64encode(credentials).decode()}"}


def _address(url: SplitResult) -> str:
    """Return the part of the URL that is no secret."""
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"{url.scheme}://{host}" if url.port is None else f"{url.scheme}://{host}:{url.port}"


def _port(url: SplitResult) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _worded_status(status: int) -> str:
    from http import HTTPStatus

    try:
        text = f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        text = f"HTTP {status}"
    hint = "; redirects are not followed, give the final address as url" if 300 <= status < 400 else ""
    return text + hint


def _checked_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_complete = False
    if not is_complete or not url.isascii() or not url.isprintable() or " " in url:
        # The url itself stays out of the message: it may hold a secret.
        raise ValueError("url must be an http or https address such as https://host/path, in ASCII and without spaces")
    return parts


def _checked_headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not name or not name.isascii() or not name.isprintable() or " " in name or ":" in name:
            raise ValueError(f"headers: {name!r} is not the name of a header")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"headers: the value of {name!r} must be printable ASCII")  # and may be a secret
    return dict(headers)
