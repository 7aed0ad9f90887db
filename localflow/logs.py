"""What runs say, taken where they say it: records of loggers, prints, and what they write to stdout and stderr.

`recording()` puts three things in place while a flow runs, and takes them away when the last flow of the process has
ended: a wrapper of `logging.Logger.callHandlers`, `RunStream`s before sys.stdout and sys.stderr, and a `print` for
`log_prints`. Each asks `current_run()` who is speaking and gives the line to `context.log`. Worker processes have the
first and the last by `install()` for good; their descriptors are the process executor's affair.

A wrapper instead of a handler of the root logger, because a handler there would turn `logging.basicConfig()` in a flow
into nothing, would be swept away by `logging.config`, and would not see loggers that do not propagate. While the
handlers of the user show a record, what they write is nobody's output: it is recorded already. For the same reason
nothing can go in circles.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from localflow.context import TaskContext, current_run, entered
from localflow.echo import run_names, show_record
from localflow.loggers import (
    OWN,
    RUN_LOGGERS,
    escape,
    escape_own,
    is_own,
    level_of_user,
    lower_levels,
    restore_levels,
    run_logger_name,
)
from localflow.printable import shortened
from localflow.prints import Prints
from localflow.records import LogLine
from localflow.streams import LINE_LIMIT, Streams, aside, is_aside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping

    from localflow.context import FlowContext
    from localflow.descriptors import Capture
    from localflow.records import FlowRun, TaskRun

    CallHandlers = Callable[[logging.Logger, logging.LogRecord], None]


class RunLogger(logging.LoggerAdapter):  # type: ignore[type-arg]  # it cannot be subscripted before Python 3.11
    """A logger that knows its run, in whatever thread it is used."""

    def __init__(self, context: FlowContext | TaskContext | None) -> None:
        self._context = context
        name, extra = OWN, None
        if context is not None:
            run = _run_of(context)
            name, extra = run_logger_name(run), run_names(run)
        super().__init__(logging.getLogger(name), extra)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add what names the run to the caller's own `extra`."""
        if self.extra:
            kwargs["extra"] = {**self.extra, **(kwargs.get("extra") or {})}
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log in the name of the run."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        if self._context is None or current_run() is self._context:
            super().log(level, msg, *args, **kwargs)
            return
        with entered(self._context):
            super().log(level, msg, *args, **kwargs)

    def __reduce__(self) -> tuple[Callable[[], RunLogger], tuple[()]]:
        return get_run_logger, ()  # sent to a worker, it is the logger of the run there


def get_run_logger() -> RunLogger:
    """Return the logger of the innermost task run or flow run that the calling code belongs to.

    What it logs from INFO on is recorded with the run, shown on stderr or by the handlers that the program has
    configured, and found again by `localflow logs`. Outside any run, as in a unit test that calls a task as a plain
    function, it is the standard logger `localflow`.
    """
    return RunLogger(current_run())


def _log_print(text: str) -> None:
    get_run_logger().info("%s", text, stacklevel=3)


class _Recorder:
    """What is in place in this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._users = 0
        self._installed = False
        self._shows = True
        """Whether what runs say is to be shown by this process; otherwise the engine's process does it."""
        self._real_call_handlers: CallHandlers = logging.Logger.callHandlers
        self._placed: CallHandlers | None = None
        self._prints = Prints(_log_print)
        self._hears_forks = False
        self.streams = Streams()
        self.capture: Capture | None = None

    @property
    def is_installed(self) -> bool:
        return self._installed

    def install(self) -> None:
        self._installed = True
        self.begin(shows=False, streams=False)

    def begin(self, shows: bool, streams: bool) -> None:
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            self._shows = shows
            if not self._hears_forks:
                self._hears_forks = True
                if hasattr(os, "register_at_fork"):
                    os.register_at_fork(after_in_child=self._forget)
            if streams:
                self.streams.place(passes=shows)
            self._prints.place()
            lower_levels()
            escape_own()
            self._place()

    def end(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            self._remove()
            restore_levels()
            self._prints.remove()
            self.streams.remove()

    def capture_descriptors(self) -> Capture | None:
        from localflow.descriptors import Capture  # not everybody needs it

        with self._lock:
            if self.capture is None:
                capture = Capture(self.streams, self._release)
                if capture.start():
                    self.capture = capture
                    return capture
        return None

    def _release(self) -> None:
        self.capture = None

    def _forget(self) -> None:
        """Let a forked child write and log as it would without us: nobody asks it what its runs have said."""
        self._lock = threading.RLock()
        self.capture = None
        self._installed = False
        if self._users:
            self._users = 0
            self._remove()
            restore_levels()
            self._prints.remove()
            self.streams.remove()

    # -- logging --

    def _place(self) -> None:
        real = logging.Logger.callHandlers

        def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
            if not self._users or is_aside():
                real(logger, record)
            else:
                self._handle(logger, record, real)

        self._real_call_handlers, self._placed = real, call_handlers
        logging.Logger.callHandlers = call_handlers  # type: ignore[assignment, method-assign]

    def _remove(self) -> None:
        if logging.Logger.callHandlers is self._placed:
            logging.Logger.callHandlers = self._real_call_handlers  # type: ignore[assignment, method-assign]
        self._placed = None

    def _handle(self, logger: logging.Logger, record: logging.LogRecord, real: CallHandlers) -> None:
        own = is_own(record.name)
        context = None if own else current_run()
        if own:
            escape(record)
        if context is None and not own:
            if record.levelno >= level_of_user(logger):
                real(logger, record)
            return
        capture = self.capture
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
        if not self._shows:
            if record.levelno >= level_of_user(logger):
                _call_other_handlers(logger, record)
        elif record.name in RUN_LOGGERS and not logger.hasHandlers():
            show_record(_run_of(context), line)
        elif record.levelno >= level_of_user(logger):
            real(logger, record)


_recorder = _Recorder()


@contextmanager
def recording() -> Iterator[None]:
    """Take what runs in this process say, as long as the block lasts, and show it as ever."""
    _recorder.begin(shows=True, streams=True)
    try:
        yield
    finally:
        _recorder.end()


@contextmanager
def recording_elsewhere() -> Iterator[None]:
    """Take what a run in this process says, as long as the block lasts; the engine's process will show it."""
    _recorder.begin(shows=False, streams=True)
    try:
        yield
    finally:
        _recorder.end()


def install() -> None:
    """Take what runs in this worker process log, and print with `log_prints`, until it ends.

    What they write is left to whoever has this process's descriptors.
    """
    _recorder.install()


def is_installed() -> bool:
    """Return whether `install` has been called in this process."""
    return _recorder.is_installed


def capture_descriptors() -> Capture | None:
    """Return what captures descriptors 1 and 2, to be closed by the caller; None if there is nothing to capture.

    There is one for a process: None if another flow run has it.
    """
    return _recorder.capture_descriptors()


#: Lets the unfinished lines of a run go to its log, as it has ended.
flush = _recorder.streams.lines.flush


def _run_of(context: FlowContext | TaskContext) -> FlowRun | TaskRun:
    return context.task_run if isinstance(context, TaskContext) else context.flow_run


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
