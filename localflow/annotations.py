"""The value that an annotation asks for, made of what JSON, the command line or a caller in Python gives.

Only annotations with one obvious reading are fitted; a value for any other one is passed on as it is.
"""

from __future__ import annotations

import collections.abc
import datetime
import enum
import inspect
import itertools
import json
import math
import pathlib
import sys
import types
import typing
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

_SEQUENCES: dict[object, Callable[[list[Any]], object]] = {
    list: list,
    set: set,
    frozenset: frozenset,
    collections.abc.Set: frozenset,
    collections.abc.Sequence: list,
    collections.abc.Collection: list,
    collections.abc.Iterable: list,
}
_SETS = (set, frozenset)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)

#: How many items of what a caller in Python passes are looked at before the rest is taken to be like them.
_ITEMS_LOOKED_AT = 1000

#: Classes that take what was typed, and know best whether it means one of them. By name: few need their modules.
_MADE_FROM_TEXT = frozenset({"decimal.Decimal", "fractions.Fraction", "uuid.UUID", "builtins.complex"})


def fit(text: str, annotation: Any) -> object:
    """Return the value of type `annotation` that `text` means; raises ValueError if there is none."""
    return _Fitting().fitted(_from_json(text), text, annotation)


def fit_value(value: object, annotation: Any) -> object:
    """Return `value` itself if it is of the type, or what it means as JSON or as text.

    Of lists, dicts and so on, the first 1,000 items are looked at; if all of these are as they should be, so is the
    whole.

    Raises:
        ValueError: it does not fit.
    """
    try:
        return _Fitting(typed=True).fitted(value, None, annotation)
    except ValueError:
        if not isinstance(value, str):
            raise
    return fit(value, annotation)


def describe(annotation: Any, module: str = "") -> str:
    """Return the annotation in words for a message; names of `module` go without it."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return f"one of {', '.join(annotation.__members__)}"
    if typing.get_origin(annotation) is typing.Literal:
        return f"one of {', '.join(repr(choice) for choice in typing.get_args(annotation))}"
    text = inspect.formatannotation(annotation).replace("pathlib._local.", "pathlib.")  # where Python 3.13 keeps it
    return text.replace(f"{module}.", "") if module else text


def annotations_of(function: Callable[..., object]) -> dict[str, Any]:
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


class _Fitting:
    """The fitting of one value. What comes from JSON is made anew, what a caller passes stays the object it is."""

    def __init__(self, typed: bool = False) -> None:
        self._typed = typed
        self._left = _ITEMS_LOOKED_AT if typed else math.inf

    def fitted(self, value: Any, text: str | None, annotation: Any) -> Any:
        """Fit a value; `text` is what was typed for it, None for one that was not typed or is inside another."""
        annotation = _plain(annotation)
        if annotation is Any:
            return value
        origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
        if origin in (typing.Union, types.UnionType):
            return self._one_of(value, text, arguments)
        if origin is typing.Literal:
            return _chosen(value, text, {choice: choice for choice in arguments})
        if origin is None or origin is types.NoneType:
            return _required(value, value is None)
        if origin in _SEQUENCES:
            return self._sequence(value, origin, arguments[0] if arguments else Any)
        if origin is tuple:
            return self._tuple(value, arguments)
        if origin in _MAPPINGS:
            return self._mapping(value, origin, *(arguments or (Any, Any)))
        if isinstance(origin, type):
            return self._instance(value, text, origin)
        return value

    def _one_of(self, value: object, text: str | None, annotations: tuple[Any, ...]) -> object:
        """Fit to the annotation that takes the value as it is, or else to the first: its own type first, `str` last."""

        def rank(annotation: Any) -> int:
            origin = typing.get_origin(annotation) or annotation
            return 2 if origin is str else 0 if origin is type(value) else 1

        found: list[Any] = []
        for annotation in sorted(annotations, key=rank):
            try:
                fitted = self.fitted(value, text, annotation)
            except ValueError:
                continue
            if fitted is value or not self._typed:
                return fitted
            found.append(fitted)
        _required(found, bool(found))
        return found[0]

    def _sequence(self, value: Any, wanted: Any, annotation: Any) -> object:
        make = _SEQUENCES[wanted]
        if not self._typed:
            return make(list(self._items(_required(value, isinstance(value, list)), itertools.repeat(annotation))))
        if isinstance(value, wanted):
            if isinstance(value, str):  # a sequence of texts, and of nothing else
                first = value[:1]
                return _required(value, not first or self.fitted(first, None, annotation) is first)
            if type(value) not in (list, tuple, *_SETS) or annotation is Any:
                return value  # an iterator must not be used up, and an array be left in peace
            items = self._items(value, itertools.repeat(annotation))
            return value if items is value else type(value)(items)
        _required(value, type(value) in ((list, tuple, *_SETS) if make in _SETS else (list, tuple)))
        self._left = math.inf
        return make(list(self._items(value, itertools.repeat(annotation))))

    def _tuple(self, value: Any, annotations: tuple[Any, ...]) -> object:
        if self._typed and isinstance(value, tuple) and (type(value) is not tuple or not annotations):
            return value  # a named tuple has fields of its own
        _required(value, type(value) is list or (self._typed and type(value) is tuple))
        each: Iterable[Any] = annotations
        if len(annotations) == 2 and annotations[1] is Ellipsis:
            each = itertools.repeat(annotations[0])
        elif annotations:
            _required(value, len(annotations) == len(value))
        else:
            each = itertools.repeat(Any)
        if type(value) is list:
            self._left = math.inf
        items = self._items(value, each)
        return value if items is value and type(value) is tuple else tuple(items)

    def _mapping(self, value: Any, wanted: Any, key_type: Any, value_type: Any) -> object:
        if self._typed and type(value) is not dict:
            return _required(value, isinstance(value, wanted))
        keys, values = _required(value, isinstance(value, dict)).keys(), value.values()
        new_keys = self._items(keys, itertools.repeat(key_type), self._key)
        new_values = self._items(values, itertools.repeat(value_type))
        return value if new_keys is keys and new_values is values else dict(zip(new_keys, new_values, strict=True))

    def _key(self, key: object, text: None, annotation: Any) -> object:
        """Fit the key of a JSON object, which is always a text."""
        if self._typed:
            try:
                return self.fitted(key, text, annotation)
            except ValueError:
                pass
        text_annotation = str if annotation is Any else annotation
        return self.fitted(_from_json(key), key, text_annotation) if isinstance(key, str) else _required(key, False)

    def _items(
        self, items: Collection[Any], annotations: Iterable[Any], fit: Callable[..., Any] | None = None
    ) -> Collection[Any]:
        """Fit items; the very `items` if none of those looked at had to change."""
        fit = fit or self.fitted
        fitted: list[Any] = []
        changed = False
        for item, annotation in zip(items, annotations, strict=False):
            if self._left <= 0:
                return items
            self._left -= 1
            new = fit(item, None, annotation)
            fitted.append(new)
            if new is not item and not changed:
                changed = True
                self._left = math.inf  # one needs work, so all are looked at
        return fitted if changed else items

    def _instance(self, value: Any, text: str | None, wanted: Any) -> object:
        if self._typed:
            value = _native(value, wanted)
        if _may_be(value, wanted) and not (type(value) is bool and wanted is int):
            return value
        string = value if isinstance(value, str) else text
        if wanted is str:
            return _required(string, string is not None)
        if wanted is bool:
            return _required(text or "", text is not None and text.lower() in ("true", "false")).lower() == "true"
        if wanted is float:
            number = text if isinstance(value, str) else value
            return _made(float, _required(number, type(number) in (int, str)))
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
            return _made(wanted, str(value) if type(value) in (int, float) and text is None else string)
        if hasattr(wanted, "model_validate"):  # a pydantic model
            return _made(wanted.model_validate, value)
        return _required(value, False)


def _from_json(text: str) -> object:
    """Return the value `text` is in JSON, or the text itself."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _made(make: Callable[[Any], object], value: object) -> object:
    """Make a value by a function that knows best what it takes; ValueError stands for all it may raise."""
    try:
        return make(_required(value, value is not None))
    except RecursionError:
        raise
    except Exception as error:  # Decimal has an ArithmeticError
        raise ValueError(str(error)) from error


def _native(value: Any, wanted: type) -> object:
    """Return the number in a numpy scalar, unless that is what is wanted."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.generic):
        return value
    try:
        is_wanted = isinstance(value, wanted)
    except Exception:  # see `_may_be`
        is_wanted = False
    return value if is_wanted else value.item()


def _may_be(value: object, wanted: type) -> bool:
    """Return whether a value is of a class, or the class is one that nobody can tell it of."""
    if getattr(wanted, "_is_protocol", False) or wanted.__module__.partition(".")[0] == "numpy":
        return True
    try:
        return isinstance(value, wanted)
    except Exception:  # a TypedDict, or a class with ideas of its own
        return True


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
