"""A proxy between a store and its server that cuts connections at a chosen moment."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SOCKET = ".s.PGSQL.5432"


class Proxy:
    """Passes on what is said on a socket in `folder`; a connection over which a COMMIT goes is cut, as often as asked.

    Attributes:
        cuts: how many more COMMITs are cut.
        passes_on: whether the server gets such a COMMIT, and has answered it, before the connection is cut.
    """

    def __init__(self, folder: Path, server: Path) -> None:
        self.cuts = 0
        self.passes_on = False
        self._server = str(server / _SOCKET)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / _SOCKET))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Take no more connections and wait until those there are have ended."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(client,), daemon=True))
            self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._server)
            is_muted, has_answered = threading.Event(), threading.Event()
            answers = threading.Thread(target=_answer, args=(server, client, is_muted, has_answered), daemon=True)
            answers.start()
            while data := _received(client):
                if self.cuts > 0 and b"COMMIT" in data:
                    self.cuts -= 1
                    if self.passes_on:
                        is_muted.set()
                        server.sendall(data)
                        has_answered.wait(30)
                    break
                server.sendall(data)
            for end in (client, server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            answers.join()


def _answer(
    server: socket.socket, client: socket.socket, is_muted: threading.Event, has_answered: threading.Event
) -> None:
    while data := _received(server):
        if is_muted.is_set():
            has_answered.set()
        else:
            with suppress(OSError):
                client.sendall(data)
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(1 << 16)
    except OSError:
        return b""
