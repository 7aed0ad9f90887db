"""`localflow doctor`: whether all is well, and what can be mended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from localflow.cli import output

if TYPE_CHECKING:
    from localflow.health import Section

ATTENTION = 1
STORE = 3

_COLOURS = {"ok": "green", "attention": "yellow", "cannot be used": "red", "damaged": "red"}


@click.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended; what is damaged is copied aside first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(repair: bool, as_json: bool) -> int:
    """Look at versions, settings, the state store, runs, workers and limits.

    Exit codes: 0 if all is well, 3 if the state store is damaged or cannot be used, 1 if anything else needs attention.
    """
    from localflow.health import Checkup

    checkup = Checkup(mends=repair)
    sections = []
    for section in checkup.sections():
        sections.append(section)
        if not as_json:
            _print(section)
    if checkup.project is not None and checkup.lost:
        notifications = checkup.project.make_notifications()
        notifications.publish(checkup.lost)
        notifications.close()
    if as_json:
        output.print_json({"sections": [_as_json(section) for section in sections], "repairs": checkup.done})
    else:
        for done in checkup.done:
            output.print_lines(f"repaired: {done}")
    verdicts = {section.verdict for section in sections}
    return STORE if verdicts & {"damaged", "cannot be used"} else ATTENTION if "attention" in verdicts else 0


def _print(section: Section) -> None:
    output.print_data(f"{section.name}: {click.style(section.verdict, fg=_COLOURS[section.verdict], bold=True)}")
    for heading, value in section.facts.items():
        if value is not None:
            told = output.size(value) if heading in ("bytes", "wal_bytes") and isinstance(value, int) else str(value)
            output.print_lines(f"{heading}: {told}", indent="  ")
    for problem in section.problems:
        output.print_lines(problem, indent="  ! ")


def _as_json(section: Section) -> dict[str, object]:
    return {
        "name": section.name,
        "verdict": section.verdict,
        "facts": section.facts,
        "problems": section.problems,
    }
