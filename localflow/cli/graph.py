"""`localflow graph`: the graph of a flow run, drawn from what ran."""

from __future__ import annotations

import shlex

import click

from localflow.cli import output
from localflow.errors import UsageError

_FORMS = ("text", "mermaid", "dot", "json")


@click.command()
@click.argument("reference", metavar="RUN")
@click.option("--as", "form", type=click.Choice(_FORMS), default="text", show_default=True, help="How it is drawn.")
@click.option("--all", "show_all", is_flag=True, help="Draw everything apart, however much it is.")
@click.option("--json", "as_json", is_flag=True, help="The same as --as json.")
def graph(reference: str, form: str, show_all: bool, as_json: bool) -> None:
    """Draw the graph of a flow run, from what has run so far.

    The task runs of a `map` call are drawn as one. RUN is a name, an id or its beginning, @last or @last-failed.
    """
    from localflow.cli import drawings
    from localflow.cli.reading import recorded
    from localflow.diagrams import diagram_of
    from localflow.references import find_flow_run, split_reference

    with recorded() as store:
        run, task = split_reference(store, reference)
        if task is not None:
            raise UsageError(f"a graph is drawn of a whole flow run: localflow graph {shlex.quote(run)}")
        diagram = diagram_of(store, find_flow_run(store, run).flow_run, show_all)
    view = diagram.as_json()
    if as_json or form == "json":
        output.print_json(view)
        return
    draw = {"text": drawings.text, "mermaid": drawings.mermaid, "dot": drawings.dot}[form]
    output.print_data("\n".join(draw(diagram)))
    if view["reduced"]:
        output.say_line("so many runs are drawn together; --all draws each of them")
