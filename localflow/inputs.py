"""A fingerprint of what a task or flow was called with, by which `resume` tells one call from another.

It is made at every call, so it is quick: a microsecond or two for plain values, and large ones that are passed again
and again are looked at once. It runs none of the user's code. Values of the built-in and standard types, arrays and
tables count by their content, objects of other classes by their attributes, everything else (connections, locks,
generators) by its type alone. A future counts as the run it belongs to, not as the data it will have.
"""

from __future__ import annotations

import enum
import types
from contextlib import suppress
from struct import pack
from typing import TYPE_CHECKING, Any

from localflow.arguments import Marker
from localflow.code import code_of
from localflow.futures import TaskFuture
from localflow.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: The fingerprint of a call without arguments.
NO_INPUTS = "0"

_DIGEST_BYTES = 8
_DEPTH = 50
_LARGE = 200  # parts of a value from which on it is kept in mind
_MOST_PARTS = 500_000  # of one call; what has more counts by its type and length
_MOST_BYTES = 64 << 20  # of one text or array; of what is longer its ends count
_KEPT = 4


class InputPrints:
    """Makes the fingerprints of the calls of one flow run."""

    def __init__(self) -> None:
        from hashlib import blake2b  # which loads OpenSSL

        self._hash = blake2b
        # Large values by id; with the values themselves, for an id is used again once its object is gone.
        self._large: dict[int, tuple[object, bytes]] = {}

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], wait_for: object = None) -> str:
        """Return the fingerprint of a call."""
        if not args and not kwargs and wait_for is None:
            return NO_INPUTS
        parts = [self._value(value) for value in args]
        if kwargs:
            parts.append(b"=")
            parts += [b"%b:%b" % (name.encode(), self._value(kwargs[name])) for name in sorted(kwargs)]
        if wait_for is not None:
            parts.append(b"w%b" % self._value(wait_for))
        return self._hash(b"".join(parts), digest_size=_DIGEST_BYTES).hexdigest()

    def _value(self, value: object) -> bytes:
        quick = _QUICK.get(type(value))
        if quick is not None:
            return quick(value)
        known = self._large.get(id(value))
        if known is not None:
            return known[1]
        encoder = _Encoder()
        try:
            encoded = encoder.encode(value, 0)
        except Exception:  # it has too many parts, or is of a class that does not let itself be looked at
            size = len(value) if type(value) in (list, tuple, dict, set, frozenset) else 0  # type: ignore[arg-type]
            encoded = b"!%b%d;" % (_type_name(type(value)), size)
        if encoder.parts >= _LARGE:
            encoded = b"#" + self._hash(encoded, digest_size=16).digest()
            if len(self._large) >= _KEPT:
                del self._large[next(iter(self._large))]
            self._large[id(value)] = value, encoded
        return encoded


class _TooMuchError(Exception):
    """A value has too many parts."""


def _text(tag: bytes, data: bytes | memoryview) -> bytes:
    if len(data) <= 64:
        return b"%b%d:%b" % (tag, len(data), bytes(data))
    from hashlib import blake2b

    ends = (data,) if len(data) <= _MOST_BYTES else (data[: _MOST_BYTES // 2], data[-_MOST_BYTES // 2 :])
    digest = blake2b(digest_size=16)
    for each in ends:
        digest.update(each)
    return b"%b%d#%b" % (tag, len(data), digest.digest())


#: Every encoding begins with a tag and says where it ends, so a row of them reads in one way only.
_QUICK: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"N",
    bool: lambda value: b"T" if value else b"F",
    int: lambda value: b"i%x;" % value,
    float: lambda value: pack(">cd", b"f", value),
    str: lambda value: _text(b"s", value.encode("utf-8", "surrogatepass")),
    TaskFuture: lambda value: b"r%b;" % value.task_run_id.encode(),
}

#: Classes whose `repr` says all; by name, for most programs import few of them.
_BY_REPR = frozenset(
    {
        b"builtins.complex", b"builtins.range", b"builtins.slice", b"builtins.ellipsis", b"builtins.NotImplementedType",
        b"datetime.datetime", b"datetime.date", b"datetime.time", b"datetime.timedelta", b"datetime.timezone",
        b"decimal.Decimal", b"fractions.Fraction", b"uuid.UUID", b"re.Pattern", b"pathlib.PurePosixPath",
        b"pathlib.PureWindowsPath", b"pathlib.PosixPath", b"pathlib.WindowsPath", b"pathlib._local.PosixPath",
        b"pathlib._local.WindowsPath", b"pathlib._local.PurePosixPath", b"pathlib._local.PureWindowsPath",
    }
)  # fmt: skip


class _Encoder:
    def __init__(self) -> None:
        self.parts = 0

    def encode(self, value: Any, depth: int) -> bytes:
        kind = type(value)
        quick = _QUICK.get(kind)
        if quick is not None:
            return quick(value)
        self.parts += 1
        if self.parts > _MOST_PARTS:
            raise _TooMuchError
        if depth >= _DEPTH:
            return b"!%b;" % _type_name(kind)
        deeper = depth + 1
        if kind is list or kind is tuple:
            return b"%b%d:%b" % (b"l" if kind is list else b"t", len(value), b"".join(self._each(value, deeper)))
        if kind is dict:
            return self._dict(value, deeper)
        if kind is set or kind is frozenset:
            return b"e%d:%b" % (len(value), b"".join(sorted(self._each(value, deeper))))
        if _type_name(kind) in _BY_REPR:
            return _text(b"p", f"{kind.__name__} {value!r}".encode("utf-8", "surrogatepass"))
        if kind is bytes or kind is bytearray or kind is memoryview:
            return self._bytes(value)
        return self._other(value, kind, deeper)

    def _each(self, items: Iterable[Any], depth: int) -> list[bytes]:
        quick, encode = _QUICK.get, self.encode
        encoded = [one(item) if (one := quick(type(item))) else encode(item, depth) for item in items]
        self.parts += len(encoded)
        return encoded

    def _dict(self, value: dict[Any, Any], depth: int) -> bytes:
        keys = self._each(dict.keys(value), depth)
        items = sorted(map(bytes.__add__, keys, self._each(dict.values(value), depth)))
        return b"d%d:%b" % (len(items), b"".join(items))

    def _bytes(self, value: bytes | bytearray | memoryview) -> bytes:
        view = memoryview(value)
        self.parts += view.nbytes // 64
        return _text(b"b", view.cast("B") if view.contiguous else view.tobytes())

    def _other(self, value: Any, kind: type, depth: int) -> bytes:
        if isinstance(value, Marker):
            return b"m%b;%b" % (kind.__name__.encode(), self.encode(value.value, depth))
        if isinstance(value, State):
            run = value.run_id.encode() if value.run_id else self.encode(value.message, depth)
            return b"S%b;%b;%b;" % (value.type.value.encode(), value.name.encode("utf-8", "surrogatepass"), run)
        if isinstance(value, TaskFuture):
            return _QUICK[TaskFuture](value)
        if isinstance(value, type):
            return b"k%b;" % _type_name(value)
        if isinstance(value, types.ModuleType):
            return b"M%b;" % value.__name__.encode()
        if isinstance(value, enum.Enum):
            return b"E%b;%b;" % (_type_name(kind), str(value._name_).encode())
        code = code_of(value) if callable(value) else ""
        if code or isinstance(value, types.BuiltinFunctionType):
            return b"c%b;%b;%b" % (_function_name(value), code.encode(), self._carried(value, depth))
        name = _type_name(kind)
        if name in (b"numpy.ndarray", b"numpy.ma.MaskedArray") or name.startswith(b"numpy."):
            return self._array(value, name, depth)
        if name.endswith((b".DataFrame", b".Series")) and name.startswith(b"pandas."):
            columns = [value[column] for column in value] if name.endswith(b"DataFrame") else [value]
            contents = [(str(each.name), str(each.dtype), each.to_numpy()) for each in columns]
            return b"P%b" % self.encode([str(value.index)[:1000], contents], depth)
        return b"o%b;%b" % (name, self._object(value, kind, depth))

    def _carried(self, value: Any, depth: int) -> bytes:
        """Encode what a partial or a method has put into the function."""
        keywords = getattr(value, "keywords", None)
        if isinstance(keywords, dict):
            return self.encode([value.args, keywords], depth)
        owner = getattr(value, "__self__", None)
        return b"" if owner is None or isinstance(owner, types.ModuleType) else self.encode(owner, depth)

    def _array(self, value: Any, name: bytes, depth: int) -> bytes:
        dtype = getattr(value, "dtype", None)
        if dtype is None or not hasattr(value, "tobytes"):
            return b"o%b;" % name
        head = b"a%b;%b;%b;" % (name, str(dtype).encode(), str(value.shape).encode())
        if dtype.hasobject:
            return head + self.encode(value.ravel().tolist(), depth)
        self.parts += value.nbytes // 64
        if value.shape and value.flags.c_contiguous and value.nbytes:
            return head + _text(b"b", memoryview(value.reshape(-1).view("u1")))
        return head + _text(b"b", value.tobytes())

    def _object(self, value: Any, kind: type, depth: int) -> bytes:
        """Encode an object of another class by its attributes, and by its items if it is a container of ours too."""
        parts: list[bytes] = []
        if isinstance(value, list):
            parts += self._each(list.__iter__(value), depth)
        elif isinstance(value, tuple):
            parts += self._each(tuple.__iter__(value), depth)
        elif isinstance(value, dict):
            parts.append(self._dict(value, depth))
        elif isinstance(value, set):
            parts += sorted(self._each(set.__iter__(value), depth))
        elif isinstance(value, frozenset):
            parts += sorted(self._each(frozenset.__iter__(value), depth))
        elif isinstance(value, (str, int, float, bytes)):
            base: Any = next(each for each in (str, int, float, bytes) if isinstance(value, each))
            parts.append(self.encode(base.__getnewargs__(value)[0], depth))
        elif isinstance(value, BaseException):
            parts.append(self.encode(value.args, depth))
        if kind.__module__ != "builtins" and not kind.__flags__ & _IMMUTABLE:
            parts.append(self.encode(_attributes(value, kind), depth))
        return b"%d:%b" % (len(parts), b"".join(parts))


_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE: a class written in C


def _attributes(value: Any, kind: type) -> dict[str, Any]:
    """Return the attributes of an object, without a call of anything that its class defines."""
    found: dict[str, Any] = {}
    for each in kind.__mro__:
        for name, member in vars(each).items():
            if isinstance(member, types.MemberDescriptorType) and each.__module__ != "builtins":
                try:
                    found[name] = member.__get__(value, kind)
                except AttributeError:
                    continue
    with suppress(AttributeError, TypeError):
        found.update(object.__getattribute__(value, "__dict__"))
    return found


def _type_name(kind: type) -> bytes:
    module = kind.__module__
    if not isinstance(module, str) or module in ("__main__", "__localflow_main__"):
        module = "__main__"  # a script has one name for Python and one for the command line
    return f"{module}.{kind.__qualname__}".encode("utf-8", "surrogatepass")


def _function_name(value: Any) -> bytes:
    return str(getattr(value, "__qualname__", type(value).__qualname__)).encode("utf-8", "surrogatepass")
