"""`log_prints=True`: what such a run prints goes to its logger instead of stdout."""

from __future__ import annotations

import builtins
import io
import sys
from typing import TYPE_CHECKING, Any

from localflow.context import current_run

if TYPE_CHECKING:
    from collections.abc import Callable


class Prints:
    """Puts a `print` in the place of the built-in one that looks at the run it is called in."""

    def __init__(self, log: Callable[[str], None]) -> None:
        """Keep `log`, which takes what a run with `log_prints` has printed, without the line end."""
        self._log = log
        self._real = builtins.print
        self._placed: Any = None

    def place(self) -> None:
        """Take the place of `print`."""
        real, log = builtins.print, self._log
        streams = (None, sys.stdout, sys.stderr)

        def run_print(*values: object, **options: Any) -> None:
            context = current_run()
            file = options.get("file")
            # A stream that the run has replaced by another is meant to get what is printed.
            if context is None or not context.log_prints or not _is_any_of(file, streams) or sys.stdout not in streams:
                real(*values, **options)
                return
            text = io.StringIO()
            real(*values, **{**options, "file": text})
            log(text.getvalue().removesuffix("\n"))

        self._real, self._placed = real, run_print
        builtins.print = run_print

    def remove(self) -> None:
        """Put `print` back, unless somebody else has replaced it meanwhile."""
        if builtins.print is self._placed:
            builtins.print = self._real
        self._placed = None


def _is_any_of(file: object, streams: tuple[object, ...]) -> bool:
    return any(file is stream for stream in streams)
