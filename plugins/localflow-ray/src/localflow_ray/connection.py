"""This process's connection to Ray, which it can have only one of: shared by all executors that want it.

A Ray that the program has initialised itself is used and left alone. Otherwise the first user starts a Ray of this
machine, or connects to a cluster, and the last one ends that. A Ray of our own lives in a folder of its own, listens on
this machine only, and its processes die with the thread that has started them: so that is a thread which does nothing
else, and lives until the last user has gone.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import itertools
import logging
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do anyhow, and warns of until then

import psutil
import ray

from localflow_ray.mailbox import Letter, open_mailbox, wait_for_mailbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_PREFIX = "localflow-ray-"
_LOCK = "engine.lock"
#: How long a path may be for the sockets of Ray in it to have names that the system takes.
_LONGEST_FOLDER = 40
_CONNECT_SECONDS = 5.0
#: Before a mailbox that was lost is replaced.
_PAUSE_SECONDS = 1.0


class Wanted(NamedTuple):
    """What an executor wants to be connected to."""

    address: str | None
    """A cluster's address; None for a Ray of this machine."""
    cpus: int
    """How many CPUs a Ray of this machine is given."""
    gpus: int | None
    resources: dict[str, float]
    object_store_bytes: int | None
    runtime_env: dict[str, Any] | None


class Connection:
    """Ray as this process is connected to it, while somebody uses it."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.is_own = False
        """Whether it is a Ray of this machine that lives for this process alone."""
        self.is_ours = not ray.is_initialized()
        """Whether it ends with its last user."""
        self.mailbox_name = ""
        self.mailbox: Any = None
        self.numbers = itertools.count(1)
        """For calls, so that letters of those of several executors are told apart."""
        self.users = 0
        self._listeners: list[Callable[[Sequence[Letter]], None]] = []
        self._folder: Path | None = None
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """Futures of letters; None when it is over."""
        self._thread = threading.Thread(target=self._keep, name="localflow-ray", daemon=True)

    @property
    def runtime_env(self) -> dict[str, Any] | None:
        """The one that all its tasks have."""
        return self.wanted.runtime_env if self.is_ours else None

    def start(self) -> None:
        """Make the connection; raises what keeps Ray from starting."""
        if self.is_ours and self.wanted.address is not None:
            _look_for(self.wanted.address)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def listen(self, listener: Callable[[Sequence[Letter]], None]) -> None:
        """Have all letters told to somebody from now on, in a thread that must not wait."""
        self._listeners = [*self._listeners, listener]

    def forget(self, listener: Callable[[Sequence[Letter]], None]) -> None:
        """Tell somebody no letters any more."""
        self._listeners = [each for each in self._listeners if each != listener]

    def end(self) -> None:
        """Leave Ray, or end it."""
        self._news.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _keep(self) -> None:
        lock, watchdog = None, None
        try:
            if self.is_ours and self.wanted.address is None:
                _remove_abandoned()
                self._folder, lock = _make_folder()
                watchdog = _start_watchdog(self._folder)
                self.is_own = True
            with _quietly():
                if self.is_ours:
                    self._initialise()
                    _keep_still()
                if watchdog is not None:
                    _tell_raylets(watchdog, str(self._folder))
                self._open_mailbox()
                wait_for_mailbox(self.mailbox)
            self._ready.set()
            self._read_letters()
        except BaseException as error:  # such as a SystemExit, in whatever Ray does
            self._failure = error
        finally:
            with contextlib.suppress(Exception), _quietly():
                if self.is_ours:
                    ray.shutdown()
                elif self.mailbox is not None:
                    ray.kill(self.mailbox)
            if watchdog is not None:
                watchdog.communicate()  # it removes the folder
            if lock is not None:
                os.close(lock)
            self._ready.set()

    def _open_mailbox(self) -> None:
        name = f"localflow-{uuid.uuid4().hex[:12]}"
        self.mailbox = open_mailbox(name)
        self.mailbox_name = name

    def _read_letters(self) -> None:
        """Ask the mailbox for letters, which answers when there are some, until it is over."""
        while True:
            self.mailbox.take.remote().future().add_done_callback(self._news.put)
            news = self._news.get()
            if news is None:
                return
            if news.exception() is None:
                for listener in self._listeners:
                    listener(news.result())
                continue
            # Its process was lost, and with it what it had. The next calls write to another one.
            with contextlib.suppress(queue.Empty):
                if self._news.get(timeout=_PAUSE_SECONDS) is None:
                    return
            with contextlib.suppress(Exception):
                self._open_mailbox()

    def _initialise(self) -> None:
        wanted = self.wanted
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if wanted.runtime_env:
            options["runtime_env"] = wanted.runtime_env
        if self._folder is not None:
            options |= {
                "num_cpus": wanted.cpus,
                "num_gpus": wanted.gpus,
                "resources": wanted.resources or None,
                "object_store_memory": wanted.object_store_bytes,
                "include_dashboard": False,
                "_temp_dir": str(self._folder),
                "_node_ip_address": "127.0.0.1",
            }
        ray.init(address=wanted.address or "local", **options)


_lock = threading.Lock()
_connection: Connection | None = None


def connect(wanted: Wanted) -> Connection:
    """Return the connection of this process, which is made if there is none, for one more user.

    Raises:
        ConnectionError: there is no Ray at the address.
        RuntimeError: the connection there is leads to another Ray.
        Exception: whatever else keeps Ray from starting.
    """
    global _connection
    with _lock:
        if _connection is None:
            connection = Connection(wanted)
            connection.start()
            _connection = connection
            atexit.register(_end)
        elif _connection.is_ours and wanted.address != _connection.wanted.address:
            raise RuntimeError(
                f"this process is connected to Ray already, to {_connection.wanted.address or 'one of this machine'}, "
                f"and cannot be to {wanted.address or 'one of this machine'} as well; give all executors of type ray "
                "the same address"
            )
        _connection.users += 1
        return _connection


def disconnect() -> None:
    """Let the connection go; with its last user it ends, if it was made by `connect`."""
    with _lock:
        if _connection is not None:
            _connection.users -= 1
            if _connection.users <= 0:
                _forget()


def _end() -> None:
    with _lock:
        _forget()


def _forget() -> None:
    global _connection
    connection, _connection = _connection, None
    if connection is not None:
        atexit.unregister(_end)
        connection.end()


def _look_for(address: str) -> None:
    """Raise a ConnectionError where nobody listens at an address; Ray itself would end the program after a while."""
    name, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((name.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        text = error.strerror or str(error)
        raise ConnectionError(
            f"no Ray cluster answers at {address}: {text}; start one with `ray start --head`, or leave `address` out "
            "for a Ray of this machine alone"
        ) from None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep Ray's good advice from the terminal while it starts and ends; errors are told."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)


def _keep_still() -> None:
    """Keep Ray from printing on stdout what its workers die of, which the states of tasks tell."""
    with contextlib.suppress(Exception):
        from ray._private import worker

        worker._worker_logs_enabled = False


# -- folders of a Ray of our own -------------------------------------------------------------------------------------


def _make_folder() -> tuple[Path, int]:
    """Make a folder for the session of a Ray, and lock it for as long as this process lives."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_parent()))
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return folder, descriptor


def _start_watchdog(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(Path(__file__).with_name("watchdog.py")), str(folder)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _tell_raylets(watchdog: subprocess.Popen[bytes], folder: str) -> None:
    assert watchdog.stdin is not None
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name() == "raylet" and any(folder in part for part in process.cmdline()):
                watchdog.stdin.write(b"%d " % process.pid)
                watchdog.stdin.flush()


def _parent() -> str:
    usual = tempfile.gettempdir()
    return usual if len(usual) + len(_PREFIX) + 8 < _LONGEST_FOLDER else "/tmp"


def _remove_abandoned() -> None:
    """Remove the folders of engines that were killed."""
    for folder in Path(_parent()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
