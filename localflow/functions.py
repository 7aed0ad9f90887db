"""What flows and tasks have in common: a decorated function with a name and options."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from localflow.callables import is_async, is_generator, is_plain, parameter_names, positional_range
from localflow.errors import ReservedArgumentError
from localflow.keywords import check_known, checked_flag, checked_hooks, checked_run_name, checked_seconds
from localflow.pickler import travels_by_value
from localflow.retries import retry_policy

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Iterable, Mapping
    from typing import Self

    from localflow.interfaces import Executor

P = ParamSpec("P")
R = TypeVar("R")

_PLAIN_OPTIONS = ("name", "description", "version", "timeout_seconds", "persist_result", "log_prints")


class DecoratedFunction(Generic[P, R]):
    """A user's function under a name, with options; `fn` is the plain function."""

    kind = "Function"

    def __init__(self, fn: Callable[P, R], default_name: str, options: Mapping[str, Any]) -> None:
        decorator = self.kind.lower()
        self._given = dict(options)
        self._original = fn
        plain = cast(Any, fn).__func__ if isinstance(fn, (staticmethod, classmethod)) else fn
        if not callable(plain):
            raise TypeError(f"@{decorator} takes a function, not {type(fn).__name__} {fn!r}")
        name = options.get("name")
        name = default_name if name is None else name
        if not isinstance(name, str) or not name:
            raise TypeError(f"@{decorator}(name=...) takes a text that is not empty, not {name!r}")
        described = f"@{decorator} '{name}'"
        description, version, executor = (options.get(option) for option in ("description", "version", "executor"))
        for option, value in {"description": description, "version": version}.items():
            if value is not None and not isinstance(value, str):
                raise TypeError(f"@{decorator}({option}=...) of '{name}' takes a text, not {value!r}")
        if not (executor is None or (isinstance(executor, str) and executor) or _is_executor(executor)):
            raise TypeError(
                f"@{decorator}(executor=...) of '{name}' takes the name of an executor or an Executor, not {executor!r}"
            )
        functools.update_wrapper(cast(Any, self), plain, updated=())  # the function's own attributes must not hide ours
        self.fn: Callable[P, R] = plain
        self.name: str = name
        self.version: str | None = version
        self.executor: str | Executor | None = executor
        self.retry = retry_policy(
            described,
            options.get("retries"),
            options.get("retry_delay_seconds"),
            options.get("retry_jitter_factor"),
            options.get("retry_condition_fn"),
            options.get("retry_on_crash"),
        )
        self.timeout_seconds = checked_seconds(described, "timeout_seconds", options.get("timeout_seconds"))
        self.persist_result = checked_flag(described, "persist_result", options.get("persist_result"))
        self.log_prints = checked_flag(described, "log_prints", options.get("log_prints"))
        self.hooks = checked_hooks(described, options)
        run_name = f"{decorator}_run_name"
        self.run_name = checked_run_name(described, run_name, options.get(run_name))
        self.is_async = is_async(plain)
        self.is_generator = is_generator(plain, or_async=True)
        self.owner: object = _owner(plain)
        """What a method or partial has of its own beside the arguments of a call; None if nothing."""
        self.module: str | None = getattr(plain, "__module__", None)
        self.qualname: str = getattr(plain, "__qualname__", function_name(plain))
        if isinstance(self.run_name, str):
            from localflow.run_names import check_template  # few have one

            check_template(described, run_name, self.run_name, plain)
        if is_plain(plain):
            parameters = parameter_names(plain)
            self._least, self._most = positional_range(plain)
        else:
            parameters = self.signature.parameters
            self._least, self._most = _positional_range(self.signature)
        if "wait_for" in parameters:
            raise ReservedArgumentError(self.kind, name, "wait_for")

    @functools.cached_property
    def description(self) -> str:
        """A text for readers: what the option says, or else the docstring."""
        given: str | None = self._given.get("description")
        if given is not None:
            return given
        from inspect import cleandoc  # `getdoc` asks the class of a bound method for it, and so for this task again

        text = self.fn.__doc__
        return cleandoc(text) if isinstance(text, str) else ""

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The signature of the function."""
        from inspect import signature  # imported when the first flow runs: many programs only define some

        try:
            return signature(self.fn)
        except ValueError:  # some functions written in C do not tell theirs
            return signature(lambda *args, **kwargs: None)

    @functools.cached_property
    def code(self) -> str:
        """A fingerprint of the code, by which `resume` notices that it has changed."""
        from localflow.code import code_of

        return code_of(self.fn, with_tasks=self.kind == "Task")

    def with_options(self, **options: Any) -> Self:
        """Return a copy with these options changed; takes what the decorator takes."""
        check_known(self.kind.lower(), options, self.known_options())
        return type(self)(cast(Any, self._original), **{**self.options(), **options})

    def bare(self) -> Self:
        """Return a copy that has only its plain options: no hooks and other functions, which may not be picklable."""
        return type(self)(cast(Any, self._original), **{name: getattr(self, name) for name in _PLAIN_OPTIONS})

    def options(self) -> dict[str, Any]:
        """Return the options of the decorator that are in force, `name` and `description` among them."""
        return {
            **dict.fromkeys(self.known_options()),
            **self._given,
            "name": self.name,
            "description": self.description,
        }

    @classmethod
    def known_options(cls) -> Iterable[str]:
        """Return the names of the options that the decorator takes."""
        raise NotImplementedError

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        """Return itself from a class, and from an instance one of the bound method."""
        if isinstance(self._original, staticmethod):
            return self
        if isinstance(self._original, classmethod):
            owner = type(instance) if owner is None else owner
            return type(self)(self._original.__get__(instance, owner), **self.options())
        if instance is None or not hasattr(self.fn, "__get__"):
            return self
        return type(self)(self.fn.__get__(instance, owner), **self.options())

    def __copy__(self) -> Self:
        return self.with_options()

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of a call by name, defaults included; raises TypeError as the function would."""
        try:
            bound = self.signature.bind(*args, **kwargs)
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


def function_name(fn: Callable[..., Any]) -> str:
    """Return a function's name; that of the function inside a partial, of the class of a callable object."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, "__name__", type(fn).__name__)


def _owner(fn: Callable[..., Any]) -> object:
    if isinstance(fn, functools.partial):
        return _owner(fn.func), fn.args, fn.keywords
    owner = getattr(fn, "__self__", None)
    return None if isinstance(owner, ModuleType) else owner


def _is_executor(value: object) -> bool:
    from localflow.interfaces import Executor

    return isinstance(value, Executor)


def _positional_range(signature: inspect.Signature) -> tuple[int, int]:
    """Return how few and how many positional arguments suffice for a call without keywords; (1, 0) for never."""
    least = most = 0
    for parameter in signature.parameters.values():
        required = parameter.default is parameter.empty
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            least += required
        elif parameter.kind is parameter.VAR_POSITIONAL:
            most = sys.maxsize
        elif parameter.kind is parameter.KEYWORD_ONLY and required:
            return 1, 0
    return least, most
