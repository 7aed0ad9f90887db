"""Calls that travel as bytes to processes which localflow has not started, and outcomes that come back as bytes.

For executors over other people's pools: `Sender.pack` makes a *parcel* of each call, `run_parcel` runs one wherever its
bytes have got to and returns an *answer*, `read_answer` makes an outcome of that. Functions of a script travel by
value, arguments and results arrive as those of the process executor do, and so do messages about what cannot be sent.
Neither packing in the engine nor reading there runs code of the user's beyond the pickling of arguments.

    parcel   a marshalled tuple: sys.path, the place of large values, definitions, the call; see `process/packing`
    answer   a marshalled tuple: lines of output, the outcome; see `process/outcomes`
"""

from __future__ import annotations

import marshal
import os
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localflow import arguments, logs
from localflow.builtin.process.outcomes import outcome_frame, read_outcome
from localflow.builtin.process.packing import CallPacker
from localflow.builtin.process.transport import FUNCTION, FrameReader
from localflow.builtin.process.worker import Function, Work
from localflow.large_values import FILE, Folder, Reference, mapped
from localflow.payloads import CONTENT, Packed, Payload
from localflow.records import FlowRun, LogLine
from localflow.typed import NamedTuple
from localflow.usage import ThreadMeter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.calls import Call, Outcome
    from localflow.large_values import Temporary
    from localflow.usage import Meter

_KEPT_DEFINITIONS = 200


class Parcel(NamedTuple):
    """A call on its way."""

    call: Call
    data: bytes
    files: Sequence[Temporary] = ()
    """What keeps the files of its large arguments until it is answered."""


class Sender:
    """Packs the calls of one executor; several threads may use it at once."""

    def __init__(self, folder: Folder | None = None, *, shares_files: bool = True) -> None:
        """Get ready to pack.

        Args:
            folder: where large arguments are written, and large results if the other side sees it.
            shares_files: whether the other side sees the files of this machine; if not, large values travel as bytes.
        """
        self._shares_files = shares_files
        self._folder = folder if shares_files else None
        self._packer = CallPacker(self._folder)
        self._place: tuple[Any, ...] | None = None

    def pack(self, calls: Sequence[Call]) -> tuple[list[Parcel], list[Outcome]]:
        """Return parcels of the calls that can travel and the outcomes of those that cannot."""
        if not self._shares_files:
            calls = [_with_bytes(call) for call in calls]
        shipments, refused = self._packer.pack(calls)
        place = self.place
        parcels = []
        for shipment in shipments:
            definitions = [definition.frame for definition in shipment.definitions]
            data = marshal.dumps((self._packer.path, place, definitions, shipment.frame))
            parcels.append(Parcel(shipment.call, data, shipment.files))
        return parcels, refused

    def read_answer(self, call: Call, answer: bytes) -> Outcome:
        """Return the outcome that an answer tells of."""
        lines, content = marshal.loads(answer)
        outcome = read_outcome(call.id, FrameReader().feed(content)[0], self._folder)
        return outcome._replace(lines=[LogLine._make(line) for line in lines])

    @property
    def place(self) -> tuple[Any, ...] | None:
        """The folder of large values, with what tells the other side whether it is the one that is there."""
        folder = self._folder
        if folder is None or folder.path is None:
            return None
        if self._place is None:
            self._place = (str(folder.path), folder.power_safe, socket.gethostname(), *_nearest(folder.path))
        return self._place


def run_parcel(
    data: bytes, worker: str = "", *, meter: Meter | None = None, lines: list[LogLine] | None = None
) -> bytes:
    """Run the call in a parcel here and return its answer; no exception escapes but what ends the process.

    Args:
        data: the parcel.
        worker: the name of the worker that runs it; its pid by default.
        meter: measures what the call uses; without one its thread is measured.
        lines: gets each line that the call says. The answer has those that are in it at the end.
    """
    path, place, definitions, frame = marshal.loads(data)
    _see_to_path(path)
    function, flow_run = (_definition(definition) for definition in definitions)
    [content] = FrameReader().feed(frame)
    work = Work(content, function, flow_run)
    folder = _folder(place)
    lines = [] if lines is None else lines
    with logs.recording_elsewhere():
        outcome = work.do(worker or f"pid {os.getpid()}", meter or ThreadMeter(), lines.append, folder)
    answer = outcome_frame(work.number, work.call.task_run.task, outcome, None, folder)
    return marshal.dumps(([tuple(line) for line in lines], answer))


def sees_place(place: tuple[Any, ...] | None) -> bool:
    """Return whether this process sees the folder of large values that `Sender.place` describes."""
    return _folder(place) is not None


def payload_of(answer: bytes) -> Payload:
    """Return the result in an answer; raises ValueError if there is none."""
    _, content = marshal.loads(answer)
    result = read_outcome(0, FrameReader().feed(content)[0]).result
    if result is None:
        raise ValueError("an answer without a result")
    return result


# -- where a call runs -----------------------------------------------------------------------------------------------

_lock = threading.Lock()
_definitions: dict[bytes, Any] = {}
"""Functions and flow runs that have come, by their frames: a function's own globals last from call to call."""


def _definition(frame: bytes) -> Any:
    with _lock:
        known = _definitions.get(frame)
        if known is None:
            [(_, _, kind, content)] = FrameReader().feed(frame)
            if kind == FUNCTION:
                known = Function(content)
            else:
                import json

                fields, parameters = content
                known = FlowRun._make(fields)._replace(parameters=json.loads(parameters))
            _definitions[frame] = known
            if len(_definitions) > _KEPT_DEFINITIONS:
                del _definitions[next(iter(_definitions))]
    return known


def _see_to_path(path: Sequence[str]) -> None:
    """Have everything importable here that is so in the engine; what is this process's own comes first."""
    with _lock:
        missing = [entry for entry in path if entry not in sys.path]
        if missing:
            import importlib

            sys.path.extend(missing)
            importlib.invalidate_caches()


def _folder(place: tuple[Any, ...] | None) -> Folder | None:
    """Return the folder of large values if it is the engine's own, and not one of the same name elsewhere."""
    if place is None:
        return None
    path, power_safe, host, *nearest = place
    if socket.gethostname() != host or list(_nearest(Path(path))) != nearest:
        return None
    return Folder(Path(path), power_safe=power_safe)


def _nearest(path: Path) -> tuple[int, int]:
    """Return which folder on which device is the nearest above a path that need not be there yet.

    The two lowest levels are left out: who writes the first large value makes them.
    """
    for folder in path.parents[1:]:
        try:
            status = folder.stat()
        except OSError:
            continue
        return status.st_dev, status.st_ino
    return 0, 0


# -- large values that travel as bytes -------------------------------------------------------------------------------


def _with_bytes(call: Call) -> Call:
    """Return the call with large results of other tasks as bytes, where there may be no files to map."""
    if not call.holds_packed:
        return call
    args, kwargs = arguments.replace_in_call(call.args, call.kwargs, (Packed,), _as_bytes)
    return call._replace(args=args, kwargs=kwargs)


def _as_bytes(packed: Packed) -> Packed:
    payload = packed.portable()
    if payload.format != FILE:
        return packed
    return Packed(Payload(CONTENT, bytes(mapped(Reference.of(payload.data)))))
