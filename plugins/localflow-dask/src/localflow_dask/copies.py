"""Results that stay on the cluster, where workers do not see the engine's files.

The engine has such a result once, for the store. What depends on it takes the copy that the cluster has, from worker to
worker; it is kept there for as long as the engine keeps the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localflow import arguments
from localflow.payloads import Packed
from localflow_dask.worker import copy_payload

if TYPE_CHECKING:
    from localflow.interfaces import Call

#: From this size on, in bytes, a result stays on the cluster.
LARGE_BYTES = 1 << 16


class ClusterCopy:
    """The answer of a call on the cluster, kept as long as this object is: as a large value's file is elsewhere."""

    content = None

    def __init__(self, future: Any, size: int, address: str, owner: object) -> None:
        """Keep the dask future of an answer, of so many bytes, at the worker with this address.

        `owner` is who can make use of it: a cluster knows nothing of what another one has.
        """
        self.future: Any = future
        """None when the cluster has lost it."""
        self.size = size
        self.address = address
        self.owner = owner

    def detach(self) -> None:
        """Let go of the cluster's copy."""
        self.future = self.owner = None


def keep_copy(packed: Packed, copy: ClusterCopy) -> Packed:
    """Return a result that knows of its copy."""
    return Packed(packed.payload, copy)  # type: ignore[arg-type]  # which it keeps, as it would a file


def copy_of(packed: Packed) -> ClusterCopy | None:
    """Return the copy that a cluster has of a result, if one has it."""
    copy = getattr(packed, "_temporary", None)
    return copy if isinstance(copy, ClusterCopy) and copy.future is not None else None


def with_copies(call: Call, owner: object) -> tuple[Call, list[ClusterCopy]]:
    """Return a call with copies of this owner in the place of results, and these copies by their position."""
    copies: list[ClusterCopy] = []

    def replaced(packed: Packed) -> Packed:
        copy = copy_of(packed)
        if copy is None or copy.owner is not owner:
            return packed
        copies.append(copy)
        return Packed(copy_payload(len(copies) - 1))

    if not call.holds_packed:
        return call, copies
    args, kwargs = arguments.replace_in_call(call.args, call.kwargs, (Packed,), replaced)
    return (call._replace(args=args, kwargs=kwargs), copies) if copies else (call, copies)
