"""Which recorded flow runs may go: by age, by how many are newer, by state. Pure: no store, no files, no clock."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from localflow.errors import suggestion
from localflow.printable import printable
from localflow.states import STATE_NAMES
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from localflow.records import FlowRunSummary

#: The options of [retention], each with what it must be.
EXPECTED = {
    "older_than": 'a duration such as "12h" or "30d"',
    "keep_last": "an integer >= 1",
    "states": 'an array of states such as ["Completed"]',
}

_AGE = r"(\d{1,9}(?:\.\d{1,9})?)\s?([smhdw])"
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}


class Rule(NamedTuple):
    """What a flow run must be to go: all of what is said here; nothing said lets every run go."""

    older_than: float | None = None
    """Seconds since its end, or since its beginning if it has not ended."""
    keep_last: int | None = None
    """So many of all runs, the newest, stay whatever they are."""
    states: frozenset[str] | None = None
    """Names or types of states, in small letters."""

    @classmethod
    def of_options(cls, options: Mapping[str, object]) -> Rule:
        """Return the rule of the options of [retention], which are known to be right."""
        keep_last, states = options.get("keep_last"), options.get("states")
        return cls(
            parse_age(options.get("older_than")),
            keep_last if isinstance(keep_last, int) else None,
            in_small_letters(states) if isinstance(states, list) else None,
        )

    def select(self, summaries: Sequence[FlowRunSummary], now: float) -> list[FlowRunSummary]:
        """Return the flow runs that go, the oldest first: of those that no other flow called.

        Args:
            summaries: all flow runs, the one recorded last first.
            now: in seconds since the epoch.
        """
        top = [summary for summary in summaries if summary.flow_run.parent_id is None]
        return [summary for summary in reversed(top[self.keep_last or 0 :]) if self._fits(summary, now)]

    def _fits(self, summary: FlowRunSummary, now: float) -> bool:
        run, change, started_at, ended_at = summary
        if self.states is not None:
            state = (change.type.value, change.name) if change else ("PENDING",)
            if self.states.isdisjoint(name.lower() for name in state):
                return False
        return self.older_than is None or now - (ended_at or started_at or run.created_at) > self.older_than


def parse_age(value: object) -> float | None:
    """Return the seconds that `90s`, `15m`, `12h`, `30d` or `2w` stand for; None for anything else."""
    found = re.fullmatch(_AGE, value.strip()) if isinstance(value, str) else None
    return float(found[1]) * _SECONDS[found[2]] or None if found else None


def in_small_letters(names: Iterable[object]) -> frozenset[str]:
    """Return names of states as a rule compares them."""
    return frozenset(str(name).lower() for name in names)


def is_right(option: str, value: object) -> bool:
    """Return whether an option of [retention] may have this value, as far as its kind goes."""
    if option == "older_than":
        return parse_age(value) is not None
    if option == "keep_last":
        return type(value) is int and 1 <= value < 2**63
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def unknown_states(names: Iterable[str], known: Iterable[str] = ()) -> list[str]:
    """Return for each name that no state has, whatever the case of its letters, what to say of it.

    Args:
        names: the names to look at.
        known: further names, of states that flows have given themselves.
    """
    every = tuple(dict.fromkeys([*STATE_NAMES, *known]))
    small = in_small_letters(every)
    return [
        f"unknown state '{printable(name)}'"
        f"{suggestion(name, every) or suggestion(name.capitalize(), every) or '; known: ' + ', '.join(every)}"
        for name in names
        if name.lower() not in small
    ]
