"""`print` while runs are recorded: with `log_prints` to the run's logger, else in one piece.

Python's own `print` writes a text and its line end one after the other, between which another thread may write.
"""

from __future__ import annotations

import builtins
import io
import sys
from typing import TYPE_CHECKING, Any

from localflow.context import current_run

if TYPE_CHECKING:
    from collections.abc import Callable


class Prints:
    """Puts a `print` in the place of Python's own that looks at the run it is called in."""

    def __init__(self, log: Callable[[str], None]) -> None:
        """Keep `log`, which takes what a run with `log_prints` has printed, without the line end."""
        self._log = log
        self._real = builtins.print
        self._placed: Any = None

    def place(self) -> None:
        """Take the place of `print`."""
        real, log = builtins.print, self._log
        streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]

        def run_print(*values: object, **options: Any) -> None:
            context = current_run()
            file = options.get("file")
            if file is None:
                file = sys.stdout
            # A stream that the run itself has put in place is meant to get what is printed, as it is.
            if context is None or not any(file is stream for stream in streams):
                real(*values, **options)
                return
            text = io.StringIO()
            real(*values, **{**options, "file": text})
            if context.log_prints:
                log(text.getvalue().removesuffix("\n"))
                return
            file.write(text.getvalue())
            if options.get("flush"):
                file.flush()

        self._real, self._placed = real, run_print
        builtins.print = run_print

    def remove(self) -> None:
        """Put `print` back, unless somebody else has replaced it meanwhile."""
        if builtins.print is self._placed:
            builtins.print = self._real
        self._placed = None
