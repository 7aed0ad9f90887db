"""What workers can import: the engine's sys.path travels, and what is not to be found on it goes by value."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from localflow.pickler import by_value, travels_by_value

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec


def shipped_path() -> list[str]:
    """Return sys.path for workers, in which `""` and other relative folders are not: they mean the current one."""
    return [entry if entry.startswith(os.sep) else _absolute(entry) for entry in sys.path if type(entry) is str]


def _absolute(entry: str) -> str:
    try:
        return os.path.abspath(entry)  # noqa: PTH100 - Path would be imported for this alone
    except OSError:  # the current folder is deleted
        return entry


def keep_importable(function: Any) -> None:
    """Have a function's module travel by value if workers would not find it, or would find another one.

    Such as a module that pytest imported from a folder outside sys.path, or one that was put together by code.
    """
    name = getattr(function, "__module__", None)
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is None or travels_by_value(name):
        return
    spec = _find(str(name))
    if spec is None or _is_another_file(getattr(module, "__file__", None), spec):
        by_value(module)


def _find(name: str) -> ModuleSpec | None:
    """Find a module the way `import` would if nothing were imported yet."""
    parts = name.split(".")
    spec = _find_on(parts[0], None)
    for count in range(2, len(parts) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = _find_on(".".join(parts[:count]), spec.submodule_search_locations)
    return spec


def _find_on(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None


def _is_another_file(file: str | None, spec: ModuleSpec) -> bool:
    # Some of the standard library is frozen into the interpreter, and has a file for readers only.
    if file is None or spec.origin is None or not spec.has_location:
        return False
    return os.path.realpath(file) != os.path.realpath(spec.origin)
