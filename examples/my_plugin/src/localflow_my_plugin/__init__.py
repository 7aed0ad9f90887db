"""The hooks of the plugin. The modules behind the names are imported when somebody selects them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow import hookimpl

if TYPE_CHECKING:
    from localflow.hookspecs import RegisterExecutor, RegisterNotifier

#: The version of the plugin interface this plugin is written for.
localflow_api = 1


@hookimpl
def localflow_register_executors(register: RegisterExecutor) -> None:
    """Register the executor `nice`."""
    register("nice", "localflow_my_plugin.nice:NiceExecutor")


@hookimpl
def localflow_register_notifiers(register: RegisterNotifier) -> None:
    """Register the notifier `file`."""
    register("file", "localflow_my_plugin.file:FileNotifier")
