"""In the engine: reads what a worker writes and logs, and tells it as lines of the call it belongs to.

A worker has three files in memory (see `capture`): two for what is written to its stdout and stderr, one for what its
tasks log, each record with the sizes of the other two at that moment, which gives the order. Only the engine reads
them, each byte once, up to the ends that it is told; so nothing is told twice, whoever asks. While a call goes on the
pool asks from time to time, when it ends the worker tells, and after the worker's death all that is left is the call's.

Space that was read is given back at once, where the system can do that (on others with the worker), so that a flood
does not fill the memory. Of one call only so much is kept; how much more there was is told at its end.

A program that opens `/dev/stdout` anew to overwrite it cuts off what was not read yet.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from localflow.builtin.process.transport import OUTPUT_BEGIN, FrameReader
from localflow.records import LogLine
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from localflow.builtin.process.capture import Ends

#: How much of what a call says is kept, in bytes; each line counts this much more for what it takes to keep it.
TEXT_LIMIT = 10 << 20
_LINE_COST = 100
#: The longest line that is kept whole, in bytes; a longer one becomes several.
_LINE_LIMIT = 1 << 16
_PIECE = 1 << 20
#: How much text is made into lines at one look while a call goes on: that must not take long.
_SHARE = 1 << 16
#: How much space is given back at once.
_HOLE = 1 << 18
#: Seconds after which to look whether a call has written something: when it has begun, then, and if there was much.
FIRST_LOOK, _NEXT_LOOK, _FLOOD_LOOK = 0.05, 0.25, 0.01


class Unclaimed(NamedTuple):
    """Output of a worker that is no call's: it was starting, or has ended."""

    source: str
    """`"stdout"` or `"stderr"`."""
    text: str


class WorkerOutput:
    """What one worker has written and logged, and how much of it is told. Used by one thread."""

    def __init__(self, stdout: int, stderr: int, log: int) -> None:
        """Read the files with these descriptors, into which nothing has been written."""
        self._stdout = _File(stdout, "stdout", logging.INFO)
        self._stderr = _File(stderr, "stderr", logging.WARNING)
        self._log = _File(log, "", 0)
        self._records = FrameReader()
        self._lines: list[LogLine] = []
        self._room = TEXT_LIMIT
        self._dropped = 0
        self._looked_at = 0.0
        self._is_flood = False

    def sizes(self) -> Ends:
        """Return how long the files are now."""
        return self._stdout.size(), self._stderr.size(), self._log.size()

    def next_look(self, call_began_at: float) -> float:
        """Return when to look again, for a call that began then."""
        if self._looked_at < call_began_at:
            return call_began_at + FIRST_LOOK
        return self._looked_at + (_FLOOD_LOOK if self._is_flood else _NEXT_LOOK)

    def so_far(self, ends: Ends, now: float) -> list[LogLine]:
        """Return the new lines, up to these ends, of a call that goes on; `now` is on the monotonic clock."""
        self._looked_at, self._is_flood = now, False
        for file, end in ((self._stdout, ends[0]), (self._stderr, ends[1])):
            self._is_flood |= end - file.told > _SHARE
            file.give_back(file.told + max(0, self._room), end)  # which can only be dropped
        self._advance(ends, _SHARE)
        lines, self._lines = self._lines, []
        return lines

    def at_end(self, ends: Ends) -> list[LogLine]:
        """Return the last lines, up to these ends, of a call that has ended; the next one begins here."""
        self._advance(ends)
        now = time.time()
        for file in (self._stdout, self._stderr):
            if file.unfinished:
                self._add_line(file, file.unfinished, len(file.unfinished), now)
                file.unfinished = b""
            file.close_gap()
        lines, self._lines = self._lines, []
        if self._dropped:
            lines.append(LogLine(now, logging.WARNING, "localflow", f"... truncated {self._dropped} bytes"))
        self._room, self._dropped = TEXT_LIMIT, 0
        return lines

    def unclaimed(self, ends: Ends | None = None) -> list[Unclaimed]:
        """Return what was written up to these ends, or at all, as it is."""
        found = []
        for file, end in zip((self._stdout, self._stderr), ends or self.sizes(), strict=False):
            data = file.unfinished + file.read(min(end, file.told + TEXT_LIMIT))
            file.unfinished = b""
            file.skip(end)
            if data:
                found.append(Unclaimed(file.source, _decoded(data)))
        if ends is not None:
            self._log.skip(ends[2])
        return found

    def _advance(self, ends: Ends, share: int | None = None) -> None:
        """Make lines of everything up to these ends, or, behind the last log line, of so many bytes at most."""
        stdout_end, stderr_end, log_end = ends
        log = self._log
        while log.told < log_end:
            for record in self._read_records(log.read(log_end)):
                with contextlib.suppress(TypeError, ValueError):  # a task has written there, which is not its own
                    stdout_before, stderr_before, timestamp, level, source, message = record
                    self._read_text(self._stdout, min(stdout_before, stdout_end), timestamp)
                    self._read_text(self._stderr, min(stderr_before, stderr_end), timestamp)
                    size = len(message.encode(errors="backslashreplace"))
                    if self._has_room(size):
                        self._lines.append(LogLine(timestamp, level, source, message))
        now = time.time()
        for file, end in ((self._stdout, stdout_end), (self._stderr, stderr_end)):
            if end < file.told and file.size() < file.told:
                file.begin_again()
            if share is not None and self._room >= 0:
                end = min(end, file.told + share)
            self._read_text(file, end, now)

    def _read_records(self, piece: bytes) -> list[Any]:
        try:
            return self._records.feed(piece)
        except ValueError:
            self._records = FrameReader()
            return []

    def _read_text(self, file: _File, end: int, timestamp: float) -> None:
        while file.told < end:
            if self._room < 0:
                self._dropped += end - file.told
                file.skip(end)
                return
            lines = (file.unfinished + file.read(end)).split(b"\n")
            file.unfinished = lines.pop()
            for line in lines:
                self._add_line(file, line, len(line) + 1, timestamp)
            while len(file.unfinished) >= _LINE_LIMIT:
                cut = _cut(file.unfinished)
                self._add_line(file, file.unfinished[:cut], cut, timestamp)
                file.unfinished = file.unfinished[cut:]

    def _add_line(self, file: _File, line: bytes, size: int, timestamp: float) -> None:
        while len(line) > _LINE_LIMIT:
            cut = _cut(line)
            self._add_line(file, line[:cut], cut, timestamp)
            line, size = line[cut:], size - cut
        text = _decoded(line).removesuffix("\r") if self._room >= 0 else ""
        if self._has_room(size, len(text)):
            self._lines.append(LogLine(timestamp, file.level, file.source, text))

    def _has_room(self, size: int, length: int = 0) -> bool:
        """Return whether a text of so many bytes, or characters, is to be kept; once there is no room there is none."""
        if self._room >= 0:
            self._room -= max(size, length) + _LINE_COST
            if self._room >= 0:
                return True
        self._dropped += size
        return False


class _File:
    """A file that others write to, and how far it is told."""

    def __init__(self, descriptor: int, source: str, level: int) -> None:
        self._descriptor = descriptor
        self.source = source
        self.level = level
        self.told = self._given_back = OUTPUT_BEGIN
        self.unfinished = b""
        """The begin of a line that has not ended."""
        self._dropped_to = 0
        os.ftruncate(descriptor, OUTPUT_BEGIN)

    def size(self) -> int:
        # Nobody uses the position, as all writing is appending: this is a third of the price of fstat.
        return os.lseek(self._descriptor, 0, os.SEEK_END)

    def read(self, end: int) -> bytes:
        """Return what comes next, at most up to `end`."""
        data = os.pread(self._descriptor, min(end - self.told, _PIECE), self.told) if end > self.told else b""
        if data:
            self.skip(self.told + len(data))
        else:  # it was cut off by somebody
            self.skip(end)
        return data

    def skip(self, end: int) -> None:
        """Leave everything up to `end` untold, and give the space of what is told back."""
        self.told = max(self.told, end)
        if self.told - self._given_back > _HOLE:
            _give_back(self._descriptor, self._given_back, self.told)
            self._given_back = self.told

    def give_back(self, begin: int, end: int) -> None:
        """Give the space back of what will not be told."""
        begin = max(begin, self._dropped_to)
        if end - begin > _HOLE:
            _give_back(self._descriptor, begin, end)
            self._dropped_to = end

    def begin_again(self) -> None:
        """Tell what is there after somebody has cut it off."""
        self.told = self._given_back = self._dropped_to = 0

    def close_gap(self) -> None:
        """Have a file that was cut off go on where it could be noticed if that happened again."""
        if self.told < OUTPUT_BEGIN:
            os.ftruncate(self._descriptor, OUTPUT_BEGIN + self.size())
            self.told = OUTPUT_BEGIN + self.told


def _cut(text: bytes) -> int:
    """Return where to cut a text that is too long for one line: not amid a character."""
    cut = _LINE_LIMIT
    while cut > _LINE_LIMIT - 4 and text[cut : cut + 1] and text[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


_ESCAPES = {0xDC00 + byte: f"\\x{byte:02x}" for byte in range(0x80, 0x100)}


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        # What `errors="backslashreplace"` gives, in a tenth of the time: a flood may be binary.
        return text.decode(errors="surrogateescape").translate(_ESCAPES)


_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def _give_back(descriptor: int, begin: int, end: int) -> None:
    """Give back the space between two positions of a file, where the system can."""
    if sys.platform == "linux":
        import ctypes  # only now: most workers never write so much

        offset = ctypes.c_int64
        ctypes.CDLL(None).fallocate64(descriptor, _KEEP_SIZE | _PUNCH_HOLE, offset(begin), offset(end - begin))


def show(unclaimed: list[Unclaimed]) -> None:
    """Write output that is no call's to the same stream of this process."""
    for source, text in unclaimed:
        stream = getattr(sys, source)
        with contextlib.suppress(Exception):  # there may be no stream, or nobody who reads it
            stream.write(text)
            stream.flush()
