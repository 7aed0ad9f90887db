"""A real HTTP server on this machine that answers as the test says."""

from __future__ import annotations

import contextlib
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

Answer: TypeAlias = "int | tuple[int, str] | str | bytes"


class Request(NamedTuple):
    """What arrived."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class Receiver:
    """Answers each request with the next of `answers`, the last one for ever.

    An answer is a status code, a status code with a `Location`, `"hang"` (nothing comes), `"drip"` (headers come byte
    by byte without end), `"hang up"` (the connection is closed), or bytes to send as they are.
    """

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers) or [200]
        self.requests: list[Request] = []
        self.url = ""
        self._released = threading.Event()

    @contextlib.contextmanager
    def running(self, certificate: Path | None = None) -> Iterator[Receiver]:
        """Serve for the block, over TLS if there is a certificate."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._take(self)

            def do_CONNECT(self) -> None:
                receiver._take(self)

            def do_GET(self) -> None:
                receiver._take(self)

            def log_message(self, format: str, *args: object) -> None:
                """Stay quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = False  # so that closing the server waits for them

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients that hang up are what some tests are about."""

        with Server(("127.0.0.1", 0), Handler) as server:
            if certificate is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate)
                server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield self
            finally:
                self._released.set()
                server.shutdown()
                thread.join()

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
        self.requests.append(Request(handler.command, handler.path, dict(handler.headers), body))
        handler.close_connection = True
        if answer == "hang":
            self._released.wait()
        elif answer == "drip":
            self._drip(handler)
        elif isinstance(answer, bytes):
            handler.wfile.write(answer)
        elif answer != "hang up":
            status, location = answer if isinstance(answer, tuple) else (answer, "")
            handler.send_response(int(status))
            if location:
                handler.send_header("Location", location)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

    def _drip(self, handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self._released.wait(0.02):
            handler.wfile.write(b"x")


@pytest.fixture
def serve() -> Iterator[Callable[..., Receiver]]:
    """Return a function that starts a server with the given answers; all of them end with the test."""
    with contextlib.ExitStack() as stack:

        def start(*answers: Answer, certificate: Path | None = None) -> Receiver:
            return stack.enter_context(Receiver(*answers).running(certificate))

        yield start
