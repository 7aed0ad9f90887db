"""The notifier `webhook`, against a real server."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.webhook import WebhookNotifier
from localflow.events import DeliveryError, describe
from localflow.notifications import Notifications, Subscription
from localflow.testing import NotifierContract, make_change
from localflow.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeAlias

    from localflow.interfaces import Notifier
    from tests.notifiers.conftest import Answer, Receiver

    Serve: TypeAlias = Callable[..., Receiver]

CHANGE = make_change(task_run="add_project-1", message="boom")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the proxies of this machine out of the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def receiver(serve: Serve) -> Receiver:
    """Return a server that says yes to everything."""
    return serve()


@pytest.fixture
def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


class TestContract(NotifierContract):
    @pytest.fixture
    def notifier(self, receiver: Receiver) -> Notifier:
        """Post to the server."""
        return WebhookNotifier(f"{receiver.url}/hook")

    @pytest.fixture
    def delivered(self, receiver: Receiver) -> Callable[[], list[str]]:
        """Return the bodies the server has received."""
        return lambda: [request.body.decode() for request in receiver.requests]


# -- the request -----------------------------------------------------------------------------------------------------


def test_event_is_posted_as_json(receiver: Receiver) -> None:
    """The body is the event as `describe` makes it, path and query are those of the url."""
    WebhookNotifier(f"{receiver.url}/hook/a%20b?x=1&y=2#fragment").notify(CHANGE)

    (request,) = receiver.requests
    assert (request.method, request.target) == ("POST", "/hook/a%20b?x=1&y=2")
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["User-Agent"] == f"localflow/{__version__}"
    assert json.loads(request.body) == describe(CHANGE)


def test_url_without_a_path_posts_to_the_root(receiver: Receiver) -> None:
    """A bare host is an address too."""
    WebhookNotifier(receiver.url).notify(CHANGE)

    assert receiver.requests[0].target == "/"


def test_idempotency_key_is_the_id_of_the_event(receiver: Receiver) -> None:
    """A receiver can tell a repeated notification from a new one without reading the body."""
    WebhookNotifier(receiver.url).notify(CHANGE)

    assert receiver.requests[0].headers["Idempotency-Key"] == describe(CHANGE)["id"]


def test_headers_are_added_and_replaced(receiver: Receiver) -> None:
    """A header of the options stands in for ours, whatever its case."""
    headers = {"Authorization": "Bearer abc", "content-type": "application/vnd.event+json"}

    WebhookNotifier(receiver.url, headers).notify(CHANGE)

    (request,) = receiver.requests
    received = [(name.lower(), value) for name, value in request.headers.items()]
    assert ("authorization", "Bearer abc") in received
    assert [value for name, value in received if name == "content-type"] == ["application/vnd.event+json"]


def test_user_of_the_url_is_sent_as_basic_authentication(receiver: Receiver) -> None:
    """User and password go into a header, unquoted, and not into the request line."""
    WebhookNotifier(receiver.url.replace("//", "//ops:p%40ss@")).notify(CHANGE)

    (request,) = receiver.requests
    assert base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")) == b"ops:p@ss"


def test_proxy_of_the_environment_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy the whole address is asked for there, with the credentials it wants."""
    monkeypatch.setenv("http_proxy", receiver.url.replace("//", "//me:pw@"))

    WebhookNotifier("http://hooks.invalid:8080/x?y=1").notify(CHANGE)

    (request,) = receiver.requests
    assert request.target == "http://hooks.invalid:8080/x?y=1"
    assert request.headers["Host"] == "hooks.invalid:8080"
    assert base64.b64decode(request.headers["Proxy-Authorization"].removeprefix("Basic ")) == b"me:pw"


def test_no_proxy_is_respected(receiver: Receiver, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    """Hosts that the environment excludes are asked directly."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    WebhookNotifier(receiver.url).notify(CHANGE)

    assert len(receiver.requests) == 1


def test_https_goes_through_a_tunnel(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy is asked for a tunnel to an https address, and sees neither path nor event."""
    proxy = serve(403)
    monkeypatch.setenv("https_proxy", proxy.url)

    with pytest.raises(DeliveryError, match=r"POST to https://hooks\.invalid: Tunnel connection failed: 403"):
        WebhookNotifier("https://hooks.invalid/canary").notify(CHANGE)

    assert {(request.method, request.target) for request in proxy.requests} == {("CONNECT", "hooks.invalid:443")}


# -- tries -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_success_is_any_status_of_200_to_299(serve: Serve, status: int) -> None:
    """One try is enough then."""
    receiver = serve(status)

    WebhookNotifier(receiver.url).notify(CHANGE)

    assert len(receiver.requests) == 1


@pytest.mark.parametrize("trouble", [500, 503, "hang up"])
def test_passing_trouble_is_tried_again(serve: Serve, trouble: int | str) -> None:
    """After a server error or a broken connection the same event comes again, under the same key."""
    receiver = serve(trouble, 200)

    WebhookNotifier(receiver.url).notify(CHANGE)

    first, second = receiver.requests
    assert first.body == second.body
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]


def test_lasting_trouble_is_a_failure_after_three_tries(serve: Serve) -> None:
    """The error names host and status."""
    receiver = serve(503)

    with pytest.raises(DeliveryError) as raised:
        WebhookNotifier(f"{receiver.url}/hook").notify(CHANGE)

    assert len(receiver.requests) == 3
    assert str(raised.value) == f"POST to {receiver.url}: HTTP 503 Service Unavailable"


@pytest.mark.parametrize(("status", "text"), [(404, "HTTP 404 Not Found"), (429, "HTTP 429 "), (499, "HTTP 499")])
def test_refusal_is_not_tried_again(serve: Serve, status: int, text: str) -> None:
    """A status of 400 to 499 will not change by itself."""
    receiver = serve(status)

    with pytest.raises(DeliveryError, match=text):
        WebhookNotifier(receiver.url).notify(CHANGE)

    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(serve: Serve, receiver: Receiver, status: int) -> None:
    """An event never goes to a host that the configuration does not name."""
    first = serve((status, f"{receiver.url}/elsewhere"))

    with pytest.raises(DeliveryError, match=rf"HTTP {status} .*redirects are not followed"):
        WebhookNotifier(first.url).notify(CHANGE)

    assert len(first.requests) == 1
    assert receiver.requests == []


def test_refused_connection_is_a_failure(free_port: int) -> None:
    """The error says that nobody listens there."""
    with pytest.raises(DeliveryError, match=rf"^POST to http://127\.0\.0\.1:{free_port}: .*refused"):
        WebhookNotifier(f"http://127.0.0.1:{free_port}").notify(CHANGE)


@pytest.mark.parametrize("trouble", ["hang", "drip"])
def test_timeout_covers_the_whole_notification(serve: Serve, trouble: str) -> None:
    """A server that never finishes its answer, however busily, is given up on time."""
    receiver = serve(trouble)
    started = time.monotonic()

    with pytest.raises(DeliveryError, match=r"no answer within 0\.3 seconds$"):
        WebhookNotifier(receiver.url, timeout=0.3).notify(CHANGE)

    assert 0.3 <= time.monotonic() - started < 2.0


def test_tries_end_with_the_timeout(serve: Serve) -> None:
    """A further try that could not end in time is not begun."""
    receiver = serve(500)

    with pytest.raises(DeliveryError, match="HTTP 500"):
        WebhookNotifier(receiver.url, timeout=0.2).notify(CHANGE)

    assert len(receiver.requests) == 1


def test_answer_that_is_no_http_is_a_failure(serve: Serve) -> None:
    """Whatever listens there, the error is an error of delivery, in one line."""
    receiver = serve(b"SSH-2.0-\x1b[2J\r\n")

    with pytest.raises(DeliveryError, match="SSH") as raised:
        WebhookNotifier(receiver.url).notify(CHANGE)

    assert str(raised.value).isprintable()


def test_unverified_certificate_is_a_failure(serve: Serve, tmp_path: Path) -> None:
    """A server that cannot prove who it is receives nothing."""
    receiver = serve(certificate=make_certificate(tmp_path))

    with pytest.raises(DeliveryError, match="certificate verify failed"):
        WebhookNotifier(receiver.url).notify(CHANGE)

    assert receiver.requests == []


def test_trusted_certificate_is_accepted(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events travel over TLS to a server whose certificate the system trusts."""
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    receiver = serve(certificate=certificate)

    WebhookNotifier(receiver.url).notify(CHANGE)

    assert len(receiver.requests) == 1


# -- options and secrets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com/canary",
        "ftp://hooks.example.com/canary",
        "file:///etc/canary",
        "https:///canary",
        "https://hooks.example.com:canary/",
        "https://hooks.example.com/can ary",
        "https://hooks.example.com/\ncanary",
        "https://hooks.example.com/canäry",
        "https://[canary/",
    ],
)
def test_url_must_be_http(url: str) -> None:
    """A url that cannot be posted to is refused at once, without being shown."""
    with pytest.raises(ValueError, match="url must be an http or https address") as raised:
        WebhookNotifier(url)

    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("headers", [{"": "canary"}, {"X Y": "canary"}, {"X:": "canary"}, {"X": "canary\r\nY: z"}])
def test_headers_must_be_headers(headers: dict[str, str]) -> None:
    """A header that would break the request is refused at once, its value not shown."""
    with pytest.raises(ValueError, match="headers: ") as raised:
        WebhookNotifier("https://hooks.example.com", headers)

    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("trouble", [404, 500, (302, "http://canary.invalid/canary"), "hang", "drip", "hang up"])
def test_secrets_of_the_url_are_never_logged(serve: Serve, trouble: Answer, caplog: pytest.LogCaptureFixture) -> None:
    """User, password, path, query and headers stay out of errors, even where tracebacks are logged."""
    caplog.set_level(logging.DEBUG)
    receiver = serve(trouble)
    url = receiver.url.replace("//", "//canary:canary@") + "/canary?token=canary"
    notifier = WebhookNotifier(url, {"X-Token": "canary"}, timeout=0.2)
    notifications = Notifications([Subscription("ops", notifier)])
    notifications.publish([CHANGE])

    assert notifications.close() == 1

    assert "notifier 'ops' failed: DeliveryError: POST to http://127.0.0.1:" in caplog.text
    assert "canary" not in caplog.text + repr(notifier)
    assert "canary" not in str(receiver.url)


def make_certificate(folder: Path) -> Path:
    """Return a self-signed certificate for 127.0.0.1, with its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())
    return both
