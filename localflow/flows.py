"""@flow and Flow: a decorated function whose call is a flow run."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack, cast, overload

from localflow.context import FlowContext, TaskContext, current_run
from localflow.engine import Engine
from localflow.errors import NotResumableError
from localflow.flow_records import call_arguments, flow_record, flow_record_again
from localflow.flow_runs import FlowCall
from localflow.functions import DecoratedFunction, function_name
from localflow.keywords import FlowKeywords, check_known, checked_flag
from localflow.record_buffer import RecordBuffer
from localflow.recovery import Again
from localflow.roots import FinishedRun, begun, own_run, own_store, run_to_end
from localflow.settling import settled, settled_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Concatenate, Self

    from localflow.active import SubflowCall
    from localflow.interfaces import StateStore
    from localflow.project import Project
    from localflow.records import FlowRun
    from localflow.signatures import A, Call, FlowDecorator, HasFunction, Rest, WaitFor
    from localflow.states import State

P = ParamSpec("P")
R = TypeVar("R")


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
        with own_store() as (project, store), begun(self, project, store, parameters, blocker) as call:
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
        with own_store() as (project, store), begun(self, project, store, parameters, blocker) as call:
            return await call.run_async()

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
        with own_run(self, run_id, again) as call:
            return call.run()

    async def _resume_async(self, run_id: str, again: Again) -> State:
        with own_run(self, run_id, again) as call:
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
        bound = self.fitted(self.bind((), parameters))
        notifications = project.make_notifications()
        try:
            with begun(self, project, store, bound, None, on_start, notifications) as call:
                state = run_to_end(call)
        finally:
            failed = notifications.close()
        return FinishedRun(call.record, state, failed, call.active.incomplete())

    def _subflow(
        self, context: FlowContext, called: SubflowCall, parameters: dict[str, Any], blocker: State | None
    ) -> FlowCall:
        parent = context.active
        if parent.stop is not None:
            raise parent.stop
        engine = parent.engine
        lane = parent.lane if self.executor is None else engine.lane(self.executor)
        left = resumption = None
        if called.earlier is not None and parent.resumption is not None:
            resumption = parent.resumption
            left = resumption.left(called.earlier.record.id)
            record = flow_record_again(self, left.run.record, parameters, lane.name, called.inputs)
        else:
            family = (context.flow_run.root_id, context.flow_run.id)
            record = flow_record(self, parameters, lane.name, *family, called.inputs)
        return FlowCall(
            engine,
            self,
            record,
            lambda: self.body(parameters),
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
        task_run, lane = context.task_run, engine.lane("sequential")
        record = flow_record(self, parameters, lane.name, task_run.flow_run.root_id, task_run.id)
        return FlowCall(engine, self, record, lambda: self.body(parameters), lane, context.depth, blocker)

    def _settled(self, parameters: dict[str, Any], wait_for: object) -> tuple[dict[str, Any], State | None]:
        parameters, blocker = settled(parameters, wait_for)
        return self.fitted(parameters) if blocker is None else parameters, blocker

    async def _settled_async(self, parameters: dict[str, Any], wait_for: object) -> tuple[dict[str, Any], State | None]:
        parameters, blocker = await settled_async(parameters, wait_for)
        return self.fitted(parameters) if blocker is None else parameters, blocker

    def fitted(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return parameters as the annotations have them; raises ParameterError where they do not fit."""
        if not (self.validate_parameters and parameters):
            return parameters
        from localflow.parameters import fit_arguments

        return fit_arguments(f"flow '{self.name}'", self.fn, parameters)

    def body(self, parameters: dict[str, Any]) -> object:
        """Call the function with parameters by name."""
        args, kwargs = call_arguments(self.signature, parameters)
        return self.fn(*args, **kwargs)


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
