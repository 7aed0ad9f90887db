"""A plugin with a notifier that notes in the file `told`, one write for each line, what it is told."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from localflow import hookimpl
from localflow.failpoints import reach
from localflow.interfaces import Notifier

if TYPE_CHECKING:
    from localflow.hookspecs import RegisterNotifier
    from localflow.interfaces import StateChange


class ToldNotifier(Notifier):
    """Writes to where it was when it was made."""

    def __init__(self) -> None:
        self._file = os.path.abspath("told")  # noqa: PTH100 - quicker, in everybody's start-up

    def notify(self, change: StateChange) -> None:
        """Note run, sequence and state."""
        reach("in-notifier")
        line = f"{change.run.id} {change.sequence} {change.name}\n"
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


@hookimpl
def localflow_register_notifiers(register: RegisterNotifier) -> None:
    """Register the notifier."""
    register("told", ToldNotifier)
