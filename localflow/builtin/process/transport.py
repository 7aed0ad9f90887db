"""What the engine, its supervisor and its workers write to each other: frames of plain data.

A frame is its length in 8 bytes and a marshalled tuple whose first item says what it is. User data is inside as bytes
that only the other side's user code loads: reading a frame never runs code. The tuples:

    engine -> worker      START, sys_path, directory, argv, initializer,     the first frame of each worker;
                              folder, power_safe                             None where large values are not shared
                          DEFINE, definition number, kind, content           a function or a flow run, sent once
                          FORGET, definition number
                          PATH, sys_path                                     the engine's sys.path has changed
                          CALL, call number, ...                             see `packing`
    worker -> engine      READY, ends                                        it has started, initializer included
                          UNABLE, text, traceback text                       it has not, and exits
                          DONE, call number, ..., ends                       see `outcomes`, for `ends` see `capture`
                          OUTCOME, call number, ..., ends                    the same for what needs more words
    engine -> supervisor  SPAWN, worker number, whether it needs cloudpickle with the worker's ends of its pipes
                          RETIRE, worker number                              it was told to exit: leave its group be
                          TERMINATE, worker number                           by SIGTERM, with all that its tasks started
                          KILL, worker number                                the same by SIGKILL
                          END, kill                                          exit; kill what is left, or only name it
    supervisor -> engine  SPAWNED, worker number, pid
                          UNSPAWNED, worker number, text
                          DIED, worker number, wait status, peak RSS         and all that it was to end with
                          LEFTOVERS, pids                                    the last word
"""

from __future__ import annotations

import marshal
from struct import Struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

START, DEFINE, FORGET, PATH, CALL = range(5)
READY, UNABLE, OUTCOME, DONE = range(5, 9)
SPAWN, RETIRE, TERMINATE, KILL, END = range(9, 14)
SPAWNED, UNSPAWNED, DIED, LEFTOVERS = range(14, 18)

FUNCTION, FLOW_RUN = "function", "flow run"

#: Where the files for output begin to be filled, so that one that somebody has cut off and begun anew is shorter.
OUTPUT_BEGIN = 1 << 20

#: The format of marshal that makes two of an object that is there twice: it takes a third less time.
FLAT = 2
_LENGTH = Struct("<Q")
_LARGEST = 1 << 40

#: What a worker takes from its token pipe before it begins a call: the call's number.
TOKEN_SIZE = 8
#: The token that tells a worker to end.
EXIT = b"\xff" * TOKEN_SIZE


def frame(content: tuple[Any, ...], format: int = marshal.version) -> bytes:
    """Return the frame of a tuple of plain data; `FLAT` is the format for small ones."""
    try:
        body = marshal.dumps(content, format)
    except ValueError:  # an instance of a subclass of str or the like, such as a member of a StrEnum
        body = marshal.dumps(_exact(content), format)
    return _LENGTH.pack(len(body)) + body


def tokens(numbers: Iterable[int]) -> bytes:
    """Return the tokens of calls, in order."""
    return b"".join([_LENGTH.pack(number) for number in numbers])


def numbers(tokens: bytes) -> list[int]:
    """Return the numbers of calls that tokens stand for."""
    return [number for (number,) in _LENGTH.iter_unpack(tokens)]


class FrameReader:
    """Puts frames together from the pieces that reads return."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._held = 0
        self._needed = 0

    @property
    def is_amid(self) -> bool:
        """Whether it has a part of a frame."""
        return bool(self._pieces)

    def feed(self, piece: bytes) -> list[Any]:
        """Return the contents of the frames that are complete with `piece`; raises ValueError on what is no frame."""
        if self._pieces:
            self._pieces.append(piece)
            self._held += len(piece)
            if self._held < self._needed:
                return []
            piece = b"".join(self._pieces)
            self._pieces.clear()
        contents = []
        view, end = memoryview(piece), len(piece)
        position, needed = 0, _LENGTH.size
        while position + needed <= end:
            begin = position + _LENGTH.size
            (size,) = _LENGTH.unpack_from(piece, position)
            if size > _LARGEST:
                raise ValueError(f"not a frame: {size} bytes long")
            if begin + size > end:
                needed = _LENGTH.size + size
                break
            try:
                contents.append(marshal.loads(view[begin : begin + size]))
            except (EOFError, TypeError, ValueError) as error:
                raise ValueError(f"not a frame: {error}") from None
            position = begin + size
        if position < end:
            self._pieces.append(piece[position:])
            self._held, self._needed = end - position, needed
        return contents


def _exact(value: Any) -> Any:
    """Return `value` with instances of subclasses of plain types as instances of these types themselves."""
    if isinstance(value, tuple):
        return tuple([_exact(item) for item in value])
    if isinstance(value, list):
        return [_exact(item) for item in value]
    if isinstance(value, dict):
        return {_exact(key): _exact(item) for key, item in value.items()}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    return bytes(value)
