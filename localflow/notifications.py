"""Tells notifiers of state changes, off the critical path.

The engine calls `publish` after a commit; it only sorts changes into queues. Each notifier has its own bounded queue
and its own daemon thread, started when there is something to tell, so that one notifier can neither slow the run nor
another notifier. What can go wrong stays here:

- a notifier raises: logged once, counted each time;
- a notifier does not return within the deadline: muted with a warning; its thread is left behind, its queue with it;
- a queue is full: the newest change is dropped, with a warning the first time;
- the run ends: `close` waits for the queues, but no longer than the deadline in all.

A warning that does not come from the notifier's own thread gets a thread too: a logging handler may be what hangs.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

from localflow.events import duration
from localflow.interfaces import Notifier
from localflow.printable import printable, shortened
from localflow.states import StateType, exception_text
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localflow.records import StateChange

_QUEUE_LIMIT = 10_000
_ERROR_LIMIT = 2_000
_GRACE = 0.5  # seconds for warnings to be written at the end


class Subscription(NamedTuple):
    """A notifier and what it wants to be told of."""

    name: str
    notifier: Notifier
    on: frozenset[str] | None = None
    """Names of states, or capitalised state types: `Failed` includes `TimedOut`. None for all."""
    flows: frozenset[str] | None = None
    """Names of flows, or patterns such as `etl-*`. None for all."""
    min_duration: float = 0.0
    """Seconds from the creation of the run to the change."""

    def matches(self, change: StateChange) -> bool:
        """Return whether the notifier wants to be told of this change."""
        on = self.on
        if on is not None and change.name not in on and change.type.value.capitalize() not in on:
            return False
        return duration(change) >= self.min_duration and self._matches_flow(change.run.flow_run.flow)

    def _matches_flow(self, flow: str) -> bool:
        if self.flows is None or flow in self.flows:
            return True
        from fnmatch import fnmatchcase

        return any(fnmatchcase(flow, pattern) for pattern in self.flows)


class Notifications:
    """The notifiers of one run."""

    def __init__(
        self,
        subscriptions: Sequence[Subscription],
        deadline: float = 10.0,
        discreet: Callable[[str], str] = str,
    ) -> None:
        """Begin with nothing to tell.

        Args:
            subscriptions: the notifiers.
            deadline: how long each may take for a change, and all for what is left at the end, in seconds.
            discreet: masks what is secret in what a notifier says is wrong.
        """
        self._deadline = deadline
        self._channels = [_Channel(subscription, deadline, discreet) for subscription in subscriptions]
        self._wants_all = any(subscription.on is None for subscription in subscriptions)
        self._wanted = frozenset[str]().union(*(subscription.on or () for subscription in subscriptions))
        self._wanted_types = frozenset(type for type in StateType if type.value.capitalize() in self._wanted)

    def wants(self, name: str, type: StateType) -> bool:
        """Return whether any notifier may want to be told of a state with this name and type."""
        return self._wants_all or name in self._wanted or type in self._wanted_types

    def publish(self, changes: Sequence[StateChange]) -> None:
        """Tell the notifiers of changes that are stored. Never blocks, never raises."""
        for channel in self._channels:
            for change in changes:
                if channel.subscription.matches(change):
                    channel.put(change)

    def close(self) -> int:
        """Wait for what is queued, within the deadline, and return how many notifications failed or were dropped."""
        until = time.monotonic() + self._deadline
        for channel in self._channels:
            channel.finish()
        for channel in self._channels:
            channel.wait(until)
        until = time.monotonic() + _GRACE
        for channel in self._channels:
            channel.wait_for_warnings(until)
        return sum(channel.undelivered for channel in self._channels)


class _Channel:
    """One notifier, its queue and its thread."""

    def __init__(self, subscription: Subscription, deadline: float, discreet: Callable[[str], str]) -> None:
        self.subscription = subscription
        self._discreet = discreet
        self._deadline = deadline
        # Re-entrant, for a signal handler may publish while its thread publishes.
        self._lock = threading.RLock()
        self._queue: queue.SimpleQueue[StateChange | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._warnings: list[threading.Thread] = []
        self._accepted = 0
        self._delivered = 0
        self._call_started: float | None = None
        self._shut = False  # finished or muted: nothing more is taken
        self._muted = False
        self._has_failed = False
        self._has_overflowed = False

    @property
    def undelivered(self) -> int:
        return self._accepted - self._delivered

    def put(self, change: StateChange) -> None:
        with self._lock:
            self._accepted += 1
            self._mute_if_overdue()
            if self._shut:
                return
            if self._queue.qsize() >= _QUEUE_LIMIT:
                if not self._has_overflowed:
                    self._has_overflowed = True
                    self._warn(f"has {_QUEUE_LIMIT} notifications waiting; more are dropped until it catches up")
                return
            self._queue.put(change)
            self._start()

    def finish(self) -> None:
        with self._lock:
            self._mute_if_overdue()
            if self._shut:
                return
            self._shut = True
            self._queue.put(None)
            # A notifier that was never told anything needs its thread only if it has something to release.
            if type(self.subscription.notifier).close is not Notifier.close:
                self._start()

    def wait(self, until: float) -> None:
        if self._thread is None or self._muted:
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._mute(
                f"did not finish within {self._deadline:g} seconds at the end of the run; "
                f"{self.undelivered} notifications are not delivered"
            )

    def wait_for_warnings(self, until: float) -> None:
        for thread in self._warnings:
            thread.join(max(0.0, until - time.monotonic()))

    # -- the notifier's own thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._muted and (change := self._queue.get()) is not None:
            self._call_started = time.monotonic()
            if self._call(self.subscription.notifier.notify, change):
                self._delivered += 1
            with self._lock:
                self._mute_if_overdue()
                self._call_started = None
        self._call(self.subscription.notifier.close)

    def _call(self, method: Callable[..., None], *arguments: StateChange) -> bool:
        try:
            method(*arguments)
        except BaseException as error:  # sys.exit() in a notifier is that notifier's failure, nobody else's
            if not self._has_failed:
                self._has_failed = True
                text = self._discreet(_worded(error))
                cause = error if text == _worded(error) else None  # the traceback would tell it after all
                _log("error", f"{self._label} failed: {text}; further failures are only counted", cause)
            return False
        return True

    # -- helpers -----------------------------------------------------------------------------------------------------

    @property
    def _label(self) -> str:
        return f"notifier '{self.subscription.name}'"

    def _start(self) -> None:
        if self._thread is None:
            self._thread = _started(f"localflow {self._label}", self._run)
            self._shut = self._shut or self._thread is None

    def _mute_if_overdue(self) -> None:
        started = self._call_started
        if started is not None and time.monotonic() - started > self._deadline:
            self._mute(f"did not return within {self._deadline:g} seconds; it is told nothing more")

    def _mute(self, reason: str) -> None:
        with self._lock:
            if not self._muted:
                self._muted = self._shut = True
                self._warn(reason)

    def _warn(self, text: str) -> None:
        line = f"{self._label} {text}"
        thread = _started("localflow warning", lambda: _log("warning", line))
        if thread is not None:
            self._warnings.append(thread)


def _started(name: str, target: Callable[[], None]) -> threading.Thread | None:
    """Start a daemon thread; None where the system gives none, or the interpreter is shutting down."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def _worded(error: BaseException) -> str:
    text = exception_text(error)
    return shortened(f"{type(error).__name__}: {text}" if text else type(error).__name__, _ERROR_LIMIT)


def _log(level: str, line: str, error: BaseException | None = None) -> None:
    import logging

    logger = logging.getLogger("localflow.notifications")
    try:
        logger.log(logging.ERROR if level == "error" else logging.WARNING, "%s", printable(line))
        if error is not None:
            logger.debug("%s", "traceback of that failure:", exc_info=error)
    except Exception:  # a filter or handler of the program raises; there is nobody left to tell
        return
