"""Waits for what will come soon: looks a few times before it sleeps.

To be woken costs both sides more than a short call takes. So who has just had something to do, and will have it again
in a moment, stays awake for that long, while everybody else who wants the core may have it.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def look_out(look: Callable[[], T], seconds: float) -> T:
    """Return what `look` finds, at the latest what it has found, if anything, after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        os.sched_yield()
    return found
