"""What runs in the workers of the cluster."""

from __future__ import annotations

import faulthandler
import marshal
import os
import pickle
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed import get_worker

from localflow.builtin.remote import run_parcel, sees_place
from localflow.payloads import Payload, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localflow.records import LogLine

#: How long what a call says may wait for more, in seconds, before it is sent to the engine.
_TELL_SECONDS = 0.1
#: Up to which size an answer is told, in bytes: schedulers remember the last thousand things of each topic.
_SMALL_ANSWER = 1 << 13
#: How much longer than its timeout an async call has, to end in order before its worker is killed, in seconds.
ASYNC_GRACE = 0.2


class Description(NamedTuple):
    """A worker, as it tells of itself."""

    address: str
    name: str
    pid: int
    host: str
    threads: int
    has_nanny: bool
    sees_files: bool
    """Whether it sees the folder that large values of the flow run are in."""


def describe(place: tuple[Any, ...] | None, is_ours: bool, dask_worker: Any) -> tuple[Any, ...]:
    """Return the description of this worker, as a plain tuple.

    Args:
        place: the folder of large values, as the engine describes it.
        is_ours: whether this is a worker of the flow's own cluster, which Ctrl-C in the terminal must not end: the
            engine does, in good order.
        dask_worker: given by dask.
    """
    if is_ours and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Description(
        dask_worker.address,
        str(dask_worker.name),
        os.getpid(),
        socket.gethostname(),
        dask_worker.state.nthreads,
        dask_worker.nanny is not None,
        sees_place(place),
    )


def end_worker(pid: int) -> None:
    """End this worker process by SIGTERM if it is still that one."""
    if os.getpid() == pid:
        os.kill(pid, signal.SIGTERM)


class Errand(NamedTuple):
    """What a worker must know of a call beside the call itself."""

    token: int
    """What the engine knows it by."""
    pid: int
    """The only process that may run it: a call is never run again without the engine's knowing."""
    topic: str
    """Where to tell what it says, and the answer if that is small."""
    kill_after: float | None
    """After how many seconds the worker is to be killed if the call has not returned."""


def run_call(parcel: bytes, errand: Sequence[Any], *copies: bytes) -> bytes:
    """Run the call in a parcel and return its answer; a small one is told instead, which is quicker to arrive.

    What is told to a topic comes to the engine before the scheduler says that the call has ended, by the same streams.

    Args:
        parcel: the call.
        errand: an `Errand` as a plain tuple.
        copies: the answers of other calls, whose results this one takes.

    Raises:
        RuntimeError: another worker was to run it, which is lost.
    """
    token, pid, topic, kill_after = errand
    if os.getpid() != pid:
        raise RuntimeError("localflow runs a call again only as another attempt")
    worker = get_worker()
    lines = _TellingLines(worker, topic, token)
    _here.copies = copies
    try:
        with _killed_after(kill_after):
            answer = run_parcel(parcel, f"dask {worker.name} (pid {pid})", lines=lines)
    finally:
        del _here.copies
    if len(answer) > _SMALL_ANSWER:
        return answer
    worker.log_event(topic, marshal.dumps((token, (), answer)))
    return b""


class _TellingLines(list["LogLine"]):
    """Lines that a call says; those that have been told to the engine are not in it any more."""

    def __init__(self, worker: Any, topic: str, token: int) -> None:
        super().__init__()
        self._worker = worker
        self._topic = topic
        self._token = token
        self._told_at = 0.0
        self._lock = threading.Lock()  # a task may have threads of its own

    def append(self, line: LogLine) -> None:
        """Add a line, and tell all there are from time to time: if the worker dies they are not lost."""
        with self._lock:
            super().append(line)
            now = time.monotonic()
            if now - self._told_at >= _TELL_SECONDS:
                self._told_at = now
                content = marshal.dumps((self._token, [tuple(line) for line in self], b""))
                self._worker.log_event(self._topic, content)
                self.clear()


@contextmanager
def _killed_after(seconds: float | None) -> Iterator[None]:
    """End this process if the block takes so long, also if it keeps the interpreter's lock."""
    if seconds is None:
        yield
        return
    # A watchdog in C. It would like to show where the threads are; what the engine tells the user is that it took long.
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


# -- results that have stayed on the cluster -------------------------------------------------------------------------

_here = threading.local()


class Copy:
    """Stands in a parcel for a result that the worker gets from the cluster."""

    def __init__(self, position: int) -> None:
        """Stand for the result in the answer at this position among the copies."""
        self._position = position

    def __reduce__(self) -> tuple[Any, ...]:
        return result_of_copy, (self._position,)


def result_of_copy(position: int) -> Any:
    """Return the result in an answer that came with the call."""
    from localflow.builtin.remote import payload_of

    return unpack(payload_of(_here.copies[position]))


def copy_payload(position: int) -> Payload:
    """Return what an argument is packed as that is such a result."""
    return Payload("pickle", pickle.dumps(Copy(position)))
