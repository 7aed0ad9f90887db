"""`localflow plugins new`: a plugin of one's own to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from localflow.cli import output
from localflow.errors import UsageError
from localflow.scaffold import ROLES, check_name, package_of, write_plugin

if TYPE_CHECKING:
    from localflow.plugins import Role


@click.command()
@click.argument("role", type=click.Choice(list(ROLES)))
@click.argument("name")
@click.option(
    "--directory", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where its folder goes."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def new(role: str, name: str, directory: Path, as_json: bool) -> None:
    """Write the distribution of a new plugin.

    The folder localflow-NAME has an executor, state store or notifier that works, and tests that pass.
    """
    from importlib.util import find_spec

    from localflow.plugins import installed_plugins

    check_name(name)
    plugins, registered_as = installed_plugins(), cast("Role", ROLES[role])
    if name in plugins.names(registered_as):
        source = plugins.get_source(registered_as, name)
        article = "an" if registered_as.startswith("e") else "a"
        raise UsageError(f"there is {article} {registered_as} '{name}' already, of {source}; give yours another name")
    package = package_of(name)
    if find_spec(package):  # of a plugin that has another role, or of somebody else
        raise UsageError(
            f"a package {package} is installed already; give the plugin another name, or uninstall that one"
        )
    files = write_plugin(role, name, directory)
    folder = directory / f"localflow-{name}"
    if as_json:
        output.print_json({"folder": str(folder), "files": [str(path) for path in files]})
    else:
        for path in files:
            output.print_data(str(path))
        output.say(f"try it: pip install -e '{folder}[test]' && pytest {folder}; its README.md says how to go on")
