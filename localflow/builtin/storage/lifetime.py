"""When a state store may be used: from its opening to `close()`, in the process that opened it."""

from __future__ import annotations

import os

from localflow.errors import StoreError


class Lifetime:
    """Remembers who opened a store and whether it is still open."""

    __slots__ = ("_closed", "_location", "_pid")

    def __init__(self, location: str) -> None:
        self._location = location
        self._pid = os.getpid()
        self._closed = False

    def check(self) -> None:
        """Raise StoreError once the store is closed, and in a forked child."""
        if self._closed:
            raise StoreError(f"state store {self._location} is closed; open it again to use it")
        if os.getpid() != self._pid:
            raise StoreError(
                f"state store {self._location} was opened by process {self._pid} and is used in its forked child "
                f"{os.getpid()}; open it again there"
            )

    def end(self) -> bool:
        """Mark the store as closed; return whether its files are now to be released, which is so only once."""
        ends_now = not self._closed and os.getpid() == self._pid
        self._closed = True
        return ends_now
