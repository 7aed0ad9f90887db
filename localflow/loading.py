"""Load the flow that `localflow run FILE[:flow]` names."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from localflow.errors import FlowNotFoundError, NotResumableError, UsageError, suggestion
from localflow.flows import Flow
from localflow.interrupts import STOPS
from localflow.pickler import by_value
from localflow.shadowing import step_aside
from localflow.tracebacks import traceback_text

#: The name a flow's file is loaded under. Nothing importable has it, and `if __name__ == "__main__"` is false.
MODULE_NAME = "__localflow_main__"

_PACKAGE = f"{Path(__file__).parent}{os.sep}"


def load_flow(reference: str) -> Flow[..., Any]:
    """Execute a file and return a flow in it.

    Args:
        reference: `file.py`, or `file.py:name` with the name of the flow or of the variable that holds it.

    Raises:
        UsageError: the file cannot be read, is not Python, or raises when it is executed.
        FlowNotFoundError: it holds no such flow, or several and none of them is named.
    """
    file, name = _split(reference)
    module = _load_module(file)
    flows: dict[str, Flow[..., Any]] = {}
    for variable, value in vars(module).items():
        if isinstance(value, Flow) and not any(value is known for known in flows.values()):
            flows[variable] = value
    return _only_flow(file, flows) if name is None else _named_flow(file, name, module, flows)


def load_entry_point(entry_point: str, flow_name: str) -> Flow[..., Any]:
    """Find a flow again where a record says that it is.

    Args:
        entry_point: `/path/to/file.py:qualified.name`, or `module:qualified.name`.
        flow_name: the flow's name, by which it is found if it has moved within its file.

    Raises:
        UsageError: the file cannot be read, or raises when it is executed.
        NotResumableError: the flow was not defined in a file.
        FlowNotFoundError: the file does not hold it any more.
    """
    file, _, qualname = entry_point.rpartition(":")
    if file.startswith("<"):
        raise NotResumableError(
            f"flow '{flow_name}' was defined in {file}, which is not there any more; put it into a file and name that: "
            "--flow FILE[:FLOW]"
        )
    if file.endswith(".py") and not _is_file(file):
        raise NotResumableError(
            f"flow '{flow_name}' was in {file}, but there is no such file any more; say where it is: --flow FILE[:FLOW]"
        )
    module = _import_module(file)
    found: Any = module
    for name in qualname.split("."):
        found = getattr(found, name, None)
    if isinstance(found, Flow) and found.name == flow_name:
        return found
    flows = {variable: value for variable, value in vars(module).items() if isinstance(value, Flow)}
    return _named_flow(file, flow_name, module, flows)


def _import_module(file: str) -> types.ModuleType:
    """Load a script, or import what is part of a package or known by name alone."""
    path = Path(file)
    if not file.endswith(".py"):
        return _import_named(file, file)
    names = [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    if len(names) == 1:
        return _load_module(file)
    sys.path.insert(0, str(folder))
    return _import_named(".".join(names), file)


def _import_named(name: str, file: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except STOPS:
        raise
    except BaseException as error:
        raise UsageError(_raised(file, error)) from None


def _split(reference: str) -> tuple[str, str | None]:
    if ":" not in reference or _is_file(reference):
        return reference, None
    if match := re.fullmatch(r"(.+?\.py):(.*)", reference, re.DOTALL):  # names of flows may hold a colon, too
        return match[1], match[2]
    file, _, name = reference.rpartition(":")
    return file, name


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def _load_module(file: str) -> types.ModuleType:
    path = Path(file)
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"no such file: {file!r}{_similar_file(path)}") from None
    except IsADirectoryError:
        raise UsageError(f"{file!r} is a folder; name a Python file in it") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {file!r}: {getattr(error, 'strerror', None) or error}") from None
    path = path.resolve()
    module = types.ModuleType(MODULE_NAME)
    module.__file__ = str(path)
    sys.modules[MODULE_NAME] = module  # dataclasses, pickle and others look a class up by its module's name
    sys.path.insert(0, str(path.parent))
    sys.argv = [str(path)]
    step_aside(str(path))
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except (SyntaxError, ValueError) as error:
        if _user_frames(error):
            raise UsageError(_raised(file, error)) from None
        text = "".join(traceback.format_exception_only(error)).rstrip()
        raise UsageError(f"{file!r} is not valid Python:\n{text}") from None
    except STOPS:
        raise
    except BaseException as error:
        raise UsageError(_raised(file, error)) from None
    by_value(module)
    return module


def _similar_file(path: Path) -> str:
    try:
        return suggestion(path.name, (other.name for other in path.parent.glob("*.py")))
    except (OSError, ValueError):
        return ""


def _raised(file: str, error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return (
            f"{file!r} called sys.exit({error}) when it was loaded; "
            'move what should only run as a script under `if __name__ == "__main__":`'
        )
    return f"{file!r} raised an exception when it was loaded:\n{traceback_text(error).rstrip()}"


def _user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_PACKAGE)]


def _only_flow(file: str, flows: dict[str, Flow[..., Any]]) -> Flow[..., Any]:
    own = {variable: flow for variable, flow in flows.items() if flow.fn.__module__ == MODULE_NAME}
    if len(own) == 1:
        return next(iter(own.values()))
    if "main" in own:
        return own["main"]
    if own:
        raise FlowNotFoundError(f"{file!r} holds several flows, name one: {_choices(file, own)}")
    imported = f"; flows it imports: {_choices(file, flows)}" if flows else "; put @flow on a function"
    raise FlowNotFoundError(f"{file!r} holds no flow of its own{imported}")


def _named_flow(file: str, name: str, module: types.ModuleType, flows: dict[str, Flow[..., Any]]) -> Flow[..., Any]:
    value = vars(module).get(name)
    if isinstance(value, Flow):
        return value
    named = [flow for flow in flows.values() if flow.name == name]
    if len(named) == 1:
        return named[0]
    if named:
        same = {variable: flow for variable, flow in flows.items() if flow.name == name}
        raise FlowNotFoundError(f"{file!r} holds several flows named {name!r}, name a variable: {_choices(file, same)}")
    if value is not None:
        hint = "; put @flow on it" if isinstance(value, types.FunctionType) else ""
        raise FlowNotFoundError(f"{name!r} in {file!r} is of type {type(value).__name__}, not a flow{hint}")
    known = {**dict.fromkeys(flows), **dict.fromkeys(flow.name for flow in flows.values())}
    holds = f"; it holds {_choices(file, flows)}" if flows else "; it holds no flow at all"
    raise FlowNotFoundError(f"{file!r} holds no flow {name!r}{suggestion(name, known) or holds}")


def _choices(file: str, flows: dict[str, Flow[..., Any]]) -> str:
    return ", ".join(f"{file}:{variable}" for variable in flows)
