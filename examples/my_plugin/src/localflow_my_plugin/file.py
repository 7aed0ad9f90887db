"""The notifier `file`: appends state changes to a file, one line of JSON each."""

from __future__ import annotations

import json
from pathlib import Path

from localflow.events import describe
from localflow.interfaces import Notifier, StateChange


class FileNotifier(Notifier):
    """Appends an event to a file for each state change."""

    def __init__(self, path: Path) -> None:
        """Keep the path; localflow has made a relative one start at the folder of localflow.toml."""
        self._path = Path(path)

    def notify(self, change: StateChange) -> None:
        """Append the change. An exception, of a full disk for one, is logged by localflow and harms no run."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(describe(change)) + "\n")
