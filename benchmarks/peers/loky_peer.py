"""loky's reusable executor; what depends on something is submitted when that is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loky import get_reusable_executor

from benchmarks.peers import work
from benchmarks.peers.by_hand import chain, computing, independent, large_array, mapped, stencil

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["chain", "computing", "independent", "large_array", "mapped", "stencil", "with_workers"]


def with_workers(body: Callable[[Any], Any]) -> Any:
    """Start the executor."""
    with get_reusable_executor(max_workers=work.WORKERS) as pool:
        return body(pool)
