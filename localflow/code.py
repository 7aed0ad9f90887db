"""A fingerprint of what a function does, by which `resume` notices that its code has changed.

It covers the function's compiled body and defaults, and whatever of the user's own code it names: functions and classes
of its module or of other modules that are not installed, and from there on; and constants of its module that stand
there as literals. Not what is computed when a module is loaded, which may be another at every start; not the names of
files nor line numbers, so code may be moved; not comments. Nothing of the user's is run.

Python compiles to other code in each of its versions, so fingerprints made under two versions cannot be compared.
"""

from __future__ import annotations

import functools
import linecache
import os
import sys
import weakref
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ast
    from collections.abc import Callable, Mapping

_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}:"
_DIGEST_BYTES = 8
_MOST = 1000  # functions and classes that are looked into for one fingerprint
_STANDARD_LIBRARY = os.path.dirname(os.path.realpath(os.__file__))  # noqa: PTH120 - a str in, a str out
_ATOMS = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


def code_of(function: Callable[..., Any], *, with_tasks: bool = True) -> str:
    """Return the fingerprint of a function, method or partial; empty if it has no Python code.

    Args:
        function: what is called.
        with_tasks: whether the code of tasks that it names is part of it, as for a task, where they are plain
            functions; a flow only makes runs of them.
    """
    plain = _plain(function)
    if plain is None:
        return ""
    known = _known if with_tasks else _known_flows
    code = known.get(plain)
    if code is None:
        code = known[plain] = _VERSION + _Reader(with_tasks).read(plain)
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


#: Fingerprints of functions met before: to make one takes about a tenth of a millisecond.
_known: weakref.WeakKeyDictionary[FunctionType, str] = weakref.WeakKeyDictionary()
_known_flows: weakref.WeakKeyDictionary[FunctionType, str] = weakref.WeakKeyDictionary()


class _Reader:
    def __init__(self, with_tasks: bool) -> None:
        self._with_tasks = with_tasks
        self._seen: set[int] = set()
        self._pending: list[tuple[str, Any]] = []
        self._parts: list[str] = []

    def read(self, function: FunctionType) -> str:
        from hashlib import blake2b  # which loads OpenSSL

        self._add("", function)
        while self._pending:
            name, value = self._pending.pop(0)
            self._parts.append(f"<{name}>")
            if isinstance(value, FunctionType):
                self._function(value)
            elif isinstance(value, type):
                for member, content in sorted(vars(value).items()):
                    self._member(member, content)
            else:
                self._parts.append(str(value))
        text = "\n".join(self._parts)
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()

    def _add(self, name: str, value: Any) -> None:
        if id(value) not in self._seen and len(self._seen) < _MOST:
            self._seen.add(id(value))
            self._pending.append((name, value))

    def _function(self, function: FunctionType) -> None:
        self._code(function.__code__)
        self._parts.append(_shown((function.__defaults__, function.__kwdefaults__)))
        for cell in function.__closure__ or ():
            try:
                self._value("cell", cell.cell_contents)
            except ValueError:  # nothing has been put in yet
                continue
        names = function.__globals__
        literals: Mapping[str, str] | None = None
        for name in _names(function.__code__):
            if name not in names:
                continue
            value = names[name]
            if isinstance(value, ModuleType):
                self._module(value, function.__code__)
            elif not self._value(name, value):
                if literals is None:
                    literals = _literals(names) if is_own(names.get("__name__")) else {}
                if name in literals:
                    self._parts.append(f"{name} = {literals[name]}")

    def _value(self, name: str, value: Any) -> bool:
        """Take code that a function names; return whether it is code."""
        if _is_task(value) and not self._with_tasks:
            return True
        plain = _plain(value)
        if plain is not None:
            if is_own(plain.__module__):
                self._add(name, plain)
            return True
        if isinstance(value, type):
            if is_own(value.__module__):
                self._add(name, value)
            return True
        if name == "cell" and isinstance(value, _ATOMS):
            self._parts.append(_shown(value))
        return False

    def _module(self, module: ModuleType, code: CodeType) -> None:
        if is_own(module.__name__):
            for name in _names(code):
                value = vars(module).get(name)
                if value is not None and not isinstance(value, ModuleType):
                    self._value(f"{module.__name__}.{name}", value)

    def _member(self, name: str, content: Any) -> None:
        if isinstance(content, property):
            for each in (content.fget, content.fset, content.fdel):
                self._member(name, each)
        elif isinstance(content, (staticmethod, classmethod)):
            self._member(name, content.__func__)
        elif isinstance(content, FunctionType):
            self._parts.append(name)
            self._function(content)
        elif isinstance(content, _ATOMS) and not name.startswith("__"):
            self._parts.append(f"{name} = {_shown(content)}")

    def _code(self, code: CodeType) -> None:
        self._parts.append(
            f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {code.co_flags} "
            f"{code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount}"
        )
        documentation = code.co_consts[0] if code.co_consts and isinstance(code.co_consts[0], str) else None
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._code(constant)
            elif constant is not documentation:
                self._parts.append(_shown(constant))


def _plain(value: Any) -> FunctionType | None:
    """Return the function inside decorators, partials, methods, tasks and callable objects; None if there is none."""
    for _ in range(100):
        if isinstance(value, FunctionType):
            inner = getattr(value, "__wrapped__", None)
            if inner is None:
                return value
            value = inner
        elif isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, (MethodType, staticmethod, classmethod)):
            value = value.__func__
        elif _is_task(value):
            value = value.fn
        else:
            break
    return None


def _is_task(value: Any) -> bool:
    kind = type(value)
    return getattr(kind, "kind", None) == "Task" and kind.__module__.startswith("localflow.")


@functools.lru_cache(maxsize=1024)
def _names(code: CodeType) -> tuple[str, ...]:
    """Return the names that code and the functions inside it use, attributes among them."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(_names(constant))
    return tuple(sorted(names))


def _literals(module: dict[str, Any]) -> Mapping[str, str]:
    """Return what stands as a literal in the source of a module, by the name it is given there and nowhere else."""
    file = module.get("__file__")
    lines = linecache.getlines(file, module) if isinstance(file, str) else []
    return _literals_in("".join(lines)) if lines else {}


@functools.lru_cache(maxsize=64)
def _literals_in(source: str) -> Mapping[str, str]:
    import ast  # which most code does not need

    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError):
        return {}
    found: dict[str, str] = {}
    given: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
            targets = [statement.target]
        else:
            continue
        for target in targets:
            if not isinstance(target, ast.Name):
                continue
            name, value = target.id, statement.value
            if name in given or value is None or isinstance(statement, ast.AugAssign) or not _is_literal(value):
                found.pop(name, None)
            else:
                found[name] = ast.dump(value)
            given.add(name)
    return found


def _is_literal(value: ast.expr) -> bool:
    import ast

    try:
        ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _shown(value: Any) -> str:
    """Return a constant as text that is the same in every process."""
    if isinstance(value, frozenset):
        return f"frozenset({sorted(map(_shown, value))})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_shown(key)}: {_shown(item)}' for key, item in value.items())}}}"
    return f"{type(value).__name__} {value!r}" if type(value) in _ATOMS else type(value).__name__


@functools.lru_cache(maxsize=512)
def _is_own_file(file: str) -> bool:
    path = os.path.realpath(file)
    return not (
        path.startswith(_STANDARD_LIBRARY + os.sep) or f"{os.sep}site-packages{os.sep}" in path
        or f"{os.sep}dist-packages{os.sep}" in path
    )  # fmt: skip
