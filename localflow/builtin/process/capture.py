"""In a worker: its descriptors 1 and 2, and what its tasks log, are files in memory that the engine reads.

So everything is caught that tasks write, also from C code and programs they start; no pipe can fill up, and nothing is
lost in a crash. The worker says with each outcome how long the files are, and the engine has read that far when it
takes in the outcome: what was written in between belongs to that call. See `output` for the other side.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
from functools import partial
from os import SEEK_END, lseek  # for each call
from typing import TYPE_CHECKING, TypeAlias

from localflow.builtin.process.transport import OUTPUT_BEGIN, frame
from localflow.recording import recorder

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from localflow.records import LogLine

#: The sizes of the files for stdout, for stderr and for log lines.
Ends: TypeAlias = tuple[int, int, int]

_BY_LINES = 1  # _IOLBF of C


class Capture:
    """What this process writes and logs."""

    def __init__(self, stdout: int, stderr: int, log: int) -> None:
        """Lead everything into the files with these descriptors."""
        self._stdout, self._stderr, self._log = stdout, stderr, log
        self._told: Ends = (0, 0, 0)
        self._has_logged = True
        """Whether the file for log lines may have grown: nobody but `log` writes there."""
        for target, descriptor, name in ((1, stdout, "stdout"), (2, stderr, "stderr")):
            os.dup2(descriptor, target)
            if getattr(sys, name) is None:  # the engine has none
                stream = open(target, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
                setattr(sys, name, stream)
        self._flush_c = _c_flush()
        recorder.install()
        if "logging" in sys.modules:
            _take_records()
        else:
            sys.meta_path.insert(0, _LoggingFinder())

    def log(self, line: LogLine) -> None:
        """Take what a task logs; what it has written before comes before it."""
        self._flush()
        before = lseek(self._stdout, 0, SEEK_END), lseek(self._stderr, 0, SEEK_END)
        self._has_logged = True
        os.write(self._log, frame((*before, *line)))
        self._has_logged = True  # again, as a call may have ended meanwhile, if this is another thread

    def ends(self) -> Ends | None:
        """Return how long the files are, or None if they are as long as when it was last asked."""
        self._flush()
        try:
            stdout, stderr = lseek(self._stdout, 0, SEEK_END), lseek(self._stderr, 0, SEEK_END)
            told_stdout, told_stderr, log = self._told
            if self._has_logged:
                self._has_logged = False
                log = lseek(self._log, 0, SEEK_END)
            elif stdout == told_stdout >= OUTPUT_BEGIN and stderr == told_stderr >= OUTPUT_BEGIN:
                return None
        except OSError:  # a task has closed descriptors that are not its own
            return None
        self._told = stdout, stderr, log
        return self._told

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:  # closed, or something of the task's own
                continue
        self._flush_c()


class _LoggingFinder:
    """Has records taken as soon as there is `logging`, by whomever it is imported: many a worker never needs it."""

    _has_found = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Find `logging` as it would be found without this."""
        if name != "logging" or self._has_found:
            return None
        self._has_found = True
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_take(module: ModuleType) -> None:
                load(module)
                _take_records()

            spec.loader.exec_module = load_and_take  # type: ignore[method-assign]
        return spec


def _take_records() -> None:
    import localflow.log_records  # noqa: F401  # which does it


def _c_flush() -> Callable[[], object]:
    """Have the stdout of C code written line by line; return what writes the rest of it."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        library = ctypes.PyDLL(None)  # which keeps the lock of the interpreter: nothing here takes long
        stdout = ctypes.c_void_p.in_dll(library, "__stdoutp" if sys.platform == "darwin" else "stdout")
        library.setvbuf(stdout, None, _BY_LINES, ctypes.c_size_t(0))
        flush = library.fflush
        flush.argtypes = [ctypes.c_void_p]
        return partial(flush, stdout)
    return lambda: None
