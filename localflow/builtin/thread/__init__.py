"""The thread executor: calls run in threads of this process, async ones in an event loop."""

from __future__ import annotations

from localflow.builtin.thread.executor import ThreadExecutor

__all__ = ["ThreadExecutor"]
