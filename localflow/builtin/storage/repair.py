"""What repairs of all stores have in common: nobody is at work, what is damaged is copied aside, all is told.

What is readable of a damaged store is read record by record and appended to a sound one, which then takes its place. So
a repaired store is like any other, and what cannot be so (a state of a task run that is lost) is not in it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from localflow.builtin.storage.directory import NO_FOLLOW, create_private_file, sync_directory
from localflow.builtin.storage.failures import os_failure
from localflow.errors import StoreError
from localflow.interfaces import FlowRun, LogEntry, StateChange, TaskRun
from localflow.locks import take_claim

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from localflow.interfaces import Record

_BATCH = 1_000  # records that are appended together

_NOUNS = {
    FlowRun: "flow run",
    TaskRun: "task run",
    StateChange: "state change",
    LogEntry: "log entry",
}


class Account:
    """What was saved and what was lost, by the nouns of records."""

    def __init__(self) -> None:
        self.saved: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()

    def lines(self) -> list[str]:
        """Return it in words."""
        lost = _counted(self.lost)
        return [
            f"saved {_counted(self.saved) or 'nothing'}",
            f"lost at least {lost}" if lost else "lost nothing that is known of",
        ]


def _counted(counts: Counter[str]) -> str:
    return ", ".join(
        f"{count:,} {noun if count == 1 else _plural(noun)}" for noun, count in counts.items() if count > 0
    )


def _plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


class Restorable(Protocol):
    """Takes records as a state store does."""

    def append(self, records: Sequence[Record]) -> object:
        """Add records in their order."""


def restore(store: Restorable, runs: Iterable[Sequence[Record]], account: Account) -> None:
    """Append records to a sound store, those of one flow run after the other, each with its FlowRun at first."""
    for records in runs:
        whole = _without_gaps(records)
        for start in range(0, len(whole), _BATCH):
            store.append(whole[start : start + _BATCH])
        account.saved.update(_NOUNS[type(record)] for record in whole)
        account.saved["result"] += sum(
            isinstance(record, StateChange) and record.result is not None for record in whole
        )


def _without_gaps(records: Sequence[Record]) -> list[Record]:
    """Return the records with the state changes of each run numbered as if those that are lost had never been."""
    newest: dict[str, StateChange] = {}
    whole: list[Record] = []
    for record in records:
        if isinstance(record, StateChange):
            before = newest.get(record.run.id)
            if before is None:
                record = record._replace(sequence=1, previous="Pending")
            elif record.sequence != before.sequence + 1:
                record = record._replace(sequence=before.sequence + 1, previous=before.name)
            newest[record.run.id] = record
        whole.append(record)
    return whole


def refuse_if_claimed(engines: Path) -> None:
    """Raise StoreError if an engine is at work on a flow run of the store whose claims are in the folder `engines`."""
    for file in _files(engines):
        with suppress(OSError):
            claim = take_claim(file)
            if claim is None:
                raise StoreError(
                    f"the store is not repaired while an engine is at work on flow run {file.name}; "
                    "wait for its end, or stop it, and run again"
                )
            claim.release()


def _files(folder: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError, NotADirectoryError):
        yield from sorted(folder.iterdir())


def stamp() -> str:
    """Return the time as part of the name of what is set aside."""
    return f"damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"


def beside(path: Path, ending: str) -> Path:
    """Return a path for what is set aside where nothing is yet."""
    aside = path.with_name(f"{path.name}.{ending}")
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.{ending}-{number}")
    return aside


def copy_private(source: Path, target: Path) -> None:
    """Copy a file as it is to a new one that is its owner's alone, safe against power loss."""
    import shutil

    try:
        with (
            os.fdopen(os.open(source, os.O_RDONLY | NO_FOLLOW), "rb") as readable,
            os.fdopen(create_private_file(target), "wb") as writable,
        ):
            shutil.copyfileobj(readable, writable, 1 << 20)
            writable.flush()
            os.fsync(writable.fileno())
        sync_directory(target.parent)
    except OSError as error:
        raise os_failure(target, error) from error
