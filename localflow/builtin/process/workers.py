"""A worker as the engine sees it: its pipes, and the calls it has in hand.

Pipes of a worker, and who holds which end:

    calls      engine writes (never blocks), worker reads; the engine holds the reading end too, so that a write to a
               dead worker's pipe raises no SIGPIPE
    tokens     engine writes and takes back, worker reads; see `worker`
    outcomes   worker writes, engine reads (never blocks)

Files in memory take the stack of a crash, and what the worker writes and logs (see `output`). All methods are called
under the pool's lock or by its thread only, as they say.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from localflow.builtin.process.output import WorkerOutput
from localflow.builtin.process.transport import EXIT, FORGET, TOKEN_SIZE, FrameReader, frame, numbers, tokens
from localflow.failpoints import reach

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.builtin.process.packing import Definition, Shipment
    from localflow.states import State

_PIECE = 1 << 16
_KNOWN_LIMIT = 1000
#: How much later than its timeout an async function is stopped by force: it is told by itself, and the worker goes on.
_ASYNC_GRACE = 0.25
_FAULT_TEXT_LIMIT = 1 << 16


class Worker:
    """One worker process, from before it exists until it is buried.

    Attributes:
        number: what the supervisor calls it; pids may come again.
        pid: known once it is forked.
        ready: its initializer has returned.
        retiring: it has been told to exit, or is being killed; no more calls for it.
        kill_at: when it is to be killed if it has not ended, once it is retiring.
        problem: why it could not start, and the traceback of that.
        in_hand: calls sent and not answered, in the order they were sent.
        news_at: when its newest outcome came, or it got a call while it had none: about when it began its call.
        left_behind: how much memory, in bytes, earlier calls have left to the last one that it runs.
    """

    def __init__(self, number: int, start_frame: bytes, path_frame: bytes, allowance: int) -> None:
        """Make the pipes and send the first frame.

        Args:
            number: unique in the pool.
            start_frame: the settings a worker starts with.
            path_frame: the sys.path that is among these settings.
            allowance: how many calls it may be given in its life.

        Raises:
            OSError: too many files are open.
        """
        self.number = number
        self.pid: int | None = None
        self.ready = False
        self.retiring = False
        self.kill_at = 0.0
        self.problem: tuple[str, str] | None = None
        self.in_hand: dict[int, Shipment] = {}
        self.news_at = self.made_at = time.monotonic()
        self.sentences: dict[int, State] = {}
        """What a call ends with, by number, however it ends: set before the worker is ended for the sake of it."""
        self.left_behind = 0
        self._allowance = allowance
        self._path_frame = path_frame
        self._known: dict[int, None] = {}
        self._unwritten: deque[memoryview] = deque()
        self._reader = FrameReader()
        with contextlib.ExitStack() as opened:
            self._calls_end, self._calls = _pipe(opened)
            self._tokens_end, self._tokens = _pipe(opened)
            self._outcomes, self._outcomes_end = _pipe(opened)
            self._faults = _memory_file(opened)
            self._output_files = [_memory_file(opened, os.O_APPEND) for _ in range(3)]
            self.output = WorkerOutput(*self._output_files)
            """What it writes and logs."""
            opened.pop_all()
        self._files = {self._calls, self._tokens, self._outcomes, *self.worker_files}
        for descriptor in (self._calls, self._tokens, self._tokens_end, self._outcomes):
            os.set_blocking(descriptor, False)
        self.write(start_frame)

    @property
    def outcomes_file(self) -> int:
        """The descriptor to wait at for outcomes."""
        return self._outcomes

    @property
    def calls_file(self) -> int:
        """The descriptor to wait at when not everything could be written."""
        return self._calls

    @property
    def worker_files(self) -> list[int]:
        """The worker's ends, to be passed to it."""
        return [self._calls_end, self._tokens_end, self._outcomes_end, self._faults, *self._output_files]

    @property
    def pending(self) -> bool:
        """Whether some bytes are still to be written."""
        return bool(self._unwritten)

    @property
    def spent(self) -> bool:
        """Whether it has been given all the calls it may be given in its life."""
        return self._allowance <= 0

    def room(self, depth: int) -> int:
        """Return how many more calls may be sent, of `depth` in all; nothing is sent ahead before it is ready."""
        return 0 if self.retiring else min((depth if self.ready else 1) - len(self.in_hand), self._allowance)

    def overrun(self) -> tuple[int, float] | None:
        """Return the number of the call it is in and when this has taken too long; None if it may take any time."""
        if not self.in_hand or not self.ready:
            return None
        number, shipment = next(iter(self.in_hand.items()))
        seconds = shipment.call.timeout_seconds
        if seconds is None or number in self.sentences:
            return None
        return number, self.news_at + seconds + (_ASYNC_GRACE if shipment.call.is_async else 0.0)

    def memory_allowed(self, limit: int) -> int:
        """Return how many bytes it may use, of which its calls may use `limit`."""
        return limit + self.left_behind

    def waiting(self) -> int:
        """Return how many of the calls in hand it may not have begun."""
        return max(0, len(self.in_hand) - self.ready)

    # -- calls: under the pool's lock --------------------------------------------------------------------------------

    def deliver(self, shipments: Sequence[Shipment], path_frame: bytes) -> None:
        """Send calls, with what it must know for them."""
        frames = []
        if self._path_frame is not path_frame:
            self._path_frame = path_frame
            frames.append(path_frame)
        known = self._known
        if not self.in_hand:
            self.news_at = time.monotonic()
        told: Sequence[Definition] = ()
        for shipment in shipments:
            if shipment.definitions is not told:
                told = shipment.definitions
                for definition in told:
                    if definition.number not in known:
                        known[definition.number] = None
                        frames.append(definition.frame)
            frames.append(shipment.frame)
            self.in_hand[shipment.number] = shipment
        while len(known) > _KNOWN_LIMIT:
            oldest = next(iter(known))
            del known[oldest]
            frames.append(frame((FORGET, oldest)))
        self._allowance -= len(shipments)
        self.write(b"".join(frames))
        # Tokens come last: when the worker has one, the frame is there, or the rest of it is on its way.
        os.write(self._tokens, tokens([shipment.number for shipment in shipments]))
        reach("dispatched")

    def recall(self, limit: int) -> list[Shipment]:
        """Take calls back that it has not begun, the oldest first; it will not begin them."""
        try:
            taken = numbers(os.read(self._tokens_end, limit * TOKEN_SIZE))
        except BlockingIOError:
            return []
        self._allowance += len(taken)
        return [self.in_hand.pop(number) for number in taken if number in self.in_hand]

    def spend(self, left_behind: int) -> None:
        """Have no call begin any more, for those it has run have left so many bytes behind."""
        self.left_behind = left_behind
        self._allowance = 0

    def tell_to_exit(self) -> None:
        """Have it end after the calls it has begun."""
        self.retiring = True
        os.write(self._tokens, EXIT)

    def write(self, data: bytes) -> None:
        """Send bytes now, or as many as go and the rest with `flush`."""
        if not self._unwritten:
            written = self._write(data)
            if written == len(data):
                return
            self._unwritten.append(memoryview(data)[written:])
        else:
            self._unwritten.append(memoryview(data))

    def flush(self) -> None:
        """Send what could not be written yet, or as much of it as goes."""
        while self._unwritten:
            data = self._unwritten[0]
            written = self._write(data)
            if written < len(data):
                self._unwritten[0] = data[written:]
                return
            self._unwritten.popleft()

    def _write(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self._calls, data)
        except BlockingIOError:
            return 0

    # -- news: by the pool's thread ----------------------------------------------------------------------------------

    def read(self) -> list[Any] | None:
        """Return the contents of frames that have come, or None at the end of its pipe; raises ValueError."""
        try:
            piece = os.read(self._outcomes, _PIECE)
        except BlockingIOError:
            return []
        return self._reader.feed(piece) if piece else None

    def says_nothing(self) -> bool:
        """Return whether nothing has come, not even a part of a frame, that was not read yet."""
        return not self._reader.is_amid and not select.select([self._outcomes], [], [], 0)[0]

    def last_words(self, patience: float = 0.0) -> list[Any]:
        """Return all that has come and, for as long as `patience`, what comes before the end of the pipe."""
        contents: list[Any] = []
        deadline = time.monotonic() + patience
        more = select.poll()
        more.register(self._outcomes, select.POLLIN)
        with contextlib.suppress(ValueError):
            while True:
                try:
                    piece = os.read(self._outcomes, _PIECE)
                except BlockingIOError:
                    if not more.poll(max(0.0, deadline - time.monotonic()) * 1000):
                        break
                    continue
                if not piece:
                    break
                contents.extend(self._reader.feed(piece))
        return contents

    def fault_text(self) -> str:
        """Return the stack that a crash has left, such as a segmentation fault."""
        return os.pread(self._faults, _FAULT_TEXT_LIMIT, 0).decode(errors="backslashreplace")

    def let_go(self) -> None:
        """Close the end of the outcomes that the worker has now, so that reading can come to an end."""
        self._files.discard(self._outcomes_end)
        os.close(self._outcomes_end)

    def close(self) -> None:
        """Close everything."""
        for descriptor in self._files:
            os.close(descriptor)
        self._files.clear()


def _pipe(opened: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for descriptor in ends:
        opened.callback(os.close, descriptor)
    return ends


def _memory_file(opened: contextlib.ExitStack, flags: int = 0) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("localflow")
    else:
        import tempfile  # 8 ms that Linux need not pay

        with tempfile.TemporaryFile(buffering=0) as file:
            descriptor = os.dup(file.fileno())
    opened.callback(os.close, descriptor)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return descriptor
