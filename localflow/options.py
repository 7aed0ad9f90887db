"""The options that a factory takes, read off its annotated signature, and whether the values of a table fit them."""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Union, get_args, get_origin

from localflow import masking
from localflow.errors import suggestion
from localflow.interfaces import AtLeast, Secret
from localflow.masking import found, quoted
from localflow.printable import printable
from localflow.tomlfile import parse_value
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from localflow.config import Problem, Table

REQUIRED: Any = inspect.Parameter.empty

_NOTHING = type(None)
_PLURALS = {str: "strings", int: "integers", float: "numbers", bool: "booleans", Path: "paths"}
_SINGULARS = {str: "a string", int: "an integer", float: "a number", bool: "true or false", Path: "a path"}
_ARRAYS: tuple[Any, ...] = (list, Sequence, Iterable)

# Names of annotations that a module may import for type checkers only.
_VOCABULARY: Mapping[str, object] = {
    "Annotated": Annotated,
    "Any": Any,
    "AtLeast": AtLeast,
    "Callable": Callable,
    "Iterable": Iterable,
    "Iterator": Iterator,
    "Literal": Literal,
    "Mapping": Mapping,
    "Optional": Optional,
    "Path": Path,
    "Secret": Secret,
    "Sequence": Sequence,
    "Union": Union,
}


class _Elsewhere(type):
    """Has whatever attribute an annotation names, and any type arguments: `a.module.Type[int]` under one name."""

    def __getattr__(cls, name: str) -> _Elsewhere:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, arguments: object) -> _Elsewhere:
        return cls


class _Unknown(metaclass=_Elsewhere):
    """Stands for a type, or its module, that was imported for type checkers only and is no TOML value."""


class MisfitError(Exception):
    """A value that an annotation does not allow."""

    def __init__(self, place: str, expected: str, value: object, hint: str = "") -> None:
        self.place, self.expected, self.value, self.hint = place, expected, value, hint
        super().__init__(self.worded())

    def worded(self, is_secret: bool = False) -> str:
        """Word the mistake, with the value masked if it is a secret."""
        names = ("secret",) if is_secret else re.split(r"[.\[]", self.place)
        key = next(filter(masking.is_secret, names), "")
        return f"{self.place} must be {self.expected}, got {found(self.value, key)}{self.hint}"


class Option(NamedTuple):
    """A keyword argument of a factory."""

    name: str
    annotation: Any
    default: Any = REQUIRED

    @property
    def is_secret(self) -> bool:
        """Whether its value is never shown."""
        return masking.is_secret(self.name) or _is_marked_secret(self.annotation)


class Options(NamedTuple):
    """All keyword arguments of a factory."""

    known: Mapping[str, Option]
    is_open: bool
    """It takes others besides: it has `**kwargs`, or no signature that can be read."""


def read_options(factory: Callable[..., object]) -> Options:
    """Read the options off a factory's signature; what cannot be read there is left unchecked."""
    signature = _signature(factory)
    if signature is None:
        return Options({}, is_open=True)
    kinds = inspect.Parameter
    known = {
        parameter.name: Option(parameter.name, parameter.annotation, parameter.default)
        for parameter in signature.parameters.values()
        if parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    is_open = any(parameter.kind is kinds.VAR_KEYWORD for parameter in signature.parameters.values())
    return Options(known, is_open)


def fitted(value: Any, annotation: Any, place: str, root: Path | None = None) -> Any:
    """Return `value` as the annotation has it: paths resolved against `root`, whole numbers as floats.

    Raises:
        MisfitError: the annotation does not allow the value.
    """
    return _fit(value, annotation, place, root, None)


class Bound(NamedTuple):
    """A table as keyword arguments for its factory."""

    arguments: Mapping[str, Any]
    problems: Sequence[Problem]
    secrets: Sequence[object]
    """Values in `arguments` that no message may repeat."""


def bind(table: Table, options: Options, root: Path, environ: Mapping[str, str], others: Iterable[str] = ()) -> Bound:
    """Check a table against the options of its factory, and put values in the place of `env:NAME`.

    Args:
        table: what the settings say.
        options: what the factory takes.
        root: the folder that relative paths begin at, default ones too.
        environ: where `env:NAME` is looked up.
        others: keys of the table that are not for the factory.
    """
    arguments: dict[str, Any] = {}
    problems: list[Problem] = []
    secrets: list[object] = []
    others = tuple(others)
    for key, value in table.values.items():
        option = options.known.get(key, Option(key, Any) if options.is_open else None)
        if key in others:
            continue
        if option is None:
            near = suggestion(key, (*options.known, *others)) or f"; it has {', '.join(options.known) or 'none'}"
            problems.append(table.problem(f"unknown option '{printable(key)}'{near}", key))
            continue
        used: list[str] = []
        candidates = [_from_environment(each, environ, used) for each in (value.value, value.text) if each is not None]
        missing = [name for name in dict.fromkeys(used) if not environ.get(name)]
        if missing:
            problems.extend(table.problem(f"{printable(key)}: {_unset(name)}", key) for name in missing)
            continue
        is_reference = bool(used)
        is_hidden = is_reference or option.is_secret
        if is_reference and isinstance(candidates[0], str):
            candidates.append(parse_value(candidates[0]))  # a variable is text, also where a number is wanted
        secrets.extend([candidates[0]] if is_hidden else masking.secrets(value.value, key))
        try:
            arguments[key] = _first_fitting(candidates, option.annotation, printable(key), root)
        except MisfitError as misfit:
            problems.append(table.problem(misfit.worded(is_secret=is_hidden), key))
    for option in options.known.values():
        if option.name in table.values or option.name in others:
            continue
        if option.default is REQUIRED:
            problems.append(table.problem(f"missing required option '{option.name}'"))
        elif isinstance(option.default, Path) and _may_be_path(option.annotation):
            arguments[option.name] = root / option.default
    return Bound(arguments, problems, secrets)


def _from_environment(value: Any, environ: Mapping[str, str], used: list[str]) -> Any:
    """Return `value` with every `env:NAME` in it replaced, and add the names to `used`."""
    if isinstance(value, list):
        return [_from_environment(item, environ, used) for item in value]
    if isinstance(value, dict):
        return {key: _from_environment(item, environ, used) for key, item in value.items()}
    if not isinstance(value, str) or not value.startswith(masking.ENV_PREFIX):
        return value
    used.append(value.removeprefix(masking.ENV_PREFIX))
    return environ.get(used[-1])


def _unset(name: str) -> str:
    if not name:
        return "'env:' names no environment variable; write env:NAME"
    return f"environment variable {printable(name)} is not set"  # or set to nothing, which counts as the same


def _first_fitting(candidates: Iterable[Any], annotation: Any, place: str, root: Path) -> Any:
    misfits = []
    for candidate in candidates:
        try:
            return fitted(candidate, annotation, place, root)
        except MisfitError as misfit:
            misfits.append(misfit)
    raise misfits[0]


def _may_be_path(annotation: Any) -> bool:
    return any(member is Path for member, _ in _members(annotation, None))


# -- fitting ---------------------------------------------------------------------------------------------------------


def _fit(value: Any, annotation: Any, place: str, root: Path | None, least: float | None) -> Any:
    members = _members(annotation, least)
    expected = _describe(members)
    if not expected:
        return value
    misfit = None
    for member, minimum in members:
        try:
            return _fit_one(value, member, minimum, place, root, expected)
        except MisfitError as error:
            # What is wrong inside an array or table says more than that the whole does not fit.
            if misfit is None or len(error.place) > len(misfit.place):
                misfit = error
    raise misfit or MisfitError(place, expected, value)


def _fit_one(value: Any, member: Any, least: float | None, place: str, root: Path | None, expected: str) -> Any:
    origin, arguments = get_origin(member), get_args(member)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        hint = suggestion(value, [choice for choice in arguments if isinstance(choice, str)]) if _is(value, str) else ""
        raise MisfitError(place, expected, value, hint)
    if _is_array(member) and _is(value, list):
        item = arguments[0] if arguments else Any
        items = [_fit(each, item, f"{place}[{index}]", root, least) for index, each in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if _is_table(member) and _is(value, dict):
        item = arguments[1] if arguments else Any
        return {key: _fit(each, item, f"{place}.{printable(key)}", root, least) for key, each in value.items()}
    if member is bool and _is(value, bool):
        return value
    if member is int and _is(value, int) and _is_sane(value, least):
        return value
    if member is float and _is(value, (int, float)) and _is_sane(value, least):
        return float(value)
    if member is str and _is(value, str):
        return value
    if member is Path and _is(value, (str, Path)) and str(value) and "\0" not in str(value):
        return _resolved(Path(value), place, root)
    raise MisfitError(place, expected, value)


def _is(value: object, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (not isinstance(value, bool) or kinds is bool)


def _is_sane(value: float, least: float | None) -> bool:
    """Return whether a number is one that TOML promises to carry everywhere, and not below the least allowed."""
    is_carried = -(2**63) <= value < 2**63 if isinstance(value, int) else math.isfinite(value)
    return is_carried and (least is None or value >= least)


def _resolved(path: Path, place: str, root: Path | None) -> Path:
    try:
        path = path.expanduser()
    except RuntimeError:
        raise MisfitError(place, "a path in the home of a user that exists", str(path)) from None
    return path if root is None else root / path


# -- annotations -----------------------------------------------------------------------------------------------------


def _members(annotation: Any, least: float | None) -> list[tuple[Any, float | None]]:
    """Return what a union joins, each with its least value, without what TOML has no way to say."""
    annotation = getattr(annotation, "__value__", annotation)  # a `type X = ...` of newer Pythons
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *notes = get_args(annotation)
        least = next((note.minimum for note in notes if isinstance(note, AtLeast)), least)
        return _members(inner, least)
    if origin in (Union, types.UnionType):
        return [member for each in get_args(annotation) for member in _members(each, least)]
    if annotation in (None, _NOTHING) or Callable in (annotation, origin):
        return []
    return [(annotation, least)]


def _is_marked_secret(annotation: Any) -> bool:
    annotation = getattr(annotation, "__value__", annotation)
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return any(isinstance(note, Secret) for note in inner[1:]) or _is_marked_secret(inner[0])
    return get_origin(annotation) in (Union, types.UnionType) and any(map(_is_marked_secret, inner))


def _describe(members: list[tuple[Any, float | None]]) -> str:
    words = [_describe_one(member, least) for member, least in members]
    if not all(words) or not words:
        return ""
    return " or ".join(dict.fromkeys(words))


def _describe_one(member: Any, least: float | None) -> str:
    if get_origin(member) is Literal:
        return " or ".join(quoted(choice) if isinstance(choice, str) else str(choice) for choice in get_args(member))
    if _is_array(member):
        return f"an array{_plural(get_args(member)[:1])}"
    if _is_table(member):
        return f"a table{_plural(get_args(member)[1:])}"
    word = _SINGULARS.get(member, "") if isinstance(member, type) else ""
    return f"{word} >= {least:.15g}" if word and least is not None and member in (int, float) else word


def _plural(arguments: tuple[Any, ...]) -> str:
    members = _members(arguments[0], None) if arguments else []
    words = [_PLURALS.get(member, "") for member, _ in members if isinstance(member, type)]
    return f" of {' or '.join(words)}" if words and all(words) and len(words) == len(members) else ""


def _is_array(member: Any) -> bool:
    origin, arguments = get_origin(member) or member, get_args(member)
    if origin is tuple:
        return len(arguments) == 2 and arguments[1] is Ellipsis
    return any(origin is array for array in _ARRAYS)


def _is_table(member: Any) -> bool:
    origin, arguments = get_origin(member) or member, get_args(member)
    return (origin is dict or origin is Mapping) and (not arguments or arguments[0] is str)


def _signature(factory: Callable[..., object]) -> inspect.Signature | None:
    names: dict[str, object] = {}
    while True:
        try:
            return inspect.signature(factory, locals=names, eval_str=True)
        except NameError as error:  # imported for type checkers only
            if error.name is None or error.name in names:
                break
            names[error.name] = _VOCABULARY.get(error.name, _Unknown)
        except Exception:
            break
    try:
        return inspect.signature(factory)
    except Exception:
        return None
