"""A file of JSON lines that only grows: one line is one commit, with the checksum of what stands before it.

A writer that dies in the middle of a line leaves it without its newline. Readers pass such a torn line by, the next
writer cuts it off: it was never acknowledged. Everything else that is broken is damage: no reader gets past it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from localflow.builtin.storage.directory import (
    NO_FOLLOW,
    create_private_file,
    make_private_directory,
    refuse_foreign,
    sync_directory,
)
from localflow.builtin.storage.encoding import from_json
from localflow.builtin.storage.failures import os_failure, was_removed
from localflow.errors import CorruptStoreError
from localflow.failpoints import VARIABLE, reach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

_SEAL = b',"crc":"%08x"}\n'
_SEAL_LENGTH = len(_SEAL % 0)
_CHUNK = 1 << 16
_IN_HALVES = "mid-line" in os.environ.get(VARIABLE, "")  # a test wants to come between them


class Place(NamedTuple):
    """Where a line stands in its file."""

    number: int = 0
    offset: int = 0
    length: int = 0


_START = Place()


class Mark(NamedTuple):
    """What a line is recognised by, before it is written and after: where it stands, and its checksum."""

    offset: int
    length: int
    crc: int


class Line(NamedTuple):
    """One commit, as it stands in the file."""

    path: Path
    place: Place
    content: bytes

    def entries(self) -> list[dict[str, Any]]:
        """Return the records as JSON objects; raises CorruptStoreError, naming file and line."""
        return self.entries_and_mark()[0]

    def entries_and_mark(self) -> tuple[list[dict[str, Any]], Mark | None]:
        """Return the records, and the mark of the line in another file without which they do not count."""
        self.check()
        with self.making_sense():
            body = from_json(self.content.decode())
            mark = Mark(*body["mark"]) if "mark" in body else None
            return [dict(entry) for entry in body["records"]], mark

    def check(self) -> None:
        """Raise CorruptStoreError if it is not as it was written."""
        if not self.content.endswith(b"\n") or not _is_sound(self.content):
            raise self.damage("its checksum does not fit")

    @contextmanager
    def making_sense(self) -> Iterator[None]:
        """Raise CorruptStoreError where what the line holds is not what is expected of it."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.damage(repr(error)) from error

    def damage(self, detail: str) -> CorruptStoreError:
        """Return the error for a line that makes no sense."""
        return CorruptStoreError(f"{self.path}:{self.place.number}", f"the line is not as it was written ({detail})")


def read_lines(path: Path, after: Place = _START) -> Iterator[Line]:
    """Yield the whole lines that are in the file now, those after a place; raises CorruptStoreError at damage."""
    for line in whole_lines(path, after):
        line.check()
        yield line


def whole_lines(path: Path, after: Place = _START) -> Iterator[Line]:
    """Yield the lines that are in the file now as they are, damaged or not, but for a torn one at the end."""
    with _reading(path) as file:
        yield from _lines_in(file, path, after)


def _lines_in(file: BinaryIO, path: Path, after: Place) -> Iterator[Line]:
    number, offset = after.number, after.offset + after.length
    size = os.fstat(file.fileno()).st_size
    file.seek(offset)
    for content in file:
        if offset + len(content) > size:
            return  # written since we began
        number += 1
        line = Line(path, Place(number, offset, len(content)), content)
        if not content.endswith(b"\n") and not _is_sound(content[:-1] + b"\n"):
            return  # torn, or being written right now
        yield line  # the last one perhaps with something else in the place of its end
        offset += len(content)


def inode_of(path: Path) -> int | None:
    """Return what tells a file from another one in its place, None where there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
    except OSError as error:
        raise os_failure(path, error) from error


@contextmanager
def telling(problems: list[str]) -> Iterator[None]:
    """Add a line to `problems` instead of raising CorruptStoreError."""
    try:
        yield
    except CorruptStoreError as error:
        problems.append(f"{error.path}: {error.detail}")


class Follower:
    """Reads the lines of a file that are new since the last time, all of them where the file is another one now."""

    def __init__(self, path: Path, forget: Callable[[], None]) -> None:
        """Call `forget` before the first line of another file."""
        self._path = path
        self._forget = forget
        self.inode: int | None = None
        self._last = _START  # the line that was read last

    def new_lines(self) -> Iterator[Line]:
        """Yield the lines; one is read again next time unless the one after it is asked for."""
        if self._is_up_to_date():
            return
        with _reading(self._path) as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self.inode or status.st_size < self._last.offset + self._last.length:
                self._forget()
                self.inode, self._last = status.st_ino, _START
            for line in _lines_in(file, self._path, self._last):
                line.check()
                yield line
                self._last = line.place

    def _is_up_to_date(self) -> bool:
        try:
            status = self._path.stat()
        except FileNotFoundError:  # its writer has made the directory and not come further, or it was removed
            self._forget()
            self.inode = None
            return True
        except OSError as error:
            raise os_failure(self._path, error) from error
        return status.st_ino == self.inode and status.st_size == self._last.offset + self._last.length


def read_line(path: Path, place: Place) -> Line:
    """Return one line again, unchecked."""
    with _reading(path) as file:
        file.seek(place.offset)
        return Line(path, place, file.read(place.length))


@contextmanager
def marks_in(path: Path) -> Iterator[Callable[[Mark], bool]]:
    """Open a file to ask which lines are in it."""
    with _reading(path) as file:

        def stands(mark: Mark) -> bool:
            end = mark.offset + mark.length
            seal = os.pread(file.fileno(), _SEAL_LENGTH, max(0, end - _SEAL_LENGTH))
            return seal == _SEAL % mark.crc

        yield stands


def mark_of(line: bytes, offset: int) -> Mark:
    """Return the mark of a sealed line that stands, or is to stand, at an offset."""
    return Mark(offset, len(line), zlib.crc32(line[:-_SEAL_LENGTH]))


def sealed(text: str) -> bytes:
    """Return the line for the JSON object `text`, with its checksum."""
    body = text[:-1].encode()  # without its last brace, which follows the checksum
    return body + _SEAL % zlib.crc32(body)


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | NO_FOLLOW), "rb") as file:
            refuse_foreign(path, os.fstat(file.fileno()))
            yield file
    except OSError as error:
        raise os_failure(path, error) from error


class Journal:
    """A journal that is open for writing."""

    def __init__(self, path: Path, *, power_safe: bool, make: bool = True) -> None:
        """Open the journal; with `make` it and its directory are made if they are missing."""
        self._path = path
        self._place = str(path)
        self._power_safe = power_safe
        self._end = 0  # where the last whole line ends, as far as we know
        self._is_torn = False  # something stands behind that
        flags = os.O_RDWR | os.O_APPEND | NO_FOLLOW
        try:
            descriptor = (self._create() if make else None) or os.open(path, flags)
        except FileNotFoundError:
            raise was_removed(path) from None
        except OSError as error:
            raise os_failure(path, error) from error
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            status = os.fstat(descriptor)
            refuse_foreign(path, status)
        except BaseException:
            self._file.close()
            raise
        self._inode = status.st_ino

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Keep other writers waiting; yields where the last whole line ends."""
        descriptor = self._file.fileno()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                self._find_end()
                yield self._end
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        except OSError as error:
            raise os_failure(self._path, error) from error

    @property
    def end(self) -> int:
        """Where the last whole line ends; the journal is locked."""
        return self._end

    def write(self, line: bytes) -> None:
        """Add a sealed line, as a whole or not at all, in the place of a torn one; the journal is locked."""
        descriptor = self._file.fileno()
        if self._is_torn:
            logger.warning("cut off the torn last line of %s: its writer died while writing it", self._path)
            self.cut(self._end)
        rest = memoryview(line)
        try:
            if _IN_HALVES:
                rest = rest[os.write(descriptor, rest[: len(rest) // 2]) :]
                reach("mid-line")
            while rest:  # once, but for a full disk: then the second time says so
                rest = rest[os.write(descriptor, rest) :]
            reach("line-written")
            if self._power_safe:
                os.fsync(descriptor)
            reach("line-synced")
        except BaseException as error:
            os.ftruncate(descriptor, self._end)
            if isinstance(error, OSError):
                raise os_failure(self._path, error) from error
            raise
        self._end += len(line)

    def cut(self, offset: int) -> None:
        """Take back what stands from an offset on: lines written since the journal was locked."""
        os.ftruncate(self._file.fileno(), offset)
        self._end, self._is_torn = offset, False

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _create(self) -> int | None:
        """Make the journal; return its descriptor, None if it is there already."""
        directory = self._path.parent
        make_private_directory(directory)
        refuse_foreign(directory, directory.lstat())
        try:
            descriptor = create_private_file(self._path, os.O_APPEND)
        except FileExistsError:
            return None
        if self._power_safe:
            sync_directory(directory)
            sync_directory(directory.parent)
        return descriptor

    def _find_end(self) -> None:
        """Learn where the last whole line ends, and whether a torn one stands behind it."""
        try:
            status = os.stat(self._place)  # noqa: PTH116 - twice as quick, at every commit
        except FileNotFoundError:
            raise was_removed(self._path) from None
        size = status.st_size
        if status.st_ino != self._inode or size < self._end:
            raise was_removed(self._path)
        if size == self._end:
            self._is_torn = False
            return
        descriptor = self._file.fileno()
        start, tail = size, b""
        while start > 0 and b"\n" not in tail:
            start, end = max(0, start - _CHUNK), start
            tail = os.pread(descriptor, end - start, start) + tail
        self._end = start + tail.rfind(b"\n") + 1
        self._is_torn = self._end < size
        if self._is_torn and _is_sound(tail[self._end - start : -1] + b"\n"):
            for line in whole_lines(self._path):
                line.check()


def _is_sound(content: bytes) -> bool:
    return content[-_SEAL_LENGTH:] == _SEAL % zlib.crc32(content[:-_SEAL_LENGTH])
