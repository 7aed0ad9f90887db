"""The virtual environment of each engine, made by pip below build/peers and kept for the next time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "build" / "peers"
LIMIT = 900.0  # seconds for an installation
OTHERS_SETTINGS = ("LOCALFLOW_", "DASK_", "RAY_", "PARSL_", "LOKY_", "JOBLIB_", "PREFECT_", "PYTHON", "VIRTUAL_ENV")


class InstallationError(Exception):
    """What could not be installed, and why."""


def python(name: str, requirements: Sequence[str]) -> Path:
    """Return the interpreter of an environment that has these requirements; make it if need be.

    Raises:
        InstallationError: pip could not.
    """
    folder = FOLDER / name
    interpreter = folder / "bin" / "python"
    stamp = folder / "installed"
    wanted = "\n".join([sys.version, *requirements])
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    print(f"installing {' '.join(requirements)} into {folder}", file=sys.stderr)
    _call(sys.executable, "-m", "venv", "--clear", str(folder))
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
    _call(str(interpreter), *pip, "install", *requirements)
    stamp.write_text(wanted)
    return interpreter


def version(interpreter: Path, distribution: str) -> str:
    """Return which version of a distribution an environment has."""
    name = re.split("[<>=!~]", distribution)[0]
    return _call(str(interpreter), "-c", f"import importlib.metadata as m; print(m.version({name!r}))").strip()


def is_made(name: str) -> bool:
    """Whether an environment is there already."""
    return (FOLDER / name / "installed").exists()


def variables(interpreter: Path, home: Path) -> dict[str, str]:
    """Return the environment variables of a program that finds nobody's settings and has a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS_SETTINGS)}
    path = os.pathsep.join([str(interpreter.parent), kept.get("PATH", os.defpath)])
    own = {"PATH": path, "HOME": str(home), "TMPDIR": str(home)}
    return {**kept, **own, "PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1"}


def _call(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallationError(str(error)) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["pip said nothing"]
        raise InstallationError(next((line for line in said if line.startswith("ERROR")), said[-1]))
    return done.stdout
