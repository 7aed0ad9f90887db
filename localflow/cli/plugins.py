"""`localflow plugins`: which executors, state stores and notifiers are installed, and what is done with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from localflow.cli import output
from localflow.cli.check_plugin import check
from localflow.cli.groups import VerbGroup
from localflow.cli.new_plugin import new

if TYPE_CHECKING:
    from localflow.plugins import Listed, Plugins


@click.group(cls=VerbGroup, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """List installed executors, state stores and notifiers, with what they promise.

    Plugins that do not work are named with the reason. A capability with a question mark depends on options.
    """
    if context.invoked_subcommand is not None:
        return
    from localflow.plugins import installed_plugins

    installed = installed_plugins()
    rows = [(listed, *_promised(installed, listed)) for listed in installed.listing()]
    if as_json:
        output.print_json([_as_json(*row) for row in rows])
        for problem in dict.fromkeys(problem for _, _, problem in rows if problem):
            output.say_warning(problem)
    else:
        headings = ["ROLE", "NAME", "PLUGIN", "DISTRIBUTION", "VERSION", "CAPABILITIES"]
        output.print_table(headings, [_cells(*row) for row in rows])


plugins.add_command(check)
plugins.add_command(new)


def _promised(installed: Plugins, listed: Listed) -> tuple[list[str] | None, str]:
    """Return the capabilities that a plugin has chosen, None if that cannot be read, and what is wrong with it."""
    from localflow.capabilities import chosen_by, made_by
    from localflow.errors import PluginError

    if listed.problem or not listed.name:
        return None, listed.problem
    try:
        made = made_by(installed.get_factory(listed.role, listed.name))  # type: ignore[arg-type]
    except PluginError as error:
        return None, str(error)
    return (None if made is None else chosen_by(made)), ""


def _cells(listed: Listed, promised: list[str] | None, problem: str) -> list[str | output.Cell]:
    told: str | output.Cell = ", ".join(promised) if promised is not None else "known when it is made"
    if problem:
        told = output.Cell(f"cannot be used: {problem}", "red")
    return [listed.role, listed.name, listed.plugin, listed.distribution, listed.version, told]


def _as_json(listed: Listed, promised: list[str] | None, problem: str) -> dict[str, object]:
    return {
        "role": listed.role or None,
        "name": listed.name or None,
        "plugin": listed.plugin,
        "distribution": listed.distribution,
        "version": listed.version,
        "capabilities": promised,
        "problem": problem or None,
    }
