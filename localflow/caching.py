"""Results that are used again instead of being computed again: policies, keys, and what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from localflow.calls import Call

#: Called with the context of the task run and its parameters by name; returns the key, or None for no caching.
CacheKeyFunction: TypeAlias = Callable[[Any, dict[str, Any]], str | None]


class CachePolicy:
    """What goes into a cache key."""


class NotCacheableError(Exception):
    """A call has no cache key; the text says why, for the user."""


class Caching(NamedTuple):
    """The caching options of a task that has any."""

    policy: CachePolicy
    expiration: float | None = None
    """Seconds for which a result may be used; None for ever."""
    refresh: bool = False
    """Compute anew, whatever is there, and keep that."""

    def key(self, call: Call, parameters: Mapping[str, Any]) -> str | None:
        """Return the key of a call whose arguments are `parameters`, None if the policy wants no caching for it.

        Raises:
            NotCacheableError: no key can be made of it.
        """
        raise NotImplementedError


def make_caching(
    described: str,
    policy: CachePolicy | None,
    key_function: CacheKeyFunction | None,
    expiration: timedelta | float | None,
    refresh: bool | None,
) -> Caching | None:
    """Return the caching that the options of a decorator ask for, None for none; raises TypeError."""
    return None
