"""Which cluster an executor wants."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Settings(NamedTuple):
    """The options of an executor, checked."""

    workers: int
    threads_per_worker: int
    memory_limit: int | str | None
    env: Mapping[str, str]
    address: str | None
    """Of a scheduler; None for a cluster of our own."""
    timeout: float
    """How long a scheduler, or the first worker, may be in coming, in seconds."""
