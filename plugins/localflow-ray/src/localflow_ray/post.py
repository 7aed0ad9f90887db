"""In a worker of Ray: what the engine hears of a call while it is at work: where it is, and what it says."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import ray

from localflow.records import LogLine
from localflow_ray.machines import machine_mark
from localflow_ray.mailbox import Begun, find_mailbox

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds after which the engine is told where a call is, if it is not told at once, and how often what it says.
PERIOD = 0.05
#: How much of what a call says is kept, in bytes; each line counts this much more for what it takes to keep it.
TEXT_LIMIT = 10 << 20
_LINE_COST = 100
_FIRST_SECONDS = 2.0


class Post:
    """Writes to the engine's mailbox while a call is at work: where it is, and what it says."""

    def __init__(self, mailbox: str, number: int) -> None:
        self._mailbox = mailbox
        self._number = number
        self._lock = threading.Lock()
        self._lines: list[LogLine] = []
        self._room, self._dropped = TEXT_LIMIT, 0
        self._letters = 0
        self._due_at = 0.0
        self._is_open = True
        self.begun = Begun(_node_id(), machine_mark(), os.getpid(), time.time())

    @contextlib.contextmanager
    def at_work(self, at_once: bool) -> Iterator[None]:
        """Tell the engine where the call is: at once, or when it has taken a while."""
        if at_once:
            with self._lock:
                self._write()
        else:
            self._due_at = time.monotonic() + PERIOD
        _postman.attend(self)
        yield
        _postman.attend(None)

    def say(self, line: LogLine) -> None:
        """Take what the call says."""
        size = len(line.message.encode(errors="backslashreplace"))
        with self._lock:
            if self._room >= 0:
                self._room -= size + _LINE_COST
            if self._room < 0:
                self._dropped += size
                return
            self._lines.append(line)
            if not self._letters or time.monotonic() >= self._due_at:
                self._write()  # now: what comes next may kill this process
            elif len(self._lines) == 1:
                _postman.wake()

    def look(self) -> float | None:
        """Write what is due; return when to look again, None if not before the call says something."""
        with self._lock:
            if self._is_open and time.monotonic() >= self._due_at and (self._lines or not self._letters):
                self._write()
            return self._due_at if self._is_open and (self._lines or not self._letters) else None

    def close(self) -> tuple[int, tuple[LogLine, ...]]:
        """Return how many letters there were, and the lines that are in none of them."""
        with self._lock:
            self._is_open = False
            if self._dropped:
                text = f"... truncated {self._dropped} bytes"
                self._lines.append(LogLine(time.time(), 30, "localflow", text))
            return self._letters, tuple(self._lines)

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        kind = "said" if self._letters else "begun"
        letter = (kind, self._number, (tuple(self.begun), tuple(lines)))
        with contextlib.suppress(Exception):  # the engine is gone, and nobody wants to know
            mailbox = _mailboxes.get(self._mailbox)
            if mailbox is None:
                # The first letter takes a while, in which this process may be killed: it is seen off.
                mailbox = find_mailbox(self._mailbox)
                ray.get(mailbox.put.remote(letter), timeout=_FIRST_SECONDS)
                _mailboxes[self._mailbox] = mailbox
            else:
                mailbox.put.remote(letter)
            self._letters += 1
        self._due_at = time.monotonic() + PERIOD


_mailboxes: dict[str, Any] = {}


@cache
def _node_id() -> str:
    node: str = ray.get_runtime_context().get_node_id()
    return node


class _Postman:
    """The thread that writes for calls that do not say anything just when it is time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._post: Post | None = None
        self._is_called = False
        self._thread: threading.Thread | None = None

    def attend(self, post: Post | None) -> None:
        """Write for this call from now on, for none if None."""
        with self._changed:
            self._post = post
            if post is not None:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="localflow-post", daemon=True)
                    self._thread.start()
                self._is_called = True
                self._changed.notify()

    def wake(self) -> None:
        """Look again at what is to be written."""
        with self._changed:
            self._is_called = True
            self._changed.notify()

    def _work(self) -> None:
        next_look: float | None = None
        while True:
            with self._changed:
                if not self._is_called:
                    self._changed.wait(None if next_look is None else max(0.0, next_look - time.monotonic()))
                self._is_called = False
                post = self._post
            next_look = None if post is None else post.look()


_postman = _Postman()
