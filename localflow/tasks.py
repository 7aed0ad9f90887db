"""@task and Task: a function whose calls in a flow become task runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack, cast, overload

from localflow.arguments import Marker, replace
from localflow.caching import make_caching
from localflow.context import FlowContext, current_run
from localflow.errors import OutsideFlowError
from localflow.functions import DecoratedFunction, function_name
from localflow.keywords import TaskKeywords, check_known, checked_priority

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Concatenate, Self

    from localflow.futures import TaskFuture
    from localflow.mapping import MappedFutures
    from localflow.signatures import A, Call, HasFunction, Rest, TaskDecorator, WaitFor

P = ParamSpec("P")
R = TypeVar("R")


class Task(DecoratedFunction[P, R], Generic[P, R]):
    """A decorated function that the engine may run elsewhere.

    Called in the body of a flow it returns a TaskFuture at once; called anywhere else, also inside another task, it is
    the plain function.
    """

    kind = "Task"

    def __init__(self, fn: Callable[P, R], **options: Unpack[TaskKeywords]) -> None:
        super().__init__(fn, function_name(fn), options)
        self.tags = _sorted_tags(options.get("tags"))
        self.priority = checked_priority(f"@task '{self.name}'", options.get("priority"))
        self.caching = make_caching(
            f"@task '{self.name}'",
            options.get("cache_policy"),
            options.get("cache_key_fn"),
            options.get("cache_expiration"),
            options.get("refresh_cache"),
        )
        if self.caching is not None and self.persist_result is False:
            raise TypeError(f"@task '{self.name}': a cached result must be kept; leave out persist_result=False")

    def _call(self, /, *args: Any, wait_for: WaitFor = None, **kwargs: Any) -> Any:
        """Call the task: a TaskFuture in the body of a flow, the function's own value elsewhere.

        Args:
            *args: the function's arguments; futures and states in them, at any depth, are replaced by their data.
            wait_for: a future, a state or any nesting of these; the task starts only when all of them completed.
            **kwargs: the function's keyword arguments.

        Raises:
            TypeError: the function cannot be called with these arguments.
        """
        context = current_run()
        if not isinstance(context, FlowContext):
            args, kwargs = _unquoted(args, kwargs)
            return self.fn(*args, **kwargs)
        self.check_arguments(args, kwargs)
        return context.active.submit(self, args, kwargs, wait_for)

    def _submit(self, /, *args: Any, wait_for: WaitFor = None, **kwargs: Any) -> TaskFuture[R]:
        """Make a task run of the call and return its future; the same as calling the task in a flow.

        Raises:
            OutsideFlowError: no flow is running here; inside a task, call the task as a plain function.
            TypeError: the function cannot be called with these arguments.
        """
        context = current_run()
        if not isinstance(context, FlowContext):
            raise OutsideFlowError(self.name, "submit", "outside a flow" if context is None else "inside a task")
        self.check_arguments(args, kwargs)
        return context.active.submit(self, args, kwargs, wait_for)

    # So that checkers know the parameters; see signatures.py.
    __call__: Call[P, TaskFuture[R]] = cast(Any, _call)
    submit: Call[P, TaskFuture[R]] = cast(Any, _submit)

    def map(self, /, *args: Any, wait_for: WaitFor = None, **kwargs: Any) -> MappedFutures[R]:
        """Make one task run for each item of the iterables among the arguments.

        Args:
            *args: iterables are taken apart, in step; whatever is no iterable, a text, or `unmapped(...)` goes to every
                run as it is. A future stands for its data. A generator is read as runs end, not at once.
            wait_for: as in a call; it holds for every run.
            **kwargs: likewise.

        Raises:
            OutsideFlowError: no flow is running here.
            MappingLengthMismatchError: the iterables are not of one length; nothing of it has run.
            TypeError: there is nothing to map over, or the function cannot be called with these arguments.
        """
        context = current_run()
        if not isinstance(context, FlowContext):
            raise OutsideFlowError(self.name, "map", "outside a flow" if context is None else "inside a task")
        from localflow.mapping import map_task

        return map_task(context.active, self, args, kwargs, wait_for)

    def with_options(self, **options: Unpack[TaskKeywords]) -> Self:  # type: ignore[override]  # it takes less
        """Return a copy with these options changed; takes what the decorator takes."""
        return super().with_options(**options)

    if TYPE_CHECKING:

        @overload
        def __get__(
            self: HasFunction[Callable[Concatenate[type[A], Rest], Any]], instance: A | None, owner: type[A]
        ) -> Task[Rest, R]: ...
        @overload
        def __get__(
            self: HasFunction[Callable[Concatenate[A, Rest], Any]], instance: A, owner: type[A] | None = None
        ) -> Task[Rest, R]: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None) -> Self: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    @classmethod
    def known_options(cls) -> Iterable[str]:
        """Return the names of the options that @task takes."""
        return TaskKeywords.__annotations__


def _task(fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a task of a function, bare or with options.

    Args:
        fn: the function, when used as `@task`.
        name: what its runs are called after. Default: the function's name.
        description: a text for readers. Default: the docstring.
        version: a text that is recorded with each run. Default: none.
        tags: texts that are recorded with each run, and that `[limits]` of localflow.toml may limit. Default: none.
        executor: a name (`"thread"`, a table of localflow.toml) or an Executor. Default: that of the flow.
        retries: how often a run that FAILED is tried again, a whole number. Default: 0.
        retry_delay_seconds: seconds before each retry: a number, a list (its last serves for the rest), or a function
            that returns these for the number of retries, such as `exponential_backoff(1)`. Default: 0.
        retry_jitter_factor: a delay is longer by up to so many times itself, at random. Default: 0.
        retry_condition_fn: called with the task, its run and the failed state; it is tried again only if that returns
            something true. Default: always.
        retry_on_crash: whether a run whose worker process died is tried again as well. Default: False.
        timeout_seconds: how long an attempt may take, from when it begins; then it is FAILED `TimedOut`. Worker
            processes are killed; sequential tasks are not interrupted, nor are threads, which are given up; async code
            is. Default: no limit.
        persist_result: whether results are kept in the state store. Default: True.
        log_prints: whether what it prints becomes log records. Default: as the flow has it.
        cache_policy: what a result depends on, as `INPUTS + TASK_SOURCE`. Default: no caching.
        cache_key_fn: called with the run context and the parameters by name; returns the key, in the place of one by
            the policy, or None for no caching. Default: none.
        cache_expiration: for how long a result may be used again, a timedelta or seconds. Default: for ever.
        refresh_cache: whether to compute anew whatever is there, and keep that. Default: False.
        priority: of the task runs that are ready and wait for a worker those with the highest priority start first,
            among equals those that have the most behind them. Default: 0.
        task_run_name: a template for the parameters, as `"load {path}"`, or a function that takes nothing, or the
            parameters by name, and returns the name. Default: `{name}-{n}`.
        on_running: a hook or a list of them: functions `(task, run, state)` that get the state it entered,
            called when an attempt begins. Whatever goes wrong in a hook is logged and changes nothing. Default: none.
        on_completion: likewise, when a run has COMPLETED.
        on_failure: likewise, when it has FAILED and is not tried again.
        on_crashed: likewise, when it has CRASHED.
        on_cancellation: likewise, when it was CANCELLED.

    Raises:
        TypeError: there is no such option, or it does not take this value.
    """
    check_known("task", options, Task.known_options())
    if fn is None:
        return lambda fn: Task(fn, **options)
    return Task(fn, **options)


task: TaskDecorator = cast(Any, _task)
"""Make a task of a function, bare or with options; a call of it in a flow is a task run."""


def _sorted_tags(tags: Iterable[str] | None) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise TypeError(f"tags takes a collection of texts, not the text {tags!r}; write tags=[{tags!r}]")
    if tags is None:
        return ()
    texts = list(tags) if isinstance(tags, Iterable) else [tags]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"tags takes a collection of texts, not {tags!r}")
    return tuple(sorted(set(texts)))


def _unquoted(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take arguments out of their markers, as a call in a flow does."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Marker):
            break
    else:  # as nearly ever; any() of a generator would take three times as long
        return args, kwargs
    bare: tuple[tuple[Any, ...], dict[str, Any]] = replace((args, kwargs), (), lambda item: item)
    return bare
