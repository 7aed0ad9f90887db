"""Texts of the command line as the parameters of a flow: read as JSON where they are JSON, then fitted to annotations.

Only annotations with one obvious reading are fitted; a value for any other one is passed on as JSON gives it.
"""

from __future__ import annotations

import collections.abc
import datetime
import enum
import inspect
import json
import pathlib
import types
import typing
from typing import TYPE_CHECKING, Any, NoReturn

from localflow.errors import UsageError, suggestion
from localflow.masking import MASK, is_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SEQUENCES: dict[object, Callable[[list[Any]], object]] = {
    list: list,
    set: set,
    frozenset: frozenset,
    collections.abc.Set: frozenset,
    collections.abc.Sequence: list,
    collections.abc.Collection: list,
    collections.abc.Iterable: list,
}
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_SHOWN_CHARACTERS = 80


#: Classes that take what was typed, and know best whether it means one of them. By name: few need their modules.
_MADE_FROM_TEXT = frozenset({"decimal.Decimal", "fractions.Fraction", "uuid.UUID", "builtins.complex"})


def fit_parameters(flow: str, function: Callable[..., object], texts: Mapping[str, str]) -> dict[str, object]:
    """Return the values that `texts` mean for the parameters of `function`.

    Raises:
        UsageError: lists every unknown, missing and unfitting parameter.
    """
    parameters = inspect.signature(function).parameters
    annotations = _annotations(function)
    takes_any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    values: dict[str, object] = {}
    problems: list[str] = []
    for name, text in texts.items():
        if name not in named and not takes_any_name:
            takes = f"it takes {', '.join(named)}" if named else "it takes none"
            problems.append(f"flow {flow!r} has no parameter {name!r}{suggestion(name, named) or f'; {takes}'}")
            continue
        annotation = annotations.get(name, Any)
        try:
            values[name] = fit(text, annotation)
        except ValueError:
            expected = describe(annotation, function.__module__)
            problems.append(f"parameter {name!r}: expected {expected}, got {_shown(name, text)}")
    problems += [
        f"flow {flow!r} takes {name!r} by position only, so it cannot be run from the command line"
        for name, p in named.items()
        if p.kind is p.POSITIONAL_ONLY
    ]
    missing = [name for name, p in named.items() if p.default is p.empty and name not in texts]
    if missing:
        problems.append(
            f"flow {flow!r} needs {'a value' if len(missing) == 1 else 'values'} for {', '.join(missing)}: "
            + " ".join(f"-p {name}=VALUE" for name in missing)
        )
    if problems:
        raise UsageError("\n".join(problems))
    return values


def fit(text: str, annotation: Any) -> object:
    """Return the value of type `annotation` that `text` means; raises ValueError if there is none."""
    return _fitted(_from_json(text), text, annotation)


def describe(annotation: Any, module: str = "") -> str:
    """Return the annotation in words for a message; names of `module` go without it."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return f"one of {', '.join(annotation.__members__)}"
    if typing.get_origin(annotation) is typing.Literal:
        return f"one of {', '.join(repr(choice) for choice in typing.get_args(annotation))}"
    text = inspect.formatannotation(annotation)
    return text.replace(f"{module}.", "") if module else text


def _from_json(text: str) -> object:
    """Return the value `text` is in JSON, or the text itself."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _fitted(value: object, text: str | None, annotation: Any) -> object:
    """Fit a JSON value; `text` is what was typed for it, None for a value inside a list or an object."""
    annotation = _plain(annotation)
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _fitted_to_one_of(value, text, arguments)
    if origin is typing.Literal:
        return _chosen(value, text, {choice: choice for choice in arguments})
    if origin is None or origin is types.NoneType:
        return _required(value, value is None)
    if origin in _SEQUENCES:
        items = _required(value, isinstance(value, list))
        return _SEQUENCES[origin]([_fitted(item, None, arguments[0] if arguments else Any) for item in items])
    if origin is tuple:
        return _fitted_tuple(_required(value, isinstance(value, list)), arguments)
    if origin in _MAPPINGS:
        items = _required(value, isinstance(value, dict))
        key_type, value_type = arguments or (Any, Any)
        keys = str if key_type is Any else key_type
        return {_fitted(_from_json(k), k, keys): _fitted(v, None, value_type) for k, v in items.items()}
    if isinstance(origin, type):
        return _fitted_to_class(value, text, origin)
    return value


def _fitted_to_class(value: object, text: str | None, wanted: type) -> object:
    string = value if isinstance(value, str) else text
    if wanted is str:
        return _required(string, string is not None)
    if wanted is bool:
        if text is not None and text.lower() in ("true", "false"):
            return text.lower() == "true"
        return _required(value, isinstance(value, bool))
    if wanted is int:
        return _required(value, type(value) is int)
    if wanted is float:
        return float(_required(text if isinstance(value, str) else value, type(value) in (int, float, str)) or "")
    if issubclass(wanted, enum.Enum):
        by_value = {member.value: member for member in wanted if isinstance(member.value, collections.abc.Hashable)}
        return _chosen(value, text, {**by_value, **wanted.__members__})
    if issubclass(wanted, (datetime.date, datetime.time)):  # a datetime is a date
        return wanted.fromisoformat(_required(string, string is not None))
    if issubclass(wanted, pathlib.PurePath):
        return wanted(_required(string, string is not None))
    if wanted is bytes:
        return str(_required(string, string is not None)).encode()
    if f"{wanted.__module__}.{wanted.__qualname__}" in _MADE_FROM_TEXT:
        make: Any = wanted
        try:
            return make(_required(string, string is not None))
        except ArithmeticError as error:  # what Decimal raises
            raise ValueError(str(error)) from error
    return _required(value, _may_be(value, wanted))


def _may_be(value: object, wanted: type) -> bool:
    """Return whether a value is of a class that no text and no JSON makes, such as one of the user's."""
    try:
        return isinstance(value, wanted)
    except TypeError:  # a protocol that cannot be checked
        return True


def _fitted_to_one_of(value: object, text: str | None, annotations: tuple[Any, ...]) -> object:
    """Fit the first of a union that takes the value: None and the value's own type first, `str` last."""

    def rank(annotation: Any) -> int:
        origin = typing.get_origin(annotation) or annotation
        return 2 if origin is str else 0 if origin is type(value) else 1

    for annotation in sorted(annotations, key=rank):
        try:
            return _fitted(value, text, annotation)
        except ValueError:
            pass
    raise ValueError


def _fitted_tuple(items: list[Any], annotations: tuple[Any, ...]) -> tuple[object, ...]:
    if len(annotations) == 2 and annotations[1] is Ellipsis:
        annotations = annotations[:1] * len(items)
    elif not annotations:
        annotations = (Any,) * len(items)
    return tuple(_fitted(item, None, annotation) for item, annotation in zip(items, annotations, strict=True))


def _chosen(value: object, text: str | None, choices: Mapping[Any, object]) -> object:
    """Return the choice whose key equals the value or the text; `1`, `1.0` and `true` are different."""
    for key, choice in choices.items():
        if (type(key) is type(value) and key == value) or (isinstance(key, str) and key == text):
            return choice
    raise ValueError


def _required(value: Any, fits: bool) -> Any:
    if not fits:
        raise ValueError
    return value


def _plain(annotation: Any) -> Any:
    """Return what is inside `Annotated`, `Final`, a NewType or a type alias."""
    while True:
        if typing.get_origin(annotation) in (typing.Annotated, typing.Final):
            annotation = typing.get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def _annotations(function: Callable[..., object]) -> dict[str, Any]:
    """Return the annotations, evaluated one by one: one that cannot be is as good as none."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # a name that exists for type checkers only, most likely
        raw = getattr(function, "__annotations__", {})
    annotations: dict[str, Any] = {}
    for name, annotation in raw.items():
        probe = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            annotations |= typing.get_type_hints(probe, getattr(function, "__globals__", {}), include_extras=True)
        except Exception:
            annotations[name] = Any
    return annotations


def _shown(name: str, text: str) -> str:
    if is_secret(name):
        return MASK
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")
