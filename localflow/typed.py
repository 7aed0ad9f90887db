"""`NamedTuple` and `TypedDict` as those of `typing`, for classes that are made in a third of the time.

Those of `typing` compile each annotation when a class is made. Nobody asks for that here, but each program would pay
for it in its first milliseconds, and each flow run on processes once more.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NamedTuple, TypedDict
else:

    class _NamedTupleMaker(type):
        """Makes what a `class` statement describes: a class that has nothing of this one."""

        def __new__(cls, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> type[tuple[Any, ...]]:
            fields = members["__annotations__"]
            defaults = [members.pop(field) for field in fields if field in members]
            made = namedtuple(name, fields, defaults=defaults, module=members["__module__"])
            for member, value in members.items():
                setattr(made, member, value)
            return made

    NamedTuple = type.__new__(_NamedTupleMaker, "NamedTuple", (), {})

    class TypedDict(dict):
        """Has the keys of its bases among its own, as annotations."""

        def __init_subclass__(cls, total: bool = True) -> None:
            cls.__annotations__ = {**getattr(cls.__base__, "__annotations__", {}), **cls.__annotations__}


__all__ = ["NamedTuple", "TypedDict"]
