"""A flow run while it lives: makes task runs of calls, new ones or such as an earlier attempt has begun or answered."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

from localflow import arguments
from localflow.code import is_changed
from localflow.earlier import OUTDATED, EarlierRun, EarlierRuns
from localflow.errors import ChangedSinceError, ForeignFutureError, OutsideFlowError
from localflow.futures import TaskFuture, futures_in
from localflow.inputs import InputPrints
from localflow.records import FlowRun, TaskRun
from localflow.run_names import run_name
from localflow.states import State
from localflow.tags import current_tags, joined_tags
from localflow.upstreams import MANY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from localflow.engine import Engine
    from localflow.flows import Flow
    from localflow.inputs import KnownInputs
    from localflow.interrupts import FlowStop
    from localflow.lanes import Lane
    from localflow.recovery import Resumption
    from localflow.tasks import Task

    #: What a call waits for, what of it may have failed, what blocks it already; and the ids of it all.
    Links = tuple[tuple[tuple[TaskFuture[Any], ...], frozenset[int], State | None], tuple[str, ...]]

from localflow.live import NO_KEYWORDS, NONE_TOLERATED, PENDING, LaterRun, LiveRun, may_be_tolerated

_log = logging.getLogger("localflow.resume")

_RESULTS = (TaskFuture, State)
_INPUTS = (*_RESULTS, arguments.Marker)
_FIXED = (*_RESULTS, arguments.quote)
_LINKED = (*_RESULTS, arguments.allow_failure)


class SubflowCall:
    """A call of a subflow: which it is, with what, and its final state once it has one."""

    def __init__(self, name: str, ordinal: int, inputs: str, earlier: EarlierRun[FlowRun] | None) -> None:
        self.name = name
        self.ordinal = ordinal
        self.inputs = inputs
        self.earlier = earlier
        """The flow run that it was in an earlier attempt of the flow that calls it."""
        self.state: State | None = earlier.state if earlier is not None else None


class ActiveFlow:
    """A flow run whose body is at work, or whose task runs have not all ended."""

    def __init__(self, engine: Engine, record: FlowRun, lane: Lane, depth: int, flow: Flow[..., Any]) -> None:
        self.engine = engine
        self.record = record
        self.lane = lane
        self.depth = depth
        self.flow = flow
        self.log_prints = bool(flow.log_prints)
        self.attempt = 1
        self.futures: list[TaskFuture[Any]] = []
        self.subflows: list[State] = []
        self.submitted = 0
        """Task runs given to the engine in all attempts."""
        self.ended = 0
        self.over = False
        """Whether all that it started has ended and nothing may be added."""
        self.lock = threading.Lock()
        """Guards `interrupt`, and that what it does comes to the body or not at all."""
        self.stopped = threading.Event()
        """Set with `stop`."""
        self.stop: FlowStop | None = None
        """Why its body is to end, if somebody has said so."""
        self.interrupt: Callable[[FlowStop], None] | None = None
        """Ends the body where that can be done from outside."""
        self.has_renewed = False
        """Whether it has run anything that an earlier attempt had not completed, or anew."""
        self._renewed: set[str] = set()
        self._inputs = InputPrints()
        self._numbers = itertools.count(1)
        self._map_numbers = itertools.count(1)
        self._ordinals: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
        self._subflow_ordinals: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
        self.resumption: Resumption | None = None
        self._earlier: EarlierRuns[TaskRun] | None = None
        self._earlier_subflows: EarlierRuns[FlowRun] | None = None
        # What has been called, if another attempt may want to know.
        self._runs: list[LiveRun | EarlierRun[TaskRun]] | None = [] if flow.retry.retries > 0 else None
        self._subflow_runs: list[tuple[SubflowCall, str]] = []
        self._warned: set[tuple[str, str]] = set()
        self._many: tuple[tuple[object, ...], Links | None] = (), None
        """What the last call that waited for many futures waited for, and its links."""

    def resume(
        self, resumption: Resumption, attempt: int, runs: EarlierRuns[TaskRun], subflows: EarlierRuns[FlowRun]
    ) -> None:
        """Begin where earlier processes have left the flow run, with this attempt."""
        self.attempt, self.resumption = attempt, resumption
        self._earlier, self._earlier_subflows = runs, subflows
        self._numbers = itertools.count(runs.highest_number + 1)

    def begin_attempt(self) -> None:
        """Begin anew: the body will be called again, and completed runs of before stand for its calls."""
        self.attempt += 1
        runs: EarlierRuns[TaskRun] = EarlierRuns()
        subflows: EarlierRuns[FlowRun] = EarlierRuns()
        for name, ordinal, untaken in self._earlier.untaken() if self._earlier is not None else ():
            runs.add(name, ordinal, untaken)
        for name, ordinal, left in self._earlier_subflows.untaken() if self._earlier_subflows is not None else ():
            subflows.add(name, ordinal, left)
        for run in self._runs or ():
            earlier_run = run.as_earlier() if isinstance(run, LiveRun) else run
            earlier_run.is_taken = False
            runs.add(run.record.task, run.record.ordinal, earlier_run)
        for call, run_id in self._subflow_runs:
            assert call.state is not None
            earlier = EarlierRun(self.record._replace(id=run_id, inputs=call.inputs))
            earlier.type, earlier.state = call.state.type, call.state
            subflows.add(call.name, call.ordinal, earlier)
        self._earlier, self._earlier_subflows = runs, subflows
        self._runs, self._subflow_runs = [], []
        self.futures, self.subflows = [], []
        self.engine.renewed -= self._renewed  # what was built on them has run since, or is known to be out of date
        self._renewed.clear()
        self._ordinals.clear()
        self._subflow_ordinals.clear()
        self._map_numbers = itertools.count(1)

    def incomplete(self) -> list[str]:
        """Return the names of the task runs of this attempt that did not complete."""
        return [future.name for future in self.futures if not future.state.is_completed()]

    def next_map_number(self) -> int:
        """Return the number for another `map` call."""
        return next(self._map_numbers)

    def known_inputs(self, values: Iterable[object]) -> KnownInputs:
        """Look at values that go to many calls, and return what is to be passed on to `submit` with each of these."""
        return self._inputs.known(values)

    def submit(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], wait_for: object = None
    ) -> TaskFuture[Any]:
        """Make a task run of a call; with an executor that runs in the caller it has ended on return."""
        future, run = self.make_run(task, self.lane_of(task), args, kwargs, wait_for)
        if run is not None:
            self.engine.submit((run,))
        return future

    def lane_of(self, task: Task[..., Any]) -> Lane:
        """Return where the runs of a task go."""
        lane = self.lane if task.executor is None else self.engine.lane(task.executor)
        if task.timeout_seconds is not None and not lane.executor.kills_on_timeout and not task.is_async:
            self.engine.lanes.warn_of_timeout(task.name, lane)
        return lane

    def make_run(
        self,
        task: Task[..., Any],
        lane: Lane,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        wait_for: object = None,
        map_number: int = 0,
        map_index: int = 0,
        known: KnownInputs | None = None,
    ) -> tuple[TaskFuture[Any], LiveRun | None]:
        """Return the future of a call, and its run, which is to be submitted; None if it stands for one of before."""
        if self.over:
            raise OutsideFlowError(task.name, "submit", f"after flow run '{self.record.name}' had ended")
        ordinal = next(self._ordinals[task.name])
        inputs = self._inputs.of(args if task.owner is None else (task.owner, *args), kwargs, wait_for, known)
        found = arguments.find_in_call(args, kwargs, _INPUTS)
        resolve = bool(found)
        ids: tuple[str, ...] = ()
        if found or wait_for is not None:
            links, ids = self._links(args, kwargs, found, wait_for)
            if resolve:
                args, kwargs = _snapshot(args, kwargs)
        earlier = None
        if self._earlier is not None:
            earlier = self._earlier.take(task.name, ordinal, inputs, task.code)
            if earlier is None:
                self._note_other_inputs(task.name, self._earlier.at(task.name, ordinal))
                ordinal = self._earlier.free_ordinal(task.name, ordinal)
            else:
                ordinal = earlier.record.ordinal
        name = f"{task.name}-{ordinal}"
        if task.run_name is not None:
            name = run_name(task, args, kwargs, name)
        tags = current_tags()
        record: TaskRun = tuple.__new__(  # see `LiveRun.change`
            TaskRun,
            (
                self.record, next(self._numbers) if earlier is None else earlier.record.number, name, task.name,
                ordinal, time.time() if earlier is None else earlier.record.created_at, ids,
                joined_tags(tags, task.tags) if tags else task.tags, task.version or "", map_number, map_index,
                task.code, inputs,
            ),
        )  # fmt: skip
        kwargs = kwargs or NO_KEYWORDS
        if self._earlier is None:
            run = LiveRun(self, lane, record, task, args, kwargs, resolve)
        else:
            run = again = LaterRun(self, lane, record, task, args, kwargs, resolve)
            if earlier is not None:
                reason = self._take_up(again, earlier)
                if reason is None and earlier.future is not None:
                    if self._runs is not None:
                        self._runs.append(earlier)
                    self.futures.append(earlier.future)
                    return earlier.future, None
            if again.answer is None:
                again.outdated = self._renew(record, self._earlier)
        if found or wait_for is not None:
            run.upstreams, run.tolerated, run.blocker = links
        future: TaskFuture[Any] = TaskFuture(record, PENDING, self.engine)
        run.future = future
        if self._runs is not None:
            self._runs.append(run)
        self.futures.append(future)
        return future, run

    def _links(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], found: list[Any], wait_for: object) -> Links:
        """Return what a call waits for, what of it may have failed, what blocks it already; and the ids of it all."""
        if isinstance(wait_for, (list, tuple)) and len(wait_for) >= MANY:
            links = None if any(isinstance(item, _LINKED) for item in found) else self._links_of_many(wait_for)
            if links is not None:
                return links
        tolerated = NONE_TOLERATED
        marked = found if wait_for is None else [*found, *arguments.find(wait_for, (arguments.allow_failure,))]
        if any(type(item) is arguments.allow_failure for item in marked):
            tolerated = frozenset(map(id, arguments.find_tolerated((args, kwargs, wait_for), _RESULTS)))
        if wait_for is not None:
            found = [*found, *futures_in(wait_for)]
        upstreams, blocker, ids = self._sort(found, tolerated)
        return (upstreams, tolerated, blocker), ids

    def _links_of_many(self, wait_for: Sequence[object]) -> Links | None:
        """Return the links of a call that waits for many futures, the same objects as for the call before if it does.

        None if there is anything else in it.
        """
        known, links = self._many
        futures = tuple(wait_for)  # of a map it is one, always the same
        if futures is not known and futures != known:
            if not all(isinstance(item, TaskFuture) and item._engine is self.engine for item in futures):
                return None
            upstreams: dict[TaskFuture[Any], None] = dict.fromkeys(cast("tuple[TaskFuture[Any], ...]", futures))
            ids = tuple([future.task_run_id for future in upstreams])
            links = (tuple(upstreams), NONE_TOLERATED, None), ids
            self._many = futures, links
        return links

    def _take_up(self, run: LaterRun, earlier: EarlierRun[TaskRun]) -> str | None:
        """Have a run go on where an earlier attempt has left it; return why it is run again, None if it is not."""
        run.sequence, run.begun = earlier.sequence, earlier.begun
        run.state = State(earlier.type, earlier.name, earlier.message, instant=earlier.timestamp)
        reason = self._why_again(run, earlier)
        if reason is None:
            run.is_new = False
        else:
            run.answer = None
            run.note = reason
            run.first_attempt = run.attempt = earlier.begun + 1
            run.is_new = run.record[1:] != earlier.record[1:]
        return reason

    def _renew(self, record: TaskRun, earlier: EarlierRuns[TaskRun]) -> list[TaskRun]:
        """Note that a run is run again or is new, and return what is out of date by that."""
        self.has_renewed = True
        self._renewed.add(record.id)
        self.engine.renewed.add(record.id)
        outdated = earlier.outdate(record.id)
        if self.resumption is not None:
            for run_id in (record.id, *self.resumption.ancestors(self.record)):
                outdated += self.resumption.outdate(run_id)
        return outdated

    def _why_again(self, run: LaterRun, earlier: EarlierRun[TaskRun]) -> str | None:
        """Return why a call of an earlier attempt is run again; None, and the answer in `run`, if it is not."""
        record, known = run.record, earlier.record
        if not earlier.is_completed:
            return f"resumed: it was {earlier.name}" if self.resumption is not None else ""
        if earlier.future is None and self.resumption is not None and self.resumption.is_wanted(known):
            return "its run again was asked for"
        if known.code == OUTDATED:
            return "what it was built on was run again"
        if is_changed(record.code, known.code):
            return self._changed(run, "code")
        if known.version != record.version:
            return self._changed(run, "version")
        if self.engine.renewed:
            renewed = next((each for each in record.upstreams if each in self.engine.renewed), None)
            if renewed is not None:
                return f"upstream {renewed} was run again"
        if earlier.future is None:
            assert self.resumption is not None
            run.answer = self.resumption.answer(earlier)
            if run.answer is None:
                return "its result was not kept"
        return None

    def _changed(self, run: LiveRun, what: str) -> str:
        """Return that something of a task has changed."""
        self._warn_of_change(
            run.task.name, what, f"{run.described()} completed before, but its {what} has changed since"
        )
        return f"its {what} has changed"

    def _note_other_inputs(self, task: str, there: EarlierRun[TaskRun] | None) -> None:
        """Say that a call is a new one, although there has been a call in its place."""
        if there is not None and not there.is_taken:
            name = there.record.name
            self._warn_of_change(
                task,
                "arguments",
                f"task run '{name}' completed before, but the arguments have changed since: a new run",
            )

    def _warn_of_change(self, task: str, what: str, text: str) -> None:
        """Say once for each task that something of it has changed; raise it if nothing may have changed."""
        if self.resumption is not None:
            if self.resumption.is_strict:
                raise ChangedSinceError(text)
            if (task, what) not in self._warned:
                self._warned.add((task, what))
                _log.warning("%s", text)

    def subflow_call(self, flow: Flow[..., Any], parameters: Mapping[str, Any], wait_for: object) -> SubflowCall:
        """Return another call of a subflow; it has its state if it completed in an earlier attempt."""
        name = flow.name
        inputs = self._inputs.of(() if flow.owner is None else (flow.owner,), parameters, wait_for)
        ordinal = next(self._subflow_ordinals[name])
        earlier = None
        if self._earlier_subflows is not None:
            earlier = self._earlier_subflows.take(name, ordinal, inputs, prefers_completed=True)
            if earlier is not None and earlier.state is not None and earlier.record.inputs != inputs:
                earlier = None
        call = SubflowCall(name, ordinal, inputs, earlier)
        stands_alone = not arguments.find((parameters, wait_for), _RESULTS)  # so that nothing can have renewed it
        if earlier is not None and earlier.state is None and stands_alone and self.resumption is not None:
            call.state = self.resumption.answer_flow(earlier, inputs, flow.code)
        return call

    def add_subflow(self, call: SubflowCall, run_id: str, has_renewed: bool) -> None:
        """Take the final state of a subflow, and whether it has run anything anew."""
        assert call.state is not None
        self.subflows.append(call.state)
        if self._runs is not None and call.state.is_completed():
            self._subflow_runs.append((call, run_id))
        if has_renewed and self._earlier_subflows is not None:
            self.has_renewed = True
            self.engine.renewed.add(run_id)

    def _sort(
        self, found: Sequence[Any], tolerated: frozenset[int]
    ) -> tuple[tuple[TaskFuture[Any], ...], State | None, tuple[str, ...]]:
        """Return the futures to wait for, the first state that blocks, and the ids of the runs they all belong to."""
        futures: dict[TaskFuture[Any], None] = {}
        ids: dict[str, None] = {}
        blocker = None
        for item in found:
            state = item
            if isinstance(item, TaskFuture):
                ids[item.task_run_id] = None
                if item._engine is self.engine:
                    futures[item] = None
                    continue
                if not item.done():
                    raise ForeignFutureError(item.name, item._flow_run_id, self.record.id)
                state = item.state
            if isinstance(state, State):
                if state.run is not None:
                    ids[state.run.id] = None
                allowed = id(item) in tolerated and may_be_tolerated(state)
                if blocker is None and not allowed and not state.is_completed():
                    blocker = state
        return tuple(futures), blocker, tuple(ids)


def _snapshot(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Copy the containers that hold futures: the caller may change them before the call runs."""
    if all(arguments.is_atom(value) or isinstance(value, _FIXED) for value in (*args, *kwargs.values())):
        return args, kwargs
    copies: tuple[tuple[Any, ...], Mapping[str, Any]]
    copies = arguments.replace((args, kwargs), _INPUTS, _copied)
    return copies


def _copied(item: Any) -> object:
    """Return a future or state itself, a marker with a copy of what it holds."""
    if not isinstance(item, arguments.Marker) or isinstance(item, arguments.quote):
        return item
    return type(item)(arguments.replace(item.value, _INPUTS, _copied))
