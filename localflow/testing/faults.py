"""What goes wrong on purpose: small objects that say when, and what happens then.

    store = FaultyStore(store, append=[Slow(0.01), Fails(after=3, times=2)], read=Fails())
    executor = FaultyExecutor(executor, outcome=Repeats(every=10))

Each counts the operations that it is asked about: the first `after` of them go well, then one in `every` is struck,
until `times` of them have been. Several faults of one operation are asked in their order, the first one outermost.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from localflow.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


class Fault(ABC):
    """Something that goes wrong; a subclass says what, by `strike`.

    Attributes:
        strikes: how often it has struck.
    """

    def __init__(self, *, after: int = 0, times: int | None = None, every: int = 1) -> None:
        """Say when.

        Args:
            after: how many operations go well first.
            times: how often it strikes; None for ever.
            every: of so many operations one is struck, the last of them.
        """
        if after < 0 or every < 1 or (times is not None and times < 0):
            raise ValueError(
                f"after and times are numbers from 0, every is one from 1, not {after!r}, {times!r} and {every!r}"
            )
        self.strikes = 0
        self._after, self._times, self._every = after, times, every
        self._operations = 0
        self._lock = threading.Lock()

    def apply(self, place: str, proceed: Callable[[], T]) -> T | None:
        """Do an operation, or strike it."""
        with self._lock:
            self._operations += 1
            strikes = self._is_due(self._operations - self._after)
            self.strikes += strikes
        return self.strike(place, proceed) if strikes else proceed()

    @abstractmethod
    def strike(self, place: str, proceed: Callable[[], T]) -> T | None:
        """Do what goes wrong.

        Args:
            place: what is asked and of whom, for messages.
            proceed: does the operation.
        """

    def close(self) -> None:  # noqa: B027 - optional
        """Let go what is still under way; called when the store is closed or the executor is shut down."""

    def _is_due(self, number: int) -> bool:
        """Return whether to strike the operation of this number, counted from those that go well; holding the lock."""
        return number > 0 and number % self._every == 0 and (self._times is None or self.strikes < self._times)


class Fails(Fault):
    """Raises: before anything is done, or after all of it is.

    The second is how a store fails that dies between its commit and its answer: the caller must not take what it was
    told for what is stored.
    """

    def __init__(
        self,
        error: BaseException | None = None,
        *,
        after: int = 0,
        times: int | None = None,
        every: int = 1,
        done: bool = False,
    ) -> None:
        """Say when, and with which error; a StoreError that names the place if none is given.

        Args:
            error: what is raised.
            after, times, every: see `Fault`.
            done: whether the operation is done first.
        """
        super().__init__(after=after, times=times, every=every)
        self._error, self._done = error, done

    def strike(self, place: str, proceed: Callable[[], T]) -> T | None:
        """Raise."""
        if self._done:
            proceed()
        what = "all of this was done" if self._done else "nothing of this was done"
        raise self._error or StoreError(f"{place} fails on purpose: {what}")


class FailsAtRandom(Fails):
    """Fails now and then, at the same places for the same seed."""

    def __init__(self, rate: float, *, done: bool = False, seed: int | None = None, error: BaseException | None = None):
        """Say how often: `rate` is the part of the operations that fail, from 0 to 1; see `Fails`."""
        if not 0 <= rate <= 1:
            raise ValueError(f"rate is a part of 1, not {rate!r}")
        super().__init__(error, done=done)
        self._rate, self._random = rate, random.Random(seed)

    def _is_due(self, number: int) -> bool:
        return self._random.random() < self._rate


class Full(Fault):
    """There is no space left, until `free` is called."""

    def __init__(self, *, after: int = 0) -> None:
        super().__init__(after=after)
        self._is_full = True

    def free(self) -> None:
        """Make room, for good."""
        self._is_full = False

    def strike(self, place: str, proceed: Callable[[], T]) -> T | None:
        """Raise a StoreError as of a full disk."""
        raise StoreError(f"{place}: {os.strerror(errno.ENOSPC)}") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _is_due(self, number: int) -> bool:
        return self._is_full and super()._is_due(number)


class Slow(Fault):
    """Takes its time: so many seconds before the operation."""

    def __init__(self, seconds: float, *, after: int = 0, times: int | None = None, every: int = 1) -> None:
        super().__init__(after=after, times=times, every=every)
        self._seconds = seconds

    def strike(self, place: str, proceed: Callable[[], T]) -> T | None:
        """Wait, then do it."""
        time.sleep(self._seconds)
        return proceed()


class Hangs(Fault):
    """Does not go on before `release` is called, or the store is closed or the executor shut down."""

    def __init__(self, *, after: int = 0, times: int | None = None, every: int = 1) -> None:
        super().__init__(after=after, times=times, every=every)
        self._released = threading.Event()

    def release(self) -> None:
        """Let everything go on, now and later."""
        self._released.set()

    def strike(self, place: str, proceed: Callable[[], T]) -> T | None:
        """Wait for the release, then do it."""
        self._released.wait()
        return proceed()

    def close(self) -> None:
        """Let everything go on."""
        self.release()


class Dies(Fault):
    """Ends the process at once, as `kill -9` does: before the operation, or when it is done."""

    def __init__(self, *, after: int = 0, done: bool = False, signal: int = signal.SIGKILL) -> None:
        super().__init__(after=after)
        self._done, self._signal = done, signal

    def strike(self, place: str, proceed: Callable[[], T]) -> T | None:
        """Send the signal to this process."""
        if self._done:
            proceed()
        os.kill(os.getpid(), self._signal)
        time.sleep(60)  # a signal may take a moment, and nothing may be done in it
        return None


class Loses(Fault):
    """Does nothing: an outcome is never reported, a call never arrives."""

    def strike(self, place: str, proceed: Callable[[], T]) -> T | None:
        """Forget it."""
        return None


class Repeats(Fault):
    """Does it twice."""

    def strike(self, place: str, proceed: Callable[[], T]) -> T | None:
        """Do it, and again."""
        proceed()
        return proceed()


class Late(Fault):
    """Does it later, in a thread of its own; what comes after it overtakes it."""

    def __init__(self, seconds: float, *, after: int = 0, times: int | None = None, every: int = 1) -> None:
        super().__init__(after=after, times=times, every=every)
        self._seconds = seconds
        self._timers: set[threading.Timer] = set()

    def strike(self, place: str, proceed: Callable[[], T]) -> T | None:
        """Have it done later."""

        def act() -> None:
            with self._lock:
                self._timers.discard(timer)
            proceed()

        timer = threading.Timer(self._seconds, act)
        timer.daemon = True
        with self._lock:
            self._timers.add(timer)
        timer.start()
        return None

    def close(self) -> None:
        """Forget what was to be done later."""
        with self._lock:
            timers, self._timers = self._timers, set()
        for timer in timers:
            timer.cancel()
        for timer in timers:
            with suppress(RuntimeError):  # it may be the one that closes
                timer.join()


def applied(faults: Sequence[Fault], place: str, proceed: Callable[[], T]) -> T | None:
    """Do an operation under faults, the first one outermost."""
    for fault in reversed(faults):
        proceed = _under(fault, place, proceed)
    return proceed()


def _under(fault: Fault, place: str, proceed: Callable[[], T]) -> Callable[[], T]:
    return lambda: fault.apply(place, proceed)  # type: ignore[return-value] # None only where nothing is asked for


def as_faults(given: Fault | Sequence[Fault]) -> list[Fault]:
    """Return one fault or several as a list."""
    return [given] if isinstance(given, Fault) else list(given)
