"""How another process reaches a flow run that is going on: a named pipe for each, in the project's own folder.

The engine's side is a `ControlChannel`: a FIFO and a daemon thread that sleeps in `read` until somebody writes. It is
put in place under its name only when the thread's end is open, so a FIFO that nobody has open is what a killed engine
has left; whoever finds one removes it. There is no port, and only the owner can open the FIFO.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_log = logging.getLogger("localflow.control")

_CANCEL = b"cancel\n"
_READ_SIZE = 4096

#: Whether this system has named pipes.
SUPPORTED = hasattr(os, "mkfifo")


def control_path(state_directory: Path, flow_run_id: str) -> Path:
    """Return where the engine of a flow run listens."""
    return state_directory / "control" / flow_run_id


class ControlChannel:
    """Listens for what other processes want of a flow run.

    Args:
        path: the FIFO; it is there from `open` to `close`.
        on_cancel: called in the channel's own thread each time that somebody asks to cancel the flow run.
    """

    def __init__(self, path: Path, on_cancel: Callable[[], None]) -> None:
        self._path = path
        self._on_cancel = on_cancel
        self._reader: int | None = None
        self._writer: int | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> bool:
        """Begin to listen; False, with a warning, where that is impossible: the flow run needs no one to listen."""
        if not SUPPORTED:
            return False
        try:
            self._make()
        except (OSError, RuntimeError) as error:  # a RuntimeError if there can be no more threads
            self._release()
            reason = getattr(error, "strerror", None) or error
            _log.warning("`localflow cancel` will not reach this run: no channel at %s: %s", self._path, reason)
            return False
        return True

    def close(self) -> None:
        """Stop listening and remove the FIFO. Does nothing in a forked child: the channel is its parent's."""
        thread, writer = self._thread, self._writer
        if thread is None or writer is None:
            return
        self._thread = None  # what tells the thread that this is the end
        self._path.unlink(missing_ok=True)
        with suppress(BlockingIOError):  # full of what somebody wrote: then the thread wakes up anyway
            os.write(writer, b"\n")
        if thread is not threading.current_thread():
            thread.join()
        self._release()

    def _make(self) -> None:
        _make_private_directory(self._path.parent)
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        draft.unlink(missing_ok=True)
        os.mkfifo(draft, 0o600)
        try:
            self._reader = os.open(draft, os.O_RDONLY | os.O_NONBLOCK)
            self._writer = os.open(draft, os.O_WRONLY | os.O_NONBLOCK)  # so that reading never meets an end
            os.set_blocking(self._reader, True)
            self._thread = threading.Thread(
                target=self._listen, args=(self._reader,), name="localflow control", daemon=True
            )
            self._thread.start()
            _listening.add(self)
            draft.replace(self._path)  # also in the place of one that a killed engine has left
        except BaseException:
            draft.unlink(missing_ok=True)
            self.close()
            raise

    def _listen(self, reader: int) -> None:
        received = b""
        while self._thread is not None:
            received += os.read(reader, _READ_SIZE)
            for _ in range(received.count(_CANCEL)):
                self._cancel()
            received = received.rpartition(b"\n")[2][-len(_CANCEL) :]

    def _cancel(self) -> None:
        if self._thread is not None:
            try:
                self._on_cancel()
            except Exception:
                _log.exception("the flow run could not be cancelled")

    def _release(self) -> None:
        descriptors, self._reader, self._writer = (self._reader, self._writer), None, None
        self._thread = None
        for descriptor in descriptors:
            if descriptor is not None:
                os.close(descriptor)


def send_cancel(path: Path) -> bool:
    """Ask the engine that listens at `path` to cancel its flow run; False if none listens there.

    Raises:
        OSError: there is something else at `path`, or it is not ours.
    """
    writer = _connect(path)
    if writer is None:
        return False
    try:
        os.write(writer, _CANCEL)
    except BrokenPipeError:
        return False
    finally:
        os.close(writer)
    return True


def is_listening(path: Path) -> bool:
    """Return whether an engine listens at `path`; raises OSError as `send_cancel` does."""
    writer = _connect(path)
    if writer is not None:
        os.close(writer)
    return writer is not None


def _connect(path: Path) -> int | None:
    """Open the FIFO for writing; None, and what a killed engine has left removed, if nobody reads."""
    try:
        writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        path.unlink(missing_ok=True)
        return None
    if not stat.S_ISFIFO(os.fstat(writer).st_mode):
        os.close(writer)
        raise FileExistsError(errno.EEXIST, "it is not a named pipe", str(path))
    return writer


def _make_private_directory(directory: Path) -> None:
    """Make the directory and the state directory around it for their owner alone, hidden from git."""
    for level in (directory.parent, directory):
        try:
            level.mkdir(mode=0o700)
        except FileExistsError:
            continue
        if level != directory:
            (level / ".gitignore").touch(mode=0o600)
            (level / ".gitignore").write_text("*\n")
    status = directory.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(None, "others may write there")
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(None, "its folder is none")


# A forked child has the descriptors too; as long as it kept them open, a killed engine would seem to be alive.
_listening: weakref.WeakSet[ControlChannel] = weakref.WeakSet()


def _forget_in_child() -> None:
    for channel in list(_listening):
        channel._release()
    _listening.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
