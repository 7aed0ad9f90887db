"""The engine: drives the task runs of one flow run and all its subflows, whatever the executors.

The engine has no thread of its own. Whoever brings *news* (a call, outcomes of an executor, a retry that is due) puts
it into `_news` and takes a *turn*; only the holder of the baton `_baton` changes the graph, the queues and the records,
and a thread that finds the baton taken leaves its news to the holder. So the more threads press, the more news one turn
handles.

A turn: take all news -> end, block and ready nodes in the graph -> take what executors have room for -> commit
everything that happened as one append to the store -> show it (futures, notifiers, hooks) -> hand calls to executors.
That order is the durability contract: nothing is shown before it is stored, no call leaves before its start is stored.

Lives of a task run:  PENDING (waits in the graph, passes the `Admission`, waits in its lane) -> RUNNING (handed over)
-> an executor's outcome, or AwaitingRetry -> Retrying -> ...; or PENDING -> NotReady, when an upstream did not
complete. A *lane* is one executor with its queue of ready runs. Executors that run calls in the caller's thread are
handed a call by the thread that made it, never by another.

If the store fails, the engine is broken for good: nothing more is started or shown, who waits gets the StoreError.
Flow runs themselves are driven by `flow_runs`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Any

from localflow import graph
from localflow.admission import Admission
from localflow.alarms import Alarms
from localflow.callbacks import Callback, CallbackRunner
from localflow.calls import Outcome, Output
from localflow.context import task_run_info
from localflow.errors import LocalflowError, RunCancelledError, StoreError
from localflow.interrupts import STOPS, FlowStop, Shield
from localflow.keywords import HOOK_OF
from localflow.live import ActiveFlow, Lane, LiveRun, claim, executor_name, may_be_tolerated, release
from localflow.logbook import LogBook
from localflow.payloads import type_name
from localflow.records import CacheEntry, StateChange
from localflow.states import (
    INTERRUPTED,
    AwaitingRetry,
    Cancelled,
    Crashed,
    State,
    StateType,
    not_ready,
    type_and_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localflow.futures import TaskFuture
    from localflow.interfaces import Executor, StateStore
    from localflow.limits import Limits
    from localflow.notifications import Notifications
    from localflow.payloads import Payload
    from localflow.records import Execution, FlowRun, LogLine, Record, TaskRun

_log = logging.getLogger("localflow.engine")

_UNSAVED_LIMIT = 512
_LOG_DELAY = 0.2  # seconds for which log lines may wait for something else to be stored
_STOP_DEADLINE = 7.0  # seconds in which executors stop what runs: their grace, and some


class Engine:
    """Drives the task runs of a flow run and its subflows: orders, records, hands over, shows."""

    def __init__(
        self,
        store: StateStore,
        make_executor: Callable[[str | Executor], Executor],
        notifications: Notifications | None = None,
        make_limits: Callable[[Callable[[Any, Any], None]], Limits] | None = None,
    ) -> None:
        self.store = store
        self.lock = threading.Lock()
        """Guards the futures' waiters and callbacks; held for moments only."""
        self.progress = threading.Condition()
        """Told when a flow run has no open task runs left, and when a caller may run its call or give it up."""
        self.callbacks = CallbackRunner()
        self.alarms = Alarms()
        self.shield = Shield()
        self.error: Exception | None = None
        """Why nothing can be started or shown any more."""
        self.interrupted = False
        self._make_executor = make_executor
        self._notifications = notifications
        self._baton = threading.Lock()
        self._news: deque[LiveRun | Outcome | Callable[[], None]] = deque()
        self._graph = graph.RunGraph()
        self._runs: dict[int, LiveRun] = {}
        self._given_up: dict[int, LiveRun] = {}
        """Runs that have ended although an executor still has them."""
        self._flows: list[ActiveFlow] = []
        self._lanes: dict[object, Lane] = {}
        self._lanes_lock = threading.Lock()
        self._admission = Admission(store, make_limits, self.tell)
        self._log_book = LogBook(self._schedule_logs)
        self._warned: set[tuple[str, str]] = set()
        # What the turn has brought about so far:
        self._unsaved: list[Record] = []
        self._ended: list[LiveRun] = []
        self._moved: list[LiveRun] = []
        """Runs that are in another state, though not at their end."""
        self._actions: list[Callable[[], None]] = []
        """What is to be done once the baton is free."""
        self._must_save = False
        self._here = threading.local()
        """`actions`: what this thread is doing, so that a turn within an executor's `submit` only adds to it."""

    # -- flow runs ---------------------------------------------------------------------------------------------------

    def add_flow(self, active: ActiveFlow) -> None:
        """Take a flow run that is about to call tasks."""
        self._flows.append(active)

    def append(self, records: Sequence[Record]) -> None:
        """Commit records of a flow run, together with whatever waits to be stored, and tell the notifiers."""
        with self.shield, self._baton:
            if self.error is None:
                self._unsaved.extend(records)
                self._guarded(self._save)
        if self.error is not None:
            raise self.error
        self._turn()

    def wait_for_all(self, active: ActiveFlow) -> None:
        """Wait until all that a flow run has started has ended, callbacks included."""

        def all_ended() -> bool:
            return self.error is not None or active.ended >= active.submitted

        while True:
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
        """Return the lane of an executor named or given by a flow or task; the executor starts at its first use."""
        key = executor if isinstance(executor, str) else id(executor)
        with self._lanes_lock:
            lane = self._lanes.get(key)
            if lane is None:
                lane = Lane(executor_name(executor), claim(self._make_executor(executor)))
                lane.start(self.report)
                self._lanes[key] = lane
        return lane

    def warn_of_timeout(self, task: str, lane: Lane) -> None:
        """Say once that an executor cannot stop the code of a task that is too slow."""
        if (task, lane.name) not in self._warned:
            self._warned.add((task, lane.name))
            _log.warning(
                "task '%s' has a timeout, but executor '%s' cannot stop its code: it is told TimedOut and goes on; "
                "the process executor stops it",
                task,
                lane.name,
            )

    def close(self) -> None:
        """Shut the executors down and give up callbacks that have not run."""
        self.alarms.close()
        self._admission.close()
        self.callbacks.close()
        with self._lanes_lock:
            lanes, self._lanes = list(self._lanes.values()), {}
        for lane in lanes:
            try:
                lane.executor.shutdown()
            except STOPS:
                raise
            except BaseException as error:
                _log.error("executor %s failed to shut down: %s", lane.described(), type_and_text(error))
            release(lane.executor)

    # -- news --------------------------------------------------------------------------------------------------------

    def submit(self, run: LiveRun) -> None:
        """Take a call; see it through here if its executor runs calls in the caller's thread."""
        if self.error is not None:
            raise self.error
        active = run.active
        if active.stop is not None:
            raise active.stop
        if self.interrupted:
            raise RunCancelledError("the flow run was interrupted, no more tasks can be called in it")
        active.submitted += 1
        self.tell(run)
        if run.lane.executor.runs_in_caller:
            self._see_through(run)

    def report(self, reported: Sequence[Outcome | Output]) -> None:
        """Take outcomes and output from an executor, in any thread."""
        for item in reported:
            if isinstance(item, Output):
                self._take_lines(item.call_id, item.lines)
            elif isinstance(item, Outcome) and isinstance(item.state, State):
                if item.lines:
                    self._take_lines(item.call_id, item.lines)
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

    def cancel(self, future: TaskFuture[Any]) -> bool:
        """End a task run CANCELLED if that can be done; return whether it can."""
        answer: list[bool] = []

        def cancel() -> None:
            run = self._runs.get(future._node)
            answer.append(run is not None and self._cancel(run, Cancelled("the task run was cancelled")))
            self._wake()

        self.tell(cancel)
        with self.progress:
            self.progress.wait_for(lambda: answer or self.error is not None)
        return bool(answer and answer[0])

    def cancel_runs(self, actives: Sequence[ActiveFlow], state: Callable[[], State]) -> None:
        """End all open task runs of these flow runs with a state; what cannot be stopped is given up."""

        def cancel() -> None:
            for run in [*self._runs.values()]:
                if run.active in actives and not self._cancel(run, state()):
                    self._finish(run, state())

        self.tell(cancel)

    def stop_flow(self, active: ActiveFlow, state: State) -> None:
        """Have a flow run end with `state`: its task runs are cancelled, its body is ended where that can be done.

        May be called in any thread but the body's.
        """
        stop = FlowStop(active.record.id, state)
        family = self.subtree(active)
        for each in family:
            each.stop = stop
        self.cancel_runs(family, lambda: Cancelled("the flow run was stopped"))
        if active.interrupt is not None:
            active.interrupt(stop)

    def subtree(self, active: ActiveFlow) -> list[ActiveFlow]:
        """Return a flow run with the flow runs below it that are at work."""
        ids = {active.record.id}
        found = [active]
        for other in self._flows:  # parents come before their children
            if other.record.parent_id in ids:
                ids.add(other.record.id)
                found.append(other)
        return found

    def interrupt(self) -> None:
        """Stop everything: open runs end CANCELLED; running ones are given the chance to end in good order.

        Raises:
            KeyboardInterrupt, Terminated: somebody is in a hurry: everything is killed.
        """
        if self.interrupted:
            return
        self.interrupted = True
        try:
            waits = self._stop_orderly()
            if waits:
                with self.progress:
                    self.progress.wait_for(lambda: not any(map(self._is_stopping, waits)), _STOP_DEADLINE)
        finally:
            with self.shield, self._baton:
                if self.error is None:
                    self._guarded(self._give_up)
            self.callbacks.wait_idle(_STOP_DEADLINE)
            self.close()

    def _stop_orderly(self) -> list[LiveRun]:
        running: list[LiveRun] = []
        waiting = 0

        def stop() -> None:
            nonlocal waiting
            for run in [*self._runs.values()]:
                if run.in_hand and run.lane.can_stop(run):
                    running.append(run)
                elif not run.in_hand:
                    waiting += 1
                self._cancel(run, _interrupted())
            self._wake()

        self.tell(stop)
        if running or waiting:
            names = ", ".join(f"'{run.record.name}'" for run in running[:5])
            _log.warning(
                "interrupted: stopping %d running task runs%s, %d more will not start (press Ctrl-C again to kill)",
                len(running),
                f" ({names}{', ...' if len(running) > 5 else ''})" if running else "",
                waiting,
            )
        return running

    def _is_stopping(self, run: LiveRun) -> bool:
        return self.error is None and not run.has_ended

    def _give_up(self) -> None:
        self._take_news()
        for run in [*self._runs.values()]:
            self._finish(run, _interrupted())
        self._save()

    # -- the turn ----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        with self.shield:
            actions: deque[Callable[[], None]] | None = getattr(self._here, "actions", None)
            if actions is not None:
                self._take_turns(actions)
                return
            actions = self._here.actions = deque()
            try:
                self._take_turns(actions)
                while actions:
                    actions.popleft()()
            finally:
                del self._here.actions

    def _take_turns(self, actions: deque[Callable[[], None]]) -> None:
        while self._news and self._baton.acquire(blocking=False):
            try:
                if self.error is not None:
                    self._news.clear()
                else:
                    self._guarded(self._decide)
                    actions.extend(self._actions)
                    self._actions.clear()
            finally:
                self._baton.release()

    def _decide(self) -> None:
        """Do one turn's work up to the commit and what it allows to be shown; calls to hand over join the actions."""
        self._take_news()
        calls = self._take_ready()
        if self._ended or self._moved or self._must_save or len(self._unsaved) >= _UNSAVED_LIMIT:
            self._save()
        for lane, runs in calls.items():
            self._actions.append(lambda lane=lane, runs=runs: self._hand_over(lane, runs))  # type: ignore[misc]

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do what only the baton's holder may; whatever goes wrong there breaks the engine instead of being lost."""
        try:
            work()
        except Exception as error:
            if not isinstance(error, LocalflowError):
                _log.exception("the engine broke down, no more tasks are started")
            self._break(error)

    def _take_news(self) -> None:
        """Bring the graph up to date."""
        news, ready = self._news, self._graph.ready
        while news:
            item = news.popleft()
            if isinstance(item, LiveRun):
                self._add(item)
            elif isinstance(item, Outcome):
                run = self._runs.get(item.call_id)
                if run is None or not run.in_hand:
                    given_up = self._given_up.pop(item.call_id, None)
                    if given_up is not None:
                        given_up.lane.give_back(given_up)
                    elif not self.interrupted:
                        _log.warning("an executor reported call %s, which it does not have; ignored", item.call_id)
                    continue
                self._take_outcome(run, item)
            else:
                item()
            self._take_blocked()
            while ready:
                self._admit(self._runs[ready.popleft()])

    def _add(self, run: LiveRun) -> None:
        if run.is_new:
            self._unsaved.append(run.record)
        if self.interrupted or run.active.stop is not None:
            run.node = run.future._node = self._graph.add_ended(graph.LOST)
            self._conclude(run, _interrupted())
        elif run.blocker is None:
            tolerated = [future._node for future in run.upstreams if id(future) in run.tolerated]
            run.node = run.future._node = self._graph.add([future._node for future in run.upstreams], tolerated)
            self._runs[run.node] = run
        else:
            run.node = run.future._node = self._graph.add_ended(graph.FAILED)
            self._conclude(run, not_ready(run.blocker))

    def _take_blocked(self) -> None:
        blocked = self._graph.blocked
        while blocked:
            node, culprit = blocked.popleft()
            run = self._runs.pop(node, None)
            if run is None:  # cancelled after it was blocked, in the same turn
                continue
            upstream = next(future for future in run.upstreams if future._node == culprit)
            assert upstream._ending is not None  # what blocks has ended
            self._conclude(run, not_ready(upstream._ending, f"task run '{upstream.name}'"))

    def _admit(self, run: LiveRun) -> None:
        """Queue a run that waits for nothing, or have it admitted if there is something to be looked at first."""
        if run.task.caching is None and not (run.record.tags and self._admission.applies(run)):
            run.lane.queue(run)
        else:
            self._admission.enter(run, self._queue, self._finish)

    def _queue(self, run: LiveRun) -> None:
        if run.node in self._runs:  # it may have been cancelled meanwhile
            run.lane.queue(run)
        else:
            self._admission.leave(run)

    def _take_outcome(self, run: LiveRun, outcome: Outcome) -> None:
        run.in_hand = False
        run.lane.give_back(run)
        self._unsaved.extend(outcome.records)
        state = outcome.state
        if run.cancelling is not None and state.type is StateType.CANCELLED:
            state = run.cancelling
        if run.wants_retry(state):
            if run.task.retry.condition is None:
                self._await_retry(run, outcome)
            else:
                self._ask_condition(run, outcome)
        else:
            self._finish(run, state, outcome.execution, outcome.result)

    def _finish(
        self, run: LiveRun, state: State, execution: Execution | None = None, result: Payload | None = None
    ) -> None:
        """End a run that is in the graph."""
        if self._runs.pop(run.node, None) is None:
            return
        if run.in_hand:
            self._given_up[run.node] = run
        if state.type is StateType.COMPLETED:
            ending = graph.COMPLETED
        else:
            ending = graph.FAILED if may_be_tolerated(state) or not state.is_final() else graph.LOST
        self._conclude(run, state, execution, result)
        self._graph.end(run.node, ending)

    def _conclude(
        self, run: LiveRun, state: State, execution: Execution | None = None, result: Payload | None = None
    ) -> None:
        if not state.run_id:
            state.run_id, state.run_label = run.record.id, run.described()
        run.future._ending = state
        if run.permit is not None:
            self._admission.leave(run)
        if run.task.persist_result is False:
            result = None
        change = run.change(state, execution, result)
        if run.cache_key is not None and result is not None and state.type is StateType.COMPLETED:
            change = change._replace(cache=CacheEntry(run.cache_key, self._admission.expires_at(run)))
        self._log_book.end(run.record, run.attempt)
        self._unsaved.append(change)
        self._ended.append(run)

    # -- retries and cancellation ------------------------------------------------------------------------------------

    def _ask_condition(self, run: LiveRun, outcome: Outcome) -> None:
        """Have the user's condition decide about a retry, in the thread of the admission."""

        def ask() -> None:
            condition = run.task.retry.condition
            assert condition is not None
            wants = False
            try:
                wants = bool(condition(run.task, task_run_info(run.record, run.attempt), outcome.state))
            finally:
                self.tell(lambda: self._retry_or_finish(run, outcome, wants))

        self._admission.judge(f"retry_condition_fn of {run.described()}", ask)

    def _retry_or_finish(self, run: LiveRun, outcome: Outcome, wants: bool) -> None:
        if wants and run.cancelling is None and run.node in self._runs:
            self._await_retry(run, outcome)
        else:
            self._finish(run, outcome.state, outcome.execution, outcome.result)

    def _await_retry(self, run: LiveRun, outcome: Outcome) -> None:
        state = AwaitingRetry(outcome.state.message)
        state.cause = outcome.state.cause
        self._unsaved.append(run.change(state, outcome.execution))
        self._log_book.end(run.record, run.attempt)
        self._moved.append(run)
        if run.permit is not None:
            self._admission.leave(run)
        delay = run.task.retry.delay(run.attempt - run.first_attempt + 1)
        run.attempt += 1
        if delay > 0:
            self._actions.append(lambda: self.alarms.set(delay, lambda: self.tell(lambda: self._retry(run))))
        else:
            self._retry(run)

    def _retry(self, run: LiveRun) -> None:
        if run.node in self._runs:
            self._admission.enter(run, self._queue, self._finish)

    def _cancel(self, run: LiveRun, state: State) -> bool:
        """End a run that has not begun, have one that has begun stopped; return False where that cannot be done."""
        if not run.in_hand:
            self._finish(run, state)
            return True
        executor = run.lane.executor
        self._actions.append(lambda: executor.cancel([run.node]))
        if not run.lane.can_stop(run):
            return False
        run.cancelling = state
        return True

    # -- starting and showing ----------------------------------------------------------------------------------------

    def _take_ready(self) -> dict[Lane, list[LiveRun]]:
        """Start what the executors have room for; return what is to be handed over."""
        calls: dict[Lane, list[LiveRun]] = {}
        for lane in list(self._lanes.values()):
            if not (lane.ready or lane.async_ready):
                continue
            starting = lane.take()
            for run in starting:
                run.in_hand = True
                if run.call is None:
                    run.make_call()
                self._unsaved.append(run.begin())
            self._moved.extend(starting)
            if starting and not lane.executor.runs_in_caller:
                calls[lane] = starting
        return calls

    def _save(self) -> None:
        """Commit what has happened, then show it."""
        self._must_save = False
        records = self._commit()
        moved, self._moved = self._moved, []
        ended, self._ended = self._ended, []
        self._show(moved, ended)
        self._notify(records)

    def _commit(self) -> list[Record]:
        records, self._unsaved = self._unsaved, []
        records.extend(self._log_book.take())
        try:
            self.store.append(records)
        except StoreError:
            raise
        except BaseException as error:  # a store that raises anything else, sys.exit() too, has not recorded either
            raise StoreError(f"state store {type_name(self.store)} failed: {type_and_text(error)}") from error
        return records

    def _show(self, moved: Sequence[LiveRun], ended: Sequence[LiveRun]) -> None:
        wake = False
        for run in dict.fromkeys(moved):  # a run that is tried again at once has moved twice
            run.future._change(run.state)
            in_caller = run.lane.executor.runs_in_caller
            if run.in_hand and in_caller:
                run.go = wake = True
            if run.task.hooks and not in_caller:
                self.callbacks.add(self._hooks(run, run.state))
        for run in ended:
            run.args, run.kwargs, run.upstreams, run.call = (), {}, (), None
            in_caller = run.lane.executor.runs_in_caller
            if run.task.hooks and (not in_caller or self.interrupted):
                self.callbacks.add(self._hooks(run, run.state))
            callbacks = run.future._resolve(run.state)
            if callbacks:
                self.callbacks.add(callbacks)
            active = run.active
            active.ended += 1
            if active.ended >= active.submitted or in_caller or run.cancelling is not None:
                wake = True
        if wake:
            self._wake()

    def _notify(self, records: Sequence[Record]) -> None:
        if self._notifications is not None:
            wants = self._notifications.wants
            changes = [item for item in records if isinstance(item, StateChange) and wants(item.name, item.type)]
            if changes:
                self._notifications.publish(changes)

    def _hooks(self, run: LiveRun, state: State) -> list[Callback]:
        """Return the callbacks for a run that has entered a state."""
        name = HOOK_OF.get(state.type, "")
        hooks = run.task.hooks.get(name, ())
        if not hooks:
            return []
        info = task_run_info(run.record, run.attempt)
        described = f"hook '{name}' of {run.described()}"
        return [Callback(described, Context(), hook, (run.task, info, state)) for hook in hooks]

    def _see_through(self, run: LiveRun) -> None:
        """Run a call in this thread, each time its start is stored, until it has ended."""

        def may_go() -> bool:
            return self.error is not None or run.go or run.future.done()

        future, hooks = run.future, run.task.hooks
        while not future.done() and self.error is None:
            if not run.go:
                with self.progress:
                    self.progress.wait_for(may_go)
            if run.go:
                run.go = False
                if hooks:
                    self._call_hooks(run, run.state)
                self._hand_over(run.lane, [run])
        future.wait()
        if hooks and not self.interrupted:
            self._call_hooks(run, run.state)

    def _call_hooks(self, run: LiveRun, state: State) -> None:
        for described, context, hook, args in self._hooks(run, state):
            context.run(self.callbacks.call, described, hook, *args)

    def _hand_over(self, lane: Lane, runs: Sequence[LiveRun]) -> None:
        calls = [run.call for run in runs if run.call is not None]
        try:
            lane.executor.submit(calls)
        except STOPS:
            raise
        except BaseException as error:
            message = f"executor {lane.described()} failed to take the call: {type_and_text(error)}"
            self.report([Outcome(call.id, Crashed(message)) for call in calls])

    def _take_lines(self, call_id: int, lines: Sequence[LogLine]) -> None:
        run = self._runs.get(call_id)
        if run is not None:
            self._log_book.add(run.record, run.attempt, lines, echo=not run.lane.executor.shares_memory)

    def _schedule_logs(self) -> None:
        """See that log lines are stored soon, also if nothing else is."""

        def save() -> None:
            self._must_save = True

        self.alarms.set(_LOG_DELAY, lambda: self.tell(save))

    def _wake(self) -> None:
        with self.progress:
            self.progress.notify_all()

    def _break(self, error: Exception) -> None:
        """Start and show nothing any more: whoever waits for anything gets `error`."""
        self.error = error
        self._runs.clear()
        for active in self._flows:
            for future in active.futures:
                future._abandon(error)
        self._wake()


def _interrupted() -> State:
    return Cancelled("the flow run was interrupted", name=INTERRUPTED)
