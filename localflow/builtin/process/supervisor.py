"""The supervisor process: forks the workers, knows exactly how each one ends, and lets none outlive the engine.

It is exec'd once by the engine, has one thread, and imports what workers need, so that a fork (a millisecond) gives a
worker ready to work, with no lock of anybody's held. What not every worker needs it imports while nobody asks for one:
a worker that is wanted at once, and has a core for itself, imports the rest if its tasks need it. It waits for three
things at once:

    - frames from the engine, with the pipes of new workers; the end of them means that the engine is gone
    - the death of the engine itself, for a process forked by user code may keep the engine's end of the socket open
    - the death of a child: a worker, or a process that a worker has left behind, for it adopts those where it can

When the engine is gone, every worker is killed with all that its tasks have started. A worker that was told to end in
order has died when its whole family is gone (see `families`).
"""

from __future__ import annotations

import _socket  # without the enums of `socket`, which would take longer than a fork
import array
import contextlib
import ctypes
import errno
import gc
import importlib
import os
import select
import signal
import sys
import time
import types
from collections import deque
from typing import Any, NoReturn

from localflow.builtin.process import shortage, worker
from localflow.builtin.process.families import Family
from localflow.builtin.process.transport import (
    DIED,
    END,
    KILL,
    LEFTOVERS,
    RETIRE,
    SPAWN,
    SPAWNED,
    TERMINATE,
    UNSPAWNED,
    FrameReader,
    frame,
)
from localflow.classes import SCRIPTS
from localflow.typed import NamedTuple

_PIECE = 1 << 16
_WORKER_FILES = 7
_ENGINE_CHECK_SECONDS = 0.25
_FAMILY_CHECK_SECONDS = 0.02
_END_DEADLINE = 1.0
#: For how long after the first fork nothing is imported here: the first workers have the cores for themselves.
_FIRST_CALLS_SECONDS = 0.1
#: What the first call of each worker would import otherwise.
_ALWAYS_NEEDED = ("resource", "localflow.tasks")
#: What it would import often: with a module of tasks and flows, with one that logs, for a task that fails, and for
#: functions and results without a module, with which comes the most of the others.
_OFTEN_NEEDED = ("localflow.flows", "localflow.logs", "localflow.tracebacks", "cloudpickle", "localflow.bytecode")
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# Opened here and not again in each worker.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def main(control: int, engine: int) -> NoReturn:
    """Supervise until the engine says so or is gone.

    Args:
        control: descriptor of the socket to the engine.
        engine: pid of the engine.
    """
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Workers are forked with what stands here: blank modules of that name for classes of scripts, in which dataclasses
    # and others look names up; output that no character and no crash can spoil.
    for name in SCRIPTS:
        sys.modules[name] = types.ModuleType(name)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    for name in _ALWAYS_NEEDED:
        _import(name)
    supervisor = _Supervisor(_socket.socket(fileno=control), engine)
    try:
        supervisor.run()
    except OSError:  # the engine is gone while something is sent to it
        pass
    except BaseException:
        _print_traceback()
    supervisor.end()
    os._exit(0)


class _End(NamedTuple):
    """How a process has ended."""

    status: int
    """Its wait status."""
    peak_rss_bytes: int


class _Supervisor:
    def __init__(self, control: _socket.socket, engine: int) -> None:
        self._control = control
        self._engine = engine
        self._reader = FrameReader()
        self._received: deque[int] = deque()
        self._pids: dict[int, int] = {}
        """Pids of living workers by number."""
        self._retired: set[int] = set()
        self._ending: dict[int, Family] = {}
        """Families that were told to end."""
        self._widowed: dict[int, _End] = {}
        """How workers have ended, by number, of whose families somebody is still alive."""
        self._spares_leftovers = False
        self._has_ended = False
        """Whether the engine has said so, or is gone."""
        self._to_import = deque(_OFTEN_NEEDED)
        self._import_at = 0.0
        """When to go on with that."""
        self._child_died, child_died = os.pipe()
        for descriptor in (self._child_died, child_died):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda signum, stack: None)
        signal.set_wakeup_fd(child_died, warn_on_full_buffer=False)
        self._own_files = [control.fileno(), self._child_died, child_died]
        self._news = select.poll()
        self._news.register(control, select.POLLIN)
        self._news.register(self._child_died, select.POLLIN)
        self._engine_died: int | None = None
        with contextlib.suppress(OSError, AttributeError):  # not on this system, or the engine is gone already
            self._engine_died = os.pidfd_open(engine)
            self._own_files.append(self._engine_died)
            self._news.register(self._engine_died, select.POLLIN)

    def run(self) -> None:
        """Serve until told to end or the engine is gone."""
        while os.getppid() == self._engine:
            timeout = None if self._engine_died is not None else _ENGINE_CHECK_SECONDS * 1000
            if self._widowed:
                timeout = _FAMILY_CHECK_SECONDS * 1000
            elif self._to_import:
                timeout = max(0.0, self._import_at - time.monotonic()) * 1000
            ready = [descriptor for descriptor, _ in self._news.poll(timeout)]
            if self._engine_died in ready:
                return
            if self._child_died in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._child_died, _PIECE)
                self._bury()
            if self._control.fileno() in ready:
                self._hear()
            if self._has_ended:
                return
            if not ready and self._to_import:
                self._import_early()
            for number in [number for number in self._widowed if not self._ending[number].is_alive()]:
                self._report_death(number, self._widowed.pop(number))

    def _import_early(self) -> None:
        _import(self._to_import.popleft())
        if not self._to_import:
            _begin_to_collect()

    def _hear(self) -> None:
        """Do what the engine has asked for meanwhile."""
        room = _socket.CMSG_SPACE(_WORKER_FILES * array.array("i").itemsize)
        try:
            piece, ancillary, _, _ = self._control.recvmsg(_PIECE, room, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not piece:
            self._has_ended = True
        for level, kind, data in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                descriptors = array.array("i", data)
                self._received.extend(descriptors)
                for descriptor in descriptors:
                    os.set_inheritable(descriptor, False)
        for content in self._reader.feed(piece):
            kind, *rest = content
            if kind == SPAWN:
                self._spawn(*rest)
            elif kind == RETIRE:
                self._retired.add(rest[0])
            elif kind == TERMINATE and rest[0] in self._pids:
                self._ending[rest[0]] = family = Family(self._pids[rest[0]])
                family.end()
            elif kind == KILL and rest[0] in self._ending:
                self._ending[rest[0]].kill()
            elif kind == KILL and rest[0] in self._pids:
                Family(self._pids[rest[0]]).kill()
            elif kind == END:
                self._spares_leftovers = not rest[0]
                self._has_ended = True

    def _spawn(self, number: int, needs_cloudpickle: bool) -> None:
        # There is no core for one worker more than there are cores; better import once now than in each of them.
        while self._to_import and (needs_cloudpickle or len(self._pids) >= _CORES):
            self._import_early()
        files = [self._received.popleft() for _ in range(min(_WORKER_FILES, len(self._received)))]
        try:
            if len(files) < _WORKER_FILES:
                raise OSError(errno.EMFILE, "the pipes of a worker were lost, too many files are open")
            supervisor = os.getpid()
            pid = os.fork()
            if not pid:
                self._become_worker(files, supervisor)
        except OSError as error:
            self._send(UNSPAWNED, number, shortage.in_words(error))
        else:
            self._pids[number] = pid
            self._import_at = self._import_at or time.monotonic() + _FIRST_CALLS_SECONDS
            self._send(SPAWNED, number, pid)
        for descriptor in files:
            os.close(descriptor)

    def _become_worker(self, files: list[int], supervisor: int) -> NoReturn:
        try:
            os.setsid()
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != supervisor:  # it died before the line above
                os._exit(1)
            signal.set_wakeup_fd(-1)
            for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, signal.SIG_DFL)
            # Not SIG_IGN, which programs that tasks start would inherit.
            signal.signal(signal.SIGINT, lambda signum, stack: None)
            for descriptor in (*self._own_files, *self._received):
                os.close(descriptor)
            _begin_to_collect()
            worker.main(*files)
        except BaseException:
            _print_traceback()
        finally:
            os._exit(1)

    def _bury(self) -> None:
        """Report the workers that have died."""
        while (death := self._next_death()) is not None:
            pid, end = death
            number = self._number(pid)
            if number is not None:
                del self._pids[number]
                if number in self._ending:
                    self._widowed[number] = end
                else:
                    self._report_death(number, end)

    def _report_death(self, number: int, end: _End) -> None:
        self._retired.discard(number)
        self._ending.pop(number, None)
        self._send(DIED, number, *end)

    def _number(self, pid: int) -> int | None:
        return next((number for number, worker in self._pids.items() if worker == pid), None)

    def _next_death(self) -> tuple[int, _End] | None:
        """Return the pid of a child that has died, and its end; the rest of a worker's family dies with it."""
        try:
            if hasattr(os, "waitid"):
                # Not reaped yet, so its pid still stands for it and its session, and for nobody else.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None:
                    return None
                pid = found.si_pid
                self._clear_up(pid)
                _, status, usage = os.wait4(pid, 0)
            else:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if not pid:
                    return None
                self._clear_up(pid)
            # What a call has used at most is known to the kernel, however suddenly it ended.
            return pid, _End(status, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        except ChildProcessError:
            return None

    def _clear_up(self, pid: int) -> None:
        self._hear()  # that a worker may end is said before it can have ended
        number = self._number(pid)
        if number is not None and number not in self._retired and number not in self._ending:
            Family(pid).kill()

    def end(self) -> None:
        """Kill the workers, and name what was left behind by workers that had ended; kill that, too, unless spared."""
        signal.set_wakeup_fd(-1)
        workers = set(self._pids.values())
        for pid in workers:  # all before the first is looked at closely, which takes a while
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGSTOP)
        for family in [*self._ending.values(), *map(Family, workers)]:
            family.kill()
        left: set[int] = set()
        deadline = time.monotonic() + _END_DEADLINE
        while time.monotonic() < deadline:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:  # nobody is left
                break
            workers.discard(pid)
            if not pid:
                left.update(_leftovers(besides=workers, kill=not self._spares_leftovers))
                if self._spares_leftovers and not workers:
                    break
                time.sleep(0.001)
        with contextlib.suppress(OSError):
            self._send(LEFTOVERS, sorted(left))

    def _send(self, *content: Any) -> None:
        self._control.sendall(frame(content))


def _import(name: str) -> None:
    with contextlib.suppress(ImportError):  # not on this system, or not installed: a call that needs it will say so
        importlib.import_module(name)


def _begin_to_collect() -> None:
    """Have the collector look for garbage, but not in what there is: it is shared as long as nobody writes to it."""
    gc.freeze()
    gc.enable()


def _print_traceback() -> None:
    import traceback  # only now, for it takes a while

    traceback.print_exc()


def _leftovers(besides: set[int], kill: bool) -> set[int]:
    """Return the pids of living processes below this one that are no workers; kill them all, if so wanted."""
    import psutil

    alive = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE:
                alive.add(child.pid)
                if kill:
                    child.kill()
    return alive - besides


def _prctl(option: int, value: int) -> None:
    if _libc is not None:
        _libc.prctl(option, value)
