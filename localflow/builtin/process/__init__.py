"""The process executor: true parallelism, and no task can harm another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localflow.builtin.process.executor import ProcessExecutor

__all__ = ["ProcessExecutor"]


def __getattr__(name: str) -> Any:
    # Loaded when touched: the supervisor and the workers need their own modules only.
    if name == "ProcessExecutor":
        from localflow.builtin.process.executor import ProcessExecutor

        return ProcessExecutor
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
