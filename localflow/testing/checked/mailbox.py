"""Where a notifier that is checked delivers to: a web server, a file, a command of the check, or the log."""

from __future__ import annotations

import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

#: What options may have in them, and what it stands for.
PLACEHOLDERS = {
    "{http}": "the address of a web server of the check, such as http://127.0.0.1:1234/",
    "{address}": "its host and port alone",
    "{file}": "a file that the check reads, each line a notification",
    "{command}": "a program that takes a notification on its stdin",
}
_END = b"\x1e"


class Mailbox:
    """Takes notifications; where it takes them from is what the placeholders in the options have asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file, self._spool, self._command = folder / "lines", folder / "spool", folder / "take-notification"
        self._server: HTTPServer | None = None
        self._posted: list[str] = []
        self._logged = _Logged()
        self._channels: set[str] = set()

    def addressed(self, value: Any) -> Any:
        """Return the value of an option with the addresses of this mailbox in the place of placeholders."""
        if isinstance(value, list):
            return [self.addressed(item) for item in value]
        if isinstance(value, dict):
            return {key: self.addressed(item) for key, item in value.items()}
        if isinstance(value, str):
            for placeholder in PLACEHOLDERS:
                if placeholder in value:
                    value = value.replace(placeholder, self._address(placeholder))
        return value

    @property
    def is_addressed(self) -> bool:
        """Whether any option has this mailbox as its address."""
        return bool(self._channels)

    def listen_to_log(self) -> None:
        """Take what is logged for notifications."""
        self._channels.add("log")
        logging.getLogger().addHandler(self._logged)
        logging.getLogger().setLevel(logging.INFO)

    def forget_log(self) -> None:
        """Leave the log alone again."""
        self._channels.discard("log")
        logging.getLogger().removeHandler(self._logged)
        self._logged.messages.clear()

    def delivered(self) -> list[str]:
        """Return the notifications that have come, in order."""
        found = [*self._posted, *self._logged.messages]
        if "{file}" in self._channels and self._file.exists():
            found += [line for line in self._file.read_text("utf-8", "replace").splitlines() if line]
        if "{command}" in self._channels and self._spool.exists():
            found += [text.decode("utf-8", "replace") for text in self._spool.read_bytes().split(_END)[:-1]]
        return found

    def clear(self) -> None:
        """Forget what has come."""
        self._posted.clear()
        self._logged.messages.clear()
        for path in (self._file, self._spool):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop listening."""
        logging.getLogger().removeHandler(self._logged)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _address(self, placeholder: str) -> str:
        self._channels.add(placeholder)
        if placeholder == "{file}":
            return str(self._file)
        if placeholder == "{command}":
            self._command.write_text(f"#!/bin/sh\n{{ cat; printf '\\036'; }} >> '{self._spool}'\n")
            self._command.chmod(0o700)
            return str(self._command)
        if self._server is None:
            self._server = HTTPServer(("127.0.0.1", 0), _handler(self._posted))
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}" if placeholder == "{address}" else f"http://{host!s}:{port}/"


class _Logged(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _handler(posted: list[str]) -> type[BaseHTTPRequestHandler]:
    """Return what answers requests, one after the other in the server's only thread, and keeps their bodies."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            posted.append(self.rfile.read(length).decode("utf-8", "replace"))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler
