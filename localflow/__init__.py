"""Run Python flows across the cores of one machine: no server, every state recorded, nothing lost."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from localflow.shadowing import step_aside as _step_aside
from localflow.tags import tags  # at once: when it is first touched it would be the module of this name
from localflow.version import __version__

if TYPE_CHECKING:
    from localflow.arguments import allow_failure, quote, unmapped
    from localflow.builtin.futures import FuturesExecutor
    from localflow.builtin.process import ProcessExecutor
    from localflow.builtin.sequential import SequentialExecutor
    from localflow.builtin.thread import ThreadExecutor
    from localflow.caching import FLOW_PARAMETERS, INPUTS, NO_CACHE, RUN_ID, TASK_SOURCE
    from localflow.context import get_run_context
    from localflow.flows import Flow, flow
    from localflow.futures import TaskFuture
    from localflow.hookspecs import hookimpl
    from localflow.logs import get_run_logger
    from localflow.mapping import MappedFutures
    from localflow.retries import exponential_backoff
    from localflow.states import (
        AwaitingRetry,
        Cancelled,
        Completed,
        Crashed,
        Failed,
        Pending,
        Retrying,
        Running,
        Scheduled,
        State,
        StateType,
    )
    from localflow.tasks import Task, task
    from localflow.waiting import as_completed, wait

__all__ = [
    "FLOW_PARAMETERS",
    "INPUTS",
    "NO_CACHE",
    "RUN_ID",
    "TASK_SOURCE",
    "AwaitingRetry",
    "Cancelled",
    "Completed",
    "Crashed",
    "Failed",
    "Flow",
    "FuturesExecutor",
    "MappedFutures",
    "Pending",
    "ProcessExecutor",
    "Retrying",
    "Running",
    "Scheduled",
    "SequentialExecutor",
    "State",
    "StateType",
    "Task",
    "TaskFuture",
    "ThreadExecutor",
    "__version__",
    "allow_failure",
    "as_completed",
    "exponential_backoff",
    "flow",
    "get_run_context",
    "get_run_logger",
    "hookimpl",
    "quote",
    "tags",
    "task",
    "unmapped",
    "wait",
]

# Loaded when first touched: a worker process, say, needs most of it only if its tasks do.
_HOMES = {
    "localflow.arguments": "allow_failure quote unmapped",
    "localflow.builtin.futures": "FuturesExecutor",
    "localflow.builtin.process": "ProcessExecutor",
    "localflow.builtin.sequential": "SequentialExecutor",
    "localflow.builtin.thread": "ThreadExecutor",
    "localflow.caching": "FLOW_PARAMETERS INPUTS NO_CACHE RUN_ID TASK_SOURCE",
    "localflow.context": "get_run_context",
    "localflow.flows": "Flow flow",
    "localflow.futures": "TaskFuture",
    "localflow.hookspecs": "hookimpl",
    "localflow.logs": "get_run_logger",
    "localflow.mapping": "MappedFutures",
    "localflow.retries": "exponential_backoff",
    "localflow.states": (
        "AwaitingRetry Cancelled Completed Crashed Failed Pending Retrying Running Scheduled State StateType"
    ),
    "localflow.tasks": "Task task",
    "localflow.waiting": "as_completed wait",
}
_LAZY = {name: home for home, names in _HOMES.items() for name in names.split()}


_step_aside(*getattr(sys, "argv", ())[:1])


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'localflow' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
