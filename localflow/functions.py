"""What flows and tasks have in common: a decorated function with a name and options."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from localflow.errors import ReservedArgumentError, suggestion
from localflow.interfaces import Executor
from localflow.payloads import travels_by_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

P = ParamSpec("P")
R = TypeVar("R")

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class DecoratedFunction(Generic[P, R]):
    """A user's function under a name, with options; `fn` is the plain function."""

    kind = "Function"

    def __init__(
        self,
        fn: Callable[P, R],
        *,
        name: str,
        description: str | None = None,
        version: str | None = None,
        executor: str | Executor | None = None,
    ) -> None:
        decorator = self.kind.lower()
        if isinstance(fn, (staticmethod, classmethod)) or not callable(fn):
            raise TypeError(f"@{decorator} takes a function, not {type(fn).__name__} {fn!r}")
        if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
            raise TypeError(
                f"@{decorator} takes a plain function; '{name}' is async or a generator, which localflow "
                "does not run yet: call asyncio.run(...) or list(...) inside a plain function"
            )
        if not isinstance(name, str) or not name:
            raise TypeError(f"@{decorator}(name=...) takes a text that is not empty, not {name!r}")
        for option, value in {"description": description, "version": version}.items():
            if value is not None and not isinstance(value, str):
                raise TypeError(f"@{decorator}({option}=...) of '{name}' takes a text, not {value!r}")
        if not (executor is None or isinstance(executor, Executor) or (isinstance(executor, str) and executor)):
            raise TypeError(
                f"@{decorator}(executor=...) of '{name}' takes the name of an executor or an Executor, not {executor!r}"
            )
        functools.update_wrapper(cast(Any, self), fn, updated=())  # the function's own attributes must not hide ours
        self.fn = fn
        self.name = name
        self.description = inspect.getdoc(fn) or "" if description is None else description
        self.version = version
        self.executor = executor
        self.module: str | None = getattr(fn, "__module__", None)
        self.qualname: str = getattr(fn, "__qualname__", function_name(fn))
        self._signature = _signature(fn)
        if "wait_for" in self._signature.parameters:
            raise ReservedArgumentError(self.kind, name, "wait_for")
        self._least, self._most = _positional_range(self._signature)

    def with_options(self, **options: Any) -> Self:
        """Return a copy with these options changed; takes what the decorator takes."""
        current = self.options()
        for option in options:
            if option not in current:
                raise TypeError(
                    f"{self.kind.lower()} '{self.name}' has no option '{option}'; it has {', '.join(current)}"
                )
        return type(self)(self.fn, **{**current, **options})

    def options(self) -> dict[str, Any]:
        """Return the options of the decorator that are in force."""
        return {
            "name": self.name,
            "description": self.description,
            "version": self.version,
            "executor": self.executor,
        }

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        """Return itself from a class, and from an instance one of the bound method."""
        if instance is None or not hasattr(self.fn, "__get__"):
            return self
        return type(self)(self.fn.__get__(instance, owner), **self.options())

    def __copy__(self) -> Self:
        return self.with_options()

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of a call by name, defaults included; raises TypeError as the function would."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.qualname}() {error}") from None
        bound.apply_defaults()
        return dict(bound.arguments)

    def check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise TypeError if the function cannot be called like this."""
        # The full binding costs 5 us, and nearly every call is a plain positional one.
        if kwargs or not self._least <= len(args) <= self._most:
            self.bind(args, kwargs)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name!r}>"

    def __reduce__(self) -> Any:
        """Pickle by reference where the module can be imported, like the plain function would be."""
        if self.module is not None and not travels_by_value(self.module):
            original = _find(self.module, self.qualname)
            if original is self:
                return _find, (self.module, self.qualname)
            if isinstance(original, DecoratedFunction) and original.fn is self.fn:
                return _changed, (original, {**self.options(), "executor": None})
        return _rebuilt, (type(self), self.fn, {**self.options(), "executor": None})


def _find(module: str, qualname: str) -> Any:
    __import__(module)
    found: Any = sys.modules[module]
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _changed(original: DecoratedFunction[Any, Any], options: dict[str, Any]) -> Any:
    return original.with_options(**options)


def _rebuilt(kind: type[DecoratedFunction[Any, Any]], fn: Callable[..., Any], options: dict[str, Any]) -> Any:
    return kind(fn, **options)


def check_options(decorator: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise TypeError for an option that the decorator does not have."""
    for option in options:
        if option not in known:
            raise TypeError(
                f"@{decorator} has no option '{option}'{suggestion(option, known)}; it has {', '.join(known)}"
            )


def function_name(fn: Callable[..., Any]) -> str:
    """Return a function's name; that of the function inside a partial, of the class of a callable object."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, "__name__", type(fn).__name__)


def _signature(fn: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(fn)
    except ValueError:  # some functions written in C do not tell theirs
        return inspect.signature(lambda *args, **kwargs: None)


def _positional_range(signature: inspect.Signature) -> tuple[int, int]:
    """Return how few and how many positional arguments suffice for a call without keywords; (1, 0) for never."""
    least = most = 0
    for parameter in signature.parameters.values():
        required = parameter.default is inspect.Parameter.empty
        if parameter.kind in _POSITIONAL:
            most += 1
            least += required
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            most = sys.maxsize
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY and required:
            return 1, 0
    return least, most
