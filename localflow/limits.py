"""At most n task runs with a tag at once, across the threads and processes of this machine.

A tag with the limit n has n *slots*, which are locks in files: whoever runs with the tag holds one. When all are held,
those who wait stand in line. The line within a process is a queue; its first stands at the *turnstile* of the tag,
one more lock, with the firsts of other processes, and whoever has passed it takes the next slot that goes free. So
nobody overtakes, and a slot is handed on whatever its holder dies of.

All waiting is done by one thread in `poll`, which the kernel wakes when a lock goes free.

A run with several tags waits for one of them at a time and holds nothing meanwhile. If by then another is held, it lets
go and waits for that one; after some vain tries it takes them in order of their names and keeps what it has.

A process counts by its own settings: those of others that began under a higher limit are not stopped.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from localflow.errors import StoreError
from localflow.locks import HAS_BELLS, Bell, is_awaited, make_private_directory, take_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from localflow.locks import Lock

_log = logging.getLogger("localflow.limits")

_VAIN_TRIES = 4
_POLITENESS = 0.002
"""Seconds that who has passed a turnstile leaves it to others who wait there: the kernel wakes them in less."""
_OVERTAKING = 1.0
"""Seconds after which a free slot is taken past a turnstile that is held: by a stopped process, most likely."""
_RETRY = 0.5
"""Seconds to wait when the files cannot be opened, as when there are too many."""
_PERIOD = None if HAS_BELLS else 0.025
_JOIN_DEADLINE = 5.0


def slots_held(directory: Path, tag: str) -> int:
    """Return how many slots of a tag are held now, by whomever; the free ones are taken for an instant."""
    held = 0
    for path in directory.glob(f"{_file_name(tag)}.*"):
        if path.suffix[1:].isdecimal():
            slot = take_lock(path)
            held += slot is None
            if slot is not None:
                slot.release()
    return held


def _file_name(tag: str) -> str:
    from hashlib import sha256

    return sha256(tag.encode(errors="surrogatepass")).hexdigest()[:32]


class Permit:
    """What a task run holds while it runs: a slot for each of its limited tags."""

    __slots__ = ("slots",)

    def __init__(self, slots: Iterable[Lock]) -> None:
        self.slots = tuple(slots)


class _Request:
    """A task run that waits."""

    __slots__ = ("slots", "tags", "token", "tries")

    def __init__(self, token: object, tags: tuple[str, ...]) -> None:
        self.token = token
        self.tags = tags
        self.slots: dict[str, Lock] = {}
        self.tries = 0

    def let_go(self) -> None:
        for slot in self.slots.values():
            slot.release()
        self.slots.clear()


class _Line:
    """Those in this process who wait for a slot of one tag, in the order they asked."""

    def __init__(self, directory: Path, tag: str, limit: int) -> None:
        self.requests: deque[_Request] = deque()
        self.resumes_at = 0.0
        """When its first may go to the turnstile."""
        self._name = _file_name(tag)
        self._directory = directory
        self._limit = limit
        self._at_turnstile = self._directory / f"{self._name}.turnstile"
        self._turnstile: Lock | None = None
        self._since: float | None = None
        """Since when its first has stood at the turnstile."""
        self._bells: dict[Path, Bell] = {}

    def take_at_once(self) -> Lock | None:
        """Return a slot if one is free and nobody stands in line for it."""
        if self.requests:
            return None
        turnstile = take_lock(self._at_turnstile)
        if turnstile is None:
            return None
        try:
            return self._take_any(self._slots())
        finally:
            turnstile.release()

    def take_for_first(self, now: float) -> Lock | None:
        """Return a slot for the first in line, who passes the turnstile; if there is none, its bells are set."""
        if now < self.resumes_at:
            return None
        if self._turnstile is None:
            self._turnstile = self._take_or_listen([self._at_turnstile])
        if self._turnstile is not None:
            slot = self._take_or_listen(self._slots())
        else:
            if self._since is None or now < self._since + _OVERTAKING:
                self._since = self._since or now
                return None
            self._since = now
            slot = self._take_any(self._slots())
        if slot is not None:
            self.leave()
            if len(self.requests) > 1 and is_awaited(self._at_turnstile):
                self.resumes_at = now + _POLITENESS
        return slot

    def leave(self) -> None:
        """Leave the turnstile and listen to nothing."""
        for bell in self._bells.values():
            bell.close()
        self._bells.clear()
        self._since = None
        if self._turnstile is not None:
            self._turnstile.release()
            self._turnstile = None

    def listens_to(self) -> list[Bell]:
        """Return the bells that ring when it may be the first one's turn."""
        if self._turnstile is None:
            return [bell for path, bell in self._bells.items() if path == self._at_turnstile]
        return [bell for path, bell in self._bells.items() if path != self._at_turnstile]

    def looks_again_at(self, now: float) -> float | None:
        """Return when to try again, even if no bell rings."""
        if now < self.resumes_at:
            return self.resumes_at
        if _PERIOD is not None:
            return now + _PERIOD
        return None if self._since is None or self._turnstile is not None else self._since + _OVERTAKING

    def _slots(self) -> Iterable[Path]:
        return (self._directory / f"{self._name}.{number}" for number in range(self._limit))

    def _take_any(self, paths: Iterable[Path]) -> Lock | None:
        for path in paths:
            lock = take_lock(path)
            if lock is not None:
                return lock
        return None

    def _take_or_listen(self, paths: Iterable[Path]) -> Lock | None:
        """Take one of the locks, or listen to all of them."""
        tried = []
        for path in paths:
            lock = take_lock(path)
            if lock is not None:
                return lock
            tried.append(path)
        unheard = [path for path in tried if path not in self._bells] if HAS_BELLS else []
        for path in unheard:
            self._bells[path] = Bell(path)
        return self._take_any(unheard)  # what went free before the bell was set does not ring it


class Limits:
    """Gives permits to the task runs of one engine. Its methods may be called in any thread."""

    def __init__(self, directory: Path, limits: Mapping[str, int], on_granted: Callable[[Any, Permit], None]) -> None:
        """Keep the files of the limits in `directory`.

        Args:
            directory: a folder of the state folder; all who share the limits name the same one.
            limits: how many task runs with a tag may run at once, by tag.
            on_granted: called with token and permit, in a thread of the limits, when who had to wait gets a permit;
                that may also be just after `withdraw`, and the permit must be released then.

        Raises:
            StoreError: the folder cannot be made, cannot hold locks, or others may write there.
        """
        try:
            make_private_directory(directory)
            probe = take_lock(directory / "probe")
            if probe is not None:
                probe.release()
        except OSError as error:
            raise StoreError(
                f"the [limits] cannot be kept in {directory}: {error.strerror or error}; "
                "make it a folder on a local disk that only you may write to"
            ) from error
        self._lines = {tag: _Line(directory, tag, limit) for tag, limit in limits.items()}
        self._on_granted = on_granted
        self._lock = threading.Lock()
        self._waiting: dict[object, _Request] = {}
        self._permits: set[Permit] = set()
        self._scout: _Scout | None = None
        self._closed = False
        self._warned = False

    def applies(self, tags: Iterable[str]) -> bool:
        """Return whether one of the tags is limited."""
        lines = self._lines
        return any(tag in lines for tag in tags)

    def ask(self, token: object, tags: Iterable[str]) -> Permit | None:
        """Return a permit to run with these tags, or None: then `on_granted` will be called with `token`."""
        request = _Request(token, tuple(sorted({tag for tag in tags if tag in self._lines})))
        with self._lock:
            if self._closed:
                return None
            if self._complete(request):
                return self._permit(request)
            self._waiting[token] = request
            if self._scout is None:
                self._scout = _Scout(self._look)
            self._scout.wake()
        return None

    def release(self, permit: Permit) -> None:
        """Let the next one run; a second time, nothing happens."""
        with self._lock:
            self._permits.discard(permit)
            for slot in permit.slots:
                slot.release()
            if not HAS_BELLS and self._scout is not None:
                self._scout.wake()

    def withdraw(self, token: object) -> None:
        """Ask no longer; that of somebody who does not wait is no matter."""
        with self._lock:
            request = self._waiting.pop(token, None)
            if request is None:
                return
            request.let_go()
            for line in self._lines.values():
                if request in line.requests:
                    line.requests.remove(request)
                    if not line.requests:
                        line.leave()
            if self._scout is not None:
                self._scout.wake()  # it may be listening to bells that are gone

    def close(self) -> None:
        """Give everything back, grant nothing more, and end the thread."""
        with self._lock:
            self._closed = True
            for permit in self._permits:
                for slot in permit.slots:
                    slot.release()
            for request in self._waiting.values():
                request.let_go()
            for line in self._lines.values():
                line.requests.clear()
                line.leave()
            self._permits.clear()
            self._waiting.clear()
            scout, self._scout = self._scout, None
        if scout is not None:
            scout.close()

    def _permit(self, request: _Request) -> Permit:
        permit = Permit(request.slots.values())
        self._permits.add(permit)
        return permit

    def _complete(self, request: _Request) -> bool:
        """Take the slots that a request lacks; if one is not to be had, put it in line for that."""
        for tag in request.tags:
            if tag in request.slots:
                continue
            try:
                slot = self._lines[tag].take_at_once()
            except OSError as error:
                self._warn(error)
                slot = None
            if slot is None:
                if request.tries <= _VAIN_TRIES:
                    request.let_go()
                    request.tries += 1
                    tag = request.tags[0] if request.tries > _VAIN_TRIES else tag  # from now on, one after the other
                self._lines[tag].requests.append(request)
                return False
            request.slots[tag] = slot
        return True

    def _look(self) -> tuple[list[int], float | None]:
        """Grant what can be granted; return the descriptors to poll, and for how many seconds."""
        with self._lock:
            now = time.monotonic()
            permits = [(request.token, self._permit(request)) for request in self._advance(now)]
        for token, permit in permits:
            try:
                self._on_granted(token, permit)
            except Exception:
                _log.exception("nobody takes a permit of the limits; it is given back")
                self.release(permit)
        with self._lock:
            lines = [line for line in self._lines.values() if line.requests]
            again = [at for at in (line.looks_again_at(now) for line in lines) if at is not None]
            bells = [bell.fileno() for line in lines for bell in line.listens_to()]
            return bells, max(0.0, min(again) - time.monotonic()) if again else None

    def _advance(self, now: float) -> list[_Request]:
        granted = []
        lines = deque(line for line in self._lines.values() if line.requests)
        while lines:
            line = lines.popleft()
            try:
                slot = line.take_for_first(now) if line.requests else None
            except OSError as error:
                self._warn(error)
                line.resumes_at = now + _RETRY
                continue
            if slot is None:
                continue
            request = line.requests.popleft()
            request.slots[next(tag for tag in request.tags if self._lines[tag] is line)] = slot
            if self._complete(request):
                del self._waiting[request.token]
                granted.append(request)
            else:
                lines.extend(other for other in self._lines.values() if request in other.requests)
            lines.append(line)
        return granted

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("the files of the [limits] cannot be opened, trying again: %s", error)


class _Scout:
    """A thread that waits for bells, and calls `look` whenever one has rung or somebody wants it to."""

    def __init__(self, look: Callable[[], tuple[list[int], float | None]]) -> None:
        self._look = look
        self._ears, self._voice = os.pipe()
        os.set_blocking(self._ears, False)
        os.set_blocking(self._voice, False)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="localflow-limits", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have it look again; not to be called after `close`."""
        with suppress(BlockingIOError):  # it has been told often enough
            os.write(self._voice, b"\0")

    def close(self) -> None:
        """End the thread; called in that thread itself, it ends when it comes back."""
        self._closed = True
        self.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_DEADLINE)
            if self._thread.is_alive():  # in the middle of telling somebody
                return
        os.close(self._ears)
        os.close(self._voice)

    def _work(self) -> None:
        while True:
            bells, seconds = self._look()
            if self._closed:
                return
            poll = select.poll()
            poll.register(self._ears, select.POLLIN)
            for bell in bells:
                poll.register(bell, 0)
            poll.poll(None if seconds is None else seconds * 1000)
            with suppress(BlockingIOError):
                os.read(self._ears, 4096)
