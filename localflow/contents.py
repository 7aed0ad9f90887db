"""What objects of the standard library hold, got by their own class's methods, which no subclass replaces."""

from __future__ import annotations

import array
import collections
import datetime
import io
import sys
import types
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Of classes whose objects cannot be changed, but for what they hold.
FIXED: dict[type, Callable[[Any], Iterable[Any]]] = {
    complex: lambda value: (complex.__repr__(value),),
    range: lambda value: (value.start, value.stop, value.step),
    slice: lambda value: (value.start, value.stop, value.step),
    type(Ellipsis): lambda value: (),
    type(NotImplemented): lambda value: (),
    datetime.datetime: lambda value: datetime.datetime.__reduce_ex__(value, 4)[1],
    datetime.date: lambda value: datetime.date.__reduce__(value)[1],
    datetime.time: lambda value: datetime.time.__reduce_ex__(value, 4)[1],
    datetime.timedelta: lambda value: datetime.timedelta.__reduce__(value)[1],
    datetime.timezone: lambda value: datetime.timezone.__getinitargs__(value),  # type: ignore[attr-defined]
}
_OTHERS: dict[type, Callable[[Any], Iterable[Any]]] = {
    int: lambda value: (int.__int__(value),),
    float: lambda value: (float.__float__(value),),
    str: lambda value: str.__getnewargs__(value),
    bytes: lambda value: bytes.__getnewargs__(value),
    bytearray: lambda value: (memoryview(value).tobytes(),),
    collections.OrderedDict: lambda value: (list(collections.OrderedDict.items(value)),),
    collections.defaultdict: lambda value: (value.default_factory, dict(dict.items(value))),
    collections.deque: lambda value: (list(collections.deque.__iter__(value)), value.maxlen),
    list: lambda value: (list(list.__iter__(value)),),
    tuple: lambda value: (list(tuple.__iter__(value)),),
    dict: lambda value: (dict(dict.items(value)),),
    set: lambda value: (set(set.__iter__(value)),),
    frozenset: lambda value: (set(frozenset.__iter__(value)),),
    array.array: lambda value: (value.typecode, array.array.tobytes(value)),
    OSError: lambda value: (value.args, *(getattr(OSError, name).__get__(value) for name in ("filename", "filename2"))),
    BaseException: lambda value: (value.args,),
    io.BytesIO: lambda value: (io.BytesIO.getvalue(value), io.BytesIO.tell(value)),
    io.StringIO: lambda value: (io.StringIO.getvalue(value), io.StringIO.tell(value)),
    PurePath: lambda value: (PurePath.__str__(value),),
    types.GenericAlias: lambda value: (value.__origin__, value.__args__),
    types.UnionType: lambda value: (value.__args__,),
}
#: The same for classes of modules that most programs do not import, by name.
_BY_NAME: dict[tuple[str, str], Callable[[Any], Iterable[Any]]] = {
    ("re", "Pattern"): lambda value: (value.pattern, value.flags),
    ("decimal", "Decimal"): lambda value: tuple(sys.modules["decimal"].Decimal.as_tuple(value)),
    ("zoneinfo", "ZoneInfo"): lambda value: _keyed(value.key),
    ("_random", "Random"): lambda value: sys.modules["_random"].Random.getstate(value),
    ("xml.etree.ElementTree", "Element"): lambda value: _element(value),
}


def content_of(base: type) -> Callable[[Any], Iterable[Any]] | None:
    """Return what gets the content of objects of a class and its subclasses; None for a class not known here."""
    found = FIXED.get(base) or _OTHERS.get(base)
    return _BY_NAME.get((base.__module__, base.__name__)) if found is None and base.__module__ in _MODULES else found


_MODULES = frozenset(module for module, _ in _BY_NAME)


def _keyed(key: str | None) -> tuple[object, ...]:
    return (key,) if key is not None else (object(),)  # of a file without a name nothing is known


def _element(value: Any) -> tuple[object, ...]:
    element = sys.modules["xml.etree.ElementTree"].Element
    children = [element.__getitem__(value, place) for place in range(element.__len__(value))]
    return value.tag, value.attrib, value.text, value.tail, children
