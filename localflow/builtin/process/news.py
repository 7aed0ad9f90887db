"""Where a thread hears news: descriptors, each with whom it is of.

As `selectors` has it, but for so few descriptors as a pool has, and with no object made at each look: while calls are
short there are some hundred thousand looks in a second.
"""

from __future__ import annotations

import math
import select
from typing import Generic, TypeVar

T = TypeVar("T")


class News(Generic[T]):
    """Descriptors to wait at. Used by one thread."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._owners: dict[int, T] = {}

    def add(self, descriptor: int, owner: T, *, to_write: bool = False) -> None:
        """Hear from now on when there is something to be read, or else when there is room to write."""
        self._owners[descriptor] = owner
        self._poll.register(descriptor, select.POLLOUT if to_write else select.POLLIN)

    def remove(self, descriptor: int) -> None:
        """Hear no more of a descriptor; nothing happens if that is so."""
        if self._owners.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def wait(self, seconds: float | None) -> list[tuple[int, T]]:
        """Wait for news, at most for so long, for ever if that is None; return descriptors and whom they are of."""
        found = self._poll.poll(None if seconds is None else math.ceil(seconds * 1000))
        return [(descriptor, self._owners[descriptor]) for descriptor, _ in found] if found else []
