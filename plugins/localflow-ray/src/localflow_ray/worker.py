"""In a worker of Ray: runs one call, and answers with its outcome as plain data.

All code of the user's runs inside the call: its function and its arguments are loaded there. A worker keeps the
functions and flow runs that it has seen, for the next call.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
import threading
from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from localflow import logs
from localflow.builtin.process.outcomes import outcome_frame, reason
from localflow.builtin.process.worker import Work
from localflow.calls import Call
from localflow.errors import UnpicklableError
from localflow.records import FlowRun, TaskRun
from localflow.usage import ProcessMeter
from localflow_ray.post import Post
from localflow_ray.values import NodeFolder, Parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from localflow.descriptors import Capture
    from localflow.records import LogLine

_KEPT_DEFINITIONS = 200


class Definition(NamedTuple):
    """A function or a flow run as bytes, under the key by which workers know it again."""

    key: str
    data: bytes | None
    """None where it comes beside the request, as it is large."""


class Request(NamedTuple):
    """A call as it travels; whatever is the user's is in it as bytes."""

    mailbox: str
    number: int
    call: tuple[Any, ...]
    """Id, attempt, attempts, timeout_seconds and log_prints of the call."""
    run: tuple[Any, ...]
    """The fields of the task run but its flow run."""
    function: Definition
    flow_run: Definition
    path: tuple[str, ...]
    directory: str
    arguments: bytes
    parts: int
    """How many parts come beside the request: results of other tasks, then buffers of the arguments."""
    buffers: int


class Answer(NamedTuple):
    """How a call has ended, as plain data."""

    frame: bytes
    letters: int
    """How many letters it has written, which the engine is to have read before."""
    lines: tuple[LogLine, ...]
    size: int
    """Of the result that stays on the cluster; 0 if none does."""


class Slot:
    """Stands in pickled arguments for the part of this number."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _part, (self._number,)


def run_request(data: bytes, *beside: Any) -> tuple[Answer, Parts | None]:
    """Run a call; `beside` are large definitions, then parts. Ray calls this in a worker."""
    request = Request(*pickle.loads(data))
    rest = list(beside)
    function, flow_run = (
        _defined(definition.key, definition.data if definition.data is not None else rest.pop(0))
        for definition in (Definition(*request.function), Definition(*request.flow_run))
    )
    _look_like_the_engine(request.path, request.directory)
    folder = NodeFolder()
    post = Post(request.mailbox, request.number)
    work = _Work(request, function, flow_run, rest)
    with post.at_work(at_once=request.call[3] is not None):
        _meter.go_on()
        with logs.recording_elsewhere(), _captured(post.say), _plain_signals():
            outcome = work.do(post.begun.worker, _meter, post.say, folder)
        parts = folder.parts if outcome.result is not None and folder.parts is not None else None
        frame = outcome_frame(request.number, work.call.task_run.task, outcome)
    letters, lines = post.close()
    return Answer(frame, letters, lines, 0 if parts is None else _size(parts)), parts


def _size(parts: Parts) -> int:
    data, buffers = parts.views
    return data.nbytes + sum(buffer.nbytes for buffer in buffers)


# -- the call --------------------------------------------------------------------------------------------------------

_meter = ProcessMeter()


class _Work(Work):
    """A call, with its function and arguments still as bytes, parts of these in the object store."""

    def __init__(self, request: Request, function: _Definition, flow_run: _Definition, rest: list[Any]) -> None:
        self._function = function
        self._arguments: bytes | None = request.arguments
        self._parts: Sequence[Parts] = rest[: request.parts]
        self._buffers: Sequence[Parts] = rest[request.parts :]
        self._called_with: tuple[Any, ...] | None = None
        self._value: object = None
        call_id, attempt, attempts, timeout_seconds, log_prints = request.call
        run = TaskRun(flow_run.flow_run(), *request.run)
        self.call = Call(call_id, run, attempt, self, (), {}, False, attempts, timeout_seconds, log_prints)

    def _loaded_arguments(self) -> tuple[Any, dict[str, Any]]:
        assert self._arguments is not None
        data, self._arguments = self._arguments, None
        buffers = [buffer.views[0] for buffer in self._buffers]
        _loading.parts, _loading.values = self._parts, {}
        try:
            args, kwargs = _loaded(data, "its arguments", buffers)
        finally:
            del _loading.parts, _loading.values
            self._parts = self._buffers = ()
        return args, kwargs


_loading = threading.local()


def _part(number: int) -> Any:
    """Return the value of a part: the same object wherever it is among the arguments."""
    values: dict[int, Any] = _loading.values
    if number not in values:
        values[number] = _loading.parts[number].load()
    return values[number]


def _loaded(data: bytes, what: str, buffers: Sequence[memoryview] = ()) -> Any:
    try:
        return pickle.loads(data, buffers=buffers)
    except ModuleNotFoundError as error:
        raise UnpicklableError(
            f"worker on {socket.gethostname()} cannot import '{error.name}'; install it on every node of the cluster, "
            "or ship it with `runtime_env`"
        ) from error
    except Exception as error:
        raise UnpicklableError(f"{what} cannot be rebuilt in a worker process: {reason(error)}") from error


@contextlib.contextmanager
def _captured(log: Callable[[LogLine], None]) -> Iterator[None]:
    """Give `log` what is written straight to descriptors 1 and 2, by C code and child processes, too."""
    capture = _capture()
    if capture is None or not capture.begin(log):
        yield
        return
    try:
        yield
    finally:
        capture.end()


@cache
def _capture() -> Capture | None:
    return logs.capture_descriptors()


@contextlib.contextmanager
def _plain_signals() -> Iterator[None]:
    """Have SIGTERM end the process, as it does for any program; Ray makes it an exception of whoever is at work."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- what a worker keeps ---------------------------------------------------------------------------------------------


class _Definition:
    """A function or a flow run, loaded when it is first needed."""

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data
        self._loaded: Any = None

    def get(self) -> Callable[..., Any]:
        if self._data is not None:
            self._loaded = _loaded(self._data, "the task's function")
            self._data = None
        function: Callable[..., Any] = self._loaded
        return function

    def flow_run(self) -> FlowRun:
        if self._data is not None:
            self._loaded = FlowRun._make(pickle.loads(self._data))
            self._data = None
        run: FlowRun = self._loaded
        return run


_definitions: OrderedDict[str, _Definition] = OrderedDict()


def _defined(key: str, data: Any) -> _Definition:
    found = _definitions.pop(key, None)
    if found is None:
        found = _Definition(bytes(data.views[0]) if isinstance(data, Parts) else data)
    _definitions[key] = found
    while len(_definitions) > _KEPT_DEFINITIONS:
        _definitions.popitem(last=False)
    return found


_own_path = [*sys.path]
_seen: tuple[Any, ...] = ()


def _look_like_the_engine(path: tuple[str, ...], directory: str) -> None:
    """Take over the engine's sys.path, before this worker's own, and its working directory where that is there."""
    global _seen
    if path:
        wanted = [*path, *(entry for entry in _own_path if entry not in path)]
        if _seen != path:
            sys.path[:] = wanted
            _seen = path
    if directory:
        with contextlib.suppress(OSError):  # another machine may not have it; tasks that do not use it need not care
            os.chdir(directory)
