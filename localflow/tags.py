"""Tags that a block of code gives to the runs it starts."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_current: ContextVar[tuple[str, ...]] = ContextVar("localflow_tags", default=())


@contextmanager
def tags(*names: str) -> Iterator[tuple[str, ...]]:
    """Give `names` as tags to the task runs and flow runs called in the block, besides their own and those around it.

    Yields the tags that are in force in the block, sorted.

    Raises:
        TypeError: a name is no text.
    """
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f'tags takes texts, as in tags("a", "b"), not {name!r}')
    token = _current.set(joined_tags(_current.get(), names))
    try:
        yield _current.get()
    finally:
        _current.reset(token)


def current_tags() -> tuple[str, ...]:
    """Return the tags that runs called here get besides their own, sorted."""
    return _current.get()


def joined_tags(*groups: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tags of all groups, each once, sorted."""
    return tuple(sorted({name for group in groups for name in group}))
