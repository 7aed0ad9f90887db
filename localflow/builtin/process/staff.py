"""The workers that come and go: starting them through the supervisor, retiring, killing and burying them.

A worker that dies before it is ready has failed to start. Failed starts are repeated, one at a time, after a pause that
grows; after three in a row, and with no worker at work, the staff has given up, and `problem` says why. Workers that
fail together count once.

Everything here is called by the pool's thread, and under the pool's lock where calls are touched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from localflow.builtin.process import shortage
from localflow.builtin.process.deaths import execution_until_now, lost_state
from localflow.builtin.process.memory import KernelKills, kill_counter
from localflow.builtin.process.spawn import Supervisor
from localflow.builtin.process.transport import START, frame
from localflow.builtin.process.workers import Worker
from localflow.calls import Outcome
from localflow.states import WORKER_LOST, Cause, State, StateType
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from localflow.builtin.process.assignment import Assignment
    from localflow.builtin.process.capture import Ends
    from localflow.builtin.process.deaths import Death
    from localflow.builtin.process.news import News
    from localflow.builtin.process.output import Unclaimed
    from localflow.builtin.process.packing import CallPacker, Shipment
    from localflow.large_values import Folder

_log = logging.getLogger("localflow.process")

_PAUSES = (0.1, 0.5, 2.0)
_MOST_FAILURES = 3
_GRACE = 2.0
_KILL_DEADLINE = 2.0
#: How long a call that is cancelled has for ending in order.
CANCEL_GRACE = 5.0
_UNLIMITED = 1 << 62
#: How much of what a worker has written to stderr is told when it could not start, in characters.
_STDERR_TAIL = 2000


class Settings(NamedTuple):
    """What the workers of a pool have in common."""

    workers: int
    max_tasks_per_worker: int | None
    initializer: str | bytes | None
    environment: Mapping[str, str]
    worker_memory_limit: int | None = None
    """In bytes."""
    folder: Folder | None = None
    """Where large arguments and results are written."""


class Staff:
    """The supervisor and its workers."""

    def __init__(
        self, settings: Settings, assignment: Assignment, packer: CallPacker, news: News[Worker | Supervisor | None]
    ) -> None:
        self.problem: tuple[str, str] | None = None
        """Why no worker can be started, with the traceback of it; None as long as there is hope."""
        self.supervisor_problem = ""
        self.unclaimed: list[Unclaimed] = []
        """What workers have written that is no call's."""
        self.kernel_kills = KernelKills(kill_counter())
        self._settings = settings
        self._assignment = assignment
        self._packer = packer
        self._news = news
        self._supervisor: Supervisor | None = None
        self._supervisor_is_proven = False
        self._workers = assignment.workers
        self._directory = _current_folder()
        self._last_number = 0
        self._choked: set[Worker] = set()
        self._failures = 0
        self._failed_at = self._next_start_at = 0.0
        self._warned_of = ""
        self._hopeless: tuple[str, str] | None = None
        self._dismissed_at = 0.0
        self._dismissed_at_work = False
        """Whether a worker was in a call when it was dismissed, so that what its tasks have started must end, too."""

    def prepare(self) -> None:
        """Start the supervisor before there are calls, to have it ready when they come."""
        if self._supervisor is None:
            with contextlib.suppress(OSError):  # it is tried again, and told, when there is a call
                self._start_supervisor()

    # -- starting ----------------------------------------------------------------------------------------------------

    def hire(self) -> None:
        """Start the workers that are missing, or as many as may be tried now."""
        if self._hopeless is None:
            self._try_to_hire(time.monotonic())
        if self._hopeless is not None and not any(worker.ready for worker in self._workers.values()):
            self.problem = self._hopeless

    def _try_to_hire(self, now: float) -> None:
        missing = self._assignment.missing()
        if self._failures and missing > 0:
            if now < self._next_start_at or not all(worker.ready for worker in self._workers.values()):
                return
            missing = 1
        for _ in range(missing):
            try:
                self._start_worker()
            except OSError as error:
                self._start_failed(shortage.in_words(error), "", now)
                return

    def _start_supervisor(self) -> Supervisor:
        return self.take_over(Supervisor(self._packer.path, self._settings.environment))

    def take_over(self, supervisor: Supervisor) -> Supervisor:
        """Have workers started by a supervisor."""
        for descriptor in supervisor.files:
            self._news.add(descriptor, supervisor)
        self._supervisor, self._supervisor_is_proven, self.supervisor_problem = supervisor, False, ""
        return supervisor

    def _start_worker(self) -> None:
        supervisor = self._supervisor or self._start_supervisor()
        settings = self._settings
        self._last_number += 1
        folder = settings.folder
        place = None if folder is None else folder.place
        power_safe = folder is not None and folder.power_safe
        start = frame((START, self._packer.path, self._directory, sys.argv, settings.initializer, place, power_safe))
        worker = Worker(self._last_number, start, self._packer.path_frame, settings.max_tasks_per_worker or _UNLIMITED)
        self._workers[worker.number] = worker
        self._news.add(worker.outcomes_file, worker)
        supervisor.spawn(worker.number, worker.worker_files, self._travels_by_value())
        worker.let_go()

    def _travels_by_value(self) -> bool:
        """Return whether the function of the next call is one that cloudpickle rebuilds."""
        backlog = self._assignment.backlog
        return bool(backlog) and b"cloudpickle" in backlog[0].definitions[0].frame

    def welcome(self, worker: Worker, ends: Ends | None) -> None:
        """Note that a worker has started well, and has written so much meanwhile."""
        self.unclaimed += worker.output.unclaimed(ends)
        worker.ready = self._supervisor_is_proven = True
        self._failures = 0
        self._hopeless = None

    def _start_failed(self, text: str, traceback_text: str, begun_at: float) -> None:
        if begun_at < self._failed_at:
            return  # begun with others that have failed already
        now = time.monotonic()
        self._failures += 1
        self._failed_at = now
        self._next_start_at = now + _PAUSES[min(self._failures, len(_PAUSES)) - 1]
        if self._failures < _MOST_FAILURES:
            if text != self._warned_of:  # which may go on for as long as the run
                self._warned_of = text
                _log.warning("a worker could not start, which is tried again: %s", text)
            return
        self._hopeless = (text, traceback_text)
        if any(worker.ready for worker in self._workers.values()):
            _log.warning("no more workers can be started, going on with those at work: %s", text)

    def give_up(self, text: str) -> None:
        """Start nothing more, and kill what there is."""
        self.problem = self._hopeless = (text, "")
        for worker in self._workers.values():
            self.kill(worker)

    def unstartable(self, shipment: Shipment) -> Outcome:
        """Return the outcome of a call for which there will be no worker."""
        text, traceback_text = self.problem or ("", "")
        message = f"cannot start workers: {text}"
        cause = Cause("worker", message=message, traceback_text=traceback_text)
        return Outcome(shipment.call.id, State(StateType.CRASHED, WORKER_LOST, message, cause=cause))

    # -- ending ------------------------------------------------------------------------------------------------------

    def retire(self, worker: Worker) -> None:
        """Let a worker end that has nothing in hand."""
        worker.kill_at = time.monotonic() + _GRACE
        if self._supervisor is not None:
            self._supervisor.retire(worker.number)  # first, so that it knows before the worker can have ended
        worker.tell_to_exit()

    def terminate(self, worker: Worker) -> None:
        """Tell a worker to end, with everything that its tasks have started; after a grace it is killed."""
        worker.retiring = True
        worker.kill_at = time.monotonic() + CANCEL_GRACE
        if self._supervisor is not None:
            self._supervisor.terminate(worker.number)

    def kill(self, worker: Worker) -> None:
        """Kill a worker with everything that its tasks have started."""
        worker.retiring = True
        worker.kill_at = time.monotonic() + _GRACE  # to do it again, should it be of no use
        if self._supervisor is not None:
            self._supervisor.kill(worker.number)

    def bury(self, worker: Worker, death: Death) -> list[Outcome]:
        """Release what a dead worker had; return the outcome of the call it was in, if it was in one."""
        lines = worker.output.at_end(worker.output.sizes()) if worker.in_hand else ()
        if worker.in_hand and death.signal == signal.SIGKILL and not worker.retiring:  # else it was us who killed it
            death = death._replace(is_for_memory=self.kernel_kills.explain(worker.news_at))
        outcomes = [
            Outcome(
                shipment.call.id,
                worker.sentences.get(number) or lost_state(worker, death, shipment),
                execution=execution_until_now(worker, death),
                lines=lines,
            )
            for number, shipment in worker.in_hand.items()
        ]
        begun, written = worker.ready or worker.retiring, len(self.unclaimed)
        self.forget(worker.number)
        if worker.problem is not None:
            self._start_failed(*worker.problem, worker.made_at)
        elif not begun:
            said = "".join(text for source, text in self.unclaimed[written:] if source == "stderr")[-_STDERR_TAIL:]
            last = said.strip().rpartition("\n")[2]
            text = f"worker {worker.pid} {death.in_words()} while starting{last and f': {last}'}"
            self._start_failed(text, said, worker.made_at)
        elif not outcomes and not worker.retiring:
            _log.warning("worker %s %s while it was idle; it is replaced", worker.pid, death.in_words())
        return outcomes

    def forget(self, number: int) -> None:
        """Close what belongs to a worker that is no more."""
        worker = self._workers.pop(number, None)
        if worker is not None:
            for descriptor in (worker.outcomes_file, worker.calls_file):
                self._news.remove(descriptor)
            self._choked.discard(worker)
            self.unclaimed += worker.output.unclaimed()
            worker.close()

    def lose_supervisor(self) -> list[Worker]:
        """Kill the workers of a supervisor that has died, for it cannot; return them."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return []
        for descriptor in supervisor.files:
            self._news.remove(descriptor)
        ending = supervisor.bury()
        text = self.supervisor_problem or f"the supervisor of the workers {_ending_in_words(ending)}"
        if not self._supervisor_is_proven:
            self._start_failed(text, "", time.monotonic())
        else:
            _log.warning("%s; it is replaced, and its workers with it", text)
        workers = [*self._workers.values()]
        for worker in workers:
            if worker.pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(worker.pid, signal.SIGKILL)
        return workers

    def dismiss(self) -> None:
        """Begin to end: idle workers may do what they have registered for their exit, others are killed."""
        self._dismissed_at = time.monotonic()
        for worker in self._workers.values():
            if worker.in_hand or not worker.ready:
                self._dismissed_at_work |= bool(worker.in_hand)
                self.kill(worker)
            elif not worker.retiring:
                self.retire(worker)

    def dismissal_patience(self) -> float | None:
        """Return how long to wait for the workers to end, None if they have or there is no use in waiting."""
        if not self._workers or self._supervisor is None:
            return None
        waited = time.monotonic() - self._dismissed_at
        if waited > _GRACE:
            for worker in self._workers.values():
                self.kill(worker)
            return None if waited > _GRACE + _KILL_DEADLINE else _KILL_DEADLINE / 10
        return _GRACE - waited

    def close(self) -> None:
        """End the supervisor; what completed tasks have left running may go on, and is told."""
        if self._supervisor is not None:
            for descriptor in self._supervisor.files:
                self._news.remove(descriptor)
            left = self._supervisor.end(kill=self._dismissed_at_work)
            if left:
                ending = "which were killed" if self._dismissed_at_work else "which go on"
                _log.warning("tasks have left processes running, %s: %s", ending, ", ".join(map(str, left)))
        for number in [*self._workers]:
            self.forget(number)

    # -- reading and writing -----------------------------------------------------------------------------------------

    def read(self, worker: Worker) -> list[Any]:
        """Return what a worker has written; one that writes what is no frame is killed."""
        try:
            contents = worker.read()
        except ValueError:
            self.kill(worker)
            contents = None
        if contents is None:  # the end of the pipe, or of any use for it: how it died the supervisor will tell
            self._news.remove(worker.outcomes_file)
            return []
        return contents

    def has_choked_pipes(self) -> bool:
        """Return whether some worker's pipe is full and nobody waits yet for room in it."""
        return any(worker.pending and worker not in self._choked for worker in self._workers.values())

    def watch_choked_pipes(self) -> None:
        """Wait for room in the pipes that are full, and only in those."""
        for worker in self._workers.values():
            if worker.pending != (worker in self._choked):
                if worker.pending:
                    self._choked.add(worker)
                    self._news.add(worker.calls_file, worker, to_write=True)
                else:
                    self._choked.discard(worker)
                    self._news.remove(worker.calls_file)

    def waits(self) -> list[float]:
        """Return after how many seconds something is to be done here even if nothing happens."""
        now = time.monotonic()
        waits = []
        for worker in self._workers.values():
            if worker.retiring:
                if now >= worker.kill_at:
                    self.kill(worker)
                waits.append(worker.kill_at - now)
        if self._failures and self._hopeless is None and self._assignment.missing() > 0:
            waits.append(self._next_start_at - now)
        return [max(0.0, wait) for wait in waits]


def _current_folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - Path would be imported for this alone
    except OSError:  # it is deleted
        return "/"


def _ending_in_words(returncode: int | None) -> str:
    if returncode is None:
        return "is gone"
    return f"was killed by signal {-returncode}" if returncode < 0 else f"ended with exit status {returncode}"
