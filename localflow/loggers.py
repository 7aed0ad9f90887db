"""The loggers of runs, the levels at which records are kept, and what the user has set before."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from localflow.printable import printable
from localflow.records import TaskRun
from localflow.states import exception_text

if TYPE_CHECKING:
    from localflow.records import FlowRun

#: The root of the loggers below, and of localflow's own, which no run is blamed for.
OWN = "localflow"
FLOW_RUNS = f"{OWN}.flow_runs"
TASK_RUNS = f"{OWN}.task_runs"
RUN_LOGGERS = frozenset({FLOW_RUNS, TASK_RUNS})


class _Lowered(int):
    """A level that can be told from the same level set by somebody else."""


_LOWERED = _Lowered(logging.INFO)

_before: dict[logging.Logger, int] = {}
"""The loggers whose level is lowered, and what it was."""


def run_logger_name(run: FlowRun | TaskRun) -> str:
    """Return the name of the logger for what this run's code says by `get_run_logger()`."""
    return TASK_RUNS if isinstance(run, TaskRun) else FLOW_RUNS


def is_own(name: str) -> bool:
    """Return whether a logger is localflow's own: not a run's, and not the user's."""
    return (name == OWN or name.startswith(f"{OWN}.")) and name not in RUN_LOGGERS


class _Escaping(logging.Filter):
    """Escapes what localflow's own records tell of names and errors of users: they are on their way to a terminal."""

    def filter(self, record: logging.LogRecord) -> bool:
        escape(record)
        return True


_ESCAPING = _Escaping()


def escape(record: logging.LogRecord) -> None:
    """Escape what a record of localflow's own tells; once more, nothing happens."""
    if isinstance(record.args, tuple):
        record.args = tuple(_escaped(argument) for argument in record.args)


def _escaped(argument: object) -> object:
    if isinstance(argument, BaseException):
        argument = exception_text(argument)
    return printable(argument) if isinstance(argument, str) else argument


def escape_own() -> None:
    """Have texts of users escaped in records of localflow's own loggers, also when nothing is recorded any more.

    Loggers of modules that are imported later are not among them.
    """
    for name in [*logging.root.manager.loggerDict]:
        if is_own(name):
            logging.getLogger(name).addFilter(_ESCAPING)


def lower_levels() -> None:
    """Let records of INFO and above come to be: of runs' loggers, and of all if logging is not configured."""
    root = logging.getLogger()
    wanted = [logging.getLogger(name) for name in sorted(RUN_LOGGERS)]
    for logger in wanted:
        if logger.level == logging.NOTSET:
            _lower(logger)
    if not root.handlers and root.level == logging.WARNING:
        _lower(root)


def restore_levels() -> None:
    """Set the levels back that nobody else has changed meanwhile."""
    for logger, level in _before.items():
        if logger.level is _LOWERED:
            logger.setLevel(level)
    _before.clear()


def level_of_user(logger: logging.Logger) -> int:
    """Return the level from which the logger's records would come to be if nothing were recorded."""
    current: logging.Logger | None = logger
    while current is not None:
        level = _before[current] if current.level is _LOWERED else current.level
        if level:
            return level
        current = current.parent
    return logging.NOTSET


def _lower(logger: logging.Logger) -> None:
    _before[logger] = logger.level
    logger.setLevel(_LOWERED)
