"""@task and Task: a function whose calls in a flow become task runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack, cast, overload

from localflow.arguments import Marker, replace
from localflow.caching import make_caching
from localflow.context import FlowContext, current_run
from localflow.errors import OutsideFlowError
from localflow.functions import DecoratedFunction, function_name
from localflow.keywords import TaskKeywords, check_known
from localflow.mapping import map_task

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
        self.caching = make_caching(
            f"@task '{self.name}'",
            options.get("cache_policy"),
            options.get("cache_key_fn"),
            options.get("cache_expiration"),
            options.get("refresh_cache"),
        )

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
        **options: `name` (default: the function's), `description` (default: its docstring), `tags` (texts), `version`
            (recorded with each run) and `executor` (a name of localflow.toml or an Executor; default: the flow's).
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
    if not any(isinstance(value, Marker) for value in (*args, *kwargs.values())):
        return args, kwargs
    bare: tuple[tuple[Any, ...], dict[str, Any]] = replace((args, kwargs), (), lambda item: item)
    return bare
