"""The hooks of a plugin. Publish a module with these under the entry-point group `localflow`.

A factory is a callable, or `"module:name"` of one, imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import pluggy

from localflow.interfaces import Executor, Notifier, StateStore

PROJECT = "localflow"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

ExecutorFactory: TypeAlias = Callable[..., Executor] | str
StateStoreFactory: TypeAlias = Callable[..., StateStore] | str
NotifierFactory: TypeAlias = Callable[..., Notifier] | str


class RegisterExecutor(Protocol):
    """`register(name, factory)` of the executors hook."""

    def __call__(self, name: str, factory: ExecutorFactory) -> None: ...  # noqa: D102


class RegisterStateStore(Protocol):
    """`register(name, factory)` of the state stores hook."""

    def __call__(self, name: str, factory: StateStoreFactory) -> None: ...  # noqa: D102


class RegisterNotifier(Protocol):
    """`register(name, factory)` of the notifiers hook."""

    def __call__(self, name: str, factory: NotifierFactory) -> None: ...  # noqa: D102


@hookspec
def localflow_register_executors(register: RegisterExecutor) -> None:
    """Register executors, each under the name that localflow.toml and `executor=` use."""


@hookspec
def localflow_register_state_stores(register: RegisterStateStore) -> None:
    """Register state stores, each under the name that localflow.toml uses."""


@hookspec
def localflow_register_notifiers(register: RegisterNotifier) -> None:
    """Register notifiers, each under the name that localflow.toml uses as `type`."""
