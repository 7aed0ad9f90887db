"""The upstreams of a task run, and how they are stored and sent.

What waits for a whole `map` has thousands, and so may thousands of others. Ids of one flow run whose numbers follow
each other are then told by what they have in common, the first number and the last.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Few: TypeAlias = "tuple[str | tuple[str, int, int], ...]"

#: With so many upstreams a run is not the only one that has them; fewer are stored as they are.
MANY = 16
_MOST_DIGITS = 18


def compact(ids: Sequence[str]) -> Few:
    """Return ids as they are stored."""
    if len(ids) < MANY:
        return tuple(ids)
    stored: list[str | tuple[str, int, int]] = []
    prefix, first, last = "", 0, -1
    for id in ids:
        if first <= last and id == f"{prefix}-{last + 1}":
            last += 1
            continue
        stored += _range(prefix, first, last)
        prefix, dash, digits = id.rpartition("-")
        if dash and digits.isdecimal() and len(digits) <= _MOST_DIGITS and str(int(digits)) == digits:
            first = last = int(digits)
        else:
            stored.append(id)
            first, last = 0, -1
    return (*stored, *_range(prefix, first, last))


def _range(prefix: str, first: int, last: int) -> Iterable[str | tuple[str, int, int]]:
    if last - first > 1:
        return [(prefix, first, last)]
    return [f"{prefix}-{number}" for number in range(first, last + 1)]


def expanded(stored: Sequence[str | Sequence[str | int]]) -> tuple[str, ...]:
    """Return the ids again; many task runs with the same ones share them."""
    if {str}.issuperset(map(type, stored)):
        return tuple(cast("Sequence[str]", stored))
    return _expanded(
        tuple([each if isinstance(each, str) else cast("tuple[str, int, int]", tuple(each)) for each in stored])
    )


@lru_cache(maxsize=8)
def _expanded(stored: Few) -> tuple[str, ...]:
    ids: list[str] = []
    for each in stored:
        if isinstance(each, str):
            ids.append(each)
        else:
            prefix, first, last = each
            ids += [f"{prefix}-{number}" for number in range(first, last + 1)]
    return tuple(ids)
