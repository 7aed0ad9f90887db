"""Prefect 3 on threads, as it is used unless one says otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.task_runners import ThreadPoolTaskRunner

from benchmarks.peers import work
from benchmarks.peers.prefect_peer import chain, computing, independent, large_array, mapped, run, stencil

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["chain", "computing", "independent", "large_array", "mapped", "stencil", "with_workers"]


def with_workers(body: Callable[[Any], Any]) -> Any:
    """Run a flow."""
    return run(body, ThreadPoolTaskRunner(max_workers=work.WORKERS))
