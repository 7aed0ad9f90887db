"""Names of runs: from a template filled with the parameters, or from a function."""

from __future__ import annotations

import inspect
import logging
import re
import string
from types import MethodType
from typing import TYPE_CHECKING, Any

from localflow import arguments
from localflow.futures import TaskFuture
from localflow.interrupts import STOPS
from localflow.payloads import type_name
from localflow.states import type_and_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from localflow.functions import DecoratedFunction

_log = logging.getLogger("localflow.run_names")

_LONGEST = 200
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_template(described: str, option: str, template: str, function: Callable[..., object]) -> None:
    """Raise TypeError if the parameters of a function cannot fill the template.

    Args:
        described: whose template it is, as `@task 'add'`.
        option: the name of the option.
        template: what `str.format` takes.
        function: what the run calls; of a method, the object has a name as well.
    """
    try:
        fields = list(_fields(template))
    except ValueError as error:
        raise TypeError(
            f"{described}: {option}={template!r} is no template: {error} (a brace is written twice)"
        ) from None
    parameters = dict(_parameters(function.__func__ if isinstance(function, MethodType) else function))
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    unknown = [field for field in fields if field not in parameters]
    if unknown:
        has = f"it has {', '.join(parameters)}" if parameters else "it has none"
        raise TypeError(
            f"{described}: {option}={template!r} names {', '.join(map(repr, unknown))}, which is no parameter of the "
            f"function; {has}"
        )


def run_name(
    decorated: DecoratedFunction[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], default: str
) -> str:
    """Return the name for a run of a task or flow that is called like this: at most 200 characters.

    A future among the arguments stands in it as the name of its run. Where the template or the function fails, the name
    is `default` and a warning is logged: a run never fails for its name.
    """
    try:
        found = _made(decorated, decorated.bind(args, kwargs))
    except STOPS:
        raise
    except BaseException as error:
        problem = type_and_text(error)
    else:
        if isinstance(found, str) and found:
            return found if len(found) <= _LONGEST else f"{found[: _LONGEST - 3]}..."
        problem = "it made an empty text" if isinstance(found, str) else f"it made no text but {type_name(found)}"
    kind = decorated.kind.lower()
    _log.warning("%s_run_name of %s '%s': %s; the run is called '%s'", kind, kind, decorated.name, problem, default)
    return default


def _made(decorated: DecoratedFunction[..., Any], parameters: dict[str, Any]) -> object:
    if isinstance(decorated.fn, MethodType):
        names = [name for name, _ in _parameters(decorated.fn.__func__)]
        parameters = {names[0]: decorated.fn.__self__, **parameters}
    parameters = arguments.replace(parameters, (TaskFuture,), lambda future: _NameOf(future.name))
    source = decorated.run_name
    if not isinstance(source, str):
        assert source is not None
        return _call(source, parameters)
    try:
        return source.format_map(parameters)
    except KeyError:  # it may name one of those that `**options` took
        rest = [name for name, parameter in _parameters(decorated.fn) if parameter.kind is parameter.VAR_KEYWORD]
        if not rest:
            raise
        return source.format_map({**parameters[rest[0]], **parameters})


def _call(function: Callable[..., object], parameters: dict[str, Any]) -> object:
    """Call a function that takes nothing, or the parameters."""
    takes = dict(_parameters(function))
    if "parameters" in takes and takes["parameters"].kind is not inspect.Parameter.POSITIONAL_ONLY:
        return function(parameters=parameters)
    needed = [parameter for parameter in takes.values() if parameter.default is parameter.empty]
    if any(parameter.kind in _POSITIONAL for parameter in needed):
        return function(parameters)
    return function()


def _parameters(function: Callable[..., object]) -> Iterable[tuple[str, inspect.Parameter]]:
    try:
        return inspect.signature(function).parameters.items()
    except ValueError:  # some functions written in C do not tell theirs
        return ()


def _fields(template: str) -> Iterator[str]:
    """Yield the names that a template refers to; raises ValueError if it is no template."""
    for _literal, field, form, conversion in string.Formatter().parse(template):
        if field is None:
            continue
        name = re.split(r"[.\[]", field, maxsplit=1)[0]
        if not name or name.isdecimal():
            raise ValueError(f"{{{field}}} stands for no parameter, name one")
        if conversion not in (None, "r", "s", "a"):
            raise ValueError(f"there is no conversion !{conversion}")
        yield name
        yield from _fields(form or "")


class _NameOf:
    """Stands for a future: formats as the name of its run and is nothing else."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __format__(self, form: str) -> str:
        return format(self._name, form)

    def __str__(self) -> str:
        return self._name

    __repr__ = __str__
