"""Writes the distribution of a new plugin: one that works, for its author to change.

The folder of each role beside this file is such a distribution under the name `myname`; `pyproject.toml` is of all.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from localflow.errors import UsageError
from localflow.printable import printable
from localflow.version import DISTRIBUTION

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What can be made, by what the command line calls it: the role it has in messages, the noun of its tables in
#: localflow.toml.
ROLES = {"executor": "executor", "store": "state store", "notifier": "notifier"}

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST_NAME = 40
_FOLDER = Path(__file__).parent


def check_name(name: str) -> None:
    """Raise a UsageError unless a plugin, its package, class and distribution can all be called after `name`."""
    if f"localflow-{name}" == DISTRIBUTION:
        raise UsageError(f"'{DISTRIBUTION}' is localflow itself; give the plugin another name")
    if _NAME.fullmatch(name) and len(name) <= _LONGEST_NAME:
        return
    likely = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_NAME].strip("-").removeprefix("localflow-")
    hint = f"; did you mean '{likely}'?" if _NAME.fullmatch(likely) else ""
    raise UsageError(
        f"'{printable(name)}' is no name for a plugin: it has lower-case letters and digits, begins with a letter, "
        f"may have single - in between and at most {_LONGEST_NAME} characters{hint}"
    )


def package_of(name: str) -> str:
    """Return the package of the plugin of this name."""
    return f"localflow_{name.replace('-', '_')}"


def write_plugin(role: str, name: str, parent: Path) -> list[Path]:
    """Write the distribution `localflow-NAME` into a new folder of that name in `parent`; return its files.

    Args:
        role: a key of `ROLES`.
        name: under which the plugin is selected in localflow.toml.
        parent: a folder; it is made if it is not there.

    Raises:
        UsageError: the name does not fit, something of that name is there, or files cannot be written.
    """
    check_name(name)
    target = parent / f"localflow-{name}"
    written = []
    try:
        parent.mkdir(parents=True, exist_ok=True)
        target.mkdir()  # fails if anything is there, also a link that leads nowhere
        for template, place in _templates(role):
            path = target / _named(str(place), role, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_named(template.read_text(encoding="utf-8"), role, name), encoding="utf-8")
            written.append(path)
    except FileExistsError as error:
        raise UsageError(
            f"{printable(str(error.filename))} is there already and stays as it is; "
            "give the plugin another name, or another --directory"
        ) from error
    except OSError as error:
        place = error.filename or target
        raise UsageError(f"{printable(str(place))} cannot be written: {error.strerror or error}") from error
    return written


def _templates(role: str) -> Iterator[tuple[Path, Path]]:
    """Yield the files of a role's distribution, each with its place there."""
    yield _FOLDER / "pyproject.toml", Path("pyproject.toml")
    for path in sorted((_FOLDER / role).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path, path.relative_to(_FOLDER / role)


def _named(text: str, role: str, name: str) -> str:
    camel = "".join(map(str.capitalize, name.split("-")))
    replaced = {"localflow_myname": package_of(name), "myrole": ROLES[role], "Myname": camel, "myname": name}
    for placeholder, word in replaced.items():
        text = text.replace(placeholder, word)
    return text
