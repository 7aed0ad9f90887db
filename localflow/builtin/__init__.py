"""The plugins that come with localflow, by the same door as everybody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow.hookspecs import hookimpl

if TYPE_CHECKING:
    from localflow.hookspecs import RegisterExecutor, RegisterNotifier, RegisterStateStore


@hookimpl
def localflow_register_executors(register: RegisterExecutor) -> None:
    """Register the executors."""
    register("sequential", "localflow.builtin.sequential:SequentialExecutor")
    register("thread", "localflow.builtin.thread:ThreadExecutor")
    register("process", "localflow.builtin.process:ProcessExecutor")
    register("futures", "localflow.builtin.futures:FuturesExecutor")


@hookimpl
def localflow_register_state_stores(register: RegisterStateStore) -> None:
    """Register the state stores."""
    register("sqlite", "localflow.builtin.sqlite:SqliteStateStore")
    register("json", "localflow.builtin.json_files:JsonStateStore")
    register("memory", "localflow.builtin.memory:MemoryStateStore")


@hookimpl
def localflow_register_notifiers(register: RegisterNotifier) -> None:
    """Register the notifiers."""
    register("log", "localflow.builtin.log:LogNotifier")
    register("command", "localflow.builtin.command:CommandNotifier")
    register("webhook", "localflow.builtin.webhook:WebhookNotifier")
