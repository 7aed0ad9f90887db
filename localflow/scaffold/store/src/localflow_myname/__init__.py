"""The hook of the plugin. The module behind the name is imported when somebody selects it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow import hookimpl

if TYPE_CHECKING:
    from localflow.hookspecs import RegisterStateStore

#: The version of the plugin interface this plugin is written for.
localflow_api = 1


@hookimpl
def localflow_register_state_stores(register: RegisterStateStore) -> None:
    """Register the state store `myname`."""
    register("myname", "localflow_myname.store:MynameStateStore")
