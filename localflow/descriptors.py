"""What a task writes straight to descriptors 1 and 2 - C code, child processes, `os.write` - while it is the only one.

For the time of a task, and a moment longer in case there is another, the two lead into memory files, unless they lead
to a terminal. Whatever arrives there is passed on to where they led before: when a task begins or ends, before anything
is written by way of `sys.stdout` or `sys.stderr`, and every tenth of a second. A pipe would not do: C code that holds
the interpreter's lock and has filled it would wait for ever for the thread that is to empty it.

What that means for programs: after a crash the last tenth of a second is missing; a child process that outlives the
flow run writes into nothing; a shell that opens /dev/stdout anew starts the file over, as it does with any file.
`LOCALFLOW_CAPTURE_DESCRIPTORS=0` leaves the descriptors alone.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
from contextlib import suppress
from os import SEEK_END, dup2, lseek  # for each task several times
from typing import TYPE_CHECKING, TextIO

from localflow.streams import LINE_LIMIT, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.records import LogLine
    from localflow.streams import RunStream, Streams

SWITCH = "LOCALFLOW_CAPTURE_DESCRIPTORS"

_DESCRIPTORS = {"stdout": 1, "stderr": 2}
_PERIOD = 0.1
_PIECE = 1 << 20
_START = 1 << 20
"""Where the memory files begin to be filled, so that one that somebody starts over is shorter."""
_FREED_AT = 1 << 24


class Capture:
    """The two descriptors, for tasks that run one after the other."""

    def __init__(self, streams: Streams, on_close: Callable[[], None]) -> None:
        """Open nothing yet; `streams` are those that stand before sys.stdout and sys.stderr."""
        self._streams = streams
        self._on_close = on_close
        self._lock = threading.RLock()  # a signal handler may write while its thread is in here
        self._channels: list[_Channel] = []
        self._log: Callable[[LogLine], None] | None = None
        self._idle = False
        """Whether no task has been at work since the thread looked last."""
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> bool:
        """Get ready; return whether there is anything to capture."""
        if os.environ.get(SWITCH) == "0":
            return False
        for source, descriptor in _DESCRIPTORS.items():
            with suppress(OSError):  # it is closed
                if not os.isatty(descriptor):
                    self._channels.append(_Channel(source, descriptor, self._streams))
        if self._channels:
            atexit.register(self.close)
        return bool(self._channels)

    def begin(self, log: Callable[[LogLine], None]) -> bool:
        """Let what arrives from now on go to `log`; return False if a task is at work already."""
        with self._lock:
            if self._log is not None:
                return False
            for channel in self._channels:
                channel.divert(self.settle)
            self._log = log
            self._idle = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="localflow-output", daemon=True)
                self._thread.start()
            return True

    def end(self) -> None:
        """Pass on what has arrived; what comes after is not the task's."""
        with self._lock:
            log = self._log
            if log is not None:
                if "ctypes" in sys.modules:
                    _flush_c()
                for channel in self._channels:
                    channel.finish(log)
                self._log = None

    def settle(self) -> None:
        """Pass on what has arrived, as the task's if one is at work."""
        with self._lock:
            for channel in self._channels:
                channel.settle(self._log)

    def skip(self) -> None:
        """Pass on what has arrived; it is recorded already."""
        with self._lock:
            for channel in self._channels:
                channel.settle(None)

    def close(self) -> None:
        """Give everything back."""
        self._over.set()
        self.end()
        atexit.unregister(self.close)
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for channel in self._channels:
                channel.close()
            self._channels.clear()
        self._on_close()

    def _work(self) -> None:
        while not self._over.wait(_PERIOD):
            with self._lock:
                self.settle()  # without a task, too: a child process may have outlived its own
                if self._log is None and self._idle:
                    for channel in self._channels:
                        channel.restore()
                self._idle = self._log is None


class _Channel:
    """One of the descriptors."""

    def __init__(self, source: str, descriptor: int, streams: Streams) -> None:
        self._source = source
        self._descriptor = descriptor
        self._streams = streams
        self._real = os.dup(descriptor)
        self._memory = _memory_file()
        self._position = self._freed = _START
        self._unfinished = b""
        self._stream: RunStream | None = None
        self._real_stream: TextIO | None = None
        """What Python's own text for the descriptor is buffered in."""
        self._is_diverted = False
        self._known: TextIO | None = None
        self._writer: TextIO | None = None
        """Writes to where the descriptor leads otherwise, in the way of the stream `_known`."""

    def divert(self, settle: Callable[[], None]) -> None:
        """Lead the descriptor into the memory file, where it stays for a while; what Python writes goes past it."""
        stream = self._streams.placed.get(self._source)
        if self._is_diverted:
            if stream is self._stream and stream is not None:
                self.settle(None)
                return
            self.restore()
        self._stream = stream
        self._real_stream = getattr(sys, self._source) if stream is None else stream.real
        _flush(self._real_stream)
        if stream is not None:
            if stream.real is not self._known:
                self._known, self._writer = stream.real, self._writer_like(stream.real)
            if self._writer is not None:
                stream.divert(self._writer, settle)
        dup2(self._memory, self._descriptor)
        self._is_diverted = True

    def restore(self) -> None:
        """Lead the descriptor back."""
        if self._is_diverted:
            self._is_diverted = False
            _flush(self._real_stream)
            if self._writer is not None and self._stream is not None:
                self._stream.divert(None, None)
                _flush(self._writer)
            dup2(self._real, self._descriptor)
            self.settle(None)

    def settle(self, log: Callable[[LogLine], None] | None) -> None:
        """Pass on what has arrived, and give whole lines of it to `log`."""
        size = lseek(self._memory, 0, SEEK_END)
        if size == self._position:
            return
        if size < self._position:  # somebody has started the file over
            self._position = self._freed = 0
        while data := os.pread(self._memory, _PIECE, self._position):
            self._position += len(data)
            self._pass_on(data)
            if log is not None:
                self._take(data, log)
        if self._position - self._freed > _FREED_AT:
            self._freed = _free(self._memory, self._freed, self._position)

    def finish(self, log: Callable[[LogLine], None]) -> None:
        """Pass on what has arrived, and let a line that has not ended go to `log` too."""
        _flush(self._real_stream)
        self.settle(log)
        if self._unfinished:
            rest, self._unfinished = self._unfinished, b""
            say(log, self._source, rest.decode(errors="backslashreplace"))

    def close(self) -> None:
        """Give the descriptors of the channel back."""
        self.restore()
        self._writer = self._known = self._real_stream = self._stream = None
        os.close(self._memory)
        os.close(self._real)

    def _take(self, data: bytes, log: Callable[[LogLine], None]) -> None:
        head, end, rest = (self._unfinished + data).rpartition(b"\n")
        if len(rest) > LINE_LIMIT:
            head, end, rest = head + end + rest, b"", b""
        self._unfinished = rest
        if head or end:
            say(log, self._source, (head + end).decode(errors="backslashreplace"))

    def _pass_on(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._real, view) :]
            except BlockingIOError:
                select.select((), (self._real,), ())
            except OSError:  # nobody reads it any more
                return

    def _writer_like(self, real: TextIO) -> TextIO | None:
        """Return a stream for the real descriptor that writes as Python's own does, None if that leads elsewhere."""
        if type(real) is not io.TextIOWrapper or real.fileno() != self._descriptor:
            return None
        raw = io.FileIO(self._real, "w", closefd=False)
        buffer = raw if isinstance(real.buffer, io.RawIOBase) else io.BufferedWriter(raw)
        return io.TextIOWrapper(
            buffer,
            encoding=real.encoding, errors=real.errors, newline="\n",
            line_buffering=real.line_buffering, write_through=real.write_through,
        )  # fmt: skip


def _memory_file() -> int:
    """Open a file without a name that is only ever written at its end."""
    import fcntl

    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("localflow-output")
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)
    os.ftruncate(descriptor, _START)
    return descriptor


def _flush(stream: TextIO | None) -> None:
    if stream is not None:
        try:
            stream.flush()
        except (OSError, ValueError):  # it is closed, or nobody reads it: whoever writes to it is told
            return


def _flush_c() -> None:
    """Have what C code has buffered written."""
    import ctypes

    with suppress(Exception):
        ctypes.pythonapi.fflush(None)


def _free(descriptor: int, start: int, end: int) -> int:
    """Give back the memory of what has been passed on, where the system can; return up to where that is done."""
    if sys.platform == "linux":
        import ctypes

        keep_size, punch_hole = 1, 2
        with suppress(Exception):
            fallocate = ctypes.CDLL(None).fallocate
            fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
            fallocate(descriptor, keep_size | punch_hole, start, end - start)
    return end
