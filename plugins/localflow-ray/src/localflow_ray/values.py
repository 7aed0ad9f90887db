"""Large values on a Ray cluster: written once into its object store, mapped by the tasks of that node.

A value is there as `Parts`, its pickle and its large buffers, none of which Ray looks into: who fetches it, the engine
among them, runs no code of the user's until somebody asks for the value.
"""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

import ray

from localflow.errors import LocalflowError
from localflow.large_values import FILE, Draft, Folder, Reference, join_parts, mapped, read_parts
from localflow.payloads import CONTENT, Packed, Payload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.large_values import Temporary

#: How long the engine waits for a value from the cluster, in seconds, before it takes it for lost.
FETCH_SECONDS = 600.0


class ValueGoneError(LocalflowError):
    """A large result was on the Ray cluster alone, and is gone with it."""

    def __init__(self) -> None:
        super().__init__(
            "this result was too large to be taken from the Ray cluster at the end of the flow run, and its task has "
            "persist_result=False; return what is made from it, or let it be persisted"
        )


class Parts:
    """A value as its pickle and the buffers that were left out of it; Ray maps them instead of copying."""

    __slots__ = ("buffers", "data")

    def __init__(self, data: Any, buffers: Sequence[Any] = ()) -> None:
        self.data = data
        self.buffers = buffers

    def __reduce__(self) -> tuple[Any, ...]:
        return Parts, (PickleBuffer(self.data), [PickleBuffer(buffer) for buffer in self.buffers])

    @property
    def views(self) -> tuple[memoryview, list[memoryview]]:
        """The pickle and the buffers as they lie in memory."""
        return memoryview(self.data).cast("B"), [memoryview(buffer).cast("B") for buffer in self.buffers]

    def load(self) -> Any:
        """Return the value, its arrays being views of the object store; raises whatever its unpickling raises."""
        data, buffers = self.views
        return pickle.loads(data, buffers=buffers)

    def write(self, folder: Folder) -> Reference | bytes:
        """Write the value into a file of `folder`; raises LargeValueError."""
        data, buffers = self.views
        draft = Draft(folder)
        try:
            draft.write(data)  # type: ignore[arg-type]  # it takes any buffer
            return draft.finish(buffers)
        except BaseException:
            draft.discard()
            raise


class NodeFolder(Folder):
    """Takes the large result of a call in a worker, for the object store of its node."""

    def __init__(self) -> None:
        super().__init__(Path("ray"))  # where nothing is ever written
        self.parts: Parts | None = None

    def draft(self) -> Draft:
        """Return what keeps the parts of a value together."""
        return _NodeDraft(self)


class _NodeDraft(Draft):
    """A pickle that is kept in memory, with its buffers where they are."""

    def __init__(self, folder: NodeFolder) -> None:
        self._node = folder
        self._written: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._written.append(bytes(data))
        return len(self._written[-1])

    def finish(self, buffers: Sequence[memoryview]) -> Reference | bytes:
        data = b"".join(self._written)
        if not buffers and len(data) < INLINE_BYTES:
            return data
        self._node.parts = Parts(data, buffers)
        return Reference("", len(data) + sum(buffer.nbytes for buffer in buffers), 0)

    def discard(self) -> None:
        self._written.clear()


#: A result whose pickle is shorter comes with its outcome; so do most of those of tasks.
INLINE_BYTES = 1 << 17


def is_on_cluster(payload: Payload) -> bool:
    """Return whether a payload stands for a value that a worker has left in the object store."""
    return payload.format == FILE and not Reference.of(payload.data).file


class Kept(Packed):
    """A result that lies in the object store, for dependents, and mostly in the state store's file as well."""

    __slots__ = ("__weakref__", "_local", "reference", "size")

    def __init__(
        self, reference: Any, size: int, local: Payload | None = None, temporary: Temporary | None = None
    ) -> None:
        """Keep what Ray needs to find it.

        Args:
            reference: the ObjectRef of its `Parts`; None where the cluster has it no more.
            size: how many bytes it takes.
            local: where this machine has it.
            temporary: what keeps the file it has there.
        """
        self.reference = reference
        self.size = size
        self._local = local
        self._temporary = temporary

    @property
    def is_here(self) -> bool:
        """Whether it can be read without Ray."""
        return self._local is not None

    @property
    def payload(self) -> Payload:
        """The value as bytes, fetched from the cluster if it is nowhere else; raises ValueGoneError."""
        if self._local is not None:
            return self._local
        return Payload(CONTENT, join_parts(*self._fetched().views))

    def get(self) -> Any:
        """Return the value: from its file, or else from the object store."""
        if self._local is None:
            return self._fetched().load()
        return super().get()

    def parts(self) -> Parts:
        """Return the value for the cluster, from where this machine has it; raises LargeValueError, ValueGoneError."""
        if self._local is None:
            return self._fetched()
        content = None if self._temporary is None else self._temporary.content
        return content_parts(self._local if content is None else Payload(CONTENT, content))  # type: ignore[arg-type]

    def settle(self, folder: Folder | None) -> None:
        """Fetch it, as the cluster is about to be left; where that fails it is gone."""
        with suppress(Exception):  # whatever has become of the cluster
            parts = self._fetched()
            written = None if folder is None or folder.path is None else parts.write(folder)
            if isinstance(written, Reference) and folder is not None:
                self._temporary = folder.hold(written.file)
                self._local = Payload(FILE, written.data())
            else:
                self._local = Payload(CONTENT, join_parts(*parts.views))
        self.reference = None

    def _fetched(self) -> Parts:
        if self.reference is None:
            raise ValueGoneError
        return fetch(self.reference)

    def __repr__(self) -> str:
        return f"<packed on Ray, {self.size} bytes>"


def fetch(reference: Any) -> Parts:
    """Return a value from the object store, mapped; raises Ray's errors where it is lost."""
    parts = ray.get(reference, timeout=FETCH_SECONDS)
    assert isinstance(parts, Parts)
    return parts


def content_parts(payload: Payload) -> Parts:
    """Return a payload as parts for the object store; raises LargeValueError."""
    if payload.format == FILE:
        return Parts(*read_parts(mapped(Reference.of(payload.data))))
    if payload.format == CONTENT:
        return Parts(*read_parts(memoryview(payload.data)))
    return Parts(payload.data)
