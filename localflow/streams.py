"""`sys.stdout` and `sys.stderr` while runs are recorded: what a run writes passes through and is kept as its lines.

A `RunStream` stands in front of the real stream. Each write goes to the real stream at once and unchanged; in the
body of a flow or task, whole lines of it become log lines of that run. The last piece of an unfinished line waits until
the line or the run ends. Threads of one run that write at once do not mix their lines.

A signal handler may write while its thread is in the middle of a write, so the locks here are reentrant.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from localflow.context import current_run
from localflow.records import LogLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from localflow.context import FlowContext, TaskContext

#: The sources of lines that were written, not logged, and the level they count as: INFO and WARNING of `logging`.
LEVELS = {"stdout": 20, "stderr": 30}

#: The longest line that is kept whole, in characters; a longer one becomes several.
LINE_LIMIT = 1 << 16

_aside: set[int] = set()
"""The threads whose writes are nobody's: what they show is recorded already, or is localflow's own."""


@contextmanager
def aside() -> Iterator[None]:
    """Let what the calling thread writes and logs in the block pass unrecorded."""
    thread = threading.get_ident()
    if thread in _aside:
        yield
        return
    _aside.add(thread)
    try:
        yield
    finally:
        _aside.discard(thread)


def is_aside() -> bool:
    """Return whether what the calling thread writes and logs now passes unrecorded."""
    return threading.get_ident() in _aside


class Lines:
    """Makes log lines of the pieces that runs write."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._unfinished: dict[int, tuple[FlowContext | TaskContext, dict[tuple[str, int], list[str]]]] = {}
        """By the context's identity, then by stream and thread: the pieces of a line that has not ended."""

    def take(self, context: FlowContext | TaskContext, source: str, text: str) -> None:
        """Add what a run has written; lines that are complete go to its log."""
        head, end, rest = text.rpartition("\n")
        complete = head + end
        with self._lock:
            if complete and id(context) in self._unfinished:
                complete = self._finished(context, source) + complete
            if rest and self._keep(context, source, rest) >= LINE_LIMIT:
                complete += self._finished(context, source)
        if complete:
            say(context.log, source, complete)

    def flush(self, context: FlowContext | TaskContext) -> None:
        """Let the run's unfinished lines go to its log, as the run has ended."""
        if not self._unfinished:
            return
        with self._lock:
            _, held = self._unfinished.pop(id(context), (context, {}))
        for (source, _), pieces in held.items():
            say(context.log, source, "".join(pieces))

    def _keep(self, context: FlowContext | TaskContext, source: str, piece: str) -> int:
        _, held = self._unfinished.setdefault(id(context), (context, {}))
        pieces = held.setdefault((source, threading.get_ident()), [])
        pieces.append(piece)
        if len(pieces) > 64:
            pieces[:] = ["".join(pieces)]
        return sum(map(len, pieces))

    def _finished(self, context: FlowContext | TaskContext, source: str) -> str:
        _, held = self._unfinished[id(context)]
        pieces = held.pop((source, threading.get_ident()), [])
        if not held:
            del self._unfinished[id(context)]
        return "".join(pieces)


def say(log: Callable[[LogLine], None], source: str, text: str) -> None:
    """Give the lines of a text to a run's log, the last one whether or not it ends in a line end."""
    now, level = time.time(), LEVELS[source]
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    with suppress(Exception):  # whatever is wrong with the log, the program may write
        for line in lines:
            line = line.removesuffix("\r")
            for start in range(0, max(len(line), 1), LINE_LIMIT):
                log(LogLine(now, level, source, line[start : start + LINE_LIMIT]))


class RunStream:
    """Stands in front of a stream and looks like it."""

    def __init__(self, source: str, real: TextIO, lines: Lines, passes: bool) -> None:
        self.real = real
        self._source = source
        self._lines = lines
        self._passes = passes
        """Whether a run's output reaches the real stream; if not, somebody else shows it."""
        self.collects = True
        self._writer: TextIO | None = None
        self._settle: Callable[[], None] | None = None

    @property  # type: ignore[misc]  # programs ask for an io.TextIOWrapper before they use what it has
    def __class__(self) -> type:
        return type(self.real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __repr__(self) -> str:
        return repr(self.real)

    def __iter__(self) -> Iterator[str]:
        return iter(self.real)

    def divert(self, writer: TextIO | None, settle: Callable[[], None] | None) -> None:
        """Write by `writer` as long as the real stream's descriptor leads elsewhere, after `settle`."""
        self._settle = settle
        self._writer = writer

    def write(self, text: str) -> int:
        """Write to the real stream, and keep it if a run writes it."""
        context = current_run() if self.collects and not is_aside() else None
        writer, settle = self._writer, self._settle
        if writer is not None:
            if settle is not None:
                settle()
            written = writer.write(text)
        elif context is None or self._passes:
            written = self.real.write(text)
        else:
            written = len(text)
        if context is not None:
            self._lines.take(context, self._source, text)
        return written

    def writelines(self, lines: Any) -> None:
        """Write the texts one after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what is buffered."""
        if self._writer is not None:
            self._writer.flush()
        self.real.flush()

    def reconfigure(self, **options: Any) -> None:
        """Change how the stream encodes and buffers."""
        for stream in (self.real, self._writer):
            if stream is not None:
                stream.reconfigure(**options)  # type: ignore[attr-defined]  # who asks for it knows that it is there


class Streams:
    """Puts `RunStream`s in the place of sys.stdout and sys.stderr, and takes them away again."""

    def __init__(self) -> None:
        self.lines = Lines()
        self.placed: dict[str, RunStream] = {}
        """By source, those that stand before the real ones now."""

    def place(self, passes: bool) -> None:
        """Take the place of the streams that there are."""
        for source in LEVELS:
            real = getattr(sys, source)
            if real is not None:
                self.placed[source] = stream = RunStream(source, real, self.lines, passes)
                setattr(sys, source, stream)

    def remove(self) -> None:
        """Put the streams back, unless somebody else has replaced them meanwhile; who kept ours may go on with it."""
        for source, stream in self.placed.items():
            stream.collects = False
            if getattr(sys, source) is stream:
                setattr(sys, source, stream.real)
        self.placed.clear()
