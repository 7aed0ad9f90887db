"""The notifier `log`: one line for each state change, by logger `localflow`."""

from __future__ import annotations

from localflow.interfaces import Notifier, StateChange, StateType, TaskRun
from localflow.printable import printable, shortened
from localflow.states import ENGINE_LOST, NOT_READY

_LINE_LIMIT = 2_000


class LogNotifier(Notifier):
    """Logs state changes: errors for FAILED and CRASHED, warnings for what was cancelled or is blocked, else infos.

    Of an engine that is gone the flow run is the error, its task runs are infos: there may be hundreds. It sets up no
    handler: where the program has none, Python itself prints warnings and errors on stderr.
    """

    def notify(self, change: StateChange) -> None:
        """Log the change."""
        import logging  # imported late: most runs have nothing to log

        if change.name == ENGINE_LOST and isinstance(change.run, TaskRun):
            level = logging.INFO
        elif change.type in (StateType.FAILED, StateType.CRASHED):
            level = logging.ERROR
        elif change.type is StateType.CANCELLED or change.name == NOT_READY:
            level = logging.WARNING
        else:
            level = logging.INFO
        logging.getLogger("localflow").log(level, "%s", _line(change))


def _line(change: StateChange) -> str:
    run, flow_run = change.run, change.run.flow_run
    label = f"flow run '{flow_run.name}'"
    if isinstance(run, TaskRun):
        label = f"task run '{run.name}' of {label}"
    message = f": {change.message}" if change.message else ""
    return printable(shortened(f"{label} is {change.name}{message}", _LINE_LIMIT))
