"""What is in place in this process while runs are recorded, so that what they say is taken where they say it.

While a flow runs, until the last flow of the process has ended, a wrapper of `logging.Logger.callHandlers` is in place
(see `log_records`), `RunStream`s before sys.stdout and sys.stderr, and a `print` for `log_prints`. Each asks
`current_run()` who is speaking and gives the line to `context.log`. Worker processes have the first and the last by
`install()` for good; their descriptors are the process executor's affair.

Nothing here needs `logging`, for many a worker never does: its records are taken from when `log_records` is imported.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Protocol

from localflow.context import TaskContext, current_run
from localflow.loggers import run_logger_name, run_names
from localflow.prints import Prints
from localflow.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.context import FlowContext
    from localflow.descriptors import Capture
    from localflow.records import FlowRun, LogLine, TaskRun

    class Records(Protocol):
        """Takes the records of loggers."""

        def place(self) -> None:
            """Begin to take them."""

        def remove(self) -> None:
            """Leave them to the handlers of the user again."""


def run_of(context: FlowContext | TaskContext) -> FlowRun | TaskRun:
    """Return the run that a context is of."""
    return context.task_run if isinstance(context, TaskContext) else context.flow_run


def _log_print(text: str) -> None:
    import logging  # which a worker may not have needed so far

    context = current_run()
    if context is not None:
        run = run_of(context)
        logging.getLogger(run_logger_name(run)).info("%s", text, extra=run_names(run), stacklevel=3)


class Recorder:
    """What is in place in this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._users = 0
        self._installed = False
        self._prints = Prints(_log_print)
        self._records: Records | None = None
        self._hears_forks = False
        self.streams = Streams()
        self.capture: Capture | None = None
        self.show: Callable[[FlowRun | TaskRun, LogLine], None] | None = None
        """Shows what the loggers of runs say; None where the engine's process does it, with all that runs say."""

    @property
    def is_recording(self) -> bool:
        """Whether anything is in place."""
        return self._users > 0

    @property
    def is_installed(self) -> bool:
        """Whether `install` has been called in this process."""
        return self._installed

    @property
    def is_for_another(self) -> bool:
        """Whether what runs say here is shown, and kept, by the engine in another process."""
        return self._users > 0 and self.show is None

    def install(self) -> None:
        """Take what runs in this worker process log, and print with `log_prints`, until it ends.

        What they write is left to whoever has this process's descriptors.
        """
        self._installed = True
        self.begin(None, streams=False)

    def begin(self, show: Callable[[FlowRun | TaskRun, LogLine], None] | None, streams: bool) -> None:
        """Put everything in place, if it is not; `end` is to be called as often as this."""
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            self.show = show
            if not self._hears_forks:
                self._hears_forks = True
                if hasattr(os, "register_at_fork"):
                    os.register_at_fork(after_in_child=self._forget)
            if streams:
                self.streams.place(passes=show is not None)
            self._prints.place()
            if self._records is not None:
                self._records.place()

    def take_records(self, records: Records) -> None:
        """Have the records of loggers taken, from now on if anything is in place."""
        self._records = records
        if self._users:
            records.place()

    def end(self) -> None:
        """Take everything away, if nobody else needs it."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._remove()

    def _remove(self) -> None:
        if self._records is not None:
            self._records.remove()
        self._prints.remove()
        self.streams.remove()

    def capture_descriptors(self) -> Capture | None:
        """Return what captures descriptors 1 and 2; None if there is nothing to capture, or another run has it."""
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


recorder = Recorder()

#: Lets the unfinished lines of a run go to its log, as it has ended.
flush = recorder.streams.lines.flush
