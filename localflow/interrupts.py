"""Ctrl-C, SIGTERM and SIGHUP while a flow runs: they stop the flow, but never in the middle of the engine's work.

Python runs signal handlers in the main thread between any two instructions. An exception raised there inside a turn
would leave the engine half changed, so a `Shield` holds it back until the turn is over.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from localflow.states import State


class Terminated(SystemExit):
    """SIGTERM or SIGHUP arrived: the flow is stopped, then the program ends with 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class FlowStop(BaseException):
    """Raised in the body of a flow that is to end now, with the state it ends in: it was cancelled, or too slow."""

    def __init__(self, flow_run_id: str, state: State) -> None:
        super().__init__(state.message)
        self.flow_run_id = flow_run_id
        self.state = state


#: What stops a flow instead of failing it.
STOPS = (KeyboardInterrupt, Terminated, FlowStop)

# Whoever stops a program may well send two signals at once: a terminal to all of the process group and its parent once
# more, a service manager SIGTERM and SIGHUP. That is one wish and not two, and a second exception in the middle of the
# first one's way out would tear what a single one leaves whole. Nobody presses Ctrl-C twice as fast as this.
_ECHO_SECONDS = 0.1


#: How long who waits for a run sleeps at a stretch. A signal that comes between the last look for one and the moment
#: when the thread sleeps wakes nobody; on a busy machine that moment is long. So nobody sleeps for good.
NAP_SECONDS = 0.2


class NappingCondition(threading.Condition):
    """A condition whose waits end early now and then, so that no signal is missed; `wait_for` goes on by itself."""

    _waiting = 0
    """How many threads are in `wait_for`: counted before they look, so that who changes something first sees them."""

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until a condition is true, for so many seconds at most; return its last value."""
        self._waiting += 1
        try:
            return super().wait_for(predicate, timeout)
        finally:
            self._waiting -= 1

    def tell(self) -> None:
        """Have all who wait in `wait_for` look again, after what they look at has changed."""
        if self._waiting:  # as a rule nobody does, and this is called for nearly every task run
            with self:
                self.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a notification, for a nap at most; return whether there was one."""
        return super().wait(NAP_SECONDS if timeout is None else min(timeout, NAP_SECONDS))


class Shield:
    """Holds stops back while the thread that signals reach does what must not be torn.

    There is one for the process, `SHIELD`: flows inside tasks have engines of their own in the same thread.
    """

    def __init__(self) -> None:
        self._listeners = 0
        self._thread: int | None = None
        self._depth = 0
        self._held: BaseException | None = None
        self._planned: deque[FlowStop] = deque()
        self._hears_stops = False
        self._taken: list[signal.Signals] = []
        self.raised: BaseException | None = None
        """The last stop by a signal: an event loop that it breaks knows only to cancel what it runs."""
        self._raised_at = -_ECHO_SECONDS

    @property
    def hears(self) -> bool:
        """Whether the calling thread is the one that signals reach, so that `stop` can interrupt it."""
        return self._hears_stops and threading.get_ident() == self._thread

    def stop(self, stop: FlowStop) -> None:
        """Raise `stop` in the thread that signals reach, from any other one; it ends what that is blocked in, too."""
        self._planned.append(stop)
        if self._thread is not None:
            signal.pthread_kill(self._thread, _WAKE)

    def unstop(self, flow_run_id: str) -> None:
        """Do not raise what is to stop this flow run, unless it is raised already."""
        self._planned = deque(stop for stop in self._planned if stop.flow_run_id != flow_run_id)

    def __enter__(self) -> None:
        if self._thread is not None and threading.get_ident() == self._thread:
            self._depth += 1

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._thread is not None and threading.get_ident() == self._thread:
            self._depth -= 1
            if self._held is not None and not self._depth:
                held, self._held = self._held, None
                self._raise(held)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for the block; elsewhere than in the main thread, or if they are taken, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._listeners += 1
        taken: list[signal.Signals] = []
        if self._listeners == 1:
            self.raised = None
            for signum, default in _STOP_SIGNALS.items():
                if signal.getsignal(signum) is default:  # an ignored signal stays ignored, as nohup wants it
                    signal.signal(signum, self._handle)
                    taken.append(signum)
            if _WAKE is not None and signal.getsignal(_WAKE) is signal.SIG_DFL:
                signal.signal(_WAKE, self._handle)
                self._hears_stops = True
            self._thread = threading.get_ident() if taken or self._hears_stops else None
            self._taken = taken
        try:
            yield
        finally:
            self._listeners -= 1
            if not self._listeners:
                for signum in self._taken:
                    signal.signal(signum, _STOP_SIGNALS[signum])
                if self._hears_stops:
                    self._hears_stops = False
                    signal.signal(_WAKE, signal.SIG_DFL)
                self._thread = None
                self._planned.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        stop: BaseException | None
        if time.monotonic() - self._raised_at < _ECHO_SECONDS:
            return
        if signum == _WAKE:
            if not self._planned:
                return
            stop = self._planned.popleft()
        else:
            stop = KeyboardInterrupt() if signum == signal.SIGINT else Terminated(signum)
        if self._depth:
            if not isinstance(self._held, (KeyboardInterrupt, Terminated)):  # the user's own stop wins
                self._held = stop
        else:
            self._raise(stop)

    def _raise(self, stop: BaseException) -> NoReturn:
        if not isinstance(stop, FlowStop):
            self.raised, self._raised_at = stop, time.monotonic()
        raise stop


SHIELD = Shield()

# A signal that hardly anybody uses, and that does nothing by default: it only makes Python run a handler.
_WAKE: Any = getattr(signal, "SIGURG", None)

_STOP_SIGNALS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    **({signal.SIGHUP: signal.SIG_DFL} if hasattr(signal, "SIGHUP") else {}),
}
