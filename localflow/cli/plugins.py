"""`localflow plugins`: which executors, state stores and notifiers are installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from localflow.cli import output
from localflow.cli.new_plugin import new

if TYPE_CHECKING:
    from localflow.plugins import Listed


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """List installed executors, state stores and notifiers.

    Plugins that do not work are named with the reason.
    """
    if context.invoked_subcommand is not None:
        return
    from localflow.plugins import installed_plugins

    installed = installed_plugins()
    listing = installed.listing()
    if as_json:
        output.print_json([_as_json(listed) for listed in listing])
    else:
        rows = [[each.role, each.name, each.plugin, each.distribution, each.version] for each in listing if each.name]
        output.print_table(["ROLE", "NAME", "PLUGIN", "DISTRIBUTION", "VERSION"], rows)
    for problem in installed.problems():
        output.say_warning(problem)


plugins.add_command(new)


def _as_json(listed: Listed) -> dict[str, str | None]:
    return {
        "role": listed.role or None,
        "name": listed.name or None,
        "plugin": listed.plugin,
        "distribution": listed.distribution,
        "version": listed.version,
        "problem": listed.problem or None,
    }
