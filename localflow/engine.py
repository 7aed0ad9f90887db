"""The engine: drives the task runs of one flow run and all its subflows, whatever the executors.

The engine has no thread of its own. Whoever brings *news* (a call, outcomes of an executor, a retry that is due) puts
it into `_news` and takes a *turn*; only the holder of the baton `_baton` changes the graph, the queues and the records,
and a thread that finds the baton taken leaves its news to the holder. So the more threads press, the more news one turn
handles.

A turn: take the news -> end, block and ready nodes in the graph -> take what executors have room for -> commit
everything that happened as one append to the store -> hand calls to executors -> show it (futures, notifiers, hooks).
That order is the durability contract: nothing is shown before it is stored, no call leaves before its start is stored.
Calls leave first, so that workers are at work meanwhile.

Lives of a task run:  PENDING (waits in the graph, passes the `Admission`, waits in its lane) -> RUNNING (handed over)
-> an executor's outcome, or AwaitingRetry -> Retrying -> ...; or PENDING -> NotReady, when an upstream did not
complete. A *lane* is one executor with its queue of ready runs. Executors that run calls in the caller's thread are
handed a call by the thread that made it, never by another.

If the store fails, the engine is broken for good: nothing more is started or shown, who waits gets the StoreError.
Flow runs themselves are driven by `flow_runs`; what is to end before its time, by `stopping`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from localflow.admission import Admission
from localflow.alarms import Alarms
from localflow.callbacks import CallbackRunner
from localflow.calls import Outcome, Output
from localflow.context import task_run_info
from localflow.echo import show_all
from localflow.errors import LocalflowError, RunCancelledError, StoreError
from localflow.failpoints import reach
from localflow.hooks import call_here, hooks_of
from localflow.interrupts import SHIELD, STOPS, NappingCondition
from localflow.lanes import Lane, Lanes
from localflow.large_values import Folder
from localflow.live import MOST_WAITING, NO_KEYWORDS, LiveRun
from localflow.logbook import LogBook
from localflow.payloads import type_name
from localflow.records import LogEntry, LogLine, StateChange
from localflow.scheduler import Scheduler, interrupted
from localflow.states import Crashed, State, type_and_text
from localflow.stopping import STOP_DEADLINE, Stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from localflow.active import ActiveFlow
    from localflow.callbacks import Callback
    from localflow.interfaces import Executor, StateStore
    from localflow.limits import Limits
    from localflow.notifications import Notifications
    from localflow.records import FlowRun, Record, TaskRun

_log = logging.getLogger("localflow.engine")

_UNSAVED_LIMIT = 512
_NEWS_LIMIT = 512  # of a turn: more would keep executors waiting, and make one commit that fits nowhere
_LOG_DELAY = 0.2  # seconds for which log lines may wait for something else to be stored


class _Here(threading.local):
    """What a thread is at."""

    actions: deque[Callable[[], None]] | None = None
    """What it is doing, so that a turn within an executor's `submit` only adds to it."""


class Engine:
    """Drives the task runs of a flow run and its subflows: orders, records, hands over, shows."""

    def __init__(
        self,
        store: StateStore,
        make_executor: Callable[[str | Executor], Executor],
        notifications: Notifications | None = None,
        make_limits: Callable[[Callable[[Any, Any], None]], Limits] | None = None,
        discreet: Callable[[str], str] = str,
    ) -> None:
        self.store = store
        self.lock = threading.Lock()
        """Guards the futures' waiters and callbacks; held for moments only."""
        self.progress = NappingCondition()
        """Told when a flow run has no open task runs left, and when a caller may run its call or give it up."""
        self.callbacks = CallbackRunner()
        self.alarms = Alarms()
        self.shield = SHIELD
        self.error: Exception | None = None
        """Why nothing can be started or shown any more."""
        self.folder = Folder()
        """Where large values are written, once it is known where that is."""
        self.lanes = Lanes(make_executor, self.report, self.folder, discreet)
        self.renewed: set[str] = set()
        """Ids of runs that have been run in this attempt although there was an earlier one, or that are new in it."""
        self._notifications = notifications
        self._is_told = lru_cache(notifications.wants) if notifications is not None else None
        """Whether any notifier may want to be told of a state with this name and type."""
        self._baton = threading.Lock()
        self._news: deque[LiveRun | Outcome | Callable[[], None]] = deque()
        self._flows: list[ActiveFlow] = []
        self._admission = Admission(store, make_limits, self.tell)
        self._log_book = LogBook(self._schedule_logs)
        self._scheduler = Scheduler(self._admission, self.alarms, self._log_book, self.tell)
        self.stopping = Stopping(self._scheduler, self._flows, self.progress, self.tell, lambda: self.error is not None)
        """What ends runs before their time."""
        self._must_save = False
        self._here = _Here()

    @property
    def is_interrupted(self) -> bool:
        """Whether everything is being stopped."""
        return self._scheduler.is_closed

    # -- flow runs ---------------------------------------------------------------------------------------------------

    def add_flow(self, active: ActiveFlow) -> None:
        """Take a flow run that is about to call tasks."""
        self._flows.append(active)

    def remove_flow(self, active: ActiveFlow) -> None:
        """Forget a flow run that has ended, with everything its futures hold."""
        if active in self._flows:
            self._flows.remove(active)

    def append(self, records: Sequence[Record]) -> None:
        """Commit records of a flow run, together with whatever waits to be stored, and tell the notifiers."""
        with self.shield, self._baton:
            if self.error is None:
                self._scheduler.unsaved.extend(records)
                self._guarded(self._save)
        if self.error is not None:
            raise self.error
        self._turn()

    def wait_for_all(self, active: ActiveFlow) -> None:
        """Wait until all that a flow run has started has ended, callbacks included."""

        def all_ended() -> bool:
            return self.error is not None or active.ended >= active.submitted

        while True:
            self.flush()
            with self.progress:
                self.progress.wait_for(all_ended)
            self.callbacks.wait_idle()
            if all_ended():  # a callback may have called tasks in its turn
                break
        if self.error is not None:
            raise self.error

    def has_ended(self, active: ActiveFlow) -> bool:
        """Return whether `wait_for_all` would return at once."""
        return active.ended >= active.submitted and self.callbacks.is_idle()

    def lane(self, executor: str | Executor) -> Lane:
        """Return the lane of an executor named or given by a flow or task; raises PluginError if it cannot start."""
        return self.lanes.get(executor)

    def close(self) -> None:
        """Shut the executors down and give up callbacks that have not run."""
        self.alarms.close()
        self._admission.close()
        self.callbacks.close()
        self.lanes.close()
        self.folder.close()

    # -- news --------------------------------------------------------------------------------------------------------

    def submit(self, runs: Sequence[LiveRun]) -> None:
        """Take calls of one task; see them through here if its executor runs calls in the caller's thread.

        All but the last are such as may wait.
        """
        if self.error is not None:
            raise self.error
        last, news = runs[-1], self._news
        active = last.active
        if active.stop is not None:
            raise active.stop
        if self._scheduler.is_closed:
            raise RunCancelledError("the flow run was interrupted, no more tasks can be called in it")
        with self.shield:  # what is counted must become news
            active.submitted += len(runs)
            news.extend(runs)
        # If an outcome is to come, whoever brings it takes this along, so that many calls make one turn.
        if not (self._baton.locked() or (len(news) < MOST_WAITING and last.may_wait)):
            self._turn()
        if last.lane.executor.runs_in_caller:
            for run in runs:
                self._see_through(run)

    def flush(self) -> None:
        """Have calls taken that wait for others, before the caller waits itself."""
        if self._news:
            self._turn()

    def report(self, reported: Sequence[Outcome | Output]) -> None:
        """Take outcomes and output from an executor, in any thread."""
        for item in reported:
            if isinstance(item, Output):
                self._take_lines(item.call_id, item.lines)
            elif isinstance(item, Outcome) and isinstance(item.state, State):
                if item.lines:
                    self._take_lines(item.call_id, item.lines)
                if item.records:
                    self._show_entries(item.call_id, item.records)
                self._news.append(item)
            else:
                _log.error("an executor reported %.200r, which is not an Outcome with a State; ignored", item)
        self._turn()

    def tell(self, news: LiveRun | Callable[[], None]) -> None:
        """Take news: a call, or something that is to be done in a turn."""
        self._news.append(news)
        self._turn()

    def log(self, run: FlowRun | TaskRun, attempt: int, lines: Sequence[LogLine]) -> None:
        """Take what a run has said in this process; it is stored with the next commit, or soon."""
        self._log_book.add(run, attempt, lines, echo=False)

    def end_log(self, run: FlowRun | TaskRun, attempt: int) -> None:
        """Note that an attempt has said all it had to say."""
        self._log_book.end(run, attempt)

    # -- stopping ----------------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Stop everything: open runs end CANCELLED; running ones are given the chance to end in good order.

        Raises:
            KeyboardInterrupt, Terminated: somebody is in a hurry: everything is killed.
        """
        if self._scheduler.is_closed:
            return
        self._scheduler.is_closed = True
        try:
            self.stopping.stop_all()
        finally:
            with self.shield, self._baton:
                if self.error is None:
                    self._guarded(self._give_up)
            self.callbacks.wait_idle(STOP_DEADLINE)
            self.close()

    def _give_up(self) -> None:
        self._scheduler.take_news(self._news)
        for run in self._scheduler.open_runs:
            self._scheduler.finish(run, interrupted())
        self._save()

    # -- the turn ----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        with self.shield:
            here = self._here
            if here.actions is not None:
                self._take_turns(here.actions)
                return
            actions: deque[Callable[[], None]] = deque()
            here.actions = actions
            try:
                self._take_turns(actions)
                while actions:
                    actions.popleft()()
            finally:
                here.actions = None

    def _take_turns(self, actions: deque[Callable[[], None]]) -> None:
        while self._news and self._baton.acquire(False):
            try:
                if self.error is not None:
                    self._news.clear()
                else:
                    self._guarded(self._decide)
                    if self._scheduler.actions:
                        actions.extend(self._scheduler.actions)
                        self._scheduler.actions.clear()
            finally:
                self._baton.release()

    def _decide(self) -> None:
        """Do one turn's work; what is to be done when others may have theirs joins the actions."""
        scheduler = self._scheduler
        scheduler.take_news(self._news, _NEWS_LIMIT)
        calls = scheduler.take_ready(self.lanes)
        if scheduler.ended or scheduler.moved or self._must_save or len(scheduler.unsaved) >= _UNSAVED_LIMIT:
            self._save(calls.items())

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do what only the baton's holder may; whatever goes wrong there breaks the engine instead of being lost."""
        try:
            work()
        except Exception as error:
            if not isinstance(error, LocalflowError):
                _log.exception("the engine broke down, no more tasks are started")
            if lost := sum(run.begun > 0 for run in self._scheduler.ended):
                _log.error("%d finished task runs could not be recorded; a resume runs them again", lost)
            self._break(error)

    # -- starting and showing ----------------------------------------------------------------------------------------

    def _save(self, calls: Iterable[tuple[Lane, Sequence[LiveRun]]] = ()) -> None:
        """Commit what has happened, then hand calls over and show it."""
        self._must_save = False
        records = self._commit()
        for lane, runs in calls:
            self._hand_over(lane, runs)
        scheduler = self._scheduler
        moved, scheduler.moved = scheduler.moved, []
        ended, scheduler.ended = scheduler.ended, []
        self._show(moved, ended)
        self._notify(records)

    def _commit(self) -> list[Record]:
        records, self._scheduler.unsaved = self._scheduler.unsaved, []
        records.extend(self._log_book.take())
        if not records:  # all that happened is recorded: runs were answered from the store
            return records
        reach("before-commit")
        try:
            self.store.append(records)
        except (StoreError, *STOPS):
            raise
        except BaseException as error:  # a store that raises anything else, sys.exit() too, has not recorded either
            raise StoreError(f"state store {type_name(self.store)} failed: {type_and_text(error)}") from error
        reach("after-commit")
        return records

    def _show(self, moved: Sequence[LiveRun], ended: Sequence[LiveRun]) -> None:
        wake, here = False, threading.get_ident()
        for run in dict.fromkeys(moved):  # a run that is tried again at once has moved twice
            run.future._change(run.state)
            in_caller = run.lane.executor.runs_in_caller
            if run.in_hand and in_caller:
                run.go = True
                wake = wake or run.caller != here
            if run.task.hooks and not in_caller:
                self.callbacks.add(self._hooks(run))
        for run in ended:
            run.args, run.kwargs, run.upstreams, run.call = (), NO_KEYWORDS, (), None
            in_caller = run.lane.executor.runs_in_caller
            if run.task.hooks and run.answer is None and (not in_caller or self._is_unwinding(run)):
                self.callbacks.add(self._hooks(run))
            callbacks = run.future._resolve(run.state)
            if callbacks:
                self.callbacks.add(callbacks)
            active = run.active
            active.ended += 1
            if active.ended >= active.submitted or (in_caller and run.caller != here) or run.cancelling is not None:
                wake = True
        if wake:
            self.progress.tell()

    def _is_unwinding(self, run: LiveRun) -> bool:
        """Return whether the thread that made the call may be on its way out of the flow, and call no hooks."""
        return self.is_interrupted or run.active.stop is not None

    def _notify(self, records: Sequence[Record]) -> None:
        if self._notifications is not None and self._is_told is not None:
            is_told = self._is_told
            changes = [item for item in records if type(item) is StateChange and is_told(item.name, item.type)]
            if changes:
                self._notifications.publish(changes)

    def _hooks(self, run: LiveRun) -> list[Callback]:
        return hooks_of(run.task, run.described(), task_run_info(run.record, run.attempt), run.state)

    def _see_through(self, run: LiveRun) -> None:
        """Run a call in this thread, each time its start is stored, until it has ended."""

        future, hooks = run.future, run.task.hooks
        while not future._done and self.error is None:
            if not run.go:
                with self.progress:
                    self.progress.wait_for(lambda: self.error is not None or run.go or future._done)
            if run.go:
                run.go = False
                if hooks:
                    call_here(self._hooks(run))
                self._hand_over(run.lane, [run])
        if not future._done:
            future.wait()  # which raises the engine's error
        if hooks and run.answer is None and not self._is_unwinding(run):
            call_here(self._hooks(run))

    def _hand_over(self, lane: Lane, runs: Sequence[LiveRun]) -> None:
        calls = [run.call for run in runs if run.call is not None]
        try:
            lane.executor.submit(calls)
        except STOPS:
            raise
        except BaseException as error:
            message = f"executor {lane.described()} failed to take the call: {lane.worded(error)}"
            self.report([Outcome(call.id, Crashed(message)) for call in calls])

    def _take_lines(self, call_id: int, lines: Sequence[LogLine]) -> None:
        run = self._scheduler.open_runs.get(call_id)
        if run is not None:
            self._log_book.add(run.record, run.attempt, lines, echo=not run.lane.executor.shares_memory)

    def _show_entries(self, call_id: int, records: Sequence[Record]) -> None:
        """Show what flows that a task has called in another process have said."""
        run = self._scheduler.open_runs.get(call_id)
        if run is not None and not run.lane.executor.shares_memory:
            entries = (record for record in records if isinstance(record, LogEntry))
            for speaker, said in groupby(entries, attrgetter("run")):
                show_all(speaker, [LogLine(*entry[2:]) for entry in said])

    def _schedule_logs(self) -> None:
        """See that log lines are stored soon, also if nothing else is."""

        def save() -> None:
            self._must_save = True

        self.alarms.set(_LOG_DELAY, lambda: self.tell(save))

    def _break(self, error: Exception) -> None:
        """Start and show nothing any more: whoever waits for anything gets `error`."""
        self.error = error
        self._scheduler.open_runs.clear()
        for active in self._flows:
            for future in active.futures:
                future._abandon()
        self.progress.tell()
