"""How what a run has said is shown on the terminal."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from localflow.log_records import level_of_user
from localflow.loggers import RUN_LOGGERS, run_names
from localflow.printable import printable, printable_lines
from localflow.streams import LEVELS, aside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.records import FlowRun, LogLine, TaskRun


def show_all(run: FlowRun | TaskRun, lines: Sequence[LogLine]) -> None:
    """Show what a run in another process has said, as it would be shown if the run were in this one."""
    for source, group in groupby(lines, key=attrgetter("source")):
        if source in LEVELS:  # of which there may be very many
            with aside(), suppress(Exception):  # a terminal that is gone: no harm to the run
                _write(source, "\n".join([line.message for line in group]))
        else:
            for line in group:
                show(run, line)


def show(run: FlowRun | TaskRun, line: LogLine) -> None:
    """Show what a run in another process has logged.

    A record goes to the handlers the user has configured here. Where there are none, those of runs' loggers are shown
    as `show_record` does, others from WARNING on as Python does it.
    """
    with aside(), suppress(Exception):  # a handler that fails: no harm to the run
        logger = logging.getLogger(line.source)
        if logger.hasHandlers():
            if line.level >= level_of_user(logger) and not logger.disabled:
                logger.handle(_record(run, line))
        elif line.source in RUN_LOGGERS:
            show_record(run, line)
        elif line.level >= logging.WARNING:
            _write_last_resort(_record(run, line))


def show_record(run: FlowRun | TaskRun, line: LogLine) -> None:
    """Show on stderr a record of a run's logger with its time, level and run; further lines of it are indented."""
    whole, fraction = divmod(line.timestamp, 1)
    clock = time.strftime("%H:%M:%S", time.localtime(whole))
    head = f"{clock}.{int(fraction * 1000):03} | {logging.getLevelName(line.level):<7} | {printable(run.name)} | "
    with aside(), suppress(Exception):
        _write("stderr", head + "\n    ".join(printable_lines(line.message)))


def _write(source: str, text: str) -> None:
    stream = getattr(sys, source)
    if stream is not None:
        try:
            stream.write(f"{text}\n")
        except UnicodeEncodeError:  # a locale that lacks a sign, a lone surrogate
            stream.write(f"{text.encode(stream.encoding, 'backslashreplace').decode(stream.encoding)}\n")
        stream.flush()


def _write_last_resort(record: logging.LogRecord) -> None:
    if logging.lastResort is not None:  # whoever has taken it away wants silence
        _write("stderr", logging.lastResort.format(record))


def _record(run: FlowRun | TaskRun, line: LogLine) -> logging.LogRecord:
    record = logging.LogRecord(line.source, line.level, "", 0, "%s", (line.message,), None)
    record.created, record.msecs = line.timestamp, line.timestamp % 1 * 1000
    record.__dict__.update(run_names(run))
    return record
