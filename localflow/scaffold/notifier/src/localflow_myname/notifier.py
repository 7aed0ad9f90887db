"""The notifier `myname`: adds a line to a file for each state change."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from localflow.interfaces import Notifier, StateChange
from localflow.printable import printable, shortened


class MynameNotifier(Notifier):
    """Adds a line to a file for each state change."""

    def __init__(self, path: Path = Path("myname.log")) -> None:
        """Keep the path; localflow has made a relative one start at the folder of localflow.toml."""
        self._path = Path(path)

    def notify(self, change: StateChange) -> None:
        """Add the line. An exception, of a full disk for one, is logged by localflow and harms no run."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line(change) + "\n")


def line(change: StateChange) -> str:
    """Return a state change as one line that is safe to show: names and messages are the user's."""
    instant = datetime.fromtimestamp(change.timestamp, UTC).isoformat(timespec="seconds")
    text = f"{instant} {change.run.name} of {change.run.flow_run.name} is {change.name}"
    return printable(shortened(f"{text}: {change.message}" if change.message else text, 2_000))
