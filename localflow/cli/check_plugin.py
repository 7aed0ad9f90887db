"""`localflow plugins check`: whether an executor, a state store or a notifier does what it promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from localflow.cli import output
from localflow.errors import ConfigError, UnknownPluginError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.config import Section
    from localflow.plugins import Source
    from localflow.project import Project
    from localflow.testing.checking import ContractTest, Finding

_ROLES: dict[str, Section] = {"executor": "executors", "store": "stores", "notifier": "notifiers"}
_COLOURS = {"held": "green", "broken": "red", "not promised": "", "not checked": "yellow"}
_WORDS = {"held": "promised & held", "broken": "promised & broken"}
BROKEN = 1


@click.command()
@click.argument("name")
@click.option(
    "-o", "--option", "assignments", metavar="NAME=VALUE", multiple=True,
    help="An option of its factory, before those of localflow.toml. May be given several times.",
)  # fmt: skip
@click.option("--role", type=click.Choice(list(_ROLES)), help="What NAME is of, where several have it.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True, metavar="SECONDS",
    help="How long a test may take.",
)  # fmt: skip
@click.option("--only", metavar="CAPABILITY", multiple=True, help="Check this capability. May be given several times.")
@click.option("--verbose", is_flag=True, help="Print what pytest says, too, on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    name: str,
    assignments: Sequence[str],
    role: str | None,
    timeout: float,
    only: Sequence[str],
    verbose: bool,
    as_json: bool,
) -> int:
    """Run the contract of an executor, state store or notifier on the one that is called NAME.

    NAME is that of a table of localflow.toml, or one that `localflow plugins` lists. For each capability it is told
    whether it is promised, and whether the promise is held. State stores are given files of their own; one that has
    none must be empty. For a notifier {http}, {address}, {file} and {command} in the value of an option stand for
    places where the check sees what arrives: -o url={http}, -o 'command=["{command}"]'.

    Exit codes: 0 if every promise is held, 1 if not, 2 if there is no such name, an option or pytest is missing.
    """
    from localflow.project import Project
    from localflow.testing.checking import Check

    options = _options(assignments)
    project = Project.load()
    section = _section(project, name, role)
    overridden = Project.load(overrides={f"{section}.{name}.{key}": value for key, value in options.items()})
    try:
        overridden.options_of(section, name)
    except ConfigError as error:
        raise ConfigError([f"{problem}{_hint(problem)}" for problem in error.problems]) from None
    role_name, source = overridden.role_of(section, name)
    _refuse_unknown(role_name, only)
    if not as_json:
        output.say_line(f"checking {role_name} '{name}' of {source}")
    checking = Check(role_name, name, project.root, options, timeout, _tell if verbose else _tell_failed, only)
    try:
        findings = checking.run()
    finally:
        if verbose:
            output.say_lines(checking.output)
    if as_json:
        output.print_json(_as_json(role_name, name, source, findings))
    else:
        _print(findings)
    return BROKEN if any(finding.verdict == "broken" for finding in findings) else 0


def _options(assignments: Sequence[str]) -> dict[str, Any]:
    from localflow.tomlfile import parse_value

    options: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not (name and equals):
            raise UsageError(f"-o takes NAME=VALUE, not {assignment!r}")
        if name in options:
            raise UsageError(f"-o {name} is given twice")
        options[name] = parse_value(text)
    return options


def _section(project: Project, name: str, role: str | None) -> Section:
    """Return the section that a name is of; raises UnknownPluginError or UsageError."""
    sections = project.sections_of(name)
    if role is not None:
        sections = [section for section in sections if section == _ROLES[role]]
    if len(sections) > 1:
        raise UsageError(f"'{name}' is the name of several; say which by --role {'|'.join(_ROLES)}")
    if not sections:
        asked = _ROLES.values() if role is None else [_ROLES[role]]
        raise UnknownPluginError(role or "plugin", name, project.names_in(asked), project.plugins.problems())
    return sections[0]


def _refuse_unknown(role: str, only: Sequence[str]) -> None:
    from localflow.capabilities import find_capability

    for name in only:
        try:
            find_capability(role, name)
        except LookupError as error:
            raise UsageError(f"--only: {error}") from None


def _hint(problem: str) -> str:
    if "missing required option" not in problem:
        return ""
    option = problem.rpartition("option '")[2].rstrip("'")
    example = "'[\"{command}\"]'" if option == "command" else "{http}" if option == "url" else "VALUE"
    return f"; give it one: -o {option}={example}"


def _tell(test: ContractTest, outcome: str) -> None:
    output.say_line(f"{outcome:7}  {test.capability}: {test.sentence}")


def _tell_failed(test: ContractTest, outcome: str) -> None:
    if outcome == "failed":
        _tell(test, outcome)


def _print(findings: Sequence[Finding]) -> None:
    rows: list[list[str | output.Cell]] = [
        [
            finding.capability.name,
            output.Cell(_WORDS.get(finding.verdict, finding.verdict), _COLOURS[finding.verdict]),
            str(finding.passed + len(finding.failures)) if finding.passed or finding.failures else "",
            finding.note or finding.capability.promise,
        ]
        for finding in findings
    ]
    output.print_table(["CAPABILITY", "VERDICT", "TESTS", ""], rows, right=["TESTS"])
    for finding in findings:
        for failure in finding.failures:
            output.print_lines(f"\n{finding.capability.name} is broken: {failure.sentence}")
            output.print_lines(failure.reason, indent="    ")


def _as_json(role: str, name: str, source: Source, findings: Sequence[Finding]) -> dict[str, object]:
    return {
        "role": role,
        "name": name,
        **source._asdict(),
        "is_kept": all(finding.verdict != "broken" for finding in findings),
        "capabilities": [
            {
                "name": finding.capability.name,
                "promise": finding.capability.promise,
                "required": finding.capability.is_required,
                "promised": finding.is_promised,
                "verdict": finding.verdict,
                "passed": finding.passed,
                "failures": [failure._asdict() for failure in finding.failures],
                "note": finding.note or None,
            }
            for finding in findings
        ],
    }
