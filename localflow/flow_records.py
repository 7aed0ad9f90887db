"""The record of a flow run: who runs what, with what, and where the flow is found again."""

from __future__ import annotations

import inspect
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localflow.errors import UnpicklableError
from localflow.names import random_id, random_name
from localflow.payloads import pack
from localflow.records import FlowRun
from localflow.run_names import run_name
from localflow.tags import current_tags
from localflow.version import __version__

if TYPE_CHECKING:
    from localflow.flows import Flow
    from localflow.payloads import Payload

_REPR_LIMIT = 200


def flow_record(
    flow: Flow[..., Any],
    parameters: dict[str, Any],
    executor: str,
    root_id: str | None = None,
    parent_id: str | None = None,
    inputs: str = "",
) -> FlowRun:
    """Return the record of a new flow run of this process.

    Args:
        flow: the flow.
        parameters: what it is called with, by name.
        executor: the name of what its tasks run on.
        root_id: the id of the flow run at the top of the tree; None for one that is there itself.
        parent_id: the id of the flow run or task run that calls it.
        inputs: a fingerprint of the call.
    """
    run_id, name = random_id(), random_name()
    if flow.run_name is not None:
        name = run_name(flow, *call_arguments(flow.signature, parameters), name)
    versions = {"localflow": __version__, "python": sys.version.split()[0]}  # `platform` takes a millisecond to import
    if flow.version is not None:
        versions["flow"] = str(flow.version)
    return FlowRun(
        id=run_id,
        name=name,
        flow=flow.name,
        created_at=time.time(),
        root_id=root_id or run_id,
        parent_id=parent_id,
        parameters={name: json_safe(value) for name, value in parameters.items()},
        arguments=_packed(parameters),
        entry_point=entry_point(flow),
        executor=executor,
        versions=versions,
        host=host_name(),
        pid=os.getpid(),
        tags=current_tags(),
        code=flow.code,
        inputs=inputs,
    )


def flow_record_again(
    flow: Flow[..., Any], run: FlowRun, parameters: dict[str, Any], executor: str, inputs: str | None = None
) -> FlowRun:
    """Return the record of a flow run that goes on in this process, with the code of now.

    With `inputs`, the fingerprint of a call, it has the parameters of now, too.
    """
    record = flow_record(flow, parameters, executor, run.root_id, run.parent_id, inputs or "")
    record = record._replace(id=run.id, name=run.name, created_at=run.created_at)
    if inputs is None:
        record = record._replace(inputs=run.inputs, parameters=run.parameters, arguments=run.arguments)
    return record


def entry_point(flow: Flow[..., Any]) -> str:
    """Return where a flow is found again: its file, or its module where it has none, and its name there."""
    code = getattr(inspect.unwrap(flow.fn), "__code__", None)
    return f"{_whole_path(code.co_filename, flow.module) if code else flow.module}:{flow.qualname}"


def host_name() -> str:
    """Return the name of this machine."""
    if sys.platform != "win32":
        return os.uname().nodename
    import platform

    return platform.node()


def call_arguments(signature: inspect.Signature, parameters: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return parameters by name as the arguments of a call."""
    bound = inspect.BoundArguments(signature, parameters)
    return bound.args, bound.kwargs


def json_safe(value: object, depth: int = 8) -> object:
    """Return `value` as JSON can hold it, for readers; what it cannot hold becomes its bounded repr."""
    if type(value) in (type(None), bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else repr(value)
    if depth and isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return [json_safe(item, depth - 1) for item in value]
    if depth and isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: json_safe(item, depth - 1) for key, item in value.items()}
    return _bounded_repr(value)


def _bounded_repr(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}: repr() of it raised {type(error).__name__}>"
    return text if len(text) <= _REPR_LIMIT else text[: _REPR_LIMIT - 3] + "..."


def _packed(parameters: dict[str, Any]) -> Payload | None:
    try:
        return pack(parameters)
    except UnpicklableError:
        return None


def _whole_path(file: str, module: str | None) -> str:
    """Return the path of a module's file, which `python script.py` knows only as it was typed."""
    if file.startswith("<"):  # stdin, a REPL
        return file
    known = getattr(sys.modules.get(module or ""), "__file__", None)
    is_relative = known is not None and not Path(file).is_absolute() and Path(known).name == Path(file).name
    return str(Path(known).absolute()) if known is not None and is_relative else file
