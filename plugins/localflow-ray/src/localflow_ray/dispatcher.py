"""The calls of one executor on their way through Ray, and the one thread that hears of them.

A call is *waiting*, in a queue of ours while `limit` others are with Ray; *in hand* when Ray has it; *ended* when its
answer or its error has come; then it is answered by an outcome, as soon as all letters have come that its worker had
written before. In hand, it may get a *sentence*: to be cancelled, or to be killed at its deadline. Who is cancelled
gets a KeyboardInterrupt, and is killed after a while.

Ray's callbacks, and whoever calls the executor, only add events to a queue; the thread takes them, writes letters and
answers to `report`, and looks after deadlines. Large results are fetched and written to files by threads of their own,
so that nobody waits for them who does not want them. `_lock` is for the two places where a call may be, waiting or in
hand; everything else of a job belongs to the thread.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from localflow.builtin.process.outcomes import read_outcome
from localflow.builtin.process.transport import FrameReader
from localflow.calls import Outcome, Output, timed_out_outcome
from localflow.records import Execution, LogLine
from localflow.states import Cancelled, State, StateType
from localflow_ray.deaths import is_cancelled, is_lost_argument, lost_state
from localflow_ray.machines import kill_family, machine_mark
from localflow_ray.mailbox import Begun
from localflow_ray.packing import Refusal, RequestPacker, Shipment
from localflow_ray.results import Results
from localflow_ray.worker import Answer, run_request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localflow.interfaces import Call, Folder, Report
    from localflow_ray.connection import Connection
    from localflow_ray.mailbox import Letter

#: How long a call that is cancelled has for ending in order, in seconds.
CANCEL_GRACE = 5.0
#: After how long something is heard of a call that is at work.
_HEARING_SECONDS = 0.5
#: How long an async call has after its deadline, at which it is cancelled in its loop, before its worker is killed.
_ASYNC_GRACE = 0.3
#: After a kill, when it is tried from the node itself, and when the call is answered although nobody knows of its end.
_KILL_AGAIN, _GIVE_UP = 2.0, 15.0
#: How long an answer waits for letters that should have come before it.
_LETTER_SECONDS = 2.0
#: How many events are taken before what they have brought is reported.
_EVENTS_AT_ONCE = 200

_log = logging.getLogger("localflow.ray")


class Terms(NamedTuple):
    """How calls are handed to Ray."""

    options: dict[str, Any]
    """Of the Ray task: what it takes of the cluster."""
    limit: int | None
    """How many Ray may have at once; None for all."""
    ships_path: bool
    """Whether workers look for modules and files where this process does."""


class _Job:
    """A call on its way."""

    def __init__(self, call: Call, number: int, shipment: Shipment) -> None:
        self.call = call
        self.number = number
        self.shipment = shipment
        self.answer_ref: Any = None
        self.value_ref: Any = None
        self.begun: Begun | None = None
        self.began_at = time.monotonic()
        self.letters = 0
        self.sentence: State | None = None
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.has_echo = False
        self.was_resent = False

    @property
    def has_ended(self) -> bool:
        return self.answer is not None or self.error is not None


class Dispatcher:
    """Hands calls to Ray and their outcomes to `report`."""

    def __init__(self, connection: Connection, terms: Terms, folder: Folder | None, report: Report) -> None:
        self._connection = connection
        self._terms = terms
        self._report = report
        self._packer = RequestPacker(ships_path=terms.ships_path)
        self._run = ray.remote(run_request).options(num_returns=2, max_retries=0, name="localflow", **terms.options)
        self._order = itertools.count()
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._lock = threading.Lock()
        self._waiting: dict[int, _Job] = {}
        self._in_hand: dict[int, _Job] = {}
        self._numbers_of: dict[int, int] = {}  # by the ids of their calls
        self._reported: deque[Outcome | Output] = deque()
        self._results = Results(folder)
        self._is_closed = False
        self.mean_seconds = 1.0
        """How long calls take, those that came last counting most."""
        self._thread = threading.Thread(target=self._work, name="localflow-ray-dispatcher", daemon=True)
        self._thread.start()
        connection.listen(self._take_letters)

    # -- from any thread ---------------------------------------------------------------------------------------------

    def take(self, calls: Sequence[Call]) -> None:
        """Hand calls to Ray, or have them wait."""
        for call in calls:
            number = next(self._connection.numbers)
            try:
                job = _Job(call, number, self._pack(call, number))
            except Refusal as refusal:
                outcome = refusal.outcome
                self._events.put(lambda outcome=outcome: self._reported.append(outcome))  # type: ignore[misc]
                continue
            with self._lock:
                self._numbers_of[call.id] = number
                self._waiting[number] = job
        self._hand_over()

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Stop calls: those that wait never begin."""
        for call_id in call_ids:
            with self._lock:
                number = self._numbers_of.get(call_id, 0)
                job = self._waiting.pop(number, None)
                if job is not None:
                    del self._numbers_of[call_id]
            if job is not None:
                outcome = Outcome(call_id, Cancelled("the task was cancelled before it began"))
                self._events.put(lambda outcome=outcome: self._reported.append(outcome))  # type: ignore[misc]
            elif number:
                self._events.put(lambda number=number: self._cancel(number))  # type: ignore[misc]

    def close(self) -> None:
        """Give up all calls, and fetch what only the cluster has, as far as that is not too much."""
        self._is_closed = True
        self._connection.forget(self._take_letters)
        with self._lock:
            jobs = [*self._in_hand.values()]
            self._waiting.clear()
            self._in_hand.clear()
            self._numbers_of.clear()
        for job in jobs:
            with contextlib.suppress(Exception):
                self._kill(job)
        self._events.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._results.close()
        self._packer.close()

    def _pack(self, call: Call, number: int) -> Shipment:
        return self._packer.pack(call, number, self._connection.mailbox_name)

    def _hand_over(self) -> None:
        limit = self._terms.limit
        while True:
            with self._lock:
                if not self._waiting or self._is_closed or (limit is not None and len(self._in_hand) >= limit):
                    return
                number = next(iter(self._waiting))
                job = self._in_hand[number] = self._waiting.pop(number)
            self._send(job)

    def _send(self, job: _Job) -> None:
        try:
            job.answer_ref, job.value_ref = self._run.remote(job.shipment.request, *job.shipment.beside)
            future = job.answer_ref.future()
        except Exception as error:  # Ray is gone
            self._events.put(lambda error=error: self._end(job, None, error))  # type: ignore[misc]
        else:
            future.add_done_callback(lambda future: self._events.put(lambda: self._take(job, future)))

    # -- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            with contextlib.suppress(queue.Empty):
                for _ in range(_EVENTS_AT_ONCE):
                    event = self._events.get(timeout=timeout)
                    if event is None:
                        return
                    event()
                    timeout = 0.0
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()
            if self._reported:
                reported = [*self._reported]
                self._reported.clear()
                self._hand_over()
                self._report(reported)

    def _at(self, instant: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (instant, next(self._order), action))

    def _take(self, job: _Job, future: Any) -> None:
        error = future.exception()
        if error is not None:
            self._end(job, None, error)
        else:
            self._end(job, future.result(), None)

    def _end(self, job: _Job, answer: Answer | None, error: BaseException | None) -> None:
        """Note that a call has ended; letters of it may still be on their way."""
        if self._is_closed or job.has_ended:
            return
        if error is not None and is_lost_argument(error) and self._resend(job):
            return
        job.answer, job.error = answer, error
        if answer is None:
            # What a worker has written before its end is in the mailbox before this comes there, and comes back.
            with contextlib.suppress(Exception):
                self._connection.mailbox.put.remote(("echo", job.number, ()))
        self._conclude_if_complete(job)
        if job.number in self._in_hand:
            self._at(time.monotonic() + _LETTER_SECONDS, lambda: self._conclude(job))

    def _resend(self, job: _Job) -> bool:
        """Hand a call over again that never began, with those arguments that this machine has; return if it can be."""
        if job.was_resent or not job.shipment.kept or not all(kept.is_here for kept in job.shipment.kept):
            return False
        for kept in job.shipment.kept:
            kept.reference = None
        try:
            job.shipment = self._pack(job.call, job.number)
        except Exception:  # it will be told that it was lost
            return False
        job.was_resent = True
        self._send(job)
        return True

    # -- letters --

    def _take_letters(self, letters: Sequence[Letter]) -> None:
        """Take letters in; called in the connection's thread."""
        self._events.put(lambda: self._sort(letters))

    def _sort(self, letters: Sequence[Letter]) -> None:
        for kind, number, content in letters:
            job = self._in_hand.get(number)
            if job is not None and not self._is_closed:
                if kind == "echo":
                    job.has_echo = True
                else:
                    self._take_letter(job, content)
                self._conclude_if_complete(job)

    def _take_letter(self, job: _Job, content: tuple[Any, ...]) -> None:
        fields, lines = content
        job.letters += 1
        if job.begun is None:
            job.begun = Begun(*fields)
            job.began_at = time.monotonic()
            limit = job.call.timeout_seconds
            if limit is not None:
                grace = _ASYNC_GRACE if job.call.is_async else 0.0
                self._at(job.began_at + limit + grace, lambda: self._time_out(job))
        if lines:
            self._reported.append(Output(job.call.id, tuple(LogLine(*line) for line in lines)))

    # -- sentences --

    def _time_out(self, job: _Job) -> None:
        if job.number in self._in_hand and not job.has_ended and job.sentence is None:
            job.sentence = timed_out_outcome(job.call).state
            self._execute(job)

    def _cancel(self, number: int) -> None:
        job = self._in_hand.get(number)
        if job is None or job.has_ended or job.sentence is not None:
            return
        job.sentence = Cancelled("the task was cancelled while it was running")
        now = time.monotonic()
        if job.begun is None:
            self._at(now + _HEARING_SECONDS, lambda: self._ask_to_end(job))
        else:
            self._ask_to_end(job)
        self._at(now + CANCEL_GRACE, lambda: self._execute(job))

    def _ask_to_end(self, job: _Job) -> None:
        """Cancel a call that waits in Ray; interrupt one that is at work.

        One of which nothing is heard waits, or is in C code that keeps the interpreter's lock: a worker that was asked
        politely there would not hear anything after that.
        """
        if job.number in self._in_hand and not job.has_ended:
            with contextlib.suppress(Exception):
                ray.cancel(job.answer_ref, force=job.begun is None)

    def _execute(self, job: _Job) -> None:
        """Kill the worker of a call, and see to it that it is dead."""
        if job.number not in self._in_hand or job.has_ended:
            return
        self._kill(job)
        now = time.monotonic()
        self._at(now + _KILL_AGAIN, lambda: self._kill_there(job))
        self._at(now + _GIVE_UP, lambda: self._end(job, None, ray.exceptions.WorkerCrashedError()))

    def _kill(self, job: _Job) -> None:
        begun = job.begun
        if begun is not None and begun.machine == machine_mark():
            # At once, whatever it is doing. Ray, if it was told as well, would look for it for seconds.
            kill_family(begun.pid, begun.started_at)
        elif job.answer_ref is not None:
            ray.cancel(job.answer_ref, force=True)

    def _kill_there(self, job: _Job) -> None:
        """Kill a worker from its own node: one in C code that keeps the interpreter's lock does not hear Ray."""
        begun = job.begun
        if job.has_ended or begun is None or job.number not in self._in_hand:
            return
        there = NodeAffinitySchedulingStrategy(begun.node, soft=False)
        killer = ray.remote(kill_family).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        with contextlib.suppress(Exception):
            killer.remote(begun.pid, begun.started_at)

    # -- outcomes --

    def _conclude_if_complete(self, job: _Job) -> None:
        if (job.answer is not None and job.letters >= job.answer.letters) or (job.error is not None and job.has_echo):
            self._conclude(job)

    def _conclude(self, job: _Job) -> None:
        """Answer a call that has ended."""
        with self._lock:
            if self._in_hand.pop(job.number, None) is None:
                return
            self._numbers_of.pop(job.call.id, None)
        if job.answer is None:
            assert job.error is not None
            self._reported.append(self._outcome_of_death(job, job.error))
            return
        [content] = FrameReader().feed(job.answer.frame)
        outcome = read_outcome(job.call.id, content)._replace(lines=tuple(job.answer.lines))
        execution = outcome.execution
        if execution is not None and execution.started_at is not None and execution.ended_at is not None:
            self.mean_seconds += 0.2 * (execution.ended_at - execution.started_at - self.mean_seconds)
        if job.sentence is not None and job.sentence.type is StateType.CANCELLED and _was_interrupted(outcome):
            outcome = outcome._replace(state=job.sentence)
        if job.answer.size:
            self._take_value(job, outcome, job.answer.size)
        else:
            self._reported.append(outcome)

    def _outcome_of_death(self, job: _Job, error: BaseException) -> Outcome:
        execution = None
        seconds = time.monotonic() - job.began_at
        if job.begun is not None:
            now = time.time()
            execution = Execution(job.begun.worker, job.begun.pid, now - seconds, now)
        state = job.sentence
        if state is None:
            stopped = Cancelled("the task was cancelled on Ray by somebody else")
            state = stopped if is_cancelled(error) else lost_state(job.call, job.begun, seconds, error)
        elif state.type is StateType.CANCELLED and execution is None:
            state = Cancelled("the task was cancelled before it began")
        return Outcome(job.call.id, state, None, execution)

    def _take_value(self, job: _Job, outcome: Outcome, size: int) -> None:
        """Have a large result recorded if it is to be; it stays on the cluster for those who depend on it."""
        call, value = job.call, job.value_ref
        if getattr(call.function, "persist_result", None) is False:
            self._reported.append(self._results.left(outcome, value, size))
            return

        def failed(error: BaseException) -> State:
            return lost_state(call, job.begun, time.monotonic() - job.began_at, error)

        def done(recorded: Outcome) -> None:
            self._events.put(lambda: self._reported.append(recorded))

        self._results.record(call, outcome, value, size, failed, done)


def _was_interrupted(outcome: Outcome) -> bool:
    """Return whether a call has ended by the KeyboardInterrupt with which it was asked to end."""
    cause = outcome.state.cause
    return outcome.state.type is StateType.FAILED and cause is not None and cause.exception_type == "KeyboardInterrupt"
