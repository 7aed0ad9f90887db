"""A script that is called like a module of the standard library: whoever imports that one must not get the script.

Python looks for modules in the folder of the script first. So `import dataclasses`, wherever it is said, would run
`dataclasses.py` once more, in the middle of its own flow.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec


def step_aside(script: str = "") -> None:
    """Have the module of the standard library found that is called like a script, not the script."""
    folder, file = os.path.split(script)
    name, _, suffix = file.partition(".")
    if suffix == "py" and name in sys.stdlib_module_names:
        sys.meta_path.insert(0, _Finder(name, os.path.realpath(folder)))


class _Finder:
    """Finds one module, anywhere but in one folder."""

    def __init__(self, name: str, folder: str) -> None:
        self._name = name
        self._folder = folder

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """Return where the module is; None for any other one, which is found as ever."""
        if name != self._name or path is not None:
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [entry for entry in sys.path if os.path.realpath(entry) != self._folder])
