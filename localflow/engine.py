"""The engine: drives one flow run and all its subflows, whatever the executors.

The engine has no thread of its own. Whoever brings *news* (a call, outcomes of an executor) puts it into `_news` and
takes a *turn*; only the holder of the baton `_baton` changes the graph, the queues and the records, and a thread that
finds the baton taken leaves its news to the holder. So the more threads press, the more news one turn handles.

A turn: take all news -> end, block and ready nodes in the graph -> take what executors have room for -> commit
everything that happened as one append to the store -> show it (futures, notifiers) -> hand calls to executors.
That order is the durability contract: nothing is shown before it is stored, no call leaves before its start is stored.

Lives of a task run:  PENDING (waits in the graph, then in its lane) -> RUNNING (handed over) -> an executor's outcome;
or PENDING -> NotReady, when an upstream did not complete. A *lane* is one executor with its queue of ready runs.
Executors that run calls in the caller's thread are handed a call by the thread that made it, never by another.

If the store fails, the engine is broken for good: nothing more is started or shown, who waits gets the StoreError.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from localflow import arguments
from localflow.callbacks import CallbackRunner
from localflow.calls import Call, Outcome, Output, failed_state
from localflow.context import FlowContext, entered
from localflow.errors import FlowDepthError, LocalflowError, RunCancelledError, StoreError
from localflow.final_state import final_state
from localflow.futures import TaskFuture
from localflow.graph import RunGraph
from localflow.interrupts import STOPS, Shield
from localflow.live import ActiveFlow, Lane, LiveRun, claim, executor_name, release
from localflow.payloads import type_name
from localflow.records import FlowRun, StateChange
from localflow.states import (
    INTERRUPTED,
    Cancelled,
    Crashed,
    Running,
    State,
    StateType,
    not_ready,
    type_and_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localflow.interfaces import Executor, StateStore
    from localflow.notifications import Notifications
    from localflow.payloads import Payload
    from localflow.records import Record

_log = logging.getLogger("localflow.engine")

MAX_FLOW_DEPTH = 20
_UNSAVED_LIMIT = 512


class Engine:
    """Drives a flow run and its subflows: orders, records, hands over, shows."""

    def __init__(
        self,
        store: StateStore,
        make_executor: Callable[[str | Executor], Executor],
        notifications: Notifications | None = None,
    ) -> None:
        self.store = store
        self.lock = threading.Lock()
        """Guards the futures' waiters and callbacks; held for moments only."""
        self._make_executor = make_executor
        self._notifications = notifications
        self._baton = threading.Lock()
        self._news: deque[LiveRun | Outcome] = deque()
        self._graph = RunGraph()
        self._runs: dict[int, LiveRun] = {}
        self._flows: list[ActiveFlow] = []
        self._lanes: dict[object, Lane] = {}
        self._lanes_lock = threading.Lock()
        self._unsaved: list[Record] = []
        self._progress = threading.Condition()
        """Told when a flow run has no open task runs left, and when a caller may run its call or give it up."""
        self.callbacks = CallbackRunner()
        self.shield = Shield()
        self._here = threading.local()
        """`handed`: what this thread is handing over, so that a turn within an executor's `submit` only adds to it."""
        self._error: Exception | None = None
        self._interrupted = False

    # -- flows -------------------------------------------------------------------------------------------------------

    def run_flow(
        self,
        record: FlowRun,
        body: Callable[[], object],
        lane: Lane,
        depth: int = 0,
        blocker: State | None = None,
    ) -> State:
        """Run a flow's body, wait for all that it started, and return its recorded final state.

        Ctrl-C and SIGTERM stop the whole tree and go on to the caller; any other exception becomes the state.
        """
        if depth >= MAX_FLOW_DEPTH:
            raise FlowDepthError(record.flow, MAX_FLOW_DEPTH)
        if blocker is not None:
            return self._end_flow(record, not_ready(blocker), sequence=1, before=[record])
        running = Running()
        self._append([record, StateChange(record, 1, running.type, running.name, "", running.instant)])
        active = ActiveFlow(self, record, lane, depth)
        self._flows.append(active)
        try:
            state = self._run_body(active, body)
        except STOPS:
            self._end_flow(record, Cancelled("the flow run was interrupted", name=INTERRUPTED), sequence=2)
            raise
        return self._end_flow(record, state, sequence=2)

    def _run_body(self, active: ActiveFlow, body: Callable[[], object]) -> State:
        returned, failure = None, None
        try:
            with entered(FlowContext(active.record, active, 1, lambda line: None)):
                try:
                    returned = body()
                except STOPS:
                    raise
                except BaseException as error:  # sys.exit() in a flow is its failure, not the program's end
                    if error is self._error:
                        raise
                    failure = failed_state(error, "Flow")
            self._wait_for_all(active)
            for future in arguments.find(returned, (TaskFuture,)):
                future.wait()  # it may be of the flow that called this one
        except STOPS:
            self.interrupt()
            raise
        finally:
            active.over = True
        if failure is not None:
            return failure
        return final_state(returned, [*(future.state for future in active.futures), *active.subflows])

    def _wait_for_all(self, active: ActiveFlow) -> None:
        def all_ended() -> bool:
            return self._error is not None or active.ended >= len(active.futures)

        while True:
            with self._progress:
                self._progress.wait_for(all_ended)
            self.callbacks.wait_idle()
            if all_ended():  # a callback may have called tasks in its turn
                break
        if self._error is not None:
            raise self._error

    def _end_flow(self, record: FlowRun, state: State, sequence: int, before: Sequence[Record] = ()) -> State:
        if not state.run_id:
            state.run_id, state.run_label = record.id, f"flow run '{record.name}'"
        change = StateChange(
            record, sequence, state.type, state.name, state.message, state.instant,
            "Pending" if sequence == 1 else "Running", 1, None, state.cause, state.recordable(),
        )  # fmt: skip
        self._append([*before, change])
        return state

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

    def close(self) -> None:
        """Shut the executors down and give up callbacks that have not run."""
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
        if self._error is not None:
            raise self._error
        if self._interrupted:
            raise RunCancelledError("the flow run was interrupted, no more tasks can be called in it")
        run.active.futures.append(run.future)
        self._news.append(run)
        self._turn()
        if run.lane.executor.runs_in_caller:
            if not run.go:
                self._wait_for_go(run)
            if run.go and run.call is not None:
                self._hand_over(run.lane, [run.call])
            run.future.wait()

    def report(self, outcomes: Sequence[Outcome | Output]) -> None:
        """Take outcomes and output from an executor, in any thread."""
        for outcome in outcomes:
            if isinstance(outcome, Output):
                continue
            if isinstance(outcome, Outcome) and isinstance(outcome.state, State):
                self._news.append(outcome)
            else:
                _log.error("an executor reported %.200r, which is not an Outcome with a State; ignored", outcome)
        self._turn()

    def interrupt(self) -> None:
        """Stop everything: open runs end CANCELLED, executors are shut down with what they hold."""
        with self.shield, self._baton:
            self._interrupted = True
            if self._error is None:
                self._guarded(self._cancel_open_runs)
        self._turn()
        self.close()

    def _cancel_open_runs(self) -> None:
        ended: list[LiveRun] = []
        self._take_news(ended)
        for run in self._runs.values():
            self._end(run, Cancelled("the flow run was interrupted", name=INTERRUPTED))
            ended.append(run)
        self._runs.clear()
        for lane in self._lanes.values():
            lane.ready.clear()
        self._show(self._commit(), ended)

    # -- the turn ----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        with self.shield:
            handed: deque[tuple[Lane, list[Call]]] | None = getattr(self._here, "handed", None)
            if handed is not None:
                self._take_turns(handed)
                return
            handed = self._here.handed = deque()
            try:
                self._take_turns(handed)
                while handed:
                    self._hand_over(*handed.popleft())
            finally:
                del self._here.handed

    def _take_turns(self, handed: deque[tuple[Lane, list[Call]]]) -> None:
        while self._news and self._baton.acquire(blocking=False):
            try:
                if self._error is not None:
                    self._news.clear()
                else:
                    self._guarded(self._decide, handed)
            finally:
                self._baton.release()

    def _decide(self, handed: deque[tuple[Lane, list[Call]]]) -> None:
        """Do one turn's work up to the commit and what it allows to be shown; calls to hand over join `handed`."""
        ended: list[LiveRun] = []
        self._take_news(ended)
        starting = self._take_ready()
        if ended or starting or len(self._unsaved) >= _UNSAVED_LIMIT:
            self._show(self._commit(), ended, starting)
        calls: dict[Lane, list[Call]] = {}
        for run in starting:
            if run.call is not None and not run.lane.executor.runs_in_caller:
                calls.setdefault(run.lane, []).append(run.call)
        handed.extend(calls.items())

    def _guarded(self, work: Callable[..., None], *args: Any) -> None:
        """Do what only the baton's holder may; whatever goes wrong there breaks the engine instead of being lost."""
        try:
            work(*args)
        except Exception as error:
            if not isinstance(error, LocalflowError):
                _log.exception("the engine broke down, no more tasks are started")
            self._break(error)

    def _take_news(self, ended: list[LiveRun]) -> None:
        """Bring the graph up to date; runs that have ended are added to `ended`."""
        news, graph = self._news, self._graph
        while news:
            item = news.popleft()
            if isinstance(item, LiveRun):
                self._add(item, ended)
            else:
                run = self._runs.get(item.call_id)
                if run is None or run.call is None:
                    if not self._interrupted:
                        _log.warning("an executor reported call %s, which it does not have; ignored", item.call_id)
                    continue
                del self._runs[item.call_id]
                run.lane.in_hand -= 1
                self._unsaved.extend(item.records)
                self._end(run, item.state, item.execution, item.result)
                ended.append(run)
                graph.end(run.node, item.state.type is StateType.COMPLETED)
            self._take_blocked(ended)
            while graph.ready:
                run = self._runs[graph.ready.popleft()]
                run.lane.ready.append(run)

    def _add(self, run: LiveRun, ended: list[LiveRun]) -> None:
        self._unsaved.append(run.record)
        if self._interrupted:
            run.node = run.future._node = self._graph.add_ended()
            self._end(run, Cancelled("the flow run was interrupted", name=INTERRUPTED))
            ended.append(run)
        elif run.blocker is None:
            run.node = run.future._node = self._graph.add([future._node for future in run.upstreams])
            self._runs[run.node] = run
        else:
            run.node = run.future._node = self._graph.add_ended()
            self._end(run, not_ready(run.blocker))
            ended.append(run)

    def _take_blocked(self, ended: list[LiveRun]) -> None:
        blocked = self._graph.blocked
        while blocked:
            node, culprit = blocked.popleft()
            run = self._runs.pop(node)
            upstream = next(future for future in run.upstreams if future._node == culprit)
            assert upstream._ending is not None  # what blocks has ended
            self._end(run, not_ready(upstream._ending, f"task run '{upstream.name}'"))
            ended.append(run)

    def _end(self, run: LiveRun, state: State, execution: Any = None, result: Payload | None = None) -> None:
        if not state.run_id:
            state.run_id, state.run_label = run.record.id, f"task run '{run.record.name}'"
        run.future._ending = state
        self._unsaved.append(run.change(state, execution, result))

    def _take_ready(self) -> list[LiveRun]:
        """Start what the executors have room for."""
        starting: list[LiveRun] = []
        for lane in list(self._lanes.values()):
            room = max(0, lane.room()) if lane.ready else 0
            for _ in range(room):
                run = lane.ready.popleft()
                self._unsaved.append(run.change(Running()))
                run.make_call()
                starting.append(run)
            lane.in_hand += room
        return starting

    def _save(self) -> None:
        self._show(self._commit(), ())

    def _commit(self) -> list[Record]:
        records, self._unsaved = self._unsaved, []
        try:
            self.store.append(records)
        except StoreError:
            raise
        except BaseException as error:  # a store that raises anything else, sys.exit() too, has not recorded either
            raise StoreError(f"state store {type_name(self.store)} failed: {type_and_text(error)}") from error
        return records

    def _show(self, records: Sequence[Record], ended: Sequence[LiveRun], starting: Sequence[LiveRun] = ()) -> None:
        wake = False
        for run in starting:
            run.future._change(run.state)
            if run.lane.executor.runs_in_caller:
                run.go = wake = True
        for run in ended:
            run.args, run.kwargs, run.upstreams = (), {}, ()
            callbacks = run.future._resolve(run.state)
            if callbacks:
                self.callbacks.add(run.future, callbacks)
            run.active.ended += 1
            if run.active.ended >= len(run.active.futures) or run.lane.executor.runs_in_caller:
                wake = True
        if wake:
            with self._progress:
                self._progress.notify_all()
        if self._notifications is not None:
            wants = self._notifications.wants
            changes = [item for item in records if isinstance(item, StateChange) and wants(item.name, item.type)]
            if changes:
                self._notifications.publish(changes)

    def _hand_over(self, lane: Lane, calls: list[Call]) -> None:
        try:
            lane.executor.submit(calls)
        except STOPS:
            raise
        except BaseException as error:
            message = f"executor {lane.described()} failed to take the call: {type_and_text(error)}"
            self.report([Outcome(call.id, Crashed(message)) for call in calls])

    def _wait_for_go(self, run: LiveRun) -> None:
        with self._progress:
            self._progress.wait_for(lambda: self._error is not None or run.go or run.future.done())

    def _append(self, records: Sequence[Record]) -> None:
        """Commit records of a flow run, together with whatever waits to be stored, and tell the notifiers."""
        with self.shield, self._baton:
            if self._error is None:
                self._unsaved.extend(records)
                self._guarded(self._save)
        if self._error is not None:
            raise self._error
        self._turn()

    def _break(self, error: Exception) -> None:
        """Start and show nothing any more: whoever waits for anything gets `error`."""
        self._error = error
        self._runs.clear()
        for active in self._flows:
            for future in active.futures:
                future._abandon(error)
        with self._progress:
            self._progress.notify_all()
