"""What goes wrong with the files of a state store, worded as StoreError with the path, the cause and the next move."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from localflow.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path


class MisfitError(StoreError):
    """Records do not fit what is in the store: what they are about is not there, or they are there already."""


_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_PERMISSION = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def already_recorded(path: Path, what: str) -> MisfitError:
    """Return the StoreError for a record of which there can be only one, and which is there."""
    return MisfitError(f"a record is in state store {path} already ({what}); nothing of its batch was added")


def os_failure(path: Path, error: OSError) -> StoreError:
    """Return the StoreError for what the operating system said about `path`."""
    if error.errno in _NO_SPACE:
        return no_space(path)
    if error.errno == errno.EFBIG:
        return StoreError(
            f"state store {path} is full: the limit on the size of files (ulimit -f) is reached; "
            "raise it, everything recorded so far is safe"
        )
    cause = error.strerror or str(error)
    if error.errno in _NO_PERMISSION:
        return no_permission(path, cause)
    return StoreError(f"state store {path} cannot be used: {cause}; repair that or name another path")


def no_space(path: Path) -> StoreError:
    """Return the StoreError for a full disk."""
    return StoreError(
        f"state store {path} is full: {_free_bytes(path)} bytes are free there; "
        "free some space, everything recorded so far is safe"
    )


def failed_disk(path: Path, cause: str) -> StoreError:
    """Return the StoreError for a file that could not be read or written for a reason that nobody told."""
    return StoreError(
        f"state store {path} cannot be used: {cause}; {_free_bytes(path)} bytes are free there; see whether "
        "the disk is sound and how large files may be (`ulimit -f`), everything recorded so far is safe"
    )


def no_permission(path: Path, cause: str) -> StoreError:
    """Return the StoreError for a store that may not be written."""
    return StoreError(
        f"state store {path} cannot be written: {cause}; make it writable for your user or name another path"
    )


def was_removed(path: Path) -> StoreError:
    """Return the StoreError for a store whose file has gone or was replaced while it was open."""
    return StoreError(
        f"state store {path} was removed or replaced while it was in use; nothing more can be recorded, run again"
    )


def not_recorded(flow_run_id: str) -> StoreError:
    """Return the StoreError for records of a flow run whose own record is missing."""
    return MisfitError(f"flow run '{flow_run_id}' is not recorded in this state store; append its FlowRun first")


def not_an_id(flow_run_id: str) -> StoreError:
    """Return the StoreError for an id that may not become the name of a file."""
    return StoreError(f"{flow_run_id!r} is no flow run's id: at most 64 lower-case letters, digits and -")


def sequence_taken(run_id: str, sequence: int) -> StoreError:
    """Return the StoreError for a state change where another one is recorded already."""
    return StoreError(
        f"run '{run_id}' has a state change {sequence} in this state store already; is another engine running it?"
    )


def not_a_record(value: object) -> StoreError:
    """Return the StoreError for something else among records."""
    return StoreError(f"a state store keeps FlowRun, TaskRun, StateChange and LogEntry records, not {value!r}")


def _free_bytes(path: Path) -> int | str:
    import shutil  # with all that it knows of archives

    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return "?"
