"""A value as bytes that are the same in every process, and other ones for every other value: part of a fingerprint.

Values of the built-in and standard types, arrays and tables count by their content, objects of other classes by their
attributes. Functions count by their code and what they carry. None of the user's code is run. What is not looked at by
content (connections, locks, generators, what is too deep) counts by its type alone and makes the encoding *vague*.
"""

from __future__ import annotations

import collections
import datetime
import enum
import functools
import gc
import types
import weakref
from struct import pack
from typing import TYPE_CHECKING, Any, Generic

from localflow.arguments import Marker
from localflow.code import code_of
from localflow.contents import FIXED, content_of
from localflow.digests import blake2b
from localflow.futures import TaskFuture
from localflow.own_classes import attributes, facts_of, members, module_name
from localflow.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_PARTS = 100_000  # of all values of one call; what has more counts by its type and length
MOST_OBJECTS = 10_000
MOST_BYTES = 128 << 20  # of texts and arrays; of what is longer its ends count
LONG = 64 << 10  # bytes of a text or array that are worth to be kept in mind
_DEPTH = 50
_SHORT = 64
_DIGESTED = 256  # bytes of an encoding from which on its digest stands for it
_NOWHERE = 1 << 30
_SLICE = 1 << 20
_END = 1 << 20


class TooMuchError(Exception):
    """A value has too many parts."""


def type_name(kind: type) -> bytes:
    """Return the name of a class, the same however its module was loaded."""
    return facts_of(kind).name


def digest(data: bytes | memoryview) -> bytes:
    """Return what stands for a long encoding."""
    return blake2b(data, digest_size=16).digest()


def _text(tag: bytes, data: bytes | memoryview) -> bytes:
    if len(data) <= _SHORT:
        return b"%b%d:%b" % (tag, len(data), bytes(data))
    return b"%b%d#%b" % (tag, len(data), digest(data))


def _string(value: str) -> bytes:
    if len(value) <= _SLICE:
        data = value.encode("utf-8", "surrogatepass")
        return b"s%d:%b" % (len(data), data) if len(data) <= _SHORT else _text(b"s", data)
    whole = blake2b(digest_size=16)
    for start in range(0, len(value), _SLICE):
        whole.update(value[start : start + _SLICE].encode("utf-8", "surrogatepass"))
    return b"s%d##%b" % (len(value), whole.digest())


#: Every encoding begins with a tag and says where it ends, so a row of them reads in one way only.
QUICK: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"N",
    bool: lambda value: b"T" if value else b"F",
    int: lambda value: b"i%x;" % value,
    float: lambda value: pack(">cd", b"f", value),
    str: _string,
    TaskFuture: lambda value: b"r%b;" % value.task_run_id.encode(),
}

_KEYS: type = type(dict[Any, Any]().keys())
_NO_ITEMS: collections.OrderedDict[Any, Any] = collections.OrderedDict()
_VIEWS = frozenset(map(type, ({}.values(), {}.items(), _NO_ITEMS.keys(), _NO_ITEMS.values(), _NO_ITEMS.items()))) | {
    _KEYS,
    types.MappingProxyType,
}
#: Classes of which a base says all, but for the attributes that a subclass adds.
_BASES = frozenset({object, datetime.tzinfo, types.SimpleNamespace, Generic})
_PANDAS_SCALARS = frozenset({"Timestamp", "Timedelta", "Period", "Interval", "NaTType", "NAType"})


class Encoder:
    """Encodes the values of one call; what is met several times is looked at once, so that a graph takes its size."""

    # Here, for one is made for each call that is not quite plain.
    parts = objects = byte_count = 0
    is_vague = False
    is_changeable = False
    """Whether anything was met that may have other content at the next call."""
    _lowest = _NOWHERE  # place on the path that was referred to
    _numbers = 0
    _sets = 0
    _has_unordered = False

    def __init__(self, arrays: dict[int, tuple[weakref.ref[Any], bytes]]) -> None:
        """Begin; `arrays` are those met in earlier calls that cannot be changed, by id."""
        self._arrays = arrays
        # By id, with the objects, for an id is used again: containers that are done, with a number if they refer to
        # what is around them, so that their encoding means nothing elsewhere.
        self._done: dict[int, tuple[object, bytes, int | None]] = {}
        self._path: dict[int, int] = {}

    def restart(self) -> None:
        """Forget what was begun; the value counts by its type, which is vague."""
        self.parts = self.objects = self.byte_count = self._sets = 0
        self._done.clear()
        self._path.clear()
        self._lowest = _NOWHERE
        self.is_vague = True

    def encode(self, value: Any) -> bytes:
        """Encode a value; raises TooMuchError, and what a broken class makes Python raise."""
        kind = type(value)
        quick = QUICK.get(kind)
        if quick is not None:
            return quick(value)
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise TooMuchError
        if kind is bytes:
            return self._bytes(value)
        key, place = id(value), len(self._path)
        done = self._done.get(key)
        if done is not None:
            if done[2] is None:
                return done[1]
            self._lowest = 0
            self.is_vague |= self._has_unordered
            return b"^%d;" % done[2]
        if key in self._path:  # it holds itself
            self._lowest = min(self._lowest, self._path[key])
            return b"@%d;" % (place - self._path[key])
        if place >= _DEPTH:
            return self._by_type(kind)
        lowest, self._lowest = self._lowest, _NOWHERE
        self._path[key] = place
        encoded = self._container(value, kind)
        del self._path[key]
        if len(encoded) > _DIGESTED:
            encoded = b"#" + digest(encoded)
        if self._lowest >= place:
            self._done[key] = value, encoded, None
            self._lowest = lowest
        else:
            self._done[key] = value, encoded, self._numbers
            self._numbers += 1
            self._has_unordered |= self._sets > 0  # members of a set come in any order
            self._lowest = min(lowest, self._lowest)
        return encoded

    def _container(self, value: Any, kind: type) -> bytes:
        if kind is tuple:
            return b"t%d:%b" % (len(value), b"".join(self._each(value)))
        if kind is frozenset:
            return self._set(value)
        if kind in FIXED:
            contents = [self.encode(each) for each in FIXED[kind](value)]
            return b"p%b;%d:%b" % (type_name(kind), len(contents), b"".join(contents))
        self.is_changeable = True
        if kind is list:
            return b"l%d:%b" % (len(value), b"".join(self._each(value)))
        if kind is dict:
            return self._dict(value)
        if kind is set:
            return self._set(value)
        return self._other(value, kind)

    def _each(self, items: Any) -> list[bytes]:
        if self.parts + len(items) > MOST_PARTS:
            raise TooMuchError
        quick, encode = QUICK.get, self.encode
        encoded = [one(item) if (one := quick(type(item))) else encode(item) for item in items]
        self.parts += len(encoded)
        return encoded

    def _set(self, value: Any) -> bytes:
        self._sets += 1
        items = sorted(self._each(list(value)))
        self._sets -= 1
        return b"e%d:%b" % (len(items), b"".join(items))

    def _dict(self, value: dict[Any, Any]) -> bytes:
        if self.parts + len(value) > MOST_PARTS:
            raise TooMuchError
        quick, encode = QUICK.get, self.encode
        items = [
            (one(key) if (one := quick(type(key))) else encode(key))
            + (one(item) if (one := quick(type(item))) else encode(item))
            for key, item in dict.items(value)
        ]
        self.parts += len(items)
        items.sort()
        return b"d%d:%b" % (len(items), b"".join(items))

    def _bytes(self, value: bytes | bytearray | memoryview) -> bytes:
        view = memoryview(value)
        content = view.cast("B") if view.c_contiguous and view.nbytes else view.tobytes()
        if self.byte_count + len(content) > MOST_BYTES:
            self.is_vague = True
            ends = digest(bytes(content[:_END]) + bytes(content[-_END:]))
            return b"b%d##%b" % (len(content), ends)
        self.byte_count += len(content)
        return _text(b"b", content)

    def _by_type(self, kind: type) -> bytes:
        self.is_vague = True
        return b"!%b;" % type_name(kind)

    def _named(self, tag: bytes, name: str, *contents: Any) -> bytes:
        encoded = name.encode("utf-8", "surrogatepass")
        return b"%b%d:%b%b" % (tag, len(encoded), encoded, b"".join(map(self.encode, contents)))

    def _other(self, value: Any, kind: type) -> bytes:
        # Never isinstance: it asks an object for its __class__, which may be code of the user's.
        if issubclass(kind, Marker):
            return self._named(b"m", kind.__name__, value.value)
        if issubclass(kind, State):
            return self._named(b"S", value.type.value, value.name, value.run_id or [value.message])
        if issubclass(kind, TaskFuture):
            return QUICK[TaskFuture](value)
        if issubclass(kind, type):
            return b"k%b;%b" % (type_name(value), self._members(value))
        if kind is types.ModuleType:
            return self._named(b"M", module_name(value.__name__))
        if issubclass(kind, enum.Enum):
            return self._enum(value, kind)
        if kind is memoryview:
            return self._named(b"v", value.format, value.shape) + self._bytes(value)
        if kind in _VIEWS:
            behind = gc.get_referents(value)[0]  # for to look through it runs code of what is behind
            keys = behind.keys() if kind is _KEYS and type(behind) is dict else ()
            return b"V%b;%b" % (kind.__name__.encode(), self.encode(list(keys) if keys else behind))
        if kind.__module__ == "logging" and kind.__name__ in ("Logger", "RootLogger"):
            return self._named(b"L", value.name)
        code = self._code(value, kind)
        if code is not None:
            return code
        name = type_name(kind)
        if name.startswith((b"numpy.", b"pandas.")):
            return self._of_library(value, kind, name)
        return self._object(value, kind, name)

    def _enum(self, value: Any, kind: type) -> bytes:
        own = object.__getattribute__(value, "__dict__")
        was_vague = self.is_vague
        encoded = b"E%b;%b%b" % (type_name(kind), self.encode(own.get("_name_")), self.encode(own.get("_value_")))
        if own.get("_name_") is not None:
            self.is_vague = was_vague  # its name says which one it is
        return encoded

    def _code(self, value: Any, kind: type) -> bytes | None:
        """Encode a function, what is made of one, and what a module of the standard library offers as such."""
        if kind is types.FunctionType:
            inner = value
            if hasattr(value, "__wrapped__"):  # whose code would be that of what it is put around
                inner = types.FunctionType(
                    value.__code__, value.__globals__, value.__name__, value.__defaults__, value.__closure__
                )
            more = {name: each for name, each in vars(value).items() if name != "__wrapped__"}
            cells = [cell.cell_contents for cell in value.__closure__ or () if _has_contents(cell)]
            parts = [value.__qualname__, code_of(inner), value.__defaults__, value.__kwdefaults__, cells, more]
            return self._named(b"c", module_name(value.__module__), *parts)
        if kind is types.MethodType:
            return self._named(b"c", "method", value.__func__, value.__self__)
        if kind is types.BuiltinFunctionType:
            owner = value.__self__
            return self._named(
                b"c", value.__qualname__, owner if type(owner) is not types.ModuleType else owner.__name__
            )
        if kind is types.MethodWrapperType:
            return self._named(b"c", value.__name__, value.__self__)
        if kind in (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType):
            return self._named(b"c", value.__name__, value.__objclass__)
        if issubclass(kind, functools.partial):
            state: Any = functools.partial.__reduce__(value)[2]
            return self._named(b"c", "partial", *state)
        if kind.__module__ == "functools" and kind.__name__ == "_lru_cache_wrapper":
            return self._named(b"c", "cache", value.__wrapped__)
        if kind.__module__ == "operator":
            return self._named(b"c", kind.__name__, list(value.__reduce__()[1:]))
        if any(
            base.__name__ == "DecoratedFunction" and base.__module__ == "localflow.functions" for base in kind.__mro__
        ):
            return self._named(b"c", kind.__name__, value.name, value.fn)
        return None

    def _members(self, kind: type) -> bytes:
        """Encode what tells a class that a function has defined from others that it defines."""
        if not facts_of(kind).is_local:
            return b""
        return self.encode(kind.__bases__) + self._dict(members(kind))

    def _of_library(self, value: Any, kind: type, name: bytes) -> bytes:
        if name.endswith((b".DataFrame", b".Series")):
            columns = [value.iloc[:, place] for place in range(value.shape[1])] if value.ndim == 2 else [value]
            labels = [value.index, *([value.columns] if value.ndim == 2 else [])]
            contents = [[str(each.dtype), each.to_numpy()] for each in [*labels, *columns]]
            return b"P%b%b" % (self.encode([value.name if value.ndim == 1 else None]), self.encode(contents))
        if name.startswith(b"pandas."):
            is_scalar = kind.__name__ in _PANDAS_SCALARS
            return self._named(b"p", kind.__name__, repr(value)) if is_scalar else self._by_type(kind)
        if name.startswith(b"numpy.random."):
            return self._named(b"p", kind.__name__, value.bit_generator.state) if name.endswith(b".Generator") else (
                self._by_type(kind)
            )  # fmt: skip
        if name == b"numpy.dtype" or name.startswith(b"numpy.dtypes."):
            return self._named(b"p", "dtype", str(value))
        if name in (b"numpy.ufunc", b"numpy._ArrayFunctionDispatcher"):
            return self._named(b"p", "ufunc", value.__name__)
        if not hasattr(value, "tobytes") or not hasattr(value, "dtype"):
            return self._by_type(kind)
        if name.endswith(b".MaskedArray"):
            return b"A%b%b" % (self.encode(value.data), self.encode(value.mask))
        return self._array(value, name)

    def _array(self, value: Any, name: bytes) -> bytes:
        known = self._arrays.get(id(value))
        if known is not None and known[0]() is value and _is_fixed(value):
            return known[1]
        head = b"a%b;%b;%b;" % (name, str(value.dtype).encode(), str(value.shape).encode())
        if value.dtype.hasobject:
            return head + self.encode(value.ravel().tolist())
        if value.shape and value.flags.c_contiguous and value.nbytes:
            encoded = head + self._bytes(memoryview(value.reshape(-1).view("u1")))
        else:
            encoded = head + self._bytes(value.tobytes())
        if value.nbytes >= LONG and _is_fixed(value):
            key, arrays = id(value), self._arrays
            arrays[key] = weakref.ref(value, lambda gone: _drop(arrays, key, gone)), encoded
        return encoded

    def _object(self, value: Any, kind: type, name: bytes) -> bytes:
        """Encode an object by what its base of the standard library holds and its attributes."""
        self.objects += 1
        if self.objects > MOST_OBJECTS:
            raise TooMuchError
        parts: list[bytes] = []
        for base in kind.__mro__:
            content = content_of(base)
            if content is not None:
                parts += map(self.encode, content(value))
                break
            facts = facts_of(base)
            if facts.is_local:
                parts.append(self.encode(base))
            if not (facts.is_plain or base in _BASES or issubclass(base, BaseException)):
                self.is_vague = True
        if kind is object:
            self.is_vague = True
        found = attributes(value, kind)
        if found:
            parts.append(self._dict(found))
        return b"o%b;%d:%b" % (name, len(parts), b"".join(parts))


def _drop(arrays: dict[int, tuple[weakref.ref[Any], bytes]], key: int, gone: weakref.ref[Any]) -> None:
    known = arrays.get(key)
    if known is not None and known[0] is gone:  # else another array has got the id
        del arrays[key]


def _is_fixed(array: Any) -> bool:
    """Whether nobody can write into an array, nor into the one that it is a view of."""
    while array is not None and type(array) is not bytes:
        if getattr(getattr(array, "flags", None), "writeable", True):
            return False
        array = array.base
    return True


def _has_contents(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - the question is whether it can be read
    except ValueError:
        return False
    return True
