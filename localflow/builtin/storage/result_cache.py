"""Results by cache key in the JSON store: a file for each key that says where in which journal the result stands.

A file is written after the journal's line, so it may be missing where its writer died, and it is no more than a hint:
the line itself must say that its result may be found under this key. Whatever does not fit is a miss.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from localflow.builtin.storage.directory import (
    NO_FOLLOW,
    make_private_directory,
    refuse_foreign,
    sole_maker,
    write_private_file,
)
from localflow.builtin.storage.encoding import to_json
from localflow.builtin.storage.journal import Line, Place, read_lines, sealed
from localflow.errors import StoreError
from localflow.interfaces import StateChange, StateType, TaskRun

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from localflow.interfaces import CacheEntry, Record

logger = logging.getLogger(__name__)

_MAX_HINTS = 8  # of one key; more would have to run out one before the other, the newest first


class Hint(NamedTuple):
    """Which state change in which line of a journal may be the one to look for."""

    key: str
    expires_at: float | None
    root: str
    """The flow run whose journal it is."""
    flow_run: str
    flow_run_name: str
    number: int
    name: str
    """Of the task run."""
    sequence: int
    offset: int
    length: int


class ResultCache:
    """The files in one directory; several processes may write and read them at once."""

    def __init__(self, directory: Path, *, power_safe: bool) -> None:
        """Keep the files in `directory`, which is made when it is needed."""
        self._directory = directory
        self._draft = directory / ".part"
        self._power_safe = power_safe

    def add(self, records: Sequence[Record], place: Place) -> None:
        """Make the results among records known that stand in a journal's line by now; if that fails, they are not."""
        for record in records:
            if isinstance(record, StateChange) and record.cache is not None:
                hint = _hint(record, record.cache, place)
                if hint is not None:
                    try:
                        self._write(hint)
                    except (OSError, StoreError) as error:  # the records themselves are safe
                        logger.warning("the result of '%s' cannot be reused: %s", hint.name, error)

    def hints(self, key: str, now: float) -> list[Hint]:
        """Return what may lead to results under a key that have not expired at `now`, the newest first."""
        path = self._path(key)
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | NO_FOLLOW), "rb") as file:
                content = file.read()
            hints = [Hint(**entry) for entry in Line(path, Place(1, 0, len(content)), content).entries()]
            return [hint for hint in hints if hint.key == key and not has_expired(hint.expires_at, now)]
        except (OSError, StoreError, TypeError):
            return []

    def tidy(self) -> None:
        """Remove the draft of a writer that died."""
        if self._draft.exists():
            with suppress(OSError), sole_maker(self._directory):
                self._draft.unlink(missing_ok=True)

    def forget(self, keys: Iterable[str], root: str) -> None:
        """Make the results of a flow run at the top, and of all below it, unknown under these keys."""
        for key in keys:
            with suppress(OSError), sole_maker(self._directory):  # a hint that stays leads nowhere
                hints = self.hints(key, float("-inf"))
                kept = [hint for hint in hints if hint.root != root]
                if kept:
                    self._replace(key, kept)
                elif hints:
                    self._path(key).unlink(missing_ok=True)

    def _write(self, hint: Hint) -> None:
        make_private_directory(self._directory)
        refuse_foreign(self._directory, self._directory.lstat())
        with sole_maker(self._directory):
            hints = [hint]
            if hint.expires_at is not None:  # what was the newest so far may be valid for longer
                hints += self.hints(hint.key, hint.expires_at)[: _MAX_HINTS - 1]
            self._replace(hint.key, hints)

    def _replace(self, key: str, hints: Sequence[Hint]) -> None:
        """Write about a key; whoever does so is the only one now, so the draft of one that died is replaced."""
        content = sealed(to_json({"records": [hint._asdict() for hint in hints]}))
        write_private_file(self._path(key), content, sync=self._power_safe, draft=self._draft)

    def _path(self, key: str) -> Path:
        return self._directory / f"{sha256(key.encode(errors='surrogatepass')).hexdigest()}.json"


def has_expired(expires_at: float | None, now: float) -> bool:
    """Return whether a time has passed at `now`; None never passes, and what is no number has passed already."""
    return expires_at is not None and not expires_at > now


def keys_in(journal: Path) -> set[str]:
    """Return the cache keys of the results in a journal, up to the first damage in it."""
    keys = set()
    with suppress(StoreError):
        for line in read_lines(journal):
            if b'"cache":' in line.content:
                keys |= {entry["cache"]["key"] for entry in line.entries() if "cache" in entry}
    return keys


def _hint(change: StateChange, cache: CacheEntry, place: Place) -> Hint | None:
    run = change.run
    if not isinstance(run, TaskRun) or change.result is None or change.type is not StateType.COMPLETED:
        return None
    if has_expired(cache.expires_at, float("-inf")):
        return None
    return Hint(
        *cache,
        root=run.flow_run.root_id,
        flow_run=run.flow_run.id,
        flow_run_name=run.flow_run.name,
        number=run.number,
        name=run.name,
        sequence=change.sequence,
        offset=place.offset,
        length=place.length,
    )
