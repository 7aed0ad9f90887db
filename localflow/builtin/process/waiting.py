"""Waits for what will come soon: looks a few times before it sleeps.

To be woken costs both sides more than a short call takes. So who has just had something to do, and will have it again
in a moment, stays awake for that long, and lets everybody else who wants the core have it. Where that was in vain
again and again, it sleeps at once for a moment: what it waits for takes longer, or others need the core for it. And
where somebody has long work for the core, who sleeps gets it back sooner than who lets others go first; so then it
sleeps at once, for a while.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Who does not get the core back so soon has met somebody with more to do than one of our own has for a short call.
_TURN_SECONDS = 500e-6
#: For how long it sleeps at once then, and for how long at most, when it meets others again and again.
_REST_SECONDS, _LONGEST_REST = 0.01, 1.0
#: Who has looked out in vain so many times in a row sleeps at once for the shorter time.
_PATIENCE = 8


class Lookout:
    """Looks out for what one thread waits for."""

    def __init__(self, seconds: float, give_way: Callable[[], object] = os.sched_yield) -> None:
        """Make one that stays awake for so long.

        Args:
            seconds: how long it looks out at most.
            give_way: lets others have the core, if there are any who want it.
        """
        self._seconds = seconds
        self._give_way = give_way
        self._in_vain = 0
        self._rest = _REST_SECONDS
        self._rests_until = 0.0

    def find(self, look: Callable[[], T]) -> T:
        """Return what `look` finds, at the latest what it has found, if anything, when the time is over."""
        now = time.monotonic()
        if now < self._rests_until:
            return look()
        deadline = now + self._seconds
        while not (found := look()) and now < deadline:
            self._give_way()
            now = time.monotonic()
        self._in_vain = 0 if now < deadline else self._in_vain + 1
        if now - deadline > _TURN_SECONDS:
            self._begin_rest(now)
        elif self._in_vain >= _PATIENCE:
            self._rests_until = now + _REST_SECONDS
        return found

    def _begin_rest(self, now: float) -> None:
        is_again = now - self._rests_until < self._rest
        self._rest = min(2 * self._rest, _LONGEST_REST) if is_again else _REST_SECONDS
        self._rests_until = now + self._rest
