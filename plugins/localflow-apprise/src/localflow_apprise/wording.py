"""What a message says: templates of the user's, filled with the fields of a state change."""

from __future__ import annotations

from string import Formatter
from typing import TYPE_CHECKING

from localflow.errors import suggestion
from localflow.events import describe
from localflow.printable import printable, printable_lines, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from localflow.interfaces import StateChange

TITLE = "{kind} '{run}' is {state}"
BODY = "{message}\n{run_of_flow} on {host}, after {duration} s"

#: What a template may name.
FIELDS = (
    *("kind", "run", "run_of_flow", "run_id", "flow", "flow_run", "task"),
    *("state", "state_type", "previous", "message", "attempt", "duration", "timestamp", "host"),
)

_NAME_LIMIT = 200
_TITLE_LIMIT = 500
_MESSAGE_LIMIT = 3_000


class Template:
    """Text with fields in braces, as in `"{run} is {state}"`; a brace itself is written twice."""

    def __init__(self, option: str, text: str) -> None:
        """Keep the text; raises ValueError if it names what is no field."""
        self._text = text
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{option} is no template: {error}; a brace itself is written {{{{ or }}}}") from None
        for _, name, form, conversion in parts:
            if name is None:
                continue
            if name not in FIELDS:
                near = suggestion(name, FIELDS) or f"; there are {', '.join(FIELDS)}"
                raise ValueError(f"{option} names an unknown field {{{printable(name)}}}{near}")
            if form or conversion:
                raise ValueError(f"{option} must name {{{name}}} alone, without what follows ! or :")

    def filled(self, fields: Mapping[str, str]) -> str:
        """Return the text with the fields in their places."""
        return self._text.format_map(fields).strip()


def fields_of(change: StateChange) -> dict[str, str]:
    """Return what templates may name, each safe to show: names and messages are the user's."""
    event = describe(change)
    kind = event["kind"].replace("_", " ")
    run, flow = _name(event["run_name"]), _name(event["flow"])
    flow_run = _name(event["flow_run_name"])
    whose = f"of '{flow}'" if kind == "flow run" else f"of flow run '{flow_run}' of '{flow}'"
    return {
        "kind": kind,
        "run": run,
        "run_of_flow": f"{kind} '{run}' {whose}",
        "run_id": event["run_id"],
        "flow": flow,
        "flow_run": flow_run,
        "task": _name(event["task"] or ""),
        "state": _name(event["state"]["name"]),
        "state_type": event["state"]["type"],
        "previous": _name(event["previous"]),
        "message": "\n".join(printable_lines(shortened(event["state"]["message"], _MESSAGE_LIMIT))),
        "attempt": str(event["attempt"]),
        "duration": f"{event['duration']:.1f}",
        "timestamp": event["timestamp"],
        "host": _name(event["host"]),
    }


def _name(text: str) -> str:
    return printable(shortened(text, _NAME_LIMIT))
