"""A spool: where one process commits its records by a copy into memory, before the database has them.

The file is mapped, so a commit takes about a microsecond and no system call, and what has been copied survives the
death of the process: the pages belong to the kernel. It does not survive a power loss. Whoever opens or reads the store
*files* what is in the spools there, that is, inserts it into the database and notes there, in the same transaction, how
far it has come. So nothing is filed twice, and nobody has to be asked.

    mark: generation, end, check            8 bytes: where the newest entry ends; moving it commits
    boot                                    16 bytes: of the system that it was made under
    entry: size, checksum, content          4 + 4 + size bytes, one after the other
    ...

All that is before `end` has been committed. Once everything is filed the spool begins anew in the next *generation*;
the database notes that first, so a mark of an earlier generation than is noted there means that nothing is left.
"""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from localflow.builtin.storage.directory import NO_FOLLOW, create_private_file, refuse_foreign
from localflow.failpoints import reach

if TYPE_CHECKING:
    from collections.abc import Iterator

SPOOL_BYTES = 1 << 20
LARGEST_ENTRY = SPOOL_BYTES // 4

_MARK = struct.Struct("<Q")
_ENTRY = struct.Struct("<II")
_BEGIN = 24
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_END_BITS, _CHECK_BITS = 24, 16


class Mark(NamedTuple):
    """How far a spool has been filled or filed."""

    generation: int = 0
    end: int = _BEGIN


class TornEntryError(Exception):
    """An entry is not as it was committed."""


class Spool:
    """The spool of this process: made with its file, which nobody else writes."""

    def __init__(self, directory: Path) -> None:
        """Make the file, with all the room that it will ever have: a full disk must be told now.

        Raises:
            OSError: there is no room, or the file cannot be made.
        """
        self.mark = Mark()
        self.path, self._descriptor = _create(directory)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._descriptor, 0, SPOOL_BYTES)
            else:
                os.pwrite(self._descriptor, bytes(SPOOL_BYTES), 0)
            self._map = mmap.mmap(self._descriptor, SPOOL_BYTES)
        except BaseException:
            os.close(self._descriptor)
            self.path.unlink()
            raise
        self._map[_MARK.size : _BEGIN] = _boot()
        self._set(Mark())

    @property
    def name(self) -> str:
        """What the database knows it by."""
        return self.path.name

    def has_room(self, content: bytes) -> bool:
        """Return whether an entry fits in."""
        return self.mark.end + _ENTRY.size + len(content) <= SPOOL_BYTES

    def add(self, content: bytes) -> Mark:
        """Commit an entry for which there is room; return the mark behind it."""
        generation, end = self.mark
        after = end + _ENTRY.size + len(content)
        self._map[end:after] = _ENTRY.pack(len(content), crc32(content)) + content
        reach("spooling")
        mark = tuple.__new__(Mark, (generation, after))  # in a third of the time: this is done at every commit
        self._set(mark)
        reach("spooled")
        return mark

    def begin_anew(self) -> None:
        """Have all the room again; that everything was filed, and this generation is over, is noted already."""
        self._set(Mark(self.mark.generation + 1))

    def remove(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        """Leave the file to others."""
        self._map.close()
        os.close(self._descriptor)

    def _set(self, mark: Mark) -> None:
        self._map[: _MARK.size] = _word(mark)
        self.mark = mark


class FoundSpool:
    """A spool of some process, for who files what is in it; to be closed."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            OSError: it has gone, say.
            StoreError: others may write it.
        """
        import fcntl

        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | NO_FOLLOW)
        self._status = os.fstat(self._descriptor)
        self.is_orphaned = True
        """Whether the process whose spool it is has died."""
        try:
            refuse_foreign(path, self._status)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.is_orphaned = False
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """What the database knows it by."""
        return self.path.name

    def mark(self) -> Mark:
        """Return how far it is filled. Raises TornEntryError."""
        word = os.pread(self._descriptor, _MARK.size, 0)
        if not any(word) and not any(os.pread(self._descriptor, _ENTRY.size, _BEGIN)):
            return Mark()  # its process is making it, or died as it did
        packed = int.from_bytes(word, "little") >> _CHECK_BITS
        mark = Mark(packed >> _END_BITS, packed & ((1 << _END_BITS) - 1))
        if word != _word(mark) or mark.end < _BEGIN:
            raise TornEntryError("the mark of its newest entry is not as it was written")
        return mark

    def is_of_this_boot(self) -> bool:
        """Return whether the system has not been started since, so that no commit can have been lost."""
        return os.pread(self._descriptor, _BEGIN - _MARK.size, _MARK.size) == _boot()

    def is_there(self) -> bool:
        """Return whether the file is still the one of its name."""
        try:
            return os.path.samestat(self.path.lstat(), self._status)
        except FileNotFoundError:
            return False

    def contents(self, begin: int, end: int) -> list[bytes]:
        """Return the contents of the entries between two places. Raises TornEntryError."""
        data = os.pread(self._descriptor, end - begin, begin)
        found = []
        place = 0
        while place < end - begin:
            head = data[place : place + _ENTRY.size]
            if len(head) < _ENTRY.size:
                raise TornEntryError(f"entry at byte {begin + place} is cut off")
            size, checksum = _ENTRY.unpack(head)
            place += _ENTRY.size
            content = data[place : place + size]
            if not size or len(content) < size or crc32(content) != checksum:
                raise TornEntryError(f"the entry before byte {begin + place} is not as it was written")
            found.append(content)
            place += size
        return found

    def sound_contents(self) -> Iterator[bytes]:
        """Yield the contents of all entries of this generation, up to the first that is not as it was written."""
        with suppress(TornEntryError):
            begin, end = Mark().end, self.mark().end
            while begin < end:
                (size, _) = _ENTRY.unpack(os.pread(self._descriptor, _ENTRY.size, begin))
                after = begin + _ENTRY.size + size
                yield from self.contents(begin, min(after, end))
                begin = after

    def is_torn(self) -> bool:
        """Return whether an entry is not as it was written."""
        try:
            self.contents(Mark().end, self.mark().end)
        except TornEntryError:
            return True
        return False

    def remove(self) -> None:
        """Remove the file."""
        with suppress(FileNotFoundError):
            self.path.unlink()

    def close(self) -> None:
        """Let the file go."""
        os.close(self._descriptor)


def _create(directory: Path) -> tuple[Path, int]:
    """Make a file that says by its lock that its process is alive; return it with its descriptor."""
    import fcntl

    while True:
        path = directory / os.urandom(8).hex()
        descriptor = create_private_file(path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # somebody who met it without its lock has taken it for one that was left behind


def _word(mark: Mark) -> bytes:
    """Return a mark as one word, which is written or not, never in part."""
    packed = mark.generation << _END_BITS | mark.end
    return _MARK.pack(packed << _CHECK_BITS | packed % 65521)  # the largest prime below: any flipped bit shows


def _boot() -> bytes:
    """Return what tells one start of the system from another; the same each time where nothing does."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(_BEGIN - _MARK.size)
