"""The engine's end of the supervisor: starts it, asks it for workers, hears of their deaths."""

from __future__ import annotations

import array
import contextlib
import marshal
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localflow.builtin.process.transport import END, KILL, LEFTOVERS, RETIRE, SPAWN, UNSPAWNED, FrameReader, frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PIECE = 1 << 16
_END_DEADLINE = 3.0
_QUIET = getattr(socket, "MSG_NOSIGNAL", 0)

# Reads the path for imports, then leaves the rest to the module. What fails is told over the socket, for stderr may
# lead nowhere. Meanwhile the package `localflow.builtin` stands there empty: its own module would import all of pluggy.
_BOOT = f"""
import marshal, os, sys
control, engine, size = map(int, sys.argv[1:])
path, package = marshal.loads(os.read(control, size))
sys.path[:] = path
try:
    import localflow
    builtin = sys.modules["localflow.builtin"] = type(sys)("localflow.builtin")
    builtin.__path__ = [package]
    from localflow.builtin.process.supervisor import main
    del sys.modules["localflow.builtin"]
except BaseException as error:
    body = marshal.dumps(({UNSPAWNED}, 0, f"{{type(error).__name__}}: {{error}}"))
    os.write(control, len(body).to_bytes(8, "little") + body)
    raise
main(control, engine)
"""


class Supervisor:
    """The supervisor process, as the engine sees it. Used by one thread."""

    def __init__(self, path: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it.

        Args:
            path: the engine's sys.path.
            environment: environment variables for it and its workers.

        Raises:
            OSError: no process could be started.
        """
        if not sys.executable:
            raise OSError("sys.executable is empty, so there is no Python to start workers with")
        package = str(Path(__file__).parent.parent)
        settings = marshal.dumps(([*path, str(Path(package).parent.parent)], package))
        self._socket, theirs = socket.socketpair()
        self._reader = FrameReader()
        try:
            with theirs:
                self._socket.sendall(settings)
                numbers = (theirs.fileno(), os.getpid(), len(settings))
                self._process = subprocess.Popen(
                    [sys.executable, *interpreter_flags(), "-c", _BOOT, *map(str, numbers)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    start_new_session=True,  # Ctrl-C in the terminal is for the engine alone
                )
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to wait at for news."""
        return self._socket.fileno()

    @property
    def pid(self) -> int:
        """The pid of the process."""
        return self._process.pid

    def spawn(self, number: int, files: Sequence[int]) -> None:
        """Ask for a worker with these descriptors."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
        with contextlib.suppress(OSError):  # it has died, which `read` tells
            self._socket.sendmsg([frame((SPAWN, number))], [rights], _QUIET)

    def retire(self, number: int) -> None:
        """Say that a worker has been told to exit, so that what its tasks have left running is left alone."""
        self._send(RETIRE, number)

    def kill(self, number: int) -> None:
        """Have a worker killed with everything in its session."""
        self._send(KILL, number)

    def _send(self, *content: int) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(frame(content), _QUIET)

    def read(self) -> list[Any] | None:
        """Return what it has said, or None if it has died."""
        try:
            piece = self._socket.recv(_PIECE)
        except OSError:
            return None
        return self._reader.feed(piece) if piece else None

    def end(self) -> list[int]:
        """Have it kill what is left and exit; return the pids of processes that tasks had left running."""
        self._send(END)
        self._socket.settimeout(_END_DEADLINE)
        left: list[int] = []
        while (contents := self.read()) is not None:
            left.extend(pid for kind, *rest in contents if kind == LEFTOVERS for pid in rest[0])
        self.bury()
        return left

    def bury(self) -> int:
        """Release everything; return how the process ended, as `subprocess` tells it."""
        self._socket.close()  # which ends it, if it is still alive
        try:
            return self._process.wait(_END_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def interpreter_flags() -> list[str]:
    """Return the flags of this interpreter that tasks can tell: optimization, warnings, isolation, -X options."""
    flags = sys.flags
    chosen = ["-P"]  # the engine's sys.path is shipped; the current folder must not hide the standard library
    if flags.isolated:
        chosen.append("-I")
    elif flags.ignore_environment:
        chosen.append("-E")
    if flags.no_user_site:
        chosen.append("-s")
    if flags.no_site:
        chosen.append("-S")
    if flags.optimize:
        chosen.append("-" + "O" * flags.optimize)
    if flags.dont_write_bytecode:
        chosen.append("-B")
    if flags.bytes_warning:
        chosen.append("-" + "b" * flags.bytes_warning)
    chosen.extend(f"-W{option}" for option in sys.warnoptions)
    for name, value in sys._xoptions.items():
        if name in ("dev", "utf8", "int_max_str_digits", "no_debug_ranges", "pycache_prefix", "tracemalloc"):
            chosen.extend(["-X", name if value is True else f"{name}={value}"])
    return chosen
