"""The folders and files that hold state: made for their owner alone, refused where somebody else may write."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import TYPE_CHECKING

from localflow.builtin.storage.failures import os_failure
from localflow.errors import StoreError
from localflow.failpoints import reach

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def make_state_directory(directory: Path) -> None:
    """Make a directory with its missing parents, hidden from git, or accept one that is ours alone."""
    try:
        missing = [*takewhile(lambda level: not level.exists(), (directory, *directory.parents))]
        for level in reversed(missing):
            make_private_directory(level)
            with suppress(PermissionError):  # a folder in which one may make others and not look
                sync_directory(level.parent)
            if level is missing[-1]:
                _hide_from_git(level)
        status = directory.stat()
    except OSError as error:
        raise os_failure(directory, error) from error
    if not stat.S_ISDIR(status.st_mode):
        raise StoreError(f"state directory {directory} is not a directory; name another path")
    refuse_foreign(directory, status)


def make_private_directory(directory: Path) -> None:
    """Make one directory with mode 0700; one that is there already stays as it is."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return
    directory.chmod(0o700)  # the umask may have taken away our own rights


def refuse_foreign(path: Path, status: os.stat_result) -> None:
    """Raise StoreError for a link, and where somebody else owns a file or directory or may write it."""
    if stat.S_ISLNK(status.st_mode):
        raise StoreError(f"{path} is a symbolic link, which is not followed; name the place it points to")
    if os.name != "posix":
        return
    if status.st_uid != os.geteuid():
        raise StoreError(
            f"{path} holds state but belongs to user {status.st_uid}, you are user {os.geteuid()}; "
            "name a path in a directory of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        from shlex import quote

        advice = (
            "name a path in a directory of your own"
            if mode & stat.S_ISVTX
            else f"take that right away: chmod go-w {quote(str(path))}"
        )
        raise StoreError(f"{path} holds state but others may write it (mode {mode:04o}); {advice}")


def create_private_file(path: Path, flags: int = 0) -> int:
    """Create a file with mode 0600 and return its descriptor; a file or a link in its place is an error."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW | flags, 0o600)
    if os.name == "posix":
        os.fchmod(descriptor, 0o600)  # the umask may have taken away our own rights
    return descriptor


def write_private_file(path: Path, content: bytes, *, sync: bool, draft: Path | None = None) -> None:
    """Write a file aside, at `draft`, and put it in its place, so that it is there as a whole or not at all."""
    draft = draft or path.with_name(path.name + ".part")
    draft.unlink(missing_ok=True)  # of a process that died while writing it
    try:
        with os.fdopen(create_private_file(draft), "wb") as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    reach("before-replace")
    draft.replace(path)
    reach("after-replace")
    if sync:
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make new names in a directory safe against power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def sole_maker(directory: Path) -> Iterator[None]:
    """Let one process at a time make files in a directory; the lock ends with the process that holds it."""
    try:
        import fcntl
    except ImportError:  # Windows, where a file cannot be put in the place of another that is open
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def refuse_lockless(directory: Path) -> None:
    """Raise StoreError where files cannot be locked, as on some network file systems."""
    try:
        import fcntl
    except ImportError:
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # somebody makes a store in there, under a lock
        return
    except OSError as error:
        raise StoreError(
            f"{directory} is on a file system where files cannot be locked ({error.strerror}), which keeps several "
            "processes apart; name a path on a local disk"
        ) from error
    finally:
        os.close(descriptor)


def _hide_from_git(directory: Path) -> None:
    with suppress(FileExistsError):  # another process was quicker
        descriptor = create_private_file(directory / ".gitignore")
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"*\n")
