"""The records of loggers while runs are recorded: whose they are, from what level on they are kept, who is shown them.

A wrapper of `logging.Logger.callHandlers` takes them; a handler of the root logger would turn `logging.basicConfig()`
in a flow into nothing, would be swept away by `logging.config`, and would not see loggers that do not propagate. While
the handlers of the user show a record, what they write is nobody's output: it is recorded already. For the same reason
nothing can go in circles.

A worker imports this when `logging` is imported there for the first time, whoever does so. So what is imported here
must not import `logging`, for it could be the one that did so and is not complete yet; and whoever else imports this
imports `logging` before, or two threads that import both could each go on with the other's half.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from localflow.context import TaskContext, current_run
from localflow.loggers import RUN_LOGGERS, is_own
from localflow.printable import printable, shortened
from localflow.recording import recorder, run_of
from localflow.records import LogLine
from localflow.states import exception_text
from localflow.streams import LINE_LIMIT, aside, is_aside

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.context import FlowContext
    from localflow.recording import Recorder

    CallHandlers = Callable[[logging.Logger, logging.LogRecord], None]


class _Records:
    """Takes the records of loggers for a recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._real: CallHandlers = logging.Logger.callHandlers
        self._placed: CallHandlers | None = None

    def place(self) -> None:
        _lower_levels()
        _escape_own()
        real = logging.Logger.callHandlers

        def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
            if not self._recorder.is_recording or is_aside():
                real(logger, record)
            else:
                self._handle(logger, record, real)

        self._real, self._placed = real, call_handlers
        logging.Logger.callHandlers = call_handlers  # type: ignore[assignment, method-assign]

    def remove(self) -> None:
        if logging.Logger.callHandlers is self._placed:
            logging.Logger.callHandlers = self._real  # type: ignore[assignment, method-assign]
        self._placed = None
        _restore_levels()

    def _handle(self, logger: logging.Logger, record: logging.LogRecord, real: CallHandlers) -> None:
        own = is_own(record.name)
        context = None if own else current_run()
        if own:
            _escape(record)
        if context is None and not own:
            if record.levelno >= level_of_user(logger):
                real(logger, record)
            return
        capture = self._recorder.capture
        if capture is not None:
            capture.settle()
        with aside():
            if context is not None:
                self._record(context, logger, record, real)
            else:
                real(logger, record)
        if capture is not None:  # handlers may write to the descriptors themselves
            capture.skip()

    def _record(
        self, context: FlowContext | TaskContext, logger: logging.Logger, record: logging.LogRecord, real: CallHandlers
    ) -> None:
        line = LogLine(record.created, record.levelno, record.name, _text(record))
        with suppress(Exception):  # the program's logging goes on, whatever is wrong with the run's
            context.log(line)
        show = self._recorder.show
        if show is None:
            if record.levelno >= level_of_user(logger):
                _call_other_handlers(logger, record)
        elif record.name in RUN_LOGGERS and not logger.hasHandlers():
            show(run_of(context), line)
        elif record.levelno >= level_of_user(logger):
            real(logger, record)


def _text(record: logging.LogRecord) -> str:
    """Return a record's message with the exception and the stack that belong to it."""
    try:
        text = record.getMessage()
    except Exception as error:  # handlers tell the user, in their way
        text = f"{_shown(record.msg)} (arguments {_shown(record.args)} do not fit: {_shown(error)})"
    with suppress(Exception):
        if record.exc_info and record.exc_info[0] is not None:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        if record.stack_info:
            text += "\n" + record.stack_info
    return shortened(text, LINE_LIMIT)


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _call_other_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
    """Call the handlers that do not write on this process's stdout or stderr: the engine's process shows the record."""
    current: logging.Logger | None = logger
    while current is not None:
        for handler in current.handlers:
            if record.levelno >= handler.level and not _is_terminal_handler(handler):
                handler.handle(record)
        current = current.parent if current.propagate else None


def _is_terminal_handler(handler: logging.Handler) -> bool:
    if not isinstance(handler, logging.StreamHandler):
        return False
    try:
        return handler.stream.fileno() in (1, 2)
    except Exception:  # an io.StringIO has none
        return False


# -- levels ----------------------------------------------------------------------------------------------------------


class _Lowered(int):
    """A level that can be told from the same level set by somebody else."""


_LOWERED = _Lowered(logging.INFO)

_before: dict[logging.Logger, int] = {}
"""The loggers whose level is lowered, and what it was."""


def _lower_levels() -> None:
    """Let records of INFO and above come to be: of runs' loggers, and of all if logging is not configured."""
    root = logging.getLogger()
    wanted = [logging.getLogger(name) for name in sorted(RUN_LOGGERS)]
    for logger in wanted:
        if logger.level == logging.NOTSET:
            _lower(logger)
    if not root.handlers and root.level == logging.WARNING:
        _lower(root)


def _restore_levels() -> None:
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


# -- records of localflow's own ---------------------------------------------------------------------------------------


class _Escaping(logging.Filter):
    """Escapes what localflow's own records tell of names and errors of users: they are on their way to a terminal."""

    def filter(self, record: logging.LogRecord) -> bool:
        _escape(record)
        return True


_ESCAPING = _Escaping()


def _escape(record: logging.LogRecord) -> None:
    """Escape what a record of localflow's own tells; once more, nothing happens."""
    if isinstance(record.args, tuple):
        record.args = tuple(_escaped(argument) for argument in record.args)


def _escaped(argument: object) -> object:
    if isinstance(argument, BaseException):
        argument = exception_text(argument)
    return printable(argument) if isinstance(argument, str) else argument


def _escape_own() -> None:
    """Have texts of users escaped in records of localflow's own loggers, also when nothing is recorded any more.

    Loggers of modules that are imported later are not among them.
    """
    for name in [*logging.root.manager.loggerDict]:
        if is_own(name):
            logging.getLogger(name).addFilter(_ESCAPING)


recorder.take_records(_Records(recorder))
