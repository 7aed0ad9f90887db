"""Values as bytes: JSON where that is the same value again, cloudpickle for the rest (see `pickler`).

Unpacking a pickle runs code, so it happens only when somebody asks for a value: `Packed` carries the bytes until then.
"""

from __future__ import annotations

import io
import json
import marshal
import pickle
import sys
from typing import TYPE_CHECKING, Any

from localflow.errors import LargeValueError, LocalflowError, StoreError, TaskFailedError, UnpicklableError
from localflow.interrupts import STOPS
from localflow.large_values import FILE, LARGE_BYTES, Draft, RecentBuffers, Reference, mapped, read_parts
from localflow.pickler import pickler_class
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.large_values import Folder, Temporary

#: Of a payload that holds what is in the file of a large value.
CONTENT = "content"
#: Of a payload that holds a pickle and references to its large buffers, each in a file of its own.
APART = "apart"

_NODE_LIMIT = 1000


class Payload(NamedTuple):
    """A value as bytes; `format` is `"json"` or `"pickle"`.

    Of a large value that lies in a file the format is `"file"` and `data` tells which file (see `large_values`).
    """

    format: str
    data: bytes


_CONSTANTS: dict[object, Payload] = {
    None: Payload("json", b"null"),
    True: Payload("json", b"true"),
    False: Payload("json", b"false"),
}


def pack(value: object, folder: Folder | None = None) -> Payload:
    """Return `value` as a payload.

    Args:
        value: anything.
        folder: where it is written if it is large.

    Raises:
        UnpicklableError: it cannot be pickled.
        LargeValueError: it is large and cannot be written.
    """
    kind = type(value)
    if value is None or kind is bool:
        return _CONSTANTS[value]
    if kind is int or kind is float or kind is str or ((kind is list or kind is dict) and _is_plain(value)):
        try:
            data = (repr(value) if kind is int else json.dumps(value)).encode()
            if folder is None or len(data) < LARGE_BYTES:
                return tuple.__new__(Payload, ("json", data))  # a third of the price: this is done for every call
        except (ValueError, RecursionError):  # an int of more digits than Python prints; deep nesting
            pass
    if folder is not None and folder.place is not None:
        return _pack_apart(value, folder)
    return Payload("pickle", pickle_value(value))


def pack_once(value: object, folder: Folder | None) -> Packed | None:
    """Return an argument of many calls as bytes for all of them; None if there are none, as any of the calls will tell.

    A large one is in `folder`, if that is somewhere, for as long as this is there.
    """
    try:
        if folder is None or folder.place is None:
            return Packed(Payload("pickle", pickle_value(value, defines_classes=True)))
        payload = _pack_apart(value, folder, defines_classes=True)
    except LocalflowError:
        return None
    is_file = payload.format == FILE
    return Packed(payload, folder.hold(Reference.of(payload.data).file) if is_file else None)


def _pack_apart(value: object, folder: Folder, *, defines_classes: bool = False) -> Payload:
    """Return a value as a payload whose data is in a file if that is large."""
    draft = folder.draft()
    try:
        buffers: list[memoryview] = []
        _write_pickle(value, draft, defines_classes, take_buffers=buffers)
        written = draft.finish(buffers)
    except BaseException:
        draft.discard()
        raise
    return Payload("pickle", written) if isinstance(written, bytes) else Payload(FILE, written.data())


def unpack(payload: Payload) -> Any:
    """Return the value again; raises whatever its unpickling raises."""
    if payload.format == "json":
        return json.loads(payload.data.decode())  # of bytes it would find out first which encoding they have
    if payload.format == FILE:
        return _load_parts(mapped(Reference.of(payload.data)))
    if payload.format == CONTENT:
        return _load_parts(memoryview(payload.data))
    if payload.format == APART:
        data, references = marshal.loads(payload.data)
        buffers = [read_parts(mapped(Reference._make(each)))[1][0] for each in references]
        return pickle.loads(data, buffers=buffers)
    return pickle.loads(payload.data)


def _load_parts(content: memoryview) -> Any:
    data, buffers = read_parts(content)
    return pickle.loads(data, buffers=buffers)


def pickle_value(value: object, *, defines_classes: bool = False) -> bytes:
    """Pickle by cloudpickle: functions and classes of `__main__` by value.

    Args:
        value: anything.
        defines_classes: classes in it are what the receiver takes values of older classes of the same name for.

    Raises:
        UnpicklableError: it cannot be pickled.
        StoreError: it holds something `Stored` that cannot be loaded.
    """
    file = io.BytesIO()
    _write_pickle(value, file, defines_classes)
    return file.getvalue()


def pickle_parts(value: object, *, defines_classes: bool = False) -> tuple[bytes, list[memoryview]]:
    """Do `pickle_value`, but leave large buffers beside the pickle, not copied: `pickle.loads` takes them again."""
    file = io.BytesIO()
    buffers: list[memoryview] = []
    _write_pickle(value, file, defines_classes, take_buffers=buffers)
    return file.getvalue(), buffers


def pickled_size(value: object) -> int:
    """Return how many bytes `pickle_value` would make, without memory for them; raises what that raises."""
    count = _Count()
    _write_pickle(value, count)
    return count.size


class _Count:
    """Counts what is written."""

    size = 0

    def write(self, data: bytes) -> int:
        self.size += memoryview(data).nbytes
        return len(data)


def _write_pickle(
    value: object,
    file: io.BytesIO | _Count | Draft,
    defines_classes: bool = False,
    take_buffers: list[memoryview] | None = None,
) -> None:
    """Write the pickle of a value; large buffers are not in it but in `take_buffers`, if that is there."""

    def take(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < LARGE_BYTES:
            return True
        assert take_buffers is not None
        take_buffers.append(view)
        return False

    try:
        pickler = pickler_class()(file, protocol=5, buffer_callback=None if take_buffers is None else take)
        pickler.defines_classes = defines_classes
        pickler.dump(value)
    except (*STOPS, StoreError, LargeValueError):
        raise
    except BaseException as error:  # also sys.exit() in a __reduce__
        raise UnpicklableError(f"{type_name(value)} cannot be pickled: {error}") from error


class SharedBuffers:
    """The large buffers of arguments, each in a file that is written once while its content stays the same."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._recent = RecentBuffers(folder)

    def pickle(self, value: object) -> tuple[Payload, list[Temporary]]:
        """Return arguments as a payload, with what keeps the files of their large buffers.

        Raises:
            UnpicklableError: they cannot be pickled.
            LargeValueError: they are large and cannot be written.
            StoreError: they hold something `Stored` that cannot be loaded.
        """
        try:
            return self._pickle(value)
        except LargeValueError:
            if not self._recent.forget():  # what no call needs any more may be what fills the disk
                raise
            return self._pickle(value)

    def _pickle(self, value: object) -> tuple[Payload, list[Temporary]]:
        draft = Draft(self._folder)
        try:
            buffers: list[memoryview] = []
            _write_pickle(value, draft, defines_classes=True, take_buffers=buffers)
            if not buffers:
                written = draft.finish(())
                if isinstance(written, bytes):
                    return Payload("pickle", written), []
                return Payload(FILE, written.data()), [self._folder.hold(written.file)]
            shared = [self._recent.share(buffer) for buffer in buffers]
            data = draft.finish(())
            held = [temporary for _, temporary in shared]
            if isinstance(data, Reference):  # there is more beside the buffers: let it be one file
                held.append(self._folder.hold(data.file))
                data = bytes(read_parts(mapped(data))[0])
        except BaseException:
            draft.discard()
            raise
        references = [tuple(reference) for reference, _ in shared]
        return Payload(APART, marshal.dumps((data, references))), held


class Packed:
    """A value that stays bytes until `get()`; pickled inside arguments it arrives as the value itself."""

    __slots__ = ("_data", "_format", "_temporary")  # and no Payload: there may be a million of them

    def __init__(self, payload: Payload, temporary: Temporary | None = None) -> None:
        """Keep the bytes, and what keeps the file of a large value for as long as this is there."""
        self._format = sys.intern(payload.format)  # one text for all that came from other processes
        self._data = payload.data
        self._temporary = temporary

    @property
    def payload(self) -> Payload:
        """The value as bytes."""
        return tuple.__new__(Payload, (self._format, self._data))

    def get(self) -> Any:
        """Unpack the value: a new object at each call.

        Raises:
            TaskFailedError: its unpickling calls `sys.exit()`, which must not end the program that asks for a value.
            Exception: whatever else its unpickling raises.
        """
        try:
            content = None if self._temporary is None else self._temporary.content
            return unpack(self.payload) if content is None else _load_parts(content)
        except STOPS:
            raise
        except (SystemExit, GeneratorExit) as error:
            raise TaskFailedError(type(error).__name__, f"unpickling the value raised it: {error}") from error

    def portable(self) -> Payload:
        """Return the value as others can read it: as its bytes, where its file has no name any more."""
        content = None if self._temporary is None else self._temporary.content
        return self.payload if content is None else Payload(CONTENT, bytes(content))

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack, (tuple.__new__(Payload, self.portable()),)

    def __repr__(self) -> str:
        return f"<packed {self.payload.format}, {len(self.payload.data)} bytes>"


class Stored(Packed):
    """A value in a state store, from which it is loaded whenever it is needed.

    It may be older than this process; a class of the user's script is then the one that the script has now.
    """

    __slots__ = ("_load",)

    def __init__(self, load: Callable[[], Payload]) -> None:
        self._load = load
        self._temporary = None

    @property
    def payload(self) -> Payload:
        """The value as bytes, loaded anew; raises what loading raises."""
        return self._load()

    def __repr__(self) -> str:
        return "<stored>"


def type_name(value: object) -> str:
    """Return the type's name as a reader would import it: `sqlite3.Connection`, but plain `list`."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _is_plain(value: object) -> bool:
    """Return whether JSON gives back the very same lists, dicts and atoms; large structures are left to pickle.

    A container that is there twice would come back as two, so that is left to pickle, too.
    """
    pending: list[Any] = [value]
    containers: set[int] = set()
    nodes = 0
    while pending:
        item = pending.pop()
        nodes += 1
        kind = type(item)
        if nodes > _NODE_LIMIT:
            return False
        if kind is list or kind is dict:
            if id(item) in containers:
                return False
            containers.add(id(item))
        if kind is list:
            pending.extend(item)
        elif kind is dict:
            if not all(type(key) is str for key in item):
                return False
            pending.extend(item.values())
        elif not (item is None or kind is bool or kind is int or kind is float or kind is str):
            return False
    return True
