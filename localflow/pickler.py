"""What makes bytes of values that JSON has no words for: cloudpickle, and what that leaves out. The one home of it."""

from __future__ import annotations

import sys
import typing
from contextlib import suppress
from functools import cache, cached_property, lru_cache
from importlib import import_module
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from localflow import classes

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


@cache
def pickler_class() -> Any:
    """Return the class of picklers; `defines_classes` is set for what defines the classes in it for the receiver."""
    import cloudpickle  # imported late: 30 ms that a flow without workers need not pay

    from localflow.bytecode import class_body_names

    def reduced_code(code: CodeType) -> tuple[Any, ...]:
        """Keep the name of the file, for tracebacks in workers: newer releases of cloudpickle leave it out."""
        constructor, parts = cloudpickle.Pickler.dispatch_table[CodeType](code)
        return constructor, (*parts[:10], code.co_filename, *parts[11:])

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
        defines_classes = False
        dispatch_table = cloudpickle.Pickler.dispatch_table.new_child({CodeType: reduced_code, **_reducers()})

        def reducer_override(self, obj: Any) -> Any:  # called for nearly every object
            is_class = issubclass(type(obj), type)
            if not (is_class or type(obj) is FunctionType):
                return NotImplemented
            _load_home(obj)
            parts = super().reducer_override(obj)
            if type(parts) is not tuple or len(parts) != 6:
                return parts
            if is_class:
                return classes.reduced(obj, parts, self.defines_classes)
            for name in class_body_names(obj.__code__):  # cloudpickle looks for what functions look up, not classes
                if name in obj.__globals__:
                    parts[2][1]["__globals__"][name] = obj.__globals__[name]
            return parts

    return Pickler


def _reducers() -> dict[type, Callable[[Any], Any]]:
    """Return how to write what pickle knows by its name alone, or not at all, but a script may well have."""
    reducers: dict[type, Callable[[Any], Any]] = {
        type(cache(lambda: None)): _reduced_cache,
        cached_property: _reduced_property,
        WeakKeyDictionary: lambda entries: (WeakKeyDictionary, (dict(entries),)),  # as in functools.singledispatch
        typing.NewType: lambda kind: _name_of(kind) or (typing.NewType, (kind.__name__, kind.__supertype__)),
        typing.ParamSpec: lambda kind: _name_of(kind) or (typing.ParamSpec, (kind.__name__,)),
        typing.TypeVarTuple: lambda kind: _name_of(kind) or (typing.TypeVarTuple, (kind.__name__,)),
    }
    if sys.version_info >= (3, 12):
        reducers[typing.TypeAliasType] = _reduced_alias
    return reducers


def _reduced_cache(value: Any) -> str | tuple[Any, ...]:
    return _name_of(value) or (_cached, (value.__wrapped__, value.cache_parameters()), vars(value))


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return lru_cache(**parameters)(function)


def _reduced_property(value: Any) -> tuple[Any, ...]:
    """Leave out the lock that Python 3.11 has in it."""
    return cached_property, (value.func,), {name: part for name, part in vars(value).items() if name != "lock"}


def _reduced_alias(value: Any) -> str | tuple[Any, ...]:
    return _name_of(value) or (_alias, (value.__name__, value.__value__, value.__type_params__))


def _alias(name: str, value: object, parameters: tuple[Any, ...]) -> Any:
    return typing.TypeAliasType(name, value, type_params=parameters)  # type: ignore[attr-defined]


def _name_of(value: Any) -> str | None:
    """Return the name under which a worker finds the value in its module, None if it does not."""
    name: str = getattr(value, "__qualname__", "") or getattr(value, "__name__", "")
    found: Any = None if travels_by_value(value.__module__) else sys.modules[value.__module__]
    for part in name.split("."):
        found = getattr(found, part, None)
    return name if found is value else None


def _load_home(obj: Any) -> None:
    """Import the module in which a class or function says it is, where only its package is there, as for `numpy.rec`.

    It is found there by whoever imports it, but cloudpickle looks at loaded modules alone.
    """
    name = getattr(obj, "__module__", None)
    if type(name) is str and name not in sys.modules and name.rpartition(".")[0] in sys.modules:
        with suppress(ImportError):
            import_module(name)


def travels_by_value(module: str | None) -> bool:
    """Return whether functions of this module are pickled whole because workers cannot import it."""
    if module is None or module in classes.SCRIPTS or module not in sys.modules:  # it is no module, as after `exec`
        return True
    cloudpickle = sys.modules.get("cloudpickle")
    return cloudpickle is not None and module in cloudpickle.list_registry_pickle_by_value()


def by_value(module: ModuleType) -> None:
    """Have everything defined in `module` pickled whole from now on, as for `__main__`."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(module)
