"""Waits for what will come soon: looks a few times before it sleeps.

To be woken costs both sides more than a short call takes. So who has just had something to do, and will have it again
in a moment, stays awake for that long, and lets everybody else who wants the core have it. On a machine where others do
want it, who sleeps gets it back sooner than who lets others go first; so then it sleeps.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Who does not get the core back so soon has met somebody who wants it.
_TURN_SECONDS = 10e-6
#: How long it sleeps at once after it has met others.
_REST_SECONDS = 0.05


class Lookout:
    """Looks out for what one thread waits for."""

    def __init__(self, seconds: float) -> None:
        """Make one that stays awake for so long."""
        self._seconds = seconds
        self._rests_until = 0.0

    def find(self, look: Callable[[], T]) -> T:
        """Return what `look` finds, at the latest what it has found, if anything, when the time is over."""
        now = time.monotonic()
        if now < self._rests_until:
            return look()
        deadline = now + self._seconds
        while not (found := look()) and now < deadline:
            before = time.monotonic()
            os.sched_yield()
            now = time.monotonic()
            if now - before > _TURN_SECONDS:
                self._rests_until = now + _REST_SECONDS
                return look()
        return found
