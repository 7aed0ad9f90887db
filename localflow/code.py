"""A fingerprint of what a function does, by which `resume` notices that its code has changed.

It covers the function's compiled body, defaults and decorators, and whatever of the user's own code it names: classes
with their bases, functions, and containers of these, of its module or of other modules that are not installed, and
from there on; and what stands in the source where a name of a module or a member of a class is given its value.

That is the text of the source, not the value, which may be another at every start or change while tasks run: in the
places of `time.time()`, of a connection that is opened late, of a counter. A false change would run completed work
again, which is worse than to miss one. The names of files and line numbers do not count, so code may be moved; nor do
comments, docstrings and the options of @task and @flow. Nothing of the user's is run.

Python compiles to other code in each of its versions, so fingerprints made under two versions cannot be compared.
"""

from __future__ import annotations

import functools
import os
import sys
import weakref
from collections import defaultdict
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from localflow.bytecode import ATOMS, compiled, names_in, settled, shown, stored
from localflow.digests import blake2b
from localflow.sources import source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from localflow.sources import Expression

    Space = dict[str, Any]  # the names of a module

_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}:"
_DIGEST_BYTES = 8
_MOST = 1000  # functions, classes and names that are looked into for one fingerprint; items of a container likewise
_STANDARD_LIBRARY = os.path.dirname(os.path.realpath(os.__file__))  # noqa: PTH120 - a str in, a str out


def code_of(function: Callable[..., Any], *, with_tasks: bool = True) -> str:
    """Return the fingerprint of a function, method or partial; empty if it has no Python code.

    Args:
        function: what is called.
        with_tasks: whether the code of tasks that it names is part of it, as for a task, where they are plain
            functions; a flow only makes runs of them.
    """
    value: Any = function
    while isinstance(value, (MethodType, staticmethod, classmethod)):
        value = value.__func__
    if _unwrapped(value)[0] is None:
        return ""
    if type(value) not in _HASHED_BY_IDENTITY:
        return _VERSION + _Reader(with_tasks).read(value)
    known = _known if with_tasks else _known_flows
    code = known.get(value)
    if code is None:
        code = known[value] = _VERSION + _Reader(with_tasks).read(value)
    return code


def is_changed(code: str, earlier: str) -> bool:
    """Return whether two fingerprints say that the code is another; False where they cannot be compared."""
    if not (code and earlier) or code.partition(":")[0] != earlier.partition(":")[0]:
        return False
    return code != earlier


def is_own(module: str | None) -> bool:
    """Return whether a module is the user's: a script, or a file that is not installed."""
    if module is None or module == "__main__":
        return True
    if module.partition(".")[0] in ("localflow", "builtins"):
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module in sys.modules and not hasattr(sys.modules[module], "__spec__")
    return _is_own_file(file)


_CONTAINERS = (dict, defaultdict, list, tuple, set, frozenset)
_HASHED_BY_IDENTITY = (FunctionType, functools.partial, type(functools.lru_cache(lambda: None)))
#: Fingerprints of functions met before: to make one takes about a tenth of a millisecond.
_known: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_known_flows: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


class _Reader:
    def __init__(self, with_tasks: bool) -> None:
        self._with_tasks = with_tasks
        self._seen: set[Any] = set()
        self._pending: list[tuple[str, Any, Space]] = []
        self._parts: list[str] = []

    def read(self, value: Any) -> str:
        plain, wrappers = _unwrapped(value)
        assert plain is not None
        self._add("", plain, plain.__globals__)
        self._wrappers(plain, wrappers)
        if isinstance(value, functools.partial):
            self._parts.append(shown((value.args, value.keywords)))
        chunks = []
        while self._pending:
            name, found, space = self._pending.pop(0)
            if isinstance(found, FunctionType):
                self._function(found)
            elif isinstance(found, type):
                self._class(found, space)
            else:
                self._given(name, space)
            if self._parts:
                chunks.append("\n".join([f"<{name}>", *self._parts]))
                self._parts.clear()
        text = "\n".join(sorted(chunks))  # in which way it is come by may change while tasks run
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()

    def _add(self, name: str, value: Any, space: Space) -> None:
        key = id(value) if value is not None else (name, id(space))
        if key not in self._seen and len(self._seen) < _MOST:
            self._seen.add(key)
            self._pending.append((name, value, space))

    def _function(self, function: FunctionType) -> None:
        code, space = function.__code__, function.__globals__
        self._parts.append(compiled(code))
        defaults = (function.__defaults__, function.__kwdefaults__)
        written = None
        if any(not isinstance(each, (bool, type(None))) for each in _flat(defaults)) and _is_own_space(space):
            written = source_of(space).defaults.get(code.co_qualname)
        if written is None:
            self._parts.append(shown(defaults))
        else:
            self._written(written, space)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
            try:
                value = cell.cell_contents
            except ValueError:  # nothing has been put in yet
                continue
            if isinstance(value, ATOMS):
                if _is_settled(name, function):
                    self._parts.append(f"{name} = {shown(value)}")
            else:
                self._value(value, space)
        self._names(names_in(code), space)

    def _names(self, names: tuple[str, ...], space: Space) -> None:
        for name in names:
            if name in space:
                self._name(name, space, names)

    def _name(self, name: str, space: Space, names: tuple[str, ...]) -> None:
        """Take a name of a module, and if it is a module itself, those of it that are among the names."""
        value = space[name]
        if isinstance(value, ModuleType):
            key = (id(value), names)
            if is_own(value.__name__) and key not in self._seen and len(self._seen) < _MOST:
                self._seen.add(key)
                for each in names:
                    if each in vars(value):
                        self._name(each, vars(value), names)
            return
        stands = isinstance(value, FunctionType) and value.__name__ == name and not _has_inner(value)
        if stands or _is_task(value) or not _is_own_space(space):
            self._value(value, space)
            return
        if isinstance(value, type) and not is_own(value.__module__):
            return
        if source_of(space).has_when_loaded(name):
            self._value(value, space)
            for each in _attributes(value).values() if not isinstance(value, type) else ():
                if isinstance(each, FunctionType) and each.__name__ == name:  # a decorator has made an object of it
                    self._value(each, space)
        self._add(name, None, space)

    def _given(self, name: str, space: Space) -> None:
        """Take the statements that give a name its value, in the module that it is imported from if it is."""
        source = source_of(space)
        self._written(source.given.get(name, ()), space)
        self._written([each for each in source.decorators.get(name, ()) if not _is_ours(each, space)], space)
        origins = [source.imported[name]] if name in source.imported else [] if name in source.given else source.stars
        for module, original in origins:
            found = sys.modules.get(_absolute(module, space))
            if found is not None and is_own(found.__name__) and (original or name) in vars(found):
                self._add(original or name, None, vars(found))

    def _written(self, expressions: Iterable[Expression], space: Space) -> None:
        for expression in expressions:
            self._parts.append(expression.text)
            self._names(expression.names, space)

    def _value(self, value: Any, space: Space) -> None:
        """Take code of the user, or what a container holds of it."""
        if _is_task(value) and not self._with_tasks:
            return
        if isinstance(value, type):
            if is_own(value.__module__):
                self._add(value.__qualname__, value, _space_of(value, space))
        elif type(value) in _CONTAINERS:
            self._container(value, space)
        else:
            plain, wrappers = _unwrapped(value)
            if plain is not None:
                if _is_own_space(plain.__globals__):
                    self._add(plain.__qualname__, plain, plain.__globals__)
                self._wrappers(plain, wrappers)

    def _wrappers(self, plain: FunctionType, wrappers: list[FunctionType]) -> None:
        """Take what is around a function: its decorators as they are written, or else the wrappers themselves."""
        if not wrappers:
            return
        space, name = plain.__globals__, plain.__code__.co_qualname
        written = []
        if _is_own_space(space):
            written = [each for each in source_of(space).decorators.get(name, ()) if not _is_ours(each, space)]
            self._add(name, None, space)
        if len(written) < len(wrappers):
            for wrapper in wrappers:
                if _is_own_space(wrapper.__globals__):
                    self._add("wrapper", wrapper, wrapper.__globals__)

    def _container(self, value: Any, space: Space, depth: int = 2) -> None:
        """Take functions and classes that stand in a module by themselves: others may have come in while tasks ran."""
        if len(value) > _MOST:
            return
        for each in list(value.values() if isinstance(value, dict) else value):
            if type(each) in _CONTAINERS:
                if depth > 1:
                    self._container(each, space, depth - 1)
                continue
            code = each if isinstance(each, type) else _unwrapped(each)[0]
            if code is not None and "<" not in code.__qualname__:
                self._value(each, space)

    def _class(self, value: type, space: Space) -> None:
        for base in (*value.__bases__, type(value)):
            self._value(base, space)
        source = source_of(space)
        body = source.bodies.get(value.__qualname__)
        if body is not None:
            self._written(source.decorators.get(value.__qualname__, ()), space)
            self._written(body, space)
        for name, content in sorted(vars(value).items()):
            if body is None and isinstance(content, ATOMS) and not name.startswith("__"):
                self._parts.append(f"{name} = {shown(content)}")
            self._member(name, content, space, value, generated=body is None)

    def _member(self, name: str, content: Any, space: Space, owner: type, *, generated: bool) -> None:
        """Take code of a class; what a decorator of it has generated only if there is no source to make it from."""
        if isinstance(content, property):
            for each in (content.fget, content.fset, content.fdel):
                self._member(name, each, space, owner, generated=generated)
        elif isinstance(content, functools.cached_property):
            self._member(name, content.func, space, owner, generated=generated)
        elif isinstance(content, type):
            if content.__qualname__.rpartition(".")[0] == owner.__qualname__:
                self._value(content, space)
        elif type(content) not in _CONTAINERS:
            plain, _ = _unwrapped(content)
            if plain is not None and (generated or not plain.__code__.co_filename.startswith("<")):
                self._value(content, space)


def _unwrapped(value: Any) -> tuple[FunctionType | None, list[FunctionType]]:
    """Return the function inside decorators, partials, methods and tasks, or None; and functions around it."""
    wrappers: list[FunctionType] = []
    for _ in range(100):
        if isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, (MethodType, staticmethod, classmethod)):
            value = value.__func__
        elif _is_task(value):
            value = value.fn
        elif _has_inner(value):
            if isinstance(value, FunctionType):
                wrappers.append(value)
            value = _attributes(value)["__wrapped__"]
        else:
            break
    return (value if isinstance(value, FunctionType) else None), wrappers


def _attributes(value: Any) -> Mapping[str, Any]:
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found if isinstance(found, dict) else {}


def _has_inner(value: Any) -> bool:
    return not isinstance(value, (type, ModuleType)) and "__wrapped__" in _attributes(value)


def _flat(defaults: tuple[tuple[Any, ...] | None, dict[str, Any] | None]) -> list[Any]:
    return [*(defaults[0] or ()), *(defaults[1] or {}).values()]


def _is_task(value: Any) -> bool:
    kind = type(value)
    return getattr(kind, "kind", None) == "Task" and kind.__module__.startswith("localflow.")


def _is_own_space(space: Space) -> bool:
    return is_own(space.get("__name__"))


def _space_of(value: type, space: Space) -> Space:
    if space.get("__name__") == value.__module__:
        return space
    return vars(sys.modules[value.__module__]) if value.__module__ in sys.modules else {}


def _absolute(module: str, space: Space) -> str:
    bare = module.lstrip(".")
    if bare == module:
        return module
    package = str(space.get("__package__") or "").split(".")
    return ".".join([*package[: len(package) - (len(module) - len(bare) - 1)], *filter(None, [bare])])


def _is_ours(decorator: Expression, space: Space) -> bool:
    """Return whether a decorator is one of localflow's, whose options do not count."""
    value: Any = space.get(decorator.callee[0]) if decorator.callee else None
    for name in (*decorator.callee[1:], ""):
        module = value.__name__ if isinstance(value, ModuleType) else type(value).__module__
        if f"{value.__module__ if isinstance(value, FunctionType) else module}.".startswith("localflow."):
            return True
        value = _attributes(value).get(name)
    return False


def _is_settled(name: str, function: FunctionType) -> bool:
    """Return whether a variable of an enclosing function is its argument or a constant, and not computed or counted."""
    first, *rest = function.__code__.co_qualname.replace(".<locals>", "").split(".")
    found = function.__globals__.get(first)
    while rest and isinstance(found, type):
        found = vars(found).get(rest.pop(0))
    enclosing = _unwrapped(found)[0]
    codes = [enclosing.__code__] if enclosing is not None else []
    for part in rest[:-1] if codes else ():
        inner = [each for each in codes[-1].co_consts if isinstance(each, CodeType) and each.co_name == part]
        if not inner:
            break
        codes.append(inner[0])
    for code in reversed(codes):
        if name in code.co_cellvars:
            return name in settled(code)
    return name not in stored(function.__code__)


@functools.lru_cache(maxsize=512)
def _is_own_file(file: str) -> bool:
    path = os.path.realpath(file)
    return not (
        path.startswith(_STANDARD_LIBRARY + os.sep) or f"{os.sep}site-packages{os.sep}" in path
        or f"{os.sep}dist-packages{os.sep}" in path
    )  # fmt: skip
