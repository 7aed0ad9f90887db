"""`NamedTuple` as that of `typing`, for classes that are made in a third of the time.

That of `typing` compiles each annotation when the class is made. Nobody asks for that here, but each program would pay
for it in its first milliseconds, and each flow run on processes once more.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NamedTuple
else:

    class _Maker(type):
        """Makes the class that a `class` statement describes, of which no instance of this one is left."""

        def __new__(cls, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> type[tuple[Any, ...]]:
            fields = members["__annotations__"]
            defaults = [members.pop(field) for field in fields if field in members]
            made = namedtuple(name, fields, defaults=defaults, module=members["__module__"])
            for member, value in members.items():
                setattr(made, member, value)
            return made

    NamedTuple = type.__new__(_Maker, "NamedTuple", (), {})

__all__ = ["NamedTuple"]
