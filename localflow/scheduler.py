"""Where every task run of an engine is between its call and its end, and what moves it on.

    call -> graph -> admission (cache, limits) -> lane -> executor -> outcome -> end
              |                      ^                                   |
              v                      +------- AwaitingRetry <------------+
          NotReady

Everything here is done by the holder of the engine's baton. It only decides: what is to be stored, shown and done
because of it is collected for the engine, which commits before anybody sees or feels anything.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import TYPE_CHECKING

from localflow import graph
from localflow.calls import Outcome
from localflow.context import task_run_info
from localflow.live import LiveRun, may_be_tolerated
from localflow.open_runs import OpenRuns
from localflow.records import CacheEntry
from localflow.states import INTERRUPTED, AwaitingRetry, Cancelled, State, StateType, not_ready
from localflow.upstreams import MANY

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Sequence

    from localflow.admission import Admission
    from localflow.alarms import Alarms
    from localflow.futures import TaskFuture
    from localflow.lanes import Lane
    from localflow.logbook import LogBook
    from localflow.payloads import Payload
    from localflow.records import Execution, Record

_log = logging.getLogger("localflow.scheduler")


class Scheduler:
    """The open task runs of an engine.

    Attributes:
        open_runs: those that have not ended.
        unsaved: records of what has happened, to be committed.
        moved: runs in another state that is not their end, to be shown after the commit.
        ended: runs at their end, to be shown after the commit.
        actions: what is to be done after that.
        is_closed: nothing starts any more: runs that are added end CANCELLED.
    """

    def __init__(
        self, admission: Admission, alarms: Alarms, log_book: LogBook, tell: Callable[[Callable[[], None]], None]
    ) -> None:
        """Begin empty; `tell` has something done in a turn."""
        self.open_runs = OpenRuns()
        self.unsaved: list[Record] = []
        self.moved: list[LiveRun] = []
        self.ended: list[LiveRun] = []
        self.actions: list[Callable[[], None]] = []
        self.is_closed = False
        self._admission = admission
        self._alarms = alarms
        self._log_book = log_book
        self._tell = tell
        self._graph = graph.RunGraph()
        self._gated: Sequence[TaskFuture[object]] = ()
        """What the last gate in the graph stands for."""
        self._gate = -1
        self._given_up: dict[int, LiveRun] = {}
        """Runs that have ended although an executor still has them."""

    def take_news(self, news: deque[LiveRun | Outcome | Callable[[], None]], most: int = sys.maxsize) -> None:
        """Take what has happened: calls, outcomes, and what is to be done in a turn; at most so many of them."""
        ready, blocked = self._graph.ready, self._graph.blocked
        for _ in range(most):
            if not news:
                break
            item = news.popleft()
            if isinstance(item, LiveRun):
                self.add(item)
            elif isinstance(item, Outcome):
                self.take_outcome(item)
            else:
                item()
            if ready or blocked:
                self._follow_up()

    # -- the way to an executor --------------------------------------------------------------------------------------

    def add(self, run: LiveRun) -> None:
        """Take a call."""
        if run.is_new:
            self.unsaved.append(run.record)
        self.unsaved.extend(run.outdated)
        if run.answer is not None:
            self._add_ended(run, graph.COMPLETED)
            run.state = run.answer
            run.conclude(run.answer)
            self.ended.append(run)
        elif self.is_closed or run.active.stop is not None:
            self._add_ended(run, graph.LOST)
            self._conclude(run, interrupted() if self.is_closed else stopped())
        elif run.blocker is None:
            if run.upstreams:
                run.future._node = node = self._add_to_graph(run)
                run.depth = self._graph.depth(node)
            else:
                run.future._node = self._graph.add_ready()
            self.open_runs.add(run)
            if not run.upstreams:
                self._admit(run)
        else:
            self._add_ended(run, graph.FAILED)
            self._conclude(run, not_ready(run.blocker))

    def _add_to_graph(self, run: LiveRun) -> int:
        """Add the node of a run that waits for others: for a gate instead of many that others may wait for as well."""
        upstreams = run.upstreams
        if len(upstreams) < MANY or run.tolerated:
            tolerated = [future._node for future in upstreams if id(future) in run.tolerated]
            return self._graph.add([future._node for future in upstreams], tolerated)
        if upstreams is not self._gated:
            self._gated, self._gate = upstreams, self._graph.add_gate([future._node for future in upstreams])
            self.open_runs.add_ended()
        return self._graph.add([self._gate])

    def _add_ended(self, run: LiveRun, ending: int) -> None:
        run.future._node = self._graph.add_ended(ending)
        self.open_runs.add_ended()

    def _follow_up(self) -> None:
        """Move on the runs that waited for what has ended."""
        if self._graph.blocked:
            self._take_blocked()
        ready = self._graph.ready
        while ready:
            self._admit(self.open_runs[ready.popleft()])

    def _take_blocked(self) -> None:
        blocked = self._graph.blocked
        while blocked:
            node, culprit = blocked.popleft()
            run = self.open_runs.pop(node)
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
            self._admission.enter(run, self._queue, self.finish)

    def _queue(self, run: LiveRun) -> None:
        if run in self.open_runs:  # it may have been cancelled meanwhile
            run.lane.queue(run)
        else:
            self._admission.leave(run)

    def take_ready(self, lanes: Iterable[Lane]) -> dict[Lane, list[LiveRun]]:
        """Start what the executors have room for; return what is to be handed over."""
        calls: dict[Lane, list[LiveRun]] = {}
        for lane in lanes:
            if lane.limited.size:
                for run in lane.take_limited():
                    self._admission.ask_for_permit(run)
            if not (lane.ready.size or lane.async_ready.size):
                continue
            starting = lane.take()
            for run in starting:
                run.in_hand = True
                if run.call is None:
                    run.make_call()
                self.unsaved.append(run.begin())
            self.moved.extend(starting)
            if starting and not lane.executor.runs_in_caller:
                calls[lane] = starting
        return calls

    # -- the way to the end ------------------------------------------------------------------------------------------

    def take_outcome(self, outcome: Outcome) -> None:
        """Take the outcome of an attempt: the end of its run, or the way to another attempt."""
        run = self.open_runs.get(outcome.call_id)
        if run is None or not run.in_hand:
            given_up = self._given_up.pop(outcome.call_id, None)
            if given_up is not None:
                given_up.lane.give_back(given_up)
            elif not self.is_closed:
                _log.warning("an executor reported call %s, which it does not have; ignored", outcome.call_id)
            return
        run.in_hand = False
        run.lane.give_back(run)
        if outcome.records:
            self.unsaved.extend(outcome.records)
        state = outcome.state
        if run.cancelling is not None and state.type is StateType.CANCELLED:
            state = run.cancelling
        elif self.is_closed and state.type is StateType.CANCELLED and outcome.execution is None:  # it never began
            state = interrupted()
        if run.wants_retry(state):
            if run.task.retry.condition is None:
                self._await_retry(run, outcome)
            else:
                self._ask_condition(run, outcome)
        else:
            self.finish(run, state, outcome.execution, outcome.result)

    def finish(
        self, run: LiveRun, state: State, execution: Execution | None = None, result: Payload | None = None
    ) -> None:
        """End a run that is in the graph."""
        node = run.node
        if self.open_runs.pop(node) is None:
            return
        if run.in_hand:
            self._given_up[node] = run
        if state.type is StateType.COMPLETED:
            ending = graph.COMPLETED
        else:
            ending = graph.FAILED if may_be_tolerated(state) or not state.is_final() else graph.LOST
        self._conclude(run, state, execution, result)
        self._graph.end(node, ending)

    def _conclude(
        self, run: LiveRun, state: State, execution: Execution | None = None, result: Payload | None = None
    ) -> None:
        run.conclude(state)
        if run.permit is not None:
            self._admission.leave(run)
        if run.task.persist_result is False:
            result = None
        change = run.change(state, execution, result)
        if run.cache_key is not None and result is not None and state.type is StateType.COMPLETED:
            change = change._replace(cache=CacheEntry(run.cache_key, self._admission.expires_at(run)))
        self._log_book.end(run.record, run.attempt)
        self.unsaved.append(change)
        self.ended.append(run)

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
                self._tell(lambda: self._retry_or_finish(run, outcome, wants))

        self._admission.judge(f"retry_condition_fn of {run.described()}", ask)

    def _retry_or_finish(self, run: LiveRun, outcome: Outcome, wants: bool) -> None:
        if wants and run.cancelling is None and run in self.open_runs:
            self._await_retry(run, outcome)
        else:
            self.finish(run, outcome.state, outcome.execution, outcome.result)

    def _await_retry(self, run: LiveRun, outcome: Outcome) -> None:
        state = AwaitingRetry(outcome.state.message)
        state.cause = outcome.state.cause
        self.unsaved.append(run.change(state, outcome.execution))
        self._log_book.end(run.record, run.attempt)
        self.moved.append(run)
        if run.permit is not None:
            self._admission.leave(run)
        delay = run.task.retry.delay(run.attempt - run.first_attempt + 1)
        run.attempt += 1
        if delay > 0:

            def retry() -> None:
                self._tell(lambda: self._retry(run))

            def retry_later() -> None:
                if not self._alarms.set(delay, retry):
                    retry()  # too soon rather than never

            self.actions.append(retry_later)
        else:
            self._retry(run)

    def _retry(self, run: LiveRun) -> None:
        if run in self.open_runs:
            self._admission.enter(run, self._queue, self.finish)

    def cancel(self, run: LiveRun, state: State) -> bool:
        """End a run that has not begun, have one that has begun stopped; return False where that cannot be done."""
        if not run.in_hand:
            self.finish(run, state)
            return True
        self.actions.append(partial(run.lane.cancel, run))
        if not run.lane.can_stop(run):
            return False
        run.cancelling = state
        return True


def stopped() -> State:
    """Return the state of a run whose flow run was cancelled from outside, or too slow."""
    return Cancelled("the flow run was stopped")


def interrupted() -> State:
    """Return the state of a run that was stopped by Ctrl-C or a signal."""
    return Cancelled("the flow run was interrupted", name=INTERRUPTED)
