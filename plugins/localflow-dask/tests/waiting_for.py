"""Waits for conditions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE = 10.0


def eventually(
    condition: Callable[[], object], message: str | Callable[[], str] = "", seconds: float = DEADLINE
) -> None:
    """Wait until `condition` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, (message() if callable(message) else message) or "it did not come about"
        time.sleep(0.01)
