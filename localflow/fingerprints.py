"""Fingerprints of values: equal for values that are equal and of one type, in every process; different otherwise.

A value is encoded as bytes that no other value has: a tag for its exact type, then its content. What is no built-in
type is encoded by what pickle would keep of it, so that an object counts as its class and its state. Sets and dicts
count without their order, as they compare; dicts in the state of an object with it, for the object may mean it.

Stricter than `==` on purpose: 1, 1.0 and True are different, so are 0.0 and -0.0, Decimal("1.0") and Decimal("1.00"),
and one instant in two time zones. A value without a fingerprint of this kind has none: it is never guessed.

Code that can be imported counts by its name and body. Code that travels by value, such as a script's own, counts with
all that decides what it does: its members, its variables, whatever of its module it refers to, and so on from there.
"""

from __future__ import annotations

import collections
import copyreg
import functools
import inspect
import struct
import weakref
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any

from localflow.definitions import (
    code_members_of,
    functions_of,
    global_names,
    home_of,
    innermost,
    is_by_value,
    is_only_one,
    members_of,
    real_file,
    refers_by_value,
    text_of,
)
from localflow.digests import blake2b
from localflow.errors import NoFingerprintError
from localflow.interrupts import STOPS
from localflow.payloads import type_name
from localflow.pickler import travels_by_value
from localflow.states import type_and_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_DIGEST_BYTES = 20
_SHORT = 64
_LAMBDA = "<lambda>"
_DECORATED = "localflow.functions"
#: Dicts that compare without their order although they have an `__eq__` of their own.
_UNORDERED = (dict, collections.Counter)


class Fingerprints:
    """Makes the fingerprints for one key; parts that are met several times are encoded once."""

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self._without = without
        # By the id of an object and whether the order of dicts counted; with the objects, for an id is reused once its
        # object is gone.
        self._done: dict[tuple[int, bool], tuple[object, bytes]] = {}
        self._begun: dict[tuple[int, bool], int] = {}
        self._ordered = False
        # Inside the encoding of code: what it refers to of its modules, still to be encoded. Apart from the code, for
        # functions may refer to each other in circles. None outside.
        self._references: dict[tuple[int, str], tuple[FunctionType, object]] | None = None

    def of(self, value: object) -> bytes:
        """Return the fingerprint of a value.

        Raises:
            NoFingerprintError: it has none; the text says why.
        """
        return self._guarded(self._encoded, value)

    def of_definition(self, function: Callable[..., object]) -> bytes:
        """Return the fingerprint of where a function is defined and what it carries, whatever its body says.

        It carries the variables of the functions around it, the object it is a method of, and what a partial has put
        in, all as they are now, except for what goes by the names in `without`.

        Raises:
            NoFingerprintError: something that it carries has none; the text names it.
        """
        return self._guarded(self._definition, function)

    def of_source(self, function: Callable[..., object]) -> bytes:
        """Return the fingerprint of a function's text and code.

        The code is what runs, and all there is for a function typed into a REPL. Beside it the text, where there is
        one, tells apart what compiles to the same code. Not the text alone: the file may have been edited since. Of a
        function that travels by value, also what it refers to of its module, except for the names in `without`.

        Raises:
            NoFingerprintError: something that it refers to has none; the text names it.
        """
        outer = innermost(function)
        known = _seen_sources.get(outer) if isinstance(outer, FunctionType) else None
        if known is None:
            known = self._guarded(self._source, outer)
            if isinstance(outer, FunctionType):
                _seen_sources[outer] = known
        plain = inspect.unwrap(outer)
        if not isinstance(plain, FunctionType) or not refers_by_value(plain):
            return known
        names = self._without.difference(plain.__code__.co_varnames)  # an argument may be called like a global
        return self._guarded(functools.partial(self._with_references, known, names), plain)

    def _guarded(self, encode: Callable[[Any], bytes], value: object) -> bytes:
        try:
            return blake2b(encode(value), digest_size=_DIGEST_BYTES).digest()
        except STOPS:
            raise
        except NoFingerprintError:
            raise
        except RecursionError as error:
            raise NoFingerprintError("it is nested too deeply") from error
        except BaseException as error:  # the state of an object is asked for, which runs code of the user's
            raise NoFingerprintError(type_and_text(error)) from error

    def _encoded(self, value: Any) -> bytes:
        kind = type(value)
        atom = _ATOMS.get(kind)
        if atom is not None:
            return atom(value)
        key = (id(value), self._ordered)
        done = self._done.get(key)
        if done is not None:
            return done[1]
        if key in self._begun:  # it holds itself
            return b"@%d;" % (len(self._begun) - self._begun[key])
        self._begun[key] = len(self._begun)
        compound = _COMPOUNDS.get(kind)
        try:
            encoding = self._object(value) if compound is None else compound(self, value)
        finally:
            del self._begun[key]
        self._done[key] = value, encoding
        return encoding

    def _sequence(self, value: list[Any] | tuple[Any, ...]) -> bytes:
        return _framed(b"l" if type(value) is list else b"t", map(self._encoded, value), len(value))

    def _set(self, value: Iterable[Any]) -> bytes:
        items = sorted(map(self._encoded, value))
        return _framed(b"u" if type(value) is set else b"z", items, len(items))

    def _dict(self, value: dict[Any, Any]) -> bytes:
        return self._pairs(value.items(), self._ordered)

    def _mapping(self, value: Mapping[Any, Any]) -> bytes:
        return self._parts(b"v", dict(value))

    def _pairs(self, pairs: Iterable[tuple[Any, Any]], ordered: bool) -> bytes:
        encoded = [self._encoded(key) + self._encoded(item) for key, item in pairs]
        return _framed(b"o" if ordered else b"d", encoded if ordered else sorted(encoded), len(encoded))

    def _object(self, value: Any) -> bytes:
        kind = type(value)
        if isinstance(value, type):
            return self._class(value)
        if kind is object:
            raise NoFingerprintError("an object() is nothing but itself")
        if any(base.__name__ == "DecoratedFunction" and base.__module__ == _DECORATED for base in kind.__mro__):
            return self._parts(b"W", kind.__name__, value.name, value.fn)
        functions = functions_of(value)
        if functions is not None:
            return self._parts(b"D", kind.__name__, functions)
        library, name = kind.__module__.partition(".")[0], kind.__name__
        if library == "numpy" and name in ("ndarray", "memmap") and not value.dtype.hasobject:
            return self._array(value)
        if library == "pandas" and name in ("DataFrame", "Series"):
            return self._table(value)
        ordered, self._ordered = self._ordered, True
        try:
            return self._reduced(value)
        finally:
            self._ordered = ordered

    def _reduced(self, value: Any) -> bytes:
        """Encode what pickle would keep."""
        kind: Any = type(value)
        reducer = copyreg.dispatch_table.get(kind)
        reduced: Any = value.__reduce_ex__(4) if reducer is None else reducer(value)
        if isinstance(reduced, str):
            module = getattr(value, "__module__", None)
            inner = getattr(value, "__wrapped__", None) if travels_by_value(module) else None  # of an lru_cache
            return self._parts(b"g", home_of(module), reduced, inner)
        make, args, state, items, pairs, *more = (*reduced, *[None] * 4)[: max(5, len(reduced))]
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]
            make, args = args[0], args[1:]
        elif make is copyreg.__newobj_ex__:  # type: ignore[attr-defined]
            make, args = args[0], (*args[1], args[2])
        elif isinstance(value, (set, frozenset)) and kind.__reduce__ in (set.__reduce__, frozenset.__reduce__):
            args = (frozenset(value),)
        parts = [self._by_name(make), self._encoded(args)]
        if type(state) is dict:
            parts.append(self._pairs(state.items(), ordered=False))  # attributes have no order
        else:
            parts.append(self._encoded(state))
        parts.append(self._encoded(None if items is None else list(items)))
        unordered = kind.__eq__ is dict.__eq__ or kind in _UNORDERED
        parts.append(b"N" if pairs is None else self._pairs(pairs, ordered=not unordered))
        parts.append(self._encoded(tuple(more)))
        return _framed(b"x", parts, len(parts))

    def _by_name(self, maker: Any) -> bytes:
        """Encode what makes an object as pickle does: by its name if it can be imported, else by all there is to it."""
        if isinstance(maker, type) and not is_by_value(maker):
            return self._parts(b"k", maker.__module__, maker.__qualname__)
        if isinstance(maker, FunctionType) and not refers_by_value(maker):
            return self._parts(b"k", maker.__module__, maker.__qualname__)
        return self._encoded(maker)

    def _class(self, kind: type) -> bytes:
        if not is_by_value(kind):
            return self._parts(b"K", kind.__module__, kind.__qualname__, code_members_of(kind))
        if self._references is None:
            return self._with_references(b"", frozenset(), kind)
        encoded = [
            self._encoded(name) + self._named(f"'{name}' of {kind.__qualname__}", member)
            for name, member in members_of(kind).items()
        ]
        place = self._parts(b"k", home_of(kind.__module__), kind.__qualname__, kind.__bases__, type(kind))
        return _framed(b"K", [place, *sorted(encoded)], len(encoded) + 1)

    def _function(self, function: FunctionType) -> bytes:
        if refers_by_value(function):
            if self._references is None:
                return self._with_references(b"", frozenset(), function)
            self._refer(function)
        return self._parts(
            b"F", home_of(function.__module__), function.__qualname__, function.__code__, function.__defaults__,
            function.__kwdefaults__, function.__closure__, vars(function),
        )  # fmt: skip

    def _with_references(self, known: bytes, without: frozenset[str], code: Any) -> bytes:
        """Encode code and all that it refers to in modules that travel by value.

        Always from the beginning, so that the same code has the same encoding wherever it is met. With the fingerprint
        of its source `known`, only what it refers to by name: what else it carries is part of its definition.
        """
        inner = Fingerprints()
        pending: dict[tuple[int, str], tuple[FunctionType, object]] = {}
        inner._references = pending
        begin = known or inner._encoded(code)
        if known:
            inner._refer(code, without)
        done: dict[tuple[int, str], bytes] = {}
        while pending:
            key, (function, value) = pending.popitem()
            if key not in done:
                done[key] = b""
                done[key] = inner._reference(function, key[1], value)
        return _framed(b"R", [begin, *sorted(set(done.values()))], len(done))

    def _refer(self, function: FunctionType, without: frozenset[str] = frozenset()) -> None:
        assert self._references is not None
        names = function.__globals__
        for name in global_names(function.__code__):
            if name in names and name not in without:
                self._references.setdefault((id(names), name), (function, names[name]))

    def _reference(self, function: FunctionType, name: str, value: object) -> bytes:
        place = self._parts(b"G", home_of(function.__globals__.get("__name__")), name)
        return place + self._named(f"{function.__qualname__}() refers to '{name}'", value)

    def _cell(self, cell: CellType) -> bytes:
        try:
            content = cell.cell_contents
        except ValueError:  # nothing has been put in yet
            return b"e"
        return _framed(b"c", [self._encoded(content)], 1)

    def _code(self, code: CodeType) -> bytes:
        return self._parts(
            b"C", code.co_code, code.co_consts, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars,
            code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_exceptiontable,
        )  # fmt: skip

    def _module(self, module: ModuleType) -> bytes:
        return self._parts(b"m", module.__name__)

    def _builtin(self, function: BuiltinFunctionType) -> bytes:
        owner = function.__self__
        if owner is None or isinstance(owner, ModuleType):
            return self._parts(b"g", function.__module__, function.__qualname__)
        return self._reduced(function)

    def _array(self, array: Any) -> bytes:
        flat = (array if array.flags.c_contiguous else array.copy(order="C")).reshape(-1)
        hasher = blake2b(self._parts(b"a", type(array).__name__, array.dtype, array.shape), digest_size=_DIGEST_BYTES)
        if array.nbytes:
            hasher.update(flat.view("u1"))
        return b"#" + hasher.digest()

    def _source(self, outer: Any) -> bytes:
        plain = inspect.unwrap(outer)
        return self._encoded((text_of(plain), *[getattr(each, "__code__", None) for each in (outer, plain)]))

    def _table(self, table: Any) -> bytes:
        # Column by column: how pandas lays them out in blocks is a matter of how the table came about.
        is_series = type(table).__name__ == "Series"
        labels = table.name if is_series else table.columns
        columns = [table.array] if is_series else [column.array for _, column in table.items()]
        return self._parts(b"p", is_series, labels, table.index, columns, table.attrs)

    def _definition(self, function: Any) -> bytes:
        if isinstance(function, MethodType):
            names = getattr(getattr(function.__func__, "__code__", None), "co_varnames", ())[:1]
            owner = b"" if self._without.intersection(names) else self._carried("the object", function.__self__)
            return _framed(b"M", [self._definition(function.__func__), owner], 2)
        if isinstance(function, functools.partial):
            keywords = {name: value for name, value in function.keywords.items() if name not in self._without}
            carried = self._carried("what its partial puts in", (function.args, keywords))
            return _framed(b"P", [self._definition(function.func), carried], 2)
        if not isinstance(function, FunctionType):
            return self._encoded(function)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        variables = {
            name: self._named(f"its variable '{name}'", cell) for name, cell in cells if name not in self._without
        }
        original = inspect.unwrap(function)
        file = real_file(original.__code__.co_filename) if isinstance(original, FunctionType) else None
        # A script is one module when Python runs it and another one for the command line, so the file says more. A REPL
        # has none, a notebook none that lasts; there, and where a file gives one name to several functions, as to all
        # lambdas, the code has to do.
        place = (function.__module__ if file is None else file, function.__qualname__)
        is_vague = file is None or _LAMBDA in function.__qualname__ or not is_only_one(file, original.__qualname__)
        return self._encoded((place, variables, function.__code__ if is_vague else None))

    def _carried(self, what: str, value: object) -> bytes:
        # A class counts by its name: its methods are edited like any code that a task calls.
        return self._class_name(value) if isinstance(value, type) else self._named(what, value)

    def _named(self, what: str, value: object) -> bytes:
        """Encode a value; an error says what it is."""
        try:
            return self._encoded(value)
        except STOPS:
            raise
        except RecursionError:
            raise
        except NoFingerprintError as error:
            raise NoFingerprintError(f"{what}: {error}") from error
        except Exception as error:  # what cannot be pickled
            raise NoFingerprintError(f"{what} ({type_name(value)}): {error}") from error

    def _class_name(self, kind: type) -> bytes:
        return self._parts(b"k", home_of(kind.__module__), kind.__qualname__)

    def _parts(self, tag: bytes, *values: object) -> bytes:
        return _framed(tag, map(self._encoded, values), len(values))


def _framed(tag: bytes, parts: Iterable[bytes], count: int) -> bytes:
    """Return a tag and encodings as one; long ones as their hash, so that an encoding is always short."""
    encoding = b"%b%d:%b" % (tag, count, b"".join(parts))
    if len(encoding) <= _SHORT:
        return encoding
    return b"#" + blake2b(encoding, digest_size=_DIGEST_BYTES).digest()


def _bytes(tag: bytes, value: bytes | bytearray) -> bytes:
    header = b"%b%d:" % (tag, len(value))
    if len(value) <= _SHORT:
        return header + value
    hasher = blake2b(header, digest_size=_DIGEST_BYTES)
    hasher.update(value)
    return b"#" + hasher.digest()


def _float(value: float) -> bytes:
    return struct.pack(">cd", b"f", value)


#: Every encoding begins with a tag that says how it goes on, so a row of them reads in one way only.
_ATOMS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"N",
    type(Ellipsis): lambda value: b"E",
    bool: lambda value: b"T" if value else b"B",
    int: lambda value: b"i%x;" % value if -(1 << 64) < value < 1 << 64 else _bytes(b"I", b"%x" % value),
    float: _float,
    complex: lambda value: b"j" + _float(value.real) + _float(value.imag),
    str: lambda value: _bytes(b"s", value.encode("utf-8", "surrogatepass")),
    bytes: lambda value: _bytes(b"b", value),
    bytearray: lambda value: _bytes(b"y", value),
}

_COMPOUNDS: dict[type, Callable[[Fingerprints, Any], bytes]] = {
    list: Fingerprints._sequence,
    tuple: Fingerprints._sequence,
    set: Fingerprints._set,
    frozenset: Fingerprints._set,
    dict: Fingerprints._dict,
    FunctionType: Fingerprints._function,
    BuiltinFunctionType: Fingerprints._builtin,
    CellType: Fingerprints._cell,
    CodeType: Fingerprints._code,
    ModuleType: Fingerprints._module,
    MappingProxyType: Fingerprints._mapping,
}

#: The sources of functions: to find a text takes about a millisecond.
_seen_sources: weakref.WeakKeyDictionary[FunctionType, bytes] = weakref.WeakKeyDictionary()
