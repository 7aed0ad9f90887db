"""The workers of a cluster and the calls in hand, between one `start` of the executor and its `shutdown`.

    backlog -> a worker with a free thread -> answered
                 |
                 +-- the worker is lost: TimedOut, CANCELLED or CRASHED, whatever it was told to do

Each call is bound to one worker when a thread of it is free, so it is known which calls a worker takes along when it
dies. Dask would run them again somewhere else; bound to a worker that is gone they are nobody's, and are given up as
soon as the scheduler tells of the loss. What comes next, another attempt or none, is the engine's affair.

Everything here happens in the event loop; outcomes are reported by a thread, for `report` may take its time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import marshal
import threading
import time
import weakref
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from localflow.builtin.remote import Sender
from localflow.calls import failed_state, timed_out_outcome
from localflow.interfaces import Cause, Execution, Outcome, Output, State, StateType
from localflow.payloads import Packed
from localflow.records import LogLine
from localflow.states import WORKER_LOST, Cancelled, type_and_text
from localflow_dask.copies import LARGE_BYTES, ClusterCopy, keep_copy, with_copies
from localflow_dask.worker import ASYNC_GRACE, Errand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.interfaces import Call, Folder, Report
    from localflow_dask.cluster import Cluster
    from localflow_dask.worker import Description

_log = logging.getLogger("localflow.dask")

#: How long a call that is cancelled has for ending in order, in seconds.
_CANCEL_GRACE = 5.0
_JOIN_DEADLINE = 1.0
#: How long there may be calls and no worker before that is said, in seconds.
_PATIENCE = 10.0


class Seat:
    """A worker at work, and the calls that are bound to it."""

    def __init__(self, worker: Description, *, was_asked: bool) -> None:
        self.worker = worker
        self.was_asked: bool | None = was_asked
        """Whether it was asked for the folder of large values, which is not there yet when the executor starts; None
        while it is being asked."""
        self.held: dict[int, Held] = {}
        self.ending: asyncio.Task[None] | None = None

    @property
    def free(self) -> int:
        """How many calls may be bound to it now."""
        return 0 if self.ending is not None else self.worker.threads - len(self.held)

    @property
    def can_be_ended(self) -> bool:
        """Whether one call may be stopped by ending the worker: nobody else is in it, and it comes back."""
        return self.worker.threads == 1 and self.worker.has_nanny


class Held:
    """A call that is bound to a worker."""

    __slots__ = ("call", "copies", "files", "future", "is_unwanted", "seat", "sent_at", "task", "token")

    def __init__(self, token: int, call: Call, seat: Seat, copies: Sequence[ClusterCopy], files: object) -> None:
        self.token = token
        self.call = call
        self.seat = seat
        self.copies = [(copy.address, copy.future) for copy in copies]
        """The results it takes that were on the cluster when it was sent: of which worker, and their futures."""
        self.files = files
        """What keeps the files of its large arguments."""
        self.future: Any = None
        self.task: asyncio.Task[None] | None = None
        self.sent_at = time.time()
        self.is_unwanted = False
        """It was to be cancelled."""

    @property
    def is_bound(self) -> bool:
        """Whether it has been neither answered nor bound to a worker anew."""
        return self.seat.held.get(self.call.id) is self


class Crew:
    """Binds calls to workers and reports what becomes of them."""

    def __init__(self, cluster: Cluster, folder: Folder | None, topic: str, report: Report) -> None:
        self.threads = 0
        """How many calls can be at work at once."""
        self._cluster = cluster
        self._topic = topic
        self._report = report
        self._sender, self._far_sender = Sender(folder), Sender(shares_files=False)
        self._seats: dict[str, Seat] = {}
        self._by_token: dict[int, Held] = {}
        self._tokens = itertools.count()
        self._backlog: deque[Call] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._finished: SimpleQueue[Outcome | Output | None] = SimpleQueue()
        self._copies: weakref.WeakSet[ClusterCopy] = weakref.WeakSet()
        self._is_closed = False
        self._reporter = threading.Thread(target=self._report_finished, name="localflow-dask-report", daemon=True)

    @property
    def isolates_crashes(self) -> bool:
        """Whether no worker runs two calls at once."""
        return all(seat.worker.threads == 1 for seat in self._seats.values())

    @property
    def kills_on_timeout(self) -> bool:
        """Whether every worker may be ended in the middle of a call."""
        return all(seat.can_be_ended for seat in self._seats.values())

    # -- from the executor, in the loop ------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Find the workers; raises whatever opening the cluster raises."""
        await self._cluster.open(self._on_event, self._topic)
        self._welcome(await self._cluster.wait_for_workers(self._sender.place))
        self._reporter.start()

    def take(self, calls: Sequence[Call]) -> None:
        """Add calls to the backlog."""
        self._backlog.extend(calls)
        self._bind()

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Answer calls of the backlog, and end workers that run others, where that harms nobody."""
        unwanted = frozenset(call_ids)
        for call in self._backlog:
            if call.id in unwanted:
                self._finished.put(Outcome(call.id, Cancelled("the task was cancelled before it began")))
        self._backlog = deque(call for call in self._backlog if call.id not in unwanted)
        for seat in self._seats.values():
            for held in seat.held.values():
                if held.call.id in unwanted and seat.can_be_ended and seat.ending is None:
                    held.is_unwanted = True
                    seat.ending = self._do(self._cluster.end_worker(seat.worker, _CANCEL_GRACE))

    async def close(self) -> None:
        """Give up all calls, and let go of the cluster."""
        self._is_closed = True
        self._backlog.clear()
        self._finished.put(None)
        held = [held for seat in self._seats.values() for held in seat.held.values()]
        for task in [*self._tasks]:
            task.cancel()
        for copy in [*self._copies]:
            copy.detach()
        if held and not self._cluster.is_ours:
            await self._cluster.forget([each.future for each in held])
            endings = [self._cluster.end_worker(each.seat.worker, 0.5) for each in held if each.seat.can_be_ended]
            await asyncio.gather(*endings, return_exceptions=True)
        await self._cluster.close(is_at_work=bool(held))

    def end_reports(self) -> None:
        """Wait for the thread that reports, unless it is the one that asks."""
        if self._reporter.is_alive() and threading.current_thread() is not self._reporter:
            self._reporter.join(_JOIN_DEADLINE)

    # -- workers -----------------------------------------------------------------------------------------------------

    def _on_event(self, topic: str, event: Any) -> None:
        if self._is_closed:
            return
        if topic == self._topic:
            token, lines, answer = marshal.loads(event)
            if (held := self._by_token.get(token)) is not None:
                if lines:
                    self._finished.put(Output(held.call.id, [LogLine._make(line) for line in lines]))
                if answer:
                    self._answer(held, self._sender_to(held.seat).read_answer(held.call, answer), has_ended=True)
                    self._bind()
        elif event.get("action") == "add-worker":
            self._do(self._meet(event["worker"]))
        elif event.get("action") == "remove-worker" and event["worker"] in self._seats:
            self._lose(self._seats[event["worker"]])

    async def _meet(self, address: str) -> None:
        try:
            self._welcome(await self._cluster.describe(self._sender.place, [address]))
        except Exception as error:
            _log.warning("worker %s cannot be used: %s", address, type_and_text(error))

    def _welcome(self, workers: Sequence[Description]) -> None:
        for worker in workers:
            if worker.address not in self._seats:
                self._seats[worker.address] = Seat(worker, was_asked=self._sender.place is not None)
        self._count()
        self._bind()

    def _ask(self, seats: Sequence[Seat]) -> None:
        """Ask workers whether they see the folder of large values; they get calls when they have answered."""
        for seat in seats:
            seat.was_asked = None
        if seats:
            self._do(self._hear(seats))

    async def _hear(self, seats: Sequence[Seat]) -> None:
        described: Sequence[Description] = ()
        try:
            described = await self._cluster.describe(self._sender.place, [seat.worker.address for seat in seats])
        except Exception as error:  # it is taken for one that sees nothing
            _log.debug("workers do not answer: %s", type_and_text(error))
        by_address = {worker.address: worker for worker in described}
        for seat in seats:
            seat.worker = by_address.get(seat.worker.address, seat.worker)
            seat.was_asked = True
        self._bind()

    def _count(self) -> None:
        self.threads = sum(seat.worker.threads for seat in self._seats.values())
        if not self.threads:
            asyncio.get_running_loop().call_later(_PATIENCE, self._say_if_idle)

    def _say_if_idle(self) -> None:
        if not self._seats and self._backlog and not self._is_closed:
            _log.warning("%d calls wait for a worker of %s, which has none", len(self._backlog), self._cluster.host)

    def _lose(self, seat: Seat) -> None:
        """Answer the calls of a worker that is gone, and have those run all the same that have not begun elsewhere."""
        if self._seats.pop(seat.worker.address, None) is None:
            return
        if seat.ending is not None:
            seat.ending.cancel()
        for held in [*seat.held.values()]:
            self._answer(held, self._lost(held))
        self._count()
        address = seat.worker.address
        for copy in [*self._copies]:
            if copy.address == address:
                copy.detach()
        for other in self._seats.values():
            for held in other.held.values():
                if any(at == address for at, _ in held.copies):
                    self._do(self._look_after(held))
        self._bind()

    async def _look_after(self, held: Held) -> None:
        """Send a call again that waits for a result which the cluster has lost; the engine has it, too.

        A call that has begun is none of these: its own worker has what it takes.
        """
        is_lost = not all([await self._cluster.has_copy(future) for _, future in held.copies])
        if is_lost and held.is_bound:
            self._let_go(held)
            self._backlog.appendleft(held.call)
            self._bind()

    def _lost(self, held: Held) -> Outcome:
        call, worker = held.call, held.seat.worker
        now = time.time()
        execution = Execution(f"dask {worker.name} (pid {worker.pid})", worker.pid, held.sent_at, now)
        if held.is_unwanted:
            return Outcome(call.id, Cancelled("its worker was ended"), None, execution)
        if call.timeout_seconds is not None and now - held.sent_at >= call.timeout_seconds:
            return timed_out_outcome(call, execution)
        message = (
            f"dask worker {worker.name} (pid {worker.pid} at {worker.address}) was lost after "
            f"{now - held.sent_at:.1f}s while running '{call.task_run.name}' (attempt {call.attempt}/{call.attempts})"
        )
        cause = Cause("worker", message=message, pid=worker.pid)
        return Outcome(call.id, State(StateType.CRASHED, WORKER_LOST, message, cause=cause), None, execution)

    # -- calls -------------------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        """Give calls to workers as long as there are both."""
        while self._backlog and not self._is_closed:
            seats = [seat for seat in self._seats.values() if seat.free > 0]
            if self._sender.place is not None:
                self._ask([seat for seat in seats if seat.was_asked is False])
                seats = [seat for seat in seats if seat.was_asked]
            if not seats:
                return
            self._send(self._backlog.popleft(), seats)

    def _send(self, call: Call, seats: Sequence[Seat]) -> None:
        """Bind a call to the worker that has most of what it takes, among such that are free."""
        travelling, copies = with_copies(call, self)
        seat = max(
            seats,
            key=lambda seat: (
                sum(copy.size for copy in copies if copy.address == seat.worker.address),
                -len(seat.held),
            ),
        )
        try:
            parcels, refused = self._sender_to(seat).pack([travelling])
        except Exception as error:  # such as an argument in the store that cannot be loaded
            parcels, refused = [], [Outcome(call.id, failed_state(error))]
        for outcome in refused:
            self._finished.put(outcome)
        for parcel in parcels:
            held = Held(next(self._tokens), call, seat, copies, parcel.files)
            kill_after = None
            if call.timeout_seconds is not None and seat.can_be_ended:
                kill_after = call.timeout_seconds + (ASYNC_GRACE if call.is_async else 0.0)
            errand = Errand(held.token, seat.worker.pid, self._topic, kill_after)
            key = f"{call.task_run.task}-{self._topic}-{held.token}"
            futures = [future for _, future in held.copies]
            try:
                held.future = self._cluster.submit(seat.worker, key, parcel.data, errand, futures)
            except Exception as error:
                self._finished.put(_not_run(call, error))
                continue
            seat.held[call.id] = self._by_token[held.token] = held
            held.task = self._do(self._follow(held))

    def _sender_to(self, seat: Seat) -> Sender:
        return self._sender if seat.worker.sees_files else self._far_sender

    async def _follow(self, held: Held) -> None:
        """Wait for the end of a call; one with a small answer is answered before that."""
        try:
            answer = await held.future
            outcome = self._sender_to(held.seat).read_answer(held.call, answer)
        except asyncio.CancelledError:
            if not held.is_bound or self._is_closed:
                raise
            outcome = self._lost(held)  # the scheduler is gone, or somebody else has cancelled it
        except Exception as error:
            _log.debug("dask does not answer '%s': %s", held.call.task_run.name, type_and_text(error))
            outcome = self._lost(held)
            if held.is_bound and not self._is_closed:
                await self._mourn(held, error)
                return
        else:
            outcome = self._with_copy(held, outcome, answer)
        self._answer(held, outcome)
        self._bind()

    async def _mourn(self, held: Held, error: Exception) -> None:
        """Answer a call that dask gives up: its worker is lost, unless dask could not even begin it."""
        if type(error).__name__ == "KilledWorker":
            self._lose(held.seat)
            return
        self._answer(held, _not_run(held.call, error))
        self._bind()

    def _with_copy(self, held: Held, outcome: Outcome, answer: bytes) -> Outcome:
        """Return an outcome whose result stays on the cluster, if that is of use."""
        data = outcome.state.packed_data
        if outcome.result is None or len(outcome.result.data) < LARGE_BYTES or type(data) is not Packed:
            return outcome
        copy = ClusterCopy(held.future, len(answer), held.seat.worker.address, self)
        self._copies.add(copy)
        held.future = None
        old = outcome.state
        state = State(old.type, old.name, old.message, keep_copy(data, copy), instant=old.instant, cause=old.cause)
        return outcome._replace(state=state)

    def _answer(self, held: Held, outcome: Outcome, *, has_ended: bool = False) -> None:
        if held.is_bound:
            self._let_go(held, has_ended=has_ended)
            self._finished.put(outcome)

    def _let_go(self, held: Held, *, has_ended: bool = False) -> None:
        """Know nothing of a call any more; if it has not ended, dask is told to do so, too."""
        del held.seat.held[held.call.id], self._by_token[held.token]
        future, held.future = held.future, None
        if future is not None and not future.done() and not has_ended:
            self._do(self._cluster.forget([future]))
        if held.task is not None and held.task is not asyncio.current_task():
            held.task.cancel()

    def _do(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- reporting, in its thread ------------------------------------------------------------------------------------

    def _report_finished(self) -> None:
        while (first := self._finished.get()) is not None:
            finished = [first]
            try:
                while (another := self._finished.get_nowait()) is not None:
                    finished.append(another)
                return
            except Empty:
                pass
            try:
                if not self._is_closed:
                    self._report(finished)
            except Exception:
                _log.exception("outcomes of %d call(s) could not be reported", len(finished))
            del first, finished  # or results would be kept until the next one comes


def _not_run(call: Call, error: Exception) -> Outcome:
    """Return the outcome of a call that dask does not run."""
    message = f"dask could not run '{call.task_run.name}': {type_and_text(error)}"
    return Outcome(call.id, State(StateType.CRASHED, WORKER_LOST, message, cause=Cause("worker", message=message)))
