"""Locks that processes of one machine share, and that go free with the death of their holder, however it dies.

A lock is a named pipe. Whoever holds it has it open for writing, under `flock`; whoever waits has it open for reading.
When the holder closes it or dies, the kernel takes off the `flock` and then tells all readers that nobody writes any
more. So one `poll` waits for many locks, for as long as it takes, and can be woken for other reasons. Nothing is ever
written into the pipe, and nothing removes it: a lock that could vanish could be held twice.

Where a named pipe cannot be locked (macOS) the file is an ordinary one, and who waits has to look again and again.

A claim is a lock for which nobody waits, on an ordinary file that is there only while it is held. As it can vanish,
whoever has locked it looks whether it is still the file of that name, and begins again if it is not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Whether a bell tells of the end of a lock; if not, look again after a while.
HAS_BELLS = sys.platform == "linux"

_FLAGS = os.O_NONBLOCK | os.O_NOFOLLOW  # programs that are started never get what os.open has opened


class Lock:
    """A lock that this process holds until it is released."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let it go; a second time, or in a forked child, nothing happens."""
        _close(self._descriptor)
        self._descriptor = -1


class Claim:
    """A lock on a file of its own, which this process holds until it is released; then the file goes, too."""

    __slots__ = ("_descriptor", "_path", "_pid")

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._pid = os.getpid()

    def release(self) -> None:
        """Let it go; a second time, or in a forked child, nothing happens."""
        if self._descriptor >= 0 and self._pid == os.getpid():
            with suppress(OSError):  # a file that stays means nothing
                if _is_at(self._path, self._descriptor):
                    self._path.unlink()  # before the lock goes: afterwards it might be the file of somebody else
            _close(self._descriptor)
            self._descriptor = -1


class Bell:
    """Tells by `fileno`, to which `poll` answers POLLHUP, that the lock at `path` may have gone free."""

    __slots__ = ("_descriptor",)

    def __init__(self, path: Path) -> None:
        # For reading alone: a lock whose waiters had it open for writing, too, would never ring.
        self._descriptor = _open(path, os.O_RDONLY)

    def fileno(self) -> int:
        """Return the descriptor to poll, for no events: POLLHUP is always told."""
        return self._descriptor

    def close(self) -> None:
        """Listen no longer."""
        _close(self._descriptor)
        self._descriptor = -1


def take_lock(path: Path) -> Lock | None:
    """Return the lock at `path`, or None if it is held, by whomever; its folder must be there.

    Raises:
        OSError: the file cannot be made or opened, or it is not ours.
    """
    descriptor = _open(path, os.O_RDWR)  # for reading as well, or it could not be opened while nobody waits
    return Lock(descriptor) if _lock(descriptor) else None


def take_claim(path: Path) -> Claim | None:
    """Return a claim on the file at `path`, made for it, or None if somebody has one; its folder must be there.

    Raises:
        OSError: the file cannot be made, opened or locked, or it is not ours.
    """
    while True:
        with _changing:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
            _descriptors.add(descriptor)
        _refuse_foreign(path, descriptor, stat.S_ISREG)
        if not _lock(descriptor):
            return None
        if _is_at(path, descriptor):
            os.fchmod(descriptor, 0o600)  # the umask may have taken away our own rights
            return Claim(path, descriptor)
        _close(descriptor)  # its holder has let it go meanwhile, and the file with it


def is_claim_of_nobody(path: Path) -> bool:
    """Return whether this is the file of a claim whose holder is dead; it stays where it is."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode) or status.st_size:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def is_awaited(path: Path) -> bool:
    """Return whether somebody listens to the bell of a lock that is free or held by others; if in doubt, yes."""
    if not HAS_BELLS:
        return True
    try:
        _close(_open(path, os.O_WRONLY))
    except OSError as error:
        return error.errno != errno.ENXIO  # that is: nobody has it open
    return True


def make_private_directory(directory: Path) -> None:
    """Make a folder and the state folder around it for their owner alone, hidden from git.

    Raises:
        OSError: it cannot be made, is a link or something else, or others may write there.
    """
    for level in (directory.parent, directory):
        try:
            level.mkdir(mode=0o700)
        except FileExistsError:
            continue
        level.chmod(0o700)  # the umask may have taken away our own rights
        if level != directory:
            with suppress(FileExistsError), (level / ".gitignore").open("x") as file:
                file.write("*\n")
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(directory))
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, "others may write there", str(directory))


# A forked child has every descriptor, too: as long as it kept them open, the locks of a process that has died would
# stay locked. So a fork waits until no descriptor is about to be added, and closes them all in the child.
_descriptors: set[int] = set()
_changing = threading.RLock()


def _open(path: Path, flags: int) -> int:
    with _changing:
        try:
            descriptor = os.open(path, flags | _FLAGS)
        except FileNotFoundError:
            _make(path)
            descriptor = os.open(path, flags | _FLAGS)
        _descriptors.add(descriptor)
    _refuse_foreign(path, descriptor, stat.S_ISFIFO if HAS_BELLS else stat.S_ISREG)
    return descriptor


def _refuse_foreign(path: Path, descriptor: int, is_of_kind: Callable[[int], bool]) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or not is_of_kind(status.st_mode):
        _close(descriptor)
        raise PermissionError(errno.EPERM, "it is not a lock of ours", str(path))


def _lock(descriptor: int) -> bool:
    """Lock a file and return True, or close it because somebody else has done so."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _close(descriptor)
        return False
    except BaseException:
        _close(descriptor)
        raise
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _make(path: Path) -> None:
    with suppress(FileExistsError):  # another process was quicker
        if HAS_BELLS:
            os.mkfifo(path, 0o600)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | _FLAGS, 0o600))


def _close(descriptor: int) -> None:
    with _changing:
        if descriptor in _descriptors:
            _descriptors.discard(descriptor)
            os.close(descriptor)


def _close_in_child() -> None:
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()
    _changing.release()


os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_close_in_child)
