"""What type checkers see of tasks and flows: the function's own parameters, with futures where values are wanted.

Two things have to be said here that Python's types have no words for.

A future may stand where its value is wanted: as an argument, by position or by name, or in a container among the
arguments. So for a checker it fits every type. What it cannot do itself, such as being iterated or compared, is refused
all the same, as far as checkers look.

A call takes `wait_for=` besides the function's parameters, but no type adds a keyword to a `ParamSpec`. So without
`wait_for` every argument is checked against the function; with it, the first two positional ones are.

None of this is there when a program runs.
"""

# Overloads here overlap on purpose, the first that fits counts; and what has no bodies needs no implementations.
# mypy: disable-error-code="overload-overlap, override, no-overload-impl"

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Generator, Iterator, Mapping
    from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeAlias, Unpack, overload

    from localflow.flows import Flow
    from localflow.futures import TaskFuture
    from localflow.keywords import FlowKeywords, TaskKeywords
    from localflow.states import State
    from localflow.tasks import Task

    P = ParamSpec("P")
    Rest = ParamSpec("Rest")
    R = TypeVar("R")
    A = TypeVar("A")
    B = TypeVar("B")
    F = TypeVar("F")

    class StandIn(Any, Generic[T_co]):  # type: ignore[misc]  # fitting every type is what it is for
        """Something that stands among the arguments of a call for a value of its type."""

    class Handle(Awaitable[T_co], StandIn[T_co]):
        """A stand-in that is neither a container nor a number: who takes it for one has forgotten its `result()`."""

        def __getattr__(self, name: str) -> NotTheValue: ...

        __iter__ = __getitem__ = __bool__ = None

        def _refused(self, other: object) -> NotTheValue: ...

        __add__ = __sub__ = __mul__ = __truediv__ = __floordiv__ = __mod__ = _refused
        __lt__ = __le__ = __gt__ = __ge__ = _refused

    class NotTheValue:
        """What comes of using a future in the place of its `result()`."""

        __bool__ = None

    class Upstream(Protocol):
        """A state, and as it fits everything, a future."""

        def is_final(self) -> bool:
            """Return whether the run has ended."""

    #: What a checker would refuse where it wants values: states, and containers of futures that are no literals.
    Futures: TypeAlias = Upstream | Collection[TaskFuture[Any]] | Mapping[Any, TaskFuture[Any]]
    #: What `wait_for` takes.
    WaitFor: TypeAlias = (
        Upstream | Collection[Upstream | Collection[Upstream]] | Mapping[Any, Upstream | Collection[Upstream]] | None
    )

    class HasFunction(Protocol[T_co]):
        """A decorated function, to look into its parameters."""

        @property
        def fn(self) -> T_co:
            """The plain function."""

    class Call(Generic[P, T]):
        """Called with the parameters of the decorated function, and `wait_for`."""

        @property
        def fn(self) -> Callable[P, Any]:
            """Return the plain function."""

        @overload
        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T: ...

        @overload
        def __call__(
            self: HasFunction[Callable[Concatenate[A, Rest], Any]],
            a: A | Futures,
            /,
            *args: Rest.args,
            **kwargs: Rest.kwargs,
        ) -> T: ...
        @overload
        def __call__(
            self: HasFunction[Callable[Concatenate[A, B, Rest], Any]],
            a: A | Futures,
            b: B | Futures,
            /,
            *args: Rest.args,
            **kwargs: Rest.kwargs,
        ) -> T: ...
        @overload
        def __call__(self, /, *, wait_for: WaitFor, **kwargs: Any) -> T: ...
        @overload
        def __call__(
            self: HasFunction[Callable[Concatenate[A, ...], Any]],
            a: A | Futures,
            /,
            *,
            wait_for: WaitFor,
            **kwargs: Any,
        ) -> T: ...
        @overload
        def __call__(
            self: HasFunction[Callable[Concatenate[A, B, ...], Any]],
            a: A | Futures,
            b: B | Futures,
            /,
            *args: Any,
            wait_for: WaitFor,
            **kwargs: Any,
        ) -> T: ...
        def __call__(*args: Any, **kwargs: Any) -> Any:
            """Call a task or flow as what it is decorated as.

            Args:
                *args: the function's arguments; futures and states in them, at any depth, are replaced by their data.
                wait_for: a future, a state or any nesting of these; it starts only when all of them completed.
                **kwargs: the function's keyword arguments.
            """

    class DrainedTask(Task[P, R], Generic[P, R, F]):
        """A task whose data is not what its function returns, but what awaiting or iterating that gives."""

        @property
        def fn(self) -> Callable[P, F]:
            """The plain function."""

        @overload
        def __get__(
            self: HasFunction[Callable[Concatenate[type[A], Rest], Any]], instance: A | None, owner: type[A]
        ) -> DrainedTask[Rest, R, F]: ...
        @overload
        def __get__(
            self: HasFunction[Callable[Concatenate[A, Rest], Any]], instance: A, owner: type[A] | None = None
        ) -> DrainedTask[Rest, R, F]: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None) -> Self: ...

    class Closable(Protocol):
        """An iterator that is more than one, such as an open file or a cursor."""

        def close(self) -> object:
            """Close it."""

    Standing = TypeVar("Standing", bound=StandIn[Any])
    Closing = TypeVar("Closing", bound=Closable)

    class TaskDecorator(Protocol):
        """What `task` is, bare and with options."""

        # First what would fit all that follows: functions without annotations, and those that return futures.
        @overload
        def __call__(self, fn: Callable[P, Standing], /) -> Task[P, Standing]: ...
        @overload
        def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> DrainedTask[P, R, Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(self, fn: Callable[P, AsyncIterator[R]], /) -> DrainedTask[P, list[R], AsyncIterator[R]]: ...
        @overload
        def __call__(
            self, fn: Callable[P, Generator[R, Any, Any]], /
        ) -> DrainedTask[P, list[R], Generator[R, Any, Any]]: ...
        @overload
        def __call__(self, fn: Callable[P, Closing], /) -> Task[P, Closing]: ...
        @overload
        def __call__(self, fn: Callable[P, Iterator[R]], /) -> DrainedTask[P, list[R], Iterator[R]]: ...
        @overload
        def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...
        @overload
        def __call__(self, **options: Unpack[TaskKeywords]) -> TaskDecorator: ...

    class AsyncFlow(Flow[P, R]):
        """An async flow: the call, and the plain function, give something to await."""

        @property
        def fn(self) -> Callable[P, Coroutine[Any, Any, R]]:
            """The plain function."""

        __call__: Call[P, Coroutine[Any, Any, State]]  # type: ignore[assignment]

        @overload
        def __get__(
            self: HasFunction[Callable[Concatenate[type[A], Rest], Any]], instance: A | None, owner: type[A]
        ) -> AsyncFlow[Rest, R]: ...
        @overload
        def __get__(
            self: HasFunction[Callable[Concatenate[A, Rest], Any]], instance: A, owner: type[A] | None = None
        ) -> AsyncFlow[Rest, R]: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None) -> Self: ...

    class FlowDecorator(Protocol):
        """What `flow` is, bare and with options."""

        @overload
        def __call__(self, fn: Callable[P, Standing], /) -> Flow[P, Standing]: ...
        @overload
        def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncFlow[P, R]: ...
        @overload
        def __call__(self, fn: Callable[P, R], /) -> Flow[P, R]: ...
        @overload
        def __call__(self, **options: Unpack[FlowKeywords]) -> FlowDecorator: ...

else:
    StandIn = Handle = Generic
