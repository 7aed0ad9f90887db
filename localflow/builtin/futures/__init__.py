"""The executor `futures`: any `concurrent.futures.Executor` runs calls."""

from __future__ import annotations

from localflow.builtin.futures.executor import FuturesExecutor

__all__ = ["FuturesExecutor"]
