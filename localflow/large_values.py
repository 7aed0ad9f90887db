"""Values too large to be passed along as bytes: in files that are written once and mapped by whoever needs the value.

A file holds the pickle of one value, then its buffers (the memory of arrays, say), each at a multiple of 64 bytes, then
an index of them:

    pickle | buffer | ... | offset and size of each buffer | size of the pickle, number of buffers, magic

A process that loads the value maps the file for reading: its arrays are views of the pages that all processes share.
What is passed along instead of the value is a small *reference*: path, size, checksum.

Files lie in the folder of a tree of flow runs. A file is a *draft*, by its name, until the state store keeps it with a
record; so what ends in `.part` belongs to nobody as soon as the engine of the run is gone.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
import weakref
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING
from zlib import crc32

from localflow.errors import LargeValueError
from localflow.failpoints import reach
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Of a payload whose data is a reference.
FILE = "file"
#: From this size on, in bytes, a buffer or a pickle lies in a file.
LARGE_BYTES = 1 << 17
#: What the name of a file ends in until a state store keeps it.
DRAFT = ".part"

_ALIGNMENT = 64
_ENTRY = Struct("<QQ")
_FOOTER = Struct("<QQ8s")
_MAGIC = b"lflwval1"
_PIECE = 1 << 26
_MUCH_BYTES = 1 << 24  # of which the checksum takes long enough for a thread
_RECENT_BUFFERS = 8  # written, and kept for the next call though no call has them
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


class Reference(NamedTuple):
    """Where a large value is: the file that holds it."""

    file: str
    size: int
    """Of the whole file, in bytes."""
    checksum: int
    """CRC-32 of the whole file."""

    @classmethod
    def of(cls, data: bytes) -> Reference:
        """Return the reference that a payload holds; raises ValueError where it makes no sense."""
        fields = json.loads(data)
        try:
            return cls(str(fields["file"]), int(fields["size"]), int(fields["crc"], 16))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{data[:200]!r} is no reference to a large value") from error

    def data(self) -> bytes:
        """Return it as a payload holds it."""
        return json.dumps({"file": self.file, "size": self.size, "crc": f"{self.checksum:08x}"}).encode()


class Folder:
    """Where the large values of one tree of flow runs are written, by its engine and by its workers."""

    def __init__(self, path: Path | str | None = None, *, power_safe: bool = False) -> None:
        """Write into `path`, which is made at the first value; nowhere as long as that is None.

        Args:
            path: a folder of nobody else's.
            power_safe: whether what is written must survive a power cut.
        """
        self.place: str | None = None if path is None else str(path)
        """The path as text: a worker that writes nothing large need not know of pathlib."""
        self.power_safe = power_safe
        self._temporary: weakref.WeakSet[Temporary] = weakref.WeakSet()

    @property
    def path(self) -> Path | None:
        """Where it is, None if nowhere."""
        from pathlib import Path

        return None if self.place is None else Path(self.place)

    def hold(self, file: str) -> Temporary:
        """Return what keeps a draft as long as it lives; a file that the store has kept is not touched."""
        temporary = Temporary(file)
        self._temporary.add(temporary)
        return temporary

    def draft(self) -> Draft:
        """Return where a value is written; an executor that keeps large values elsewhere has a folder with its own."""
        return Draft(self)

    def close(self) -> None:
        """Remove the drafts. Those that somebody may still ask for stay readable in this process."""
        if self.place is None:
            return
        for temporary in [*self._temporary]:
            temporary.detach()
        folder = self.path
        assert folder is not None
        remove_drafts(folder)


class Temporary:
    """A file of a large value that goes with this object, unless the store has kept it meanwhile."""

    __slots__ = ("__weakref__", "_map", "_pid", "file")

    def __init__(self, file: str) -> None:
        self.file = file
        self._map: mmap.mmap | None = None
        self._pid = os.getpid()

    def detach(self) -> None:
        """Map a draft, so that its name may go."""
        with suppress(OSError):
            descriptor = os.open(self.file + DRAFT, os.O_RDONLY | _FLAGS)
            try:
                self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            finally:
                os.close(descriptor)

    @property
    def content(self) -> memoryview | None:
        """The file, where its name has gone."""
        return None if self._map is None else memoryview(self._map)

    def __del__(self) -> None:
        if self._map is None and self._pid == os.getpid():
            with suppress(OSError):
                os.unlink(self.file + DRAFT)  # noqa: PTH108 - pathlib may be gone at the exit


class Draft:
    """A pickle on its way: in memory while it is small, in a file from then on."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._pieces: list[bytes] = []
        self._size = 0
        self._checksum = 0
        self._path = ""
        self._descriptor = -1

    def write(self, data: bytes) -> int:
        """Add a piece; raises LargeValueError."""
        size = memoryview(data).nbytes
        if self._descriptor < 0 and self._size + size < LARGE_BYTES:
            self._pieces.append(bytes(data))
            self._size += size
        else:
            self._put(data)
        return size

    def finish(self, buffers: Sequence[memoryview]) -> Reference | bytes:
        """Add the buffers and return where all of it is; the pickle itself if there is no more than a small one."""
        if self._descriptor < 0 and not buffers:
            return b"".join(self._pieces)
        pickle_size = self._size
        index = []
        for buffer in buffers:
            self._put(bytes(-self._size % _ALIGNMENT))
            index.append(_ENTRY.pack(self._size, buffer.nbytes))
            self._put(buffer)
        self._put(b"".join(index) + _FOOTER.pack(pickle_size, len(buffers), _MAGIC))
        if self._folder.power_safe:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise self._failure(error, 0) from error
        os.close(self._descriptor)
        self._descriptor = -1
        return Reference(self._path, self._size, self._checksum)

    def discard(self) -> None:
        """Remove what was written."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._path:
            with suppress(OSError):
                os.unlink(self._path + DRAFT)  # noqa: PTH108 - as above

    def _put(self, data: bytes | memoryview) -> None:
        try:
            if self._descriptor < 0:
                self._open()
                pieces, self._pieces = self._pieces, []
                self._size = 0
                self._put(b"".join(pieces))
            view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
            with _Checksum(view, self._checksum) as checksum:
                left = view
                while left:
                    left = left[os.write(self._descriptor, left[:_PIECE]) :]
                    reach("large-value-written")
            self._size += len(view)
            self._checksum = checksum.value
        except OSError as error:
            raise self._failure(error, memoryview(data).nbytes) from error

    def _open(self) -> None:
        folder = self._folder.path
        assert folder is not None  # nobody begins a draft without a folder
        self._path = str(folder / os.urandom(16).hex())
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
        try:
            self._descriptor = os.open(self._path + DRAFT, flags, 0o600)
        except FileNotFoundError:
            make_folder(folder)
            self._descriptor = os.open(self._path + DRAFT, flags, 0o600)
        os.fchmod(self._descriptor, 0o600)  # a task's umask may have taken away our own rights

    def _failure(self, error: OSError, needed: int) -> LargeValueError:
        size = self._size + needed
        return LargeValueError(self._path or str(self._folder.place), size, error.strerror or str(error))


class _Checksum:
    """The checksum of what is written within a `with` block: of much it is made meanwhile, in a thread of its own.

    Both leave the interpreter to others, and take about as long.
    """

    def __init__(self, view: memoryview, before: int) -> None:
        self._view = view
        self._thread: threading.Thread | None = None
        self.value = before
        """That of all before it; behind the block, with it."""

    def __enter__(self) -> _Checksum:
        if len(self._view) >= _MUCH_BYTES:
            thread = threading.Thread(target=self._make, name="localflow-checksum", daemon=True)
            with suppress(RuntimeError):  # there are too many threads already
                thread.start()
                self._thread = thread
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            self._make()
        else:
            self._thread.join()

    def _make(self) -> None:
        self.value = crc32(self._view, self.value)


def make_folder(folder: Path) -> None:
    """Make the folder of a tree of flow runs, and the one around it, for their owner alone."""
    for level in (folder.parent, folder):
        with suppress(FileExistsError):
            level.mkdir(mode=0o700)
            level.chmod(0o700)  # the umask may have taken away our own rights


def write_buffer(folder: Folder, buffer: memoryview) -> Reference:
    """Write bare memory, as of an argument, to a draft of its own; raises LargeValueError."""
    draft = Draft(folder)
    try:
        written = draft.finish([buffer])
    except BaseException:
        draft.discard()
        raise
    assert isinstance(written, Reference)
    return written


class RecentBuffers:
    """The buffers that were written last, for the next calls with the same memory in their arguments."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._known: dict[tuple[int, int, int], tuple[Reference, Temporary, object]] = {}

    def share(self, buffer: memoryview) -> tuple[Reference, Temporary]:
        """Return where the content of a buffer is, which is written if need be; raises LargeValueError."""
        # An array that was changed between two calls has another checksum; the address alone would not tell.
        owner, address = _memory(buffer)
        key = (address, buffer.nbytes, crc32(buffer))
        known = self._known.pop(key, None)
        if known is None:
            reference = write_buffer(self._folder, buffer)
            known = reference, self._folder.hold(reference.file), self._until_gone(owner, key)
        self._known[key] = known  # as the newest
        for old in [*self._known][:-_RECENT_BUFFERS]:
            self._known.pop(old, None)
        return known[:2]

    def forget(self) -> bool:
        """Let go of all files that no call has; return whether any were kept."""
        kept = bool(self._known)
        self._known.clear()
        return kept

    def _until_gone(self, owner: object, key: tuple[int, int, int]) -> object:
        """Return what forgets a buffer as soon as there is nobody who could pass it again."""
        known = self._known
        try:
            return weakref.ref(owner, lambda _: known.pop(key, None))
        except TypeError:  # such as bytes, of which nothing tells when they go
            return None


def _memory(buffer: memoryview) -> tuple[object, int]:
    """Return whose memory it is, and what tells it from other memory.

    An array that is not in C order is pickled as a view that is made for that alone: it is the memory that counts.
    """
    owner: object = buffer.obj
    interface = getattr(owner, "__array_interface__", None)
    address = id(owner) if interface is None else interface["data"][0]
    while (base := getattr(owner, "base", None)) is not None:
        owner = base
    return owner, address


def read_parts(content: memoryview) -> tuple[memoryview, list[memoryview]]:
    """Return the pickle and the buffers in a file; raises ValueError where that makes no sense."""
    end = len(content) - _FOOTER.size
    if end < 0:
        raise ValueError("the file of a large value is too short")
    pickle_size, count, magic = _FOOTER.unpack_from(content, end)
    start = end - count * _ENTRY.size
    if magic != _MAGIC or pickle_size > start:
        raise ValueError("the file of a large value is not as it was written")
    entries = [*_ENTRY.iter_unpack(content[start:end])]
    ends = [pickle_size, *(offset + size for offset, size in entries)]
    if any(offset < before for before, (offset, _) in zip(ends, entries, strict=False)) or ends[-1] > start:
        raise ValueError("the file of a large value is not as it was written")
    return content[:pickle_size], [content[offset : offset + size] for offset, size in entries]


def join_parts(data: bytes | memoryview, buffers: Sequence[memoryview]) -> bytes:
    """Return what a file of this pickle and these buffers would hold, for what is not to be in a file."""
    pieces: list[bytes | memoryview] = [data]
    size = memoryview(data).nbytes
    index = []
    for buffer in buffers:
        pieces.append(bytes(-size % _ALIGNMENT))
        size += -size % _ALIGNMENT
        index.append(_ENTRY.pack(size, buffer.nbytes))
        pieces.append(buffer)
        size += buffer.nbytes
    footer = _FOOTER.pack(memoryview(data).nbytes, len(buffers), _MAGIC)
    return b"".join([*pieces, *index, footer])


def mapped(reference: Reference) -> memoryview:
    """Map the file of a value, for reading only.

    Raises:
        LargeValueError: it is not there, or not as long as it was.
    """
    try:
        descriptor = _opened(reference.file)
        try:
            size = os.fstat(descriptor).st_size
            if size != reference.size:
                raise LargeValueError(reference.file, reference.size, f"it has {size} bytes now", reading=True)
            return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)
    except OSError as error:
        cause = error.strerror or str(error)
        raise LargeValueError(reference.file, reference.size, cause, reading=True) from error


def _opened(file: str) -> int:
    """Open the file of a value under its name, or that of a draft; the store may rename it at any moment."""
    flags = os.O_RDONLY | _FLAGS
    for name in (file, file + DRAFT):
        with suppress(FileNotFoundError):
            return os.open(name, flags)
    return os.open(file, flags)


def remove_drafts(folder: Path) -> None:
    """Remove the drafts in a folder, and the folder if there is nothing else in it."""
    with suppress(OSError):
        for path in [*folder.iterdir()]:
            if path.name.endswith(DRAFT):
                path.unlink(missing_ok=True)
        folder.rmdir()
