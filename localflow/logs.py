"""What runs say is taken and shown: `get_run_logger` for them, `recording()` for the engine.

What `recording` puts in place is said in `recording.py`; here it is put together with what shows it.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from localflow import log_records as log_records  # so that records of loggers are taken
from localflow.context import current_run, entered
from localflow.echo import show_record
from localflow.loggers import OWN, run_logger_name, run_names
from localflow.recording import flush, recorder, run_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping

    from localflow.context import FlowContext, TaskContext
    from localflow.descriptors import Capture

__all__ = [
    "RunLogger", "capture_descriptors", "flush", "get_run_logger", "is_for_another_process", "recording",
    "recording_elsewhere",
]  # fmt: skip


class RunLogger(logging.LoggerAdapter):  # type: ignore[type-arg]  # it cannot be subscripted before Python 3.11
    """A logger that knows its run, in whatever thread it is used."""

    def __init__(self, context: FlowContext | TaskContext | None) -> None:
        self._context = context
        name, extra = OWN, None
        if context is not None:
            run = run_of(context)
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


@contextmanager
def recording() -> Iterator[None]:
    """Take what runs in this process say, as long as the block lasts, and show it as ever."""
    recorder.begin(show_record, streams=True)
    try:
        yield
    finally:
        recorder.end()


@contextmanager
def recording_elsewhere() -> Iterator[None]:
    """Take what a run in this process says, as long as the block lasts; the engine's process will show it."""
    recorder.begin(None, streams=True)
    try:
        yield
    finally:
        recorder.end()


def is_for_another_process() -> bool:
    """Return whether what runs say here is shown, and kept, by the engine in another process."""
    return recorder.is_for_another


def capture_descriptors() -> Capture | None:
    """Return what captures descriptors 1 and 2, to be closed by the caller; None if there is nothing to capture.

    There is one for a process: None if another flow run has it.
    """
    return recorder.capture_descriptors()
