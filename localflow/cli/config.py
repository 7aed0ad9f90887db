"""`localflow config`: the settings in force, and whether localflow.toml is right."""

from __future__ import annotations

import click

from localflow.cli import output
from localflow.cli.groups import VerbGroup


@click.group(cls=VerbGroup)
def config() -> None:
    """Show or check the settings.

    They come from localflow.toml, from environment variables, and from defaults.
    """


@config.command()
@click.option("--origin", "with_origin", is_flag=True, help="Say where each value comes from.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(with_origin: bool, as_json: bool) -> None:
    """Print every setting in force, secrets masked."""
    from localflow.masking import literal
    from localflow.printable import printable
    from localflow.project import Project

    settings = Project.load().show()
    if as_json and with_origin:
        output.print_json({each.key: {"value": each.value, "origin": each.origin} for each in settings})
    elif as_json:
        output.print_json({each.key: each.value for each in settings})
    elif with_origin:
        output.print_table(
            ["SETTING", "VALUE", "ORIGIN"], [[each.key, literal(each.value), each.origin] for each in settings]
        )
    else:
        for each in settings:
            output.print_data(printable(f"{each.key} = {literal(each.value)}"))


@config.command()
def validate() -> None:
    """Check the settings and list every mistake.

    Checked are localflow.toml, environment variables, and the installed plugins.
    """
    from localflow.project import Project
    from localflow.tomlfile import shown_path

    project = Project.load()
    project.plugins.import_all()
    project.plugins.check()
    project.try_plugins()
    for problem in project.plugins.problems():  # of plugins that these settings do not need
        output.say_warning(problem)
    file = project.settings.file
    if file is None:
        output.print_data("there is no localflow.toml here; the defaults are valid")
    else:
        output.print_data(f"{shown_path(file)} is valid")
