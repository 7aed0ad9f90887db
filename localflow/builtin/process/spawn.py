"""The engine's end of the supervisor: starts it, asks it for workers, hears of their deaths."""

from __future__ import annotations

import _socket  # as in the supervisor: `socket` takes its time for enums
import array
import contextlib
import marshal
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localflow.builtin.process.transport import (
    END,
    KILL,
    LEFTOVERS,
    RETIRE,
    SPAWN,
    TERMINATE,
    UNSPAWNED,
    FrameReader,
    frame,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PIECE = 1 << 16
_END_DEADLINE = 3.0
_NAP = 1  # millisecond, where nobody tells of its death
_QUIET = getattr(_socket, "MSG_NOSIGNAL", 0)
_CONTROL = 3

# Reads the path for imports, then leaves the rest to the module. What fails is told over the socket, for stderr may
# lead nowhere. Meanwhile the package `localflow.builtin` stands there empty: its own module would import all of pluggy.
# The engine's sys.path begins with the user's folders, where a `token.py` would hide the standard library's from our
# own imports: here it comes last, and localflow is the engine's wherever that is. Workers take the path as it is. There
# is no garbage before the first worker is forked.
_BOOT = f"""
import gc, marshal, os, sys
gc.disable()
control, engine, size = map(int, sys.argv[1:])
for name in os.listdir("/dev/fd"):
    if int(name) > 2 and int(name) != control:
        try:
            os.close(int(name))
        except OSError:
            pass
path, package = marshal.loads(os.read(control, size))
sys.path.extend(each for each in path if each not in sys.path)
try:
    from importlib.util import module_from_spec, spec_from_file_location
    folder = os.path.dirname(package)
    start = os.path.join(folder, "__init__.py")
    spec = spec_from_file_location("localflow", start, submodule_search_locations=[folder])
    sys.modules["localflow"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
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
        self._socket, theirs = _socket.socketpair()
        self._reader = FrameReader()
        self._status: int | None = None
        try:
            with contextlib.closing(theirs):
                self._socket.sendall(settings)
                self.pid = _start(theirs.fileno(), len(settings), environment)
        except BaseException:
            self._socket.close()
            raise
        # The end of the socket does not tell of its death where user code has forked at the wrong moment.
        self._death: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            self._death = os.pidfd_open(self.pid)

    @property
    def files(self) -> list[int]:
        """The descriptors to wait at for news, its death included."""
        return [self._socket.fileno()] if self._death is None else [self._socket.fileno(), self._death]

    def spawn(self, number: int, files: Sequence[int], needs_cloudpickle: bool = False) -> None:
        """Ask for a worker with these descriptors; all of them get at once by a fork what it needs."""
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", files))
        with contextlib.suppress(OSError):  # it has died, which `read` tells
            self._socket.sendmsg([frame((SPAWN, number, needs_cloudpickle))], [rights], _QUIET)

    def retire(self, number: int) -> None:
        """Say that a worker has been told to exit, so that what its tasks have left running is left alone."""
        self._send(RETIRE, number)

    def terminate(self, number: int) -> None:
        """Have a worker, and everything that its tasks have started, told to end."""
        self._send(TERMINATE, number)

    def kill(self, number: int) -> None:
        """Have a worker killed with everything that its tasks have started."""
        self._send(KILL, number)

    def _send(self, *content: int) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(frame(content), _QUIET)

    def read(self) -> list[Any] | None:
        """Return what it has said, or None if it has died."""
        try:
            piece = self._socket.recv(_PIECE, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None if self._has_died() else []
        except OSError:
            return None
        return self._reader.feed(piece) if piece else None

    def end(self, kill: bool) -> list[int]:
        """Have it exit; return the pids of processes that tasks have left running, which it may have to kill first."""
        self._send(END, int(kill))
        left: list[int] = []
        news = select.poll()
        for descriptor in self.files:
            news.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + _END_DEADLINE
        while news.poll(max(0.0, deadline - time.monotonic()) * 1000) and (contents := self.read()) is not None:
            left.extend(pid for kind, *rest in contents if kind == LEFTOVERS for pid in rest[0])
        self.bury()
        return left

    def bury(self) -> int | None:
        """Release everything; return how the process ended, negative for a signal, None if nobody knows."""
        self._socket.close()  # which ends it, if it is still alive
        death = select.poll()
        if self._death is not None:
            death.register(self._death, select.POLLIN)
        deadline = time.monotonic() + _END_DEADLINE
        while not self._has_died():
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            death.poll(_NAP)
        if self._death is not None:
            os.close(self._death)
        return None if self._status is None else os.waitstatus_to_exitcode(self._status)

    def _has_died(self) -> bool:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # user code has waited for it, or lets nobody wait
                return True
            if pid:
                self._status = status
        return self._status is not None


def _start(control: int, size: int, environment: Mapping[str, str]) -> int:
    """Start the supervisor with its end of the socket; return its pid.

    Not by `subprocess`: that waits for the end of a pipe, which a fork of user code at the wrong moment keeps open.
    """
    target = _CONTROL if control != _CONTROL else _CONTROL + 1
    arguments = [sys.executable, *interpreter_flags(), "-c", _BOOT, str(target), str(os.getpid()), str(size)]
    return os.posix_spawn(
        sys.executable,
        arguments,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, control, target),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        ],
        setsid=True,  # Ctrl-C in the terminal is for the engine alone
        setsigmask=(),
        setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGPIPE),
    )


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
