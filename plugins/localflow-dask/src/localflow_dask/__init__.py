"""The executor `dask`: its hook. What it needs is imported when somebody selects it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localflow import hookimpl

if TYPE_CHECKING:
    from localflow.hookspecs import RegisterExecutor
    from localflow_dask.executor import DaskExecutor

__all__ = ["DaskExecutor", "localflow_api", "localflow_register_executors"]

#: The version of the plugin interface this plugin is written for.
localflow_api = 1


@hookimpl
def localflow_register_executors(register: RegisterExecutor) -> None:
    """Register the executor `dask`."""
    register("dask", "localflow_dask.executor:DaskExecutor")


def __getattr__(name: str) -> Any:
    if name != "DaskExecutor":
        raise AttributeError(f"module 'localflow_dask' has no attribute '{name}'")
    from localflow_dask.executor import DaskExecutor

    return DaskExecutor
