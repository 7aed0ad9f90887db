"""A file of JSON lines that only grows: one line is one commit, with the checksum of what stands before it.

A writer that dies in the middle of a line leaves it without its newline. Readers pass such a torn line by, the next
writer cuts it off: it was never acknowledged. Everything else that is broken is damage.
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

_SEAL = b',"crc":"%08x"}\n'
_SEAL_LENGTH = len(_SEAL % 0)
_CHUNK = 1 << 16


class Place(NamedTuple):
    """Where a line stands in its file."""

    number: int = 0
    offset: int = 0
    length: int = 0


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
        if not _is_sound(self.content):
            raise self.damage("its checksum does not fit")
        with self.making_sense():
            body = from_json(self.content.decode())
            mark = Mark(*body["mark"]) if "mark" in body else None
            return [dict(entry) for entry in body["records"]], mark

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


def read_lines(path: Path, after: Place = Place()) -> Iterator[Line]:  # noqa: B008 - immutable
    """Yield the whole lines that are in the file now, those after a place."""
    number, offset = after.number, after.offset + after.length
    with _reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(offset)
        for content in file:
            if offset + len(content) > size:
                return  # written since we began
            number += 1
            line = Line(path, Place(number, offset, len(content)), content)
            if not content.endswith(b"\n"):
                if _is_sound(content[:-1] + b"\n"):
                    raise line.damage("something else stands in the place of its end")
                return  # torn, or being written right now
            yield line
            offset += len(content)


def read_line(path: Path, place: Place) -> Line:
    """Return one line again."""
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

    def __init__(self, path: Path, *, power_safe: bool) -> None:
        """Open the journal; it and its directory are made if they are missing."""
        self._path = path
        self._power_safe = power_safe
        self._end = 0  # where the last whole line ends, as far as we know
        try:
            descriptor = self._create() or os.open(path, os.O_RDWR | os.O_APPEND | NO_FOLLOW)
        except OSError as error:
            raise os_failure(path, error) from error
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            refuse_foreign(path, os.fstat(descriptor))
        except BaseException:
            self._file.close()
            raise

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Keep other writers waiting; yields where the last whole line ends, and cuts off a torn one behind it."""
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

    def write(self, line: bytes) -> None:
        """Add a sealed line, as a whole or not at all; the journal is locked."""
        descriptor = self._file.fileno()
        rest = memoryview(line)
        try:
            while rest:  # once, but for a full disk: then the second time says so
                rest = rest[os.write(descriptor, rest) :]
            if self._power_safe:
                os.fsync(descriptor)
        except BaseException as error:
            os.ftruncate(descriptor, self._end)
            if isinstance(error, OSError):
                raise os_failure(self._path, error) from error
            raise
        self._end += len(line)

    def cut(self, offset: int) -> None:
        """Take back the lines from an offset on, written since the journal was locked."""
        os.ftruncate(self._file.fileno(), offset)
        self._end = offset

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
        """Learn where the last whole line ends, and cut off a torn one behind it."""
        descriptor = self._file.fileno()
        status = os.fstat(descriptor)
        if status.st_nlink == 0:
            raise was_removed(self._path)
        size = status.st_size
        if size == self._end:
            return
        start, tail = size, b""
        while start > 0 and b"\n" not in tail:
            start, end = max(0, start - _CHUNK), start
            tail = os.pread(descriptor, end - start, start) + tail
        self._end = start + tail.rfind(b"\n") + 1
        torn = tail[self._end - start :]
        if torn:
            if _is_sound(torn[:-1] + b"\n"):
                raise CorruptStoreError(self._path, "something else stands in the place of its last line's end")
            logger.warning("cut off the torn last line of %s: its writer died while writing it", self._path)
            os.ftruncate(descriptor, self._end)


def _is_sound(content: bytes) -> bool:
    return content[-_SEAL_LENGTH:] == _SEAL % zlib.crc32(content[:-_SEAL_LENGTH])
