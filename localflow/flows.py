"""@flow and Flow: a decorated function whose call is a flow run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack, cast, overload

from localflow.functions import DecoratedFunction, function_name
from localflow.keywords import FlowKeywords, check_known, checked_flag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Concatenate, Self

    from localflow.interfaces import StateStore
    from localflow.project import Project
    from localflow.records import FlowRun
    from localflow.roots import FinishedRun
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
        from localflow.flow_calls import run_flow  # which imports the engine: many programs only define flows

        return run_flow(self, parameters, wait_for)

    # So that checkers know the parameters; see signatures.py.
    __call__: Call[P, State] = cast(Any, _call)

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
        from localflow.resuming import resume_flow

        return resume_flow(self, run_id, from_task, (rerun,) if isinstance(rerun, str) else tuple(rerun))

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
        from localflow.roots import execute

        return execute(self, project, store, self.fitted(self.bind((), parameters)), on_start)

    def fitted(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return parameters as the annotations have them; raises ParameterError where they do not fit."""
        if not (self.validate_parameters and parameters):
            return parameters
        from localflow.parameters import fit_arguments

        return fit_arguments(f"flow '{self.name}'", self.fn, parameters)

    def body(self, parameters: dict[str, Any]) -> object:
        """Call the function with parameters by name."""
        from localflow.flow_records import call_arguments

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
