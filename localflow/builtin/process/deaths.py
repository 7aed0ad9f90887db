"""How a worker has died, and what that makes of the call it was in."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from localflow.builtin.process.memory import available_bytes, size_in_words
from localflow.records import Execution
from localflow.states import OOM_KILLED, WORKER_LOST, Cause, State, StateType
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from localflow.builtin.process.packing import Shipment
    from localflow.builtin.process.workers import Worker

_FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
#: Which part of the memory there is a worker must have used for the lack of it to be a likely cause of its death.
_NEARLY_ALL = 0.9


class Death(NamedTuple):
    """How a worker process has ended, as the supervisor tells it."""

    status: int | None = None
    """Its wait status; None if nobody knows, for the supervisor itself has died."""
    peak_rss_bytes: int | None = None
    """The most memory it has ever had."""
    is_for_memory: bool = False
    """The kernel has killed it for want of memory, which is proven."""

    @property
    def signal(self) -> int | None:
        """The signal that has killed it."""
        return os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else None

    @property
    def exit_code(self) -> int | None:
        """The status that it has exited with."""
        return os.WEXITSTATUS(self.status) if self.status is not None and os.WIFEXITED(self.status) else None

    def in_words(self) -> str:
        """Say how it ended, after "worker 4711 "."""
        if self.signal is not None:
            return f"killed by {_signal_name(self.signal)}"
        if self.exit_code is not None:
            return f"exited with status {self.exit_code}"
        return "was lost with its supervisor"


def execution_until_now(worker: Worker, death: Death) -> Execution:
    """Return where and about how long the call of a dead worker ran."""
    now = time.time()
    started_at = now - (time.monotonic() - worker.news_at)
    return Execution(f"pid {worker.pid}", worker.pid, started_at, now, peak_rss_bytes=death.peak_rss_bytes)


def lost_state(worker: Worker, death: Death, shipment: Shipment) -> State:
    """Return the CRASHED state of the call that a worker was in when it died."""
    words = death.in_words()
    if death.exit_code is not None:
        words += " without returning a result"
    message = f"{_circumstances(worker, words, shipment)}{_memory_in_words(death)}"
    text = worker.fault_text() if death.signal in _FAULTS else ""
    cause = Cause(
        "worker", message=message, traceback_text=text, signal=death.signal, exit_code=death.exit_code, pid=worker.pid
    )  # fmt: skip
    return State(StateType.CRASHED, OOM_KILLED if death.is_for_memory else WORKER_LOST, message, cause=cause)


def outgrown_state(worker: Worker, used: int, limit: int, shipment: Shipment) -> State:
    """Return the CRASHED state of a call whose worker is killed for it uses more memory than it may, both in bytes."""
    message = (
        f"{_circumstances(worker, 'killed', shipment)}; it used {size_in_words(used)}, its worker_memory_limit is "
        f"{size_in_words(limit)}"
    )
    cause = Cause("worker", message=message, signal=signal.SIGKILL, pid=worker.pid)
    return State(StateType.CRASHED, OOM_KILLED, message, cause=cause)


def _circumstances(worker: Worker, words: str, shipment: Shipment) -> str:
    call = shipment.call
    return (
        f"worker {worker.pid} {words} after {time.monotonic() - worker.news_at:.1f}s while running "
        f"'{call.task_run.name}' (attempt {call.attempt}/{call.attempts})"
    )


def _memory_in_words(death: Death) -> str:
    """Say what memory has to do with it; nothing if that is not even likely."""
    if death.signal != signal.SIGKILL:
        return ""
    peak, available = death.peak_rss_bytes, available_bytes()
    used = ""
    if peak and available:
        used = f"; peak RSS {size_in_words(peak)} of {size_in_words(available)} limit"
    if death.is_for_memory:
        return f"{used}, out of memory" if used else "; out of memory"
    return f"{used}, possibly out of memory" if peak and available and peak >= _NEARLY_ALL * available else ""


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # a real-time signal
        return f"signal {signum}"
