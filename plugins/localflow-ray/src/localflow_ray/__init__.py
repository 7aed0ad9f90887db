"""The hooks of the plugin. The executor, and Ray with it, is imported when somebody selects it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow import hookimpl

if TYPE_CHECKING:
    from localflow.hookspecs import RegisterExecutor

#: The version of the plugin interface this plugin is written for.
localflow_api = 1


@hookimpl
def localflow_register_executors(register: RegisterExecutor) -> None:
    """Register the executor `ray`."""
    register("ray", "localflow_ray.executor:RayExecutor")
