"""@flow and Flow: the one place that wires a project's settings and plugins into an engine."""

from __future__ import annotations

import inspect
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar, Unpack, cast, overload

from localflow import arguments
from localflow.code import code_of
from localflow.context import FlowContext, TaskContext, current_run
from localflow.control import ControlChannel, control_path
from localflow.coroutines import in_thread
from localflow.engine import Engine
from localflow.errors import NotResumableError, PluginError, UnpicklableError
from localflow.flow_runs import FlowCall
from localflow.functions import DecoratedFunction, function_name
from localflow.futures import TaskFuture, futures_in
from localflow.keywords import FlowKeywords, check_known, checked_flag
from localflow.live import may_be_tolerated
from localflow.logs import recording
from localflow.names import random_id, random_name
from localflow.payloads import pack
from localflow.record_buffer import RecordBuffer
from localflow.records import FlowRun
from localflow.recovery import Again, claimed_run, codes_of_tasks, make_plan, stored_parameters
from localflow.references import find_flow_run
from localflow.run_names import run_name
from localflow.states import Cancelled, State
from localflow.tags import current_tags
from localflow.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Concatenate, Self

    from localflow.interfaces import Claim, Executor, StateStore
    from localflow.lanes import Lane
    from localflow.live import ActiveFlow, SubflowCall
    from localflow.notifications import Notifications
    from localflow.payloads import Payload
    from localflow.project import Project
    from localflow.recovery import Plan, Resumption
    from localflow.signatures import A, Call, FlowDecorator, HasFunction, Rest, WaitFor

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("localflow.flows")

_REPR_LIMIT = 200


class FinishedRun(NamedTuple):
    """A flow run that has ended, and how."""

    flow_run: FlowRun
    state: State
    failed_notifications: int = 0
    """How many notifications nobody got: their notifier failed, was too slow or had too many waiting."""


class Flow(DecoratedFunction[P, R], Generic[P, R]):
    """A decorated function that calls tasks; calling it runs it now and returns its final State."""

    kind = "Flow"

    def __init__(self, fn: Callable[P, R], **options: Unpack[FlowKeywords]) -> None:
        super().__init__(fn, function_name(fn).replace("_", "-"), options)
        if self.is_generator:
            raise TypeError(f"@flow '{self.name}' is a generator; return a list, or make the generator a task")
        validate = checked_flag(f"@flow '{self.name}'", "validate_parameters", options.get("validate_parameters"))
        self.validate_parameters = validate is not False

    def with_options(self, **options: Unpack[FlowKeywords]) -> Self:  # type: ignore[override]  # it takes less
        """Return a copy with these options changed; takes what the decorator takes."""
        return super().with_options(**options)

    if TYPE_CHECKING:

        @overload
        def __get__(
            self: HasFunction[Callable[Concatenate[type[A], Rest], Any]], instance: A | None, owner: type[A]
        ) -> Flow[Rest, R]: ...
        @overload
        def __get__(
            self: HasFunction[Callable[Concatenate[A, Rest], Any]], instance: A, owner: type[A] | None = None
        ) -> Flow[Rest, R]: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None) -> Self: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    @classmethod
    def known_options(cls) -> Iterable[str]:
        """Return the names of the options that @flow takes."""
        return FlowKeywords.__annotations__

    @property
    def entry_point(self) -> str:
        """Where the flow is found again: the file (as the interpreter knows it) and the function's name in it."""
        code = getattr(inspect.unwrap(self.fn), "__code__", None)
        return f"{_whole_path(code.co_filename, self.module) if code else self.module}:{self.qualname}"

    def _call(self, /, *args: Any, wait_for: WaitFor = None, **kwargs: Any) -> Any:
        """Run the flow and return its final state; an exception of the body is in the state, it does not escape.

        In the body of another flow it is a subflow: its own flow run, on the parent's executor unless it names one.
        An async flow gives something to await, which runs the flow in the loop that is running there.

        Raises:
            TypeError: the function cannot be called with these arguments.
            StoreError: a state could not be recorded.
            ConfigError, PluginError: localflow.toml or a plugin it names is wrong; nothing has run.
        """
        parameters = self.bind(args, kwargs)
        context = current_run()
        if self.is_async:
            return self._call_async(context, parameters, wait_for)
        if isinstance(context, FlowContext):
            called = context.active.subflow_call(self, parameters, wait_for)
            if called.state is None:
                call = self._subflow(context, called, *self._settled(parameters, wait_for))
                called.state = call.run()
                context.active.add_subflow(called, call.record.id, call.has_renewed)
            else:
                context.active.add_subflow(called, called.state.run_id, False)
            return called.state
        parameters, blocker = self._settled(parameters, wait_for)
        if isinstance(context, TaskContext):
            with self._inside(context) as engine:
                return self._flow_in_task(engine, context, parameters, blocker).run()
        with _own_store() as (project, store), self._prepared(project, store, parameters, blocker) as call:
            return call.run()

    # So that checkers know the parameters; see signatures.py.
    __call__: Call[P, State] = cast(Any, _call)

    async def _call_async(
        self, context: FlowContext | TaskContext | None, parameters: dict[str, Any], wait_for: object
    ) -> State:
        if isinstance(context, FlowContext):
            called = context.active.subflow_call(self, parameters, wait_for)
            if called.state is None:
                call = self._subflow(context, called, *await self._settled_async(parameters, wait_for))
                called.state = await call.run_async()
                context.active.add_subflow(called, call.record.id, call.has_renewed)
            else:
                context.active.add_subflow(called, called.state.run_id, False)
            return called.state
        parameters, blocker = await self._settled_async(parameters, wait_for)
        if isinstance(context, TaskContext):
            with self._inside(context) as engine:
                return await self._flow_in_task(engine, context, parameters, blocker).run_async()
        with _own_store() as (project, store), self._prepared(project, store, parameters, blocker) as call:
            return await call.run_async()

    def execute(
        self,
        project: Project,
        store: StateStore,
        parameters: Mapping[str, object],
        on_start: Callable[[FlowRun], None] | None = None,
    ) -> FinishedRun:
        """Run the flow with a project's settings, recording in a store that the caller has opened and will close.

        An async flow is run in an event loop of its own.

        Args:
            project: where executors and notifiers come from.
            store: where to record.
            parameters: the flow's parameters by name.
            on_start: told of the flow run once its start is recorded, so that its name may be shown.
        """
        bound = self._fitted(self.bind((), parameters))
        notifications = project.make_notifications()
        with self._prepared(project, store, bound, None, on_start, notifications) as call:
            state = self._run_to_end(call)
        return FinishedRun(call.record, state, notifications.close())

    def execute_again(
        self,
        project: Project,
        store: StateStore,
        run: FlowRun,
        again: Again | None = None,
        on_plan: Callable[[Plan], bool] | None = None,
        on_start: Callable[[FlowRun], None] | None = None,
        executor: str | None = None,
    ) -> FinishedRun | None:
        """Take up a flow run where it has ended, otherwise like `execute`.

        Args:
            project: where executors and notifiers come from.
            store: where the flow run is recorded.
            run: the flow run.
            again: what is to run again although it completed.
            on_plan: told what is going to happen; nothing happens if it returns False.
            on_start: told of the flow run once it is recorded that it goes on.
            executor: the name of an executor, in the place of the one that the flow run had.

        Returns:
            None if `on_plan` has returned False.

        Raises:
            RunClaimedError: another process is running it.
            NotResumableError: it completed, it is part of another one, or its parameters were not kept.
        """
        notifications = project.make_notifications()
        try:
            with self._taken_up(
                project, store, run, again or Again(), notifications, on_plan, on_start, executor
            ) as call:
                if call is None:
                    return None
                state = self._run_to_end(call)
        finally:
            failed = notifications.close()
        return FinishedRun(call.record, state, failed)

    def _run_to_end(self, call: FlowCall) -> State:
        if not self.is_async:
            return call.run()
        import asyncio

        return asyncio.run(call.run_async())

    def resume(self, run_id: str, *, from_task: str | None = None, rerun: str | Iterable[str] = ()) -> Any:
        """Take up a flow run of this flow where it ended, in whatever way it did.

        The flow's function is called again with the parameters that are recorded. A task call that completed is
        answered from the store; the rest runs, as another attempt. What has changed since, in the code of a task or in
        its arguments, runs again with all that depends on it, and a warning says why.

        Args:
            run_id: the flow run's id or the beginning of it, its name, `@last` or `@last-failed`.
            from_task: a task, or a task run, that is to run again with all that was called after it.
            rerun: patterns for the names of tasks or task runs that are to run again, with what depends on them.

        Returns:
            The final state; of an async flow something to await.

        Raises:
            RunNotFoundError: there is no such flow run, or it has no such task run.
            RunClaimedError: another process is running it.
            NotResumableError: it completed, it is part of another one, or its parameters were not kept.
            StoreError: a state could not be read or recorded.
        """
        if current_run() is not None:
            raise NotResumableError("a flow run is resumed by a program of its own, not by a flow or task")
        again = Again(from_task, (rerun,) if isinstance(rerun, str) else tuple(rerun))
        if self.is_async:
            return self._resume_async(run_id, again)
        with self._own_run(run_id, again) as call:
            return call.run()

    async def _resume_async(self, run_id: str, again: Again) -> State:
        with self._own_run(run_id, again) as call:
            return await call.run_async()

    @contextmanager
    def _own_run(self, run_id: str, again: Again) -> Iterator[FlowCall]:
        """Give what is needed to resume a flow run in the project of the working directory."""
        with _own_store() as (project, store):
            run = find_flow_run(store, run_id).flow_run
            notifications = project.make_notifications()
            try:
                with self._taken_up(project, store, run, again, notifications) as call:
                    assert call is not None  # nobody has asked for the plan
                    yield call
            finally:
                notifications.close()

    @contextmanager
    def _taken_up(
        self,
        project: Project,
        store: StateStore,
        run: FlowRun,
        again: Again,
        notifications: Notifications,
        on_plan: Callable[[Plan], bool] | None = None,
        on_start: Callable[[FlowRun], None] | None = None,
        executor: str | None = None,
    ) -> Iterator[FlowCall | None]:
        """Give what is needed to resume a flow run; None if `on_plan` does not want it."""
        with claimed_run(store, run, again, notifications.publish) as (run, resumption):
            if run.flow != self.name:
                raise NotResumableError(f"flow run '{run.name}' is of flow '{run.flow}', not of '{self.name}'")
            codes = codes_of_tasks([inspect.unwrap(self.fn)])
            if on_plan is not None and not on_plan(make_plan(resumption, run, codes)):
                yield None
                return
            left = (run, resumption, executor or run.executor)
            parameters = stored_parameters(run)
            with self._prepared(project, store, parameters, None, on_start, notifications, left) as call:
                yield call

    @contextmanager
    def _prepared(
        self,
        project: Project,
        store: StateStore,
        parameters: dict[str, Any],
        blocker: State | None,
        on_start: Callable[[FlowRun], None] | None = None,
        notifications: Notifications | None = None,
        left: tuple[FlowRun, Resumption, str] | None = None,
    ) -> Iterator[FlowCall]:
        """Give what is needed to run the flow at the top of a tree, and release it afterwards."""
        notifications = notifications or project.make_notifications()
        engine = Engine(store, project.choose, notifications, project.limits_of())
        channels: list[ControlChannel] = []
        claim: Claim | None = None

        def started(active: ActiveFlow) -> None:
            if store.survives:
                channels.append(_listen(project, active))
            if on_start is not None:
                on_start(active.record)

        try:
            if left is None:
                lane = engine.lane(self.executor or project.executor)
                record, resumption, left_flow = self._record(parameters, lane.name), None, None
                claim = store.claim(record.id)
            else:
                run, resumption, executor = left
                lane = _lane_again(engine, self.executor or executor, project.executor)
                record, left_flow = self._record_again(run, parameters, lane.name), resumption.left(run.id)
            with engine.shield.listening(), recording():
                yield FlowCall(
                    engine, self, record, lambda: self._body(parameters), lane, 0, blocker, started, left_flow,
                    resumption,
                )  # fmt: skip
        finally:
            for channel in channels:
                channel.close()
            engine.close()
            notifications.close()
            if claim is not None:
                claim.release()

    def _subflow(
        self, context: FlowContext, called: SubflowCall, parameters: dict[str, Any], blocker: State | None
    ) -> FlowCall:
        parent = context.active
        if parent.stop is not None:
            raise parent.stop
        engine = parent.engine
        lane = parent.lane if self.executor is None else engine.lane(self.executor)
        record = self._record(parameters, lane.name, context.flow_run.root_id, context.flow_run.id, called.inputs)
        left = resumption = None
        if called.earlier is not None and parent.resumption is not None:
            resumption = parent.resumption
            left = resumption.left(called.earlier.record.id)
            record = record._replace(
                id=left.run.record.id, name=left.run.record.name, created_at=left.run.record.created_at
            )
        return FlowCall(
            engine,
            self,
            record,
            lambda: self._body(parameters),
            lane,
            parent.depth + 1,
            blocker,
            None,
            left,
            resumption,
        )

    @contextmanager
    def _inside(self, context: TaskContext) -> Iterator[Engine]:
        """Give an engine for a flow inside a task: what it records travels to the store with the task's outcome."""
        from localflow import SequentialExecutor

        engine = Engine(RecordBuffer(context.records), lambda executor: SequentialExecutor())
        try:
            yield engine
        finally:
            engine.close()

    def _flow_in_task(
        self, engine: Engine, context: TaskContext, parameters: dict[str, Any], blocker: State | None
    ) -> FlowCall:
        task_run = context.task_run
        record = self._record(parameters, "sequential", task_run.flow_run.root_id, task_run.id)
        return FlowCall(engine, self, record, lambda: self._body(parameters), engine.lane("sequential"), 0, blocker)

    def _settled(self, parameters: dict[str, Any], wait_for: object) -> tuple[dict[str, Any], State | None]:
        parameters, blocker = _settled(parameters, wait_for)
        return self._fitted(parameters) if blocker is None else parameters, blocker

    async def _settled_async(self, parameters: dict[str, Any], wait_for: object) -> tuple[dict[str, Any], State | None]:
        parameters, blocker = await _settled_async(parameters, wait_for)
        return self._fitted(parameters) if blocker is None else parameters, blocker

    def _fitted(self, parameters: dict[str, Any]) -> dict[str, Any]:
        if not (self.validate_parameters and parameters):
            return parameters
        from localflow.parameters import fit_arguments

        return fit_arguments(f"flow '{self.name}'", self.fn, parameters)

    def _body(self, parameters: dict[str, Any]) -> object:
        args, kwargs = _call_arguments(self._signature, parameters)
        return self.fn(*args, **kwargs)

    @property
    def code(self) -> str:
        """A fingerprint of the flow's own code."""
        return code_of(self.fn, with_tasks=False)

    def _record_again(self, run: FlowRun, parameters: dict[str, Any], executor: str) -> FlowRun:
        """Return the record of a flow run that goes on here, in this process and with the code of now."""
        record = self._record(parameters, executor)
        return record._replace(
            id=run.id, name=run.name, created_at=run.created_at, root_id=run.root_id, inputs=run.inputs,
            parameters=run.parameters, arguments=run.arguments,
        )  # fmt: skip

    def _record(
        self,
        parameters: dict[str, Any],
        executor: str,
        root_id: str | None = None,
        parent_id: str | None = None,
        inputs: str = "",
    ) -> FlowRun:
        run_id, name = random_id(), random_name()
        if self.run_name is not None:
            name = run_name(self, *_call_arguments(self._signature, parameters), name)
        versions = {"localflow": __version__, "python": platform.python_version()}
        if self.version is not None:
            versions["flow"] = str(self.version)
        return FlowRun(
            id=run_id,
            name=name,
            flow=self.name,
            created_at=time.time(),
            root_id=root_id or run_id,
            parent_id=parent_id,
            parameters={name: json_safe(value) for name, value in parameters.items()},
            arguments=_packed(parameters),
            entry_point=self.entry_point,
            executor=executor,
            versions=versions,
            host=platform.node(),
            pid=os.getpid(),
            tags=current_tags(),
            code=self.code,
            inputs=inputs,
        )


def _flow(fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a flow of a function, bare or with options.

    Args:
        fn: the function, when used as `@flow`.
        name: what it is called. Default: the function's name, with `-` for `_`.
        description: a text for readers. Default: the docstring.
        version: a text that is recorded with each run. Default: none.
        executor: what its tasks run on: a name (`"thread"`, a table of localflow.toml) or an Executor. Default: that of
            the flow that calls it, or else of the project.
        retries: how often a run that FAILED is tried again, a whole number; task runs that completed are kept.
            Default: 0.
        retry_delay_seconds: seconds before each retry: a number, a list (its last serves for the rest), or a function
            that returns these for the number of retries, such as `exponential_backoff(1)`. Default: 0.
        timeout_seconds: how long an attempt may take; then its task runs are cancelled, its body is ended where it can
            be (in the main thread, or if it is async), and it is FAILED `TimedOut`. Default: no limit.
        persist_result: whether its result is kept in the state store. Default: True.
        log_prints: whether what it and its tasks print becomes log records. Default: False.
        flow_run_name: a template for the parameters, as `"report of {day}"`, or a function that takes nothing, or the
            parameters by name, and returns the name. Default: two words.
        validate_parameters: whether arguments are fitted to the annotations, `"3"` to an `int`; what does not fit
            raises a TypeError. Default: True.
        on_running: a hook or a list of them: functions `(flow, run, state)` that get the state it entered,
            called when an attempt begins. Whatever goes wrong in a hook is logged and changes nothing. Default: none.
        on_completion: likewise, when a run has COMPLETED.
        on_failure: likewise, when it has FAILED and is not tried again.
        on_crashed: likewise, when it has CRASHED.
        on_cancellation: likewise, when it was CANCELLED.

    Raises:
        TypeError: there is no such option, or it does not take this value.
    """
    check_known("flow", options, Flow.known_options())
    if fn is None:
        return lambda fn: Flow(fn, **options)
    return Flow(fn, **options)


flow: FlowDecorator = cast(Any, _flow)
"""Make a flow of a function, bare or with options; a call of it is a flow run, and gives its final state."""


def json_safe(value: object, depth: int = 8) -> object:
    """Return `value` as JSON can hold it, for readers; what it cannot hold becomes its bounded repr."""
    if type(value) in (type(None), bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else repr(value)
    if depth and isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return [json_safe(item, depth - 1) for item in value]
    if depth and isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: json_safe(item, depth - 1) for key, item in value.items()}
    return _bounded_repr(value)


def _bounded_repr(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}: repr() of it raised {type(error).__name__}>"
    return text if len(text) <= _REPR_LIMIT else text[: _REPR_LIMIT - 3] + "..."


def _packed(parameters: dict[str, Any]) -> Payload | None:
    try:
        return pack(parameters)
    except UnpicklableError:
        return None


@contextmanager
def _own_store() -> Iterator[tuple[Project, StateStore]]:
    """Give the project of the working directory and its store, open for the block."""
    from localflow.project import Project

    project = Project.current()
    with project.opened_store() as store:
        yield project, store


def _whole_path(file: str, module: str | None) -> str:
    """Return the path of a module's file, which `python script.py` knows only as it was typed."""
    known = getattr(sys.modules.get(module or ""), "__file__", None)
    is_relative = known is not None and not Path(file).is_absolute() and Path(known).name == Path(file).name
    return str(Path(known).absolute()) if known is not None and is_relative else file


def _lane_again(engine: Engine, executor: str | Executor, default: str) -> Lane:
    """Return the lane of the executor that a flow run had before; of the project's own if that is no more."""
    try:
        return engine.lane(executor)
    except PluginError as error:
        if executor == default or not isinstance(executor, str):
            raise
        _log.warning("%s; resuming on executor '%s'", str(error).split("\n")[0], default)
        return engine.lane(default)


def _listen(project: Project, active: ActiveFlow) -> ControlChannel:
    """Let other processes cancel a flow run."""

    def cancel() -> None:
        active.engine.stop_flow(active, Cancelled("the flow run was cancelled from outside"))

    channel = ControlChannel(control_path(project.state_directory, active.record.id), cancel)
    channel.open()
    return channel


async def _settled_async(parameters: dict[str, Any], wait_for: object) -> tuple[dict[str, Any], State | None]:
    """Do `_settled` without blocking the loop that is running here."""
    if wait_for is None and not arguments.find(parameters, (TaskFuture,)):
        return _settled(parameters, None)
    return await in_thread(lambda: _settled(parameters, wait_for))


def _settled(parameters: dict[str, Any], wait_for: object) -> tuple[dict[str, Any], State | None]:
    """Wait for the futures in a flow call; return its parameters with data in their place, and what blocks it."""
    found = arguments.find(parameters, (TaskFuture, State))
    if wait_for is not None:
        found += futures_in(wait_for)
    tolerated = {id(item) for item in arguments.find_tolerated((parameters, wait_for), (TaskFuture, State))}

    def data(item: TaskFuture[Any] | State) -> object:
        state: State = item.state if isinstance(item, TaskFuture) else item
        return state.result(raise_on_failure=state.is_completed())

    for item in found:
        state = item.wait() if isinstance(item, TaskFuture) else item
        if state is not None and not state.is_completed() and not (id(item) in tolerated and may_be_tolerated(state)):
            return parameters, state
    return arguments.replace(parameters, (TaskFuture, State), data), None


def _call_arguments(signature: inspect.Signature, parameters: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    bound = inspect.BoundArguments(signature, parameters)
    return bound.args, bound.kwargs
