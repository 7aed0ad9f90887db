"""The pool: a supervisor, its workers, and the calls between them; one for each start of the executor.

    submit (any thread) --> backlog --> Worker.in_hand ==pipe==> worker process
                                            |                        |
    report (pool's thread) <-- outcomes <---+<=======pipe============+

A call waits in the *backlog*, is *in hand* of a worker (sent, perhaps not begun), and is answered by one outcome. Calls
are sent ahead, `depth` to each worker, as many as make about ten milliseconds of work; the token of a call (see
`worker`) lets the pool take back what has not begun, exactly. It does so when another worker has nothing to do, when
the calls in front take longer than expected, and to learn what a dead worker was doing.

Threads. `_lock` guards the backlog, what is in hand, and all that is written to workers; it is never held during
`report`. Any thread may take calls and send them to workers that are there. The pool's own thread does the rest: it
starts the supervisor and workers, reads outcomes and reports all it has at once, and buries the dead. `report` runs in
it, and submits from there. As long as outcomes come one after the other it does only what they ask for, and looks out
for the next one before it sleeps (see `waiting`); staff and long calls have their turn every millisecond. If all
workers have enough in hand, it lets outcomes gather for up to a millisecond instead, and takes them at once.

A worker that dies: what it wrote is read first (a result received before death counts), then what it had not begun is
taken back; the one call left over, if any, is the one it was in. Three failed starts in a row, with no worker ready,
and the pool gives up: it answers every call with what went wrong.

Workers whose memory is limited are looked at twice a second while they are in a call that lasts, and each time that a
call has ended which used much: the first are killed, the others replaced.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from localflow.builtin.cores import usable_cores
from localflow.builtin.process.assignment import OVERDUE_SECONDS, Assignment, recall_all
from localflow.builtin.process.deaths import Death, outgrown_state
from localflow.builtin.process.memory import resident_bytes
from localflow.builtin.process.news import News
from localflow.builtin.process.outcomes import read_outcome
from localflow.builtin.process.output import FIRST_LOOK, show
from localflow.builtin.process.packing import CallPacker
from localflow.builtin.process.spawn import Supervisor
from localflow.builtin.process.staff import Staff
from localflow.builtin.process.transport import DIED, DONE, OUTCOME, READY, SPAWNED, UNABLE, UNSPAWNED
from localflow.builtin.process.waiting import Lookout
from localflow.calls import Outcome, Output
from localflow.failpoints import reach
from localflow.states import Cancelled, timed_out

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localflow.builtin.process.packing import Shipment
    from localflow.builtin.process.staff import Settings
    from localflow.builtin.process.workers import Worker
    from localflow.interfaces import Call, Execution, Report
    from localflow.states import State

_log = logging.getLogger("localflow.process")

#: From one look at the memory of workers to the next; a call that is shorter is not killed, its worker is replaced.
_MEMORY_SECONDS = 0.5

#: How long staff and long calls may be left alone while outcomes come one after the other.
_MANAGE_SECONDS = 0.001

#: How long the thread looks out for the next outcome before it sleeps: a few short calls.
_ALERT_SECONDS = 50e-6


class Pool:
    """The processes between one `start` of the executor and its `shutdown`."""

    def __init__(self, settings: Settings, report: Report, supervisor: Supervisor | None = None) -> None:
        """Start the pool's thread, and the supervisor if it is not there yet; workers start when there are calls."""
        self._report = report
        self._limit = settings.max_tasks_per_worker
        self._folder = settings.folder
        self._memory_limit = settings.worker_memory_limit
        self._memory_look_at = 0.0
        self._packer = CallPacker(settings.folder)
        self._lock = threading.Lock()
        self._assignment = Assignment(settings.workers)
        self._answers: list[Outcome | Output] = []
        """What the thread is about to report."""
        self._unwanted: set[int] = set()
        """Ids of calls to be cancelled."""
        self._patience: float | None = None
        """How long the thread waits for news."""
        self._lookout = Lookout(_ALERT_SECONDS)
        self._is_alert = False
        """Whether there was an outcome just now, so that the next may be near."""
        self._is_idle = False
        """Whether nothing had happened when the thread looked last."""
        self._manage_at = 0.0
        """When what can wait a moment has waited long enough."""
        self._cores = usable_cores()
        self._closing = False
        self._woken = False
        self._news: News[Worker | Supervisor | None] = News()
        self._wakes, self._waker = os.pipe()
        for descriptor in (self._wakes, self._waker):
            os.set_blocking(descriptor, False)
        self._news.add(self._wakes, None)
        self._staff = Staff(settings, self._assignment, self._packer, self._news)
        if supervisor is not None:
            self._staff.take_over(supervisor)
        self._thread = threading.Thread(target=self._run, name="localflow-process-pool", daemon=True)
        self._thread.start()

    @property
    def capacity(self) -> int:
        """How many calls the workers take now, those sent ahead included."""
        depth = self._assignment.depth
        return self._assignment.size * (depth if self._limit is None else min(depth, self._limit))

    def take(self, calls: Sequence[Call]) -> None:
        """Take calls, and send them to workers that have room."""
        shipments, refused = self._packer.pack(calls)
        with self._lock:
            if self._closing:
                return
            self._answers.extend(refused)
            assignment = self._assignment
            assignment.path_frame = self._packer.path_frame
            assignment.backlog.extend(shipments)
            self._staff.kernel_kills.look(time.monotonic())
            assignment.assign()
            if threading.current_thread() is self._thread:  # it will look around by itself
                return
            patience = self._patience
            if (
                self._answers
                or patience is None
                or patience > FIRST_LOOK
                or (assignment.backlog and (assignment.missing() > 0 or self._staff.problem is not None))
                or (patience > OVERDUE_SECONDS and assignment.is_ahead())
                or self._staff.has_choked_pipes()
                or any(call.timeout_seconds is not None and call.timeout_seconds < patience for call in calls)
            ):
                self._wake()

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Stop calls: those not begun at once, running ones with their worker."""
        with self._lock:
            if not self._closing:
                self._unwanted.update(call_ids)
                self._wake()

    def close(self) -> None:
        """End all processes; what is in hand is given up."""
        with self._lock:
            if not self._closing:
                self._wake()
                self._closing = True
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _wake(self) -> None:
        """Have the thread look around; under the lock."""
        if not self._woken and threading.current_thread() is not self._thread:
            self._woken = True
            os.write(self._waker, b"!")

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._staff.prepare()
        while not self._closing:
            try:
                self._turn()
            except Exception as error:  # a mistake of ours must not leave anybody waiting
                _log.exception("the process executor failed")
                with self._lock:
                    self._staff.give_up(f"{type(error).__name__}: {error}")
        self._finish()

    def _turn(self) -> None:
        news, said = self._listen(self._await())
        with self._lock:
            for worker, contents in news:
                self._settle(worker, contents)
            for message in said:
                self._hear(message)
            if self._unwanted:
                self._cancel_unwanted()
            self._assignment.assign()
            answers, self._answers = self._answers, []
            unclaimed, self._staff.unclaimed = self._staff.unclaimed, []
        if unclaimed:
            show(unclaimed)
        if answers:
            reach("outcome-read")
            try:
                self._report(answers)
            except Exception:
                _log.exception("%d outcome(s) could not be reported", len(answers))
        with self._lock:
            self._assignment.assign()
            self._assignment.balance()
            self._staff.watch_choked_pipes()
        self._is_alert, self._is_idle = bool(answers), not (news or said or answers)

    def _await(self) -> list[tuple[int, Worker | Supervisor | None]]:
        """Wait for news; return where there is some.

        While outcomes come one after the other, all that can wait a moment does.
        """
        wait = self._news.wait
        if self._is_alert and (leisure := self._assignment.leisure()) > 0:  # who else delivers calls does no harm
            time.sleep(leisure)
        if self._is_alert and time.monotonic() < self._manage_at:
            # Awake, but not if a worker would miss the core.
            is_free = 0 < self._assignment.busy() < self._cores
            ready = self._lookout.find(lambda: wait(0)) if is_free else wait(_MANAGE_SECONDS)
            if ready:
                return ready
        with self._lock:
            self._manage_at = time.monotonic() + _MANAGE_SECONDS
            self._patience = patience = self._manage()
        return wait(patience)

    def _listen(
        self, ready: Sequence[tuple[int, Worker | Supervisor | None]]
    ) -> tuple[list[tuple[Worker, list[Any]]], list[Any]]:
        """Return what workers have written, and what the supervisor has said."""
        news: list[tuple[Worker, list[Any]]] = []
        said: list[Any] = []
        for descriptor, source in ready:
            if source is None:
                with self._lock:
                    self._woken = False
                    os.read(self._wakes, 4096)
            elif isinstance(source, Supervisor):
                messages = source.read()
                said.extend([(None,)] if messages is None else messages)
            elif descriptor == source.outcomes_file:
                news.append((source, self._staff.read(source)))
            else:
                with self._lock:
                    source.flush()
        return news, said

    def _manage(self) -> float | None:
        """Keep the staff complete, look after the calls that run; return how long to wait for news."""
        assignment, staff = self._assignment, self._staff
        staff.kernel_kills.look(time.monotonic())
        waits = self._stop_overrunning() + self._stop_outgrown() + self._listen_to_calls()
        assignment.recall_overdue()
        staff.hire()
        if staff.problem is not None:
            self._answers.extend(staff.unstartable(shipment) for shipment in assignment.take_all())
        assignment.assign()
        assignment.balance()
        staff.watch_choked_pipes()
        if self._answers or self._unwanted:
            return 0
        if assignment.is_ahead():
            waits.append(OVERDUE_SECONDS)
        waits += staff.waits()
        if not waits and not self._is_idle:
            waits.append(FIRST_LOOK)  # a nap, from which the next call need not wake the thread
        return min(waits, default=None)

    def _settle(self, worker: Worker, contents: Sequence[Any]) -> None:
        """Take in what a worker has written."""
        seconds = []
        for content in contents:
            kind = content[0]
            if kind in (DONE, OUTCOME):
                number = content[1]
                shipment = worker.in_hand.pop(number, None)
                if shipment is None:
                    continue
                outcome = read_outcome(shipment.call.id, content, self._folder)
                ends = content[-1]
                if ends is not None:
                    outcome = outcome._replace(lines=worker.output.at_end(ends))
                if worker.sentences and number in worker.sentences:  # it has ended in order, on being told to
                    outcome = outcome._replace(state=worker.sentences[number], result=None)
                    self._staff.kill(worker)
                self._answers.append(outcome)
                execution = outcome.execution
                if execution is not None and execution.started_at is not None and execution.ended_at is not None:
                    seconds.append(execution.ended_at - execution.started_at)
                    if self._memory_limit is not None:
                        self._watch_growth(worker, execution, self._memory_limit)
            elif kind == READY:
                self._staff.welcome(worker, content[1])
            elif kind == UNABLE:
                worker.problem = content[1:]
        if contents:
            worker.news_at = time.monotonic()
            self._assignment.learn(seconds)
        if worker.spent and not worker.in_hand and not worker.retiring:
            self._staff.retire(worker)

    def _hear(self, message: Sequence[Any]) -> None:
        """Take in what the supervisor has said."""
        kind = message[0]
        if kind is None:
            for orphan in self._staff.lose_supervisor():
                self._bury(orphan, Death(), patience=1.0)
            return
        worker = self._assignment.workers.get(message[1])
        if worker is None:
            if kind == UNSPAWNED:  # the supervisor itself
                self._staff.supervisor_problem = message[2]
        elif kind == SPAWNED:
            worker.pid = message[2]
        elif kind == UNSPAWNED:
            worker.problem = (message[2], "")
            self._bury(worker, Death())
        elif kind == DIED:
            self._bury(worker, Death(*message[2:]))

    def _bury(self, worker: Worker, death: Death, patience: float = 0.0) -> None:
        """Read what a dead worker has left, take back what it had not begun, and report what it was in."""
        self._settle(worker, worker.last_words(patience))
        self._assignment.put_back(recall_all(worker))
        self._answers.extend(self._staff.bury(worker, death))

    def _cancel_unwanted(self) -> None:
        unwanted, self._unwanted = self._unwanted, set()
        assignment = self._assignment

        def kept(shipments: Sequence[Shipment]) -> list[Shipment]:
            state = Cancelled("the task was cancelled before it began")
            self._answers.extend(Outcome(item.call.id, state) for item in shipments if item.call.id in unwanted)
            return [item for item in shipments if item.call.id not in unwanted]

        assignment.put_back(kept(assignment.take_backlog()))
        for worker in [*assignment.workers.values()]:
            if any(item.call.id in unwanted for item in worker.in_hand.values()):
                assignment.put_back(kept(recall_all(worker)))
                # What it has now is the call it is in, and perhaps outcomes on their way.
                self._settle(worker, worker.last_words())
                for number, item in worker.in_hand.items():
                    if item.call.id in unwanted and number not in worker.sentences:
                        worker.sentences[number] = Cancelled("the task was cancelled while it was running")
                        self._staff.terminate(worker)

    def _stop_overrunning(self) -> list[float]:
        """Kill workers whose call has taken too long; return after how many seconds others will have."""
        now = time.monotonic()
        waits = []
        for worker in self._assignment.workers.values():
            overrun = worker.overrun()
            if overrun is None:
                continue
            number, due = overrun
            if due > now:
                waits.append(due - now)
                continue
            self._stop(worker, number, lambda shipment: timed_out(shipment.call.timeout_seconds or 0.0))
        return waits

    def _stop_outgrown(self) -> list[float]:
        """Kill workers whose call uses too much memory; return after how many seconds to look at them again."""
        limit, now = self._memory_limit, time.monotonic()
        if limit is None:
            return []
        busy = [worker for worker in self._assignment.workers.values() if worker.in_hand and worker.ready]
        if now >= self._memory_look_at:
            self._memory_look_at = now + _MEMORY_SECONDS
            for worker in busy:
                number = next(iter(worker.in_hand))
                if now - worker.news_at < _MEMORY_SECONDS or number in worker.sentences:
                    continue
                used = resident_bytes(worker.pid or 0)
                if used is not None and used > worker.memory_allowed(limit):
                    self._stop(worker, number, partial(outgrown_state, worker, used, limit))
        return [self._memory_look_at - now] if busy else []

    def _watch_growth(self, worker: Worker, execution: Execution, limit: int) -> None:
        """Replace a worker between two tasks that uses more memory than it may, for what earlier ones have left."""
        if worker.spent or (execution.peak_rss_bytes or 0) <= limit:
            return
        used = resident_bytes(worker.pid or 0)
        if used is not None and used > limit:
            self._assignment.put_back(recall_all(worker))
            worker.spend(used)

    def _stop(self, worker: Worker, number: int, sentence: Callable[[Shipment], State]) -> None:
        """Kill a worker for the sake of a call, which ends with what `sentence` gives, unless it has just ended."""
        self._assignment.put_back(recall_all(worker))
        self._settle(worker, worker.last_words())
        shipment = worker.in_hand.get(number)
        if shipment is not None:
            worker.sentences[number] = sentence(shipment)
            self._staff.kill(worker)

    def _listen_to_calls(self) -> list[float]:
        """Report what calls have said that have been running for a while; return when to listen again."""
        now = time.monotonic()
        waits = []
        for worker in self._assignment.workers.values():
            if not worker.in_hand or not worker.ready:
                continue
            due = worker.output.next_look(worker.news_at)
            if due <= now:
                ends = worker.output.sizes()
                # Had the call ended before that, its outcome would be there now: so this is all its own.
                if worker.says_nothing():
                    lines = worker.output.so_far(ends, now)
                    if lines:
                        self._answers.append(Output(next(iter(worker.in_hand.values())).call.id, lines))
                    due = worker.output.next_look(worker.news_at)
            waits.append(max(0.0, due - now))
        return waits

    def _finish(self) -> None:
        with self._lock:
            self._assignment.take_backlog()
            self._staff.dismiss()
        while (patience := self._staff.dismissal_patience()) is not None:
            _, said = self._listen(self._news.wait(patience))
            with self._lock:
                for kind, *rest in said:
                    if kind is None:
                        self._staff.lose_supervisor()
                    elif kind in (DIED, UNSPAWNED):
                        self._staff.forget(rest[0])
        self._staff.close()
        show(self._staff.unclaimed)
        for descriptor in (self._wakes, self._waker):
            os.close(descriptor)
