"""The hook of the plugin. The module behind the name is imported when somebody selects it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow import hookimpl

if TYPE_CHECKING:
    from localflow.hookspecs import RegisterNotifier

#: The version of the plugin interface this plugin is written for.
localflow_api = 1


@hookimpl
def localflow_register_notifiers(register: RegisterNotifier) -> None:
    """Register the notifier `apprise`."""
    register("apprise", "localflow_apprise.notifier:AppriseNotifier")
