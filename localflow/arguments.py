"""Find marked values inside arguments and put others in their place. Pure: no I/O, no threads.

Looked into, at any depth: lists, tuples (named ones too), sets, frozensets, dicts and dataclass instances. Only the
containers that hold something to replace are copied; everything else stays the very same object. Markers are replaced
by what they hold, and looked into as well, but for `quote(...)`: nothing inside that is looked at.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar, cast

from localflow.signatures import StandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")
P = TypeVar("P")

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray, type, range})


class Marker(StandIn[T]):
    """Something put around an argument that says how it is to be taken; the function gets what it holds."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"


class quote(Marker[T]):
    """Pass `value` on untouched: futures and states inside are neither waited for nor replaced."""

    __slots__ = ()


class unmapped(Marker[T]):
    """Pass `value` whole to every run of a `map`, although it could be mapped over."""

    __slots__ = ()


class Whole(quote[T]):
    """What goes to every run of a `map`; nothing in it is to be replaced."""

    __slots__ = ("_packed",)
    _packed: Any

    def packed_once(self, pack: Callable[[T], P]) -> P:
        """Return what `pack` makes of the value, for which it is called the first time only."""
        try:
            return cast("P", self._packed)
        except AttributeError:
            self._packed = packed = pack(self.value)
            return packed


class allow_failure(Marker[T]):
    """Take failed upstreams: in the place of a future or state inside comes its exception if it FAILED or is NotReady.

    Cancelled and crashed upstreams still block the call.
    """

    __slots__ = ()


def find(value: object, kinds: tuple[type, ...]) -> list[Any]:
    """Return the instances of `kinds` inside `value`, each once, in the order a reader meets them.

    A marker among the kinds is returned, and looked into all the same.
    """
    return _find(value, kinds, quote)


def find_in_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], kinds: tuple[type, ...]) -> list[Any]:
    """Do `find` for the arguments of a call, in most of which there is nothing that has to be looked into."""
    values = (*args, *kwargs.values()) if kwargs else args
    found: dict[int, Any] = {}
    for item in values:
        if type(item) in _ATOMS:
            continue
        if not isinstance(item, kinds) or isinstance(item, Marker):
            return _find(values, kinds, quote)
        found[id(item)] = item
    return [*found.values()]


def find_tolerated(value: object, kinds: tuple[type, ...]) -> list[Any]:
    """Return the instances of `kinds` that are inside an `allow_failure`, at any depth, and nowhere outside of one."""
    strict = {id(item) for item in _find(value, kinds, (quote, allow_failure))}
    return [item for item in find(value, kinds) if id(item) not in strict]


def _find(value: object, kinds: tuple[type, ...], opaque: type | tuple[type, ...]) -> list[Any]:
    """Do `find` without looking into instances of `opaque`."""
    if type(value) in _ATOMS:
        return []
    found: dict[int, object] = {}
    seen: dict[int, object] = {}  # with the objects, for an id is reused once its object is gone
    pending: list[object] = [value]
    while pending:
        item = pending.pop()
        if type(item) in _ATOMS or id(item) in found or id(item) in seen:
            continue
        if isinstance(item, kinds):
            found[id(item)] = item
            if not isinstance(item, Marker):
                continue
        if not isinstance(item, opaque):
            children = _children(item)
            if children is not None:
                seen[id(item)] = item
                pending.extend(reversed(children))
    return list(found.values())


def replace(value: object, kinds: tuple[type, ...], substitute: Callable[[Any], object]) -> Any:
    """Return `value` with every instance of `kinds` replaced, and every marker by what it holds unless it is a kind.

    `substitute` is called once for each distinct instance. Containers without one come back as the same object.
    A container that holds both itself and something to replace keeps its inner reference to the original.
    """
    marked = (*kinds, quote)
    replaced: dict[int, object] = {}
    entered: dict[int, object] = {}  # with the objects, for an id is reused once its object is gone
    # An explicit stack: arguments may be nested deeper than the recursion limit. A container is met twice, first to
    # visit what it holds, then to rebuild it from the visited children.
    pending: list[tuple[object, bool]] = [(value, False)]
    while pending:
        item, children_done = pending.pop()
        key = id(item)
        if children_done:
            if isinstance(item, Marker):
                replaced[key] = replaced.get(id(item.value), item.value)
            elif any(id(child) in replaced for child in _children(item) or ()):
                replaced[key] = _rebuild(item, lambda child: replaced.get(id(child), child))
        elif type(item) in _ATOMS or key in replaced or key in entered:
            continue
        elif isinstance(item, marked):
            replaced[key] = substitute(item) if isinstance(item, kinds) else item.value  # type: ignore[attr-defined]
        else:
            children = _children(item)
            if children:
                entered[key] = item
                pending.append((item, True))
                pending.extend((child, False) for child in reversed(children))
    return replaced.get(id(value), value)


def replace_in_call(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], kinds: tuple[type, ...], substitute: Callable[[Any], object]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Do `replace` for the arguments of a call, in most of which there is nothing that has to be looked into."""
    values = (*args, *kwargs.values()) if kwargs else args
    substitutes: dict[int, object] = {}
    for item in values:
        if type(item) not in _ATOMS:
            if not isinstance(item, kinds):
                replaced: tuple[tuple[Any, ...], Mapping[str, Any]] = replace((args, kwargs), kinds, substitute)
                return replaced
            substitutes[id(item)] = item
    for key, item in substitutes.items():
        substitutes[key] = substitute(item)
    values = tuple([substitutes.get(id(item), item) for item in values])
    return values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True))


def is_atom(item: object) -> bool:
    """Return whether there is never anything to be found in a value."""
    return type(item) in _ATOMS


def _children(item: object) -> list[object] | None:
    """Return what a container holds, or None for anything that is not looked into."""
    if isinstance(item, (list, tuple, set, frozenset)):
        return list(item)
    if isinstance(item, Marker):
        return [item.value]
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    if hasattr(type(item), "__dataclass_fields__"):
        return [getattr(item, name) for name in _field_names(item) if hasattr(item, name)]
    return None


def _rebuild(item: Any, new: Callable[[object], object]) -> object:
    kind = type(item)
    if isinstance(item, tuple):
        # Not by the type itself: a subclass may take other arguments than its items.
        return tuple.__new__(kind, [new(child) for child in item])
    if isinstance(item, frozenset):
        return frozenset.__new__(kind, [new(child) for child in item])
    clone: Any = copy.copy(item)
    if isinstance(item, list):
        clone[:] = [new(child) for child in item]
    elif isinstance(item, set):
        clone.clear()
        clone.update(new(child) for child in item)
    elif isinstance(item, dict):
        clone.clear()
        for key, child in item.items():
            clone[new(key)] = new(child)
    else:
        for name in _field_names(item):
            if hasattr(item, name):
                object.__setattr__(clone, name, new(getattr(item, name)))
    return clone


def _field_names(item: object) -> list[str]:
    """Return the names of a dataclass instance's fields."""
    import dataclasses  # who has an instance has paid for it

    return [field.name for field in dataclasses.fields(item)]  # type: ignore[arg-type]  # that was looked at
