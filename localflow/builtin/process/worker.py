"""The worker process: takes calls one at a time, and answers each before it looks at the next.

It reads calls from one pipe and *tokens* from another. The frame of a call is only a proposal; a worker begins a call
when it has read its token, which the engine may take back until then (the engine holds the reading end too). Frames of
calls whose token never came are dropped when a later one's has. The token `EXIT` ends the worker, and so does the end
of the engine, which closes the pipe.

It is forked by the supervisor, which has imported everything needed here. User code runs in `Work` only.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import faulthandler
import importlib
import json
import os
import pickle
import select
import sys
from collections import deque
from contextvars import Context
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, NoReturn

from localflow.builtin.process.capture import Capture
from localflow.builtin.process.outcomes import outcome_frame, reason, result_message, unsendable
from localflow.builtin.process.transport import (
    CALL,
    DEFINE,
    EXIT,
    FORGET,
    FUNCTION,
    PATH,
    READY,
    TOKEN_SIZE,
    UNABLE,
    FrameReader,
    frame,
)
from localflow.builtin.process.waiting import Lookout
from localflow.callables import is_generator
from localflow.calls import Call, Outcome
from localflow.errors import UnpicklableError
from localflow.failpoints import reach
from localflow.large_values import Folder
from localflow.payloads import Payload, unpack
from localflow.printable import shortened
from localflow.records import FlowRun, TaskRun
from localflow.shadowing import step_aside
from localflow.upstreams import expanded
from localflow.usage import ProcessMeter

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from localflow.records import LogLine
    from localflow.usage import Meter

    class Loadable(Protocol):
        """A function that is loaded when it is first asked for."""

        def get(self) -> Callable[..., Any]:
            """Return it."""


_PIECE = 1 << 16
_REASON_LIMIT = 10_000
#: How long it looks out for the next call before it sleeps: about as long as the engine takes to send what depends on
#: the one before.
_ALERT_SECONDS = 100e-6
_UNFINISHED = (GeneratorType, CoroutineType, AsyncGeneratorType)


def main(calls: int, tokens: int, outcomes: int, faults: int, stdout: int, stderr: int, log: int) -> NoReturn:
    """Work until told to exit.

    Args:
        calls: descriptor to read frames of calls from.
        tokens: descriptor to read tokens from; it does not block.
        outcomes: descriptor to write outcomes to.
        faults: descriptor of a file for the stack of a crash.
        stdout: descriptor of a file for what is written to descriptor 1.
        stderr: descriptor of a file for what is written to descriptor 2.
        log: descriptor of a file for what tasks log.
    """
    faulthandler.enable(faults)
    worker = _Worker(calls, tokens, outcomes, Capture(stdout, stderr, log))
    status = 1
    with contextlib.suppress(_EngineGone):
        if worker.start():
            worker.work()
            status = 0
    leave(status)


def leave(status: int) -> NoReturn:
    """End this process: what tasks have registered for the exit runs, what they printed is written."""
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a closed stream, or a full disk
            stream.flush()
    os._exit(status)


class _EngineGone(Exception):
    """The engine has closed its ends of the pipes, or died."""


class _Worker:
    def __init__(self, calls: int, tokens: int, outcomes: int, capture: Capture) -> None:
        self._capture = capture
        self._folder: Folder | None = None
        self._calls = calls
        self._tokens = tokens
        self._outcomes = outcomes
        self._token_came = select.poll()
        self._token_came.register(tokens, select.POLLIN)
        self._lookout = Lookout(_ALERT_SECONDS)
        self._meter = ProcessMeter()
        self._reader = FrameReader()
        self._contents: deque[Any] = deque()
        self._functions: dict[int, Function] = {}
        self._flow_runs: dict[int, FlowRun] = {}

    def start(self) -> bool:
        """Take over the engine's settings and run the initializer; return whether that went well."""
        while not self._contents:
            self._read()
        _, path, directory, argv, initializer, folder, power_safe = self._contents.popleft()
        self._folder = None if folder is None else Folder(folder, power_safe=power_safe)
        sys.path[:] = path
        sys.argv[:] = argv
        with contextlib.suppress(OSError):  # it may be gone; tasks that do not use it need not care
            os.chdir(directory)
        step_aside(*argv[:1])
        try:
            if initializer is not None:
                _find_initializer(initializer)()
        except BaseException as error:  # sys.exit() in an initializer is a failure like any other
            from localflow.tracebacks import traceback_text  # only now, for it takes a while

            text = f"the initializer failed: {shortened(reason(error), _REASON_LIMIT)}"
            self._write(frame((UNABLE, text, traceback_text(error))))
            return False
        self._write(frame((READY, self._capture.ends())))
        return True

    def work(self) -> None:
        """Do calls until told to exit."""
        pid = os.getpid()
        name = f"pid {pid}"
        capture, meter, folder = self._capture, self._meter, self._folder
        while (token := self._next_token()) != EXIT:
            work = self._find(int.from_bytes(token, "little"))
            outcome = work.do(name, meter, capture.log, folder)
            if os.getpid() != pid:
                _end_forked(outcome)
            self._write(outcome_frame(work.number, work.call.task_run.task, outcome, capture.ends(), folder))
            reach("result-sent")
            del work, outcome  # they may be large, and the next call may be long in coming

    def _next_token(self) -> bytes:
        while True:
            try:
                token = os.read(self._tokens, TOKEN_SIZE)
            except BlockingIOError:
                if not self._lookout.find(self._has_token):
                    self._token_came.poll()
                self._meter.go_on()
            else:
                if not token:
                    raise _EngineGone
                return token

    def _has_token(self) -> bool:
        return bool(self._token_came.poll(0))

    def _find(self, number: int) -> Work:
        """Return the call of this number; those before it have been taken back."""
        contents = self._contents
        while True:
            while contents:
                content = contents.popleft()
                if content[0] != CALL:
                    self._take(content)
                elif content[1] == number:
                    return Work(content, self._functions[content[7]], self._flow_runs[content[8]])
            self._read()

    def _read(self) -> None:
        piece = os.read(self._calls, _PIECE)
        if not piece:
            raise _EngineGone
        self._contents.extend(self._reader.feed(piece))

    def _take(self, content: Any) -> None:
        kind = content[0]
        if kind == DEFINE:
            _, number, what, definition = content
            if what == FUNCTION:
                self._functions[number] = Function(definition)
            else:
                fields, parameters = definition
                self._flow_runs[number] = FlowRun._make(fields)._replace(parameters=json.loads(parameters))
        elif kind == FORGET:
            self._functions.pop(content[1], None)
            self._flow_runs.pop(content[1], None)
        elif kind == PATH:
            sys.path[:] = content[1]
            importlib.invalidate_caches()

    def _write(self, data: bytes) -> None:
        try:
            written = os.write(self._outcomes, data)
            while written < len(data):  # a large one is in the pipe piece by piece
                written += os.write(self._outcomes, memoryview(data)[written:])
        except OSError as error:
            if error.errno != errno.EPIPE:  # a task has closed descriptors that are not its own
                print(f"localflow: worker {os.getpid()} cannot send its outcome: {error}", file=sys.stderr)  # noqa: T201
            raise _EngineGone from error


class Function:
    """A task's function as bytes, until the first call that needs it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._function: Callable[..., Any] | None = None

    def get(self) -> Callable[..., Any]:
        """Return the function; raises UnpicklableError if it cannot be rebuilt here."""
        if self._function is None:
            self._function = _load(Payload("pickle", self._data), "the task's function")
        return self._function


class Work:
    """A call, with its function and arguments still as bytes."""

    def __init__(self, content: Any, function: Function, flow_run: FlowRun) -> None:
        (
            _, self.number, call_id, attempt, attempts, timeout_seconds, log_prints, _, _, *fields, self._args,
            self._kwargs,
        ) = content  # fmt: skip
        self._function: Loadable = function
        self._called_with: tuple[Any, ...] | None = None
        self._value: object = None
        # Here `tuple.__new__` makes the named tuples, at half the cost: this is done for every call.
        task_run = tuple.__new__(TaskRun, (flow_run, *fields))
        if task_run.upstreams and tuple in map(type, task_run.upstreams):
            task_run = task_run._replace(upstreams=expanded(task_run.upstreams))
        self.call = tuple.__new__(
            Call, (call_id, task_run, attempt, self, (), {}, False, attempts, timeout_seconds, log_prints, None, None)
        )

    def do(self, worker: str, meter: Meter, log: Callable[[LogLine], None], folder: Folder | None) -> Outcome:
        """Run the call in the worker of this name and return its outcome.

        `log` takes what it says, `folder` a large result.
        """
        call = self.call
        try:
            # In an empty context: nothing that a task sets is seen by the next one.
            outcome = Context().run(call.run, worker, meter, log, folder)
        except BaseException as error:  # such as sys.exit() in the __reduce__ of the result
            outcome = Outcome(call.id, unsendable(result_message(call.task_run.task, self._value, error)))
        cause = outcome.state.cause
        if cause is not None and self._called_with is not None:
            from localflow.tracebacks import described_arguments  # it is there: the cause was made with it

            outcome.state.cause = cause._replace(arguments=described_arguments(*self._called_with))
        self._called_with = self._value = None
        return outcome

    def __call__(self) -> object:
        """Load the function and what it is called with, and call it."""
        function = self._function.get()
        args, kwargs = self._loaded_arguments()
        self._called_with = function, args, kwargs
        value = self._value = function(*args, **kwargs)
        if not isinstance(value, _UNFINISHED):
            self._called_with = None  # it has returned, and what it was called with may be large
        return value

    def _loaded_arguments(self) -> tuple[Any, dict[str, Any]]:
        if self._kwargs is None:
            args, kwargs = _load(Payload._make(self._args), "its arguments")
        else:
            args, kwargs = self._args, self._kwargs
            if tuple in map(type, args):
                args = [_unpacked(value) for value in args]
            if kwargs:
                kwargs = {name: _unpacked(value) for name, value in kwargs.items()}
        self._args = self._kwargs = None
        return args, kwargs

    @property
    def is_generator(self) -> bool:
        """Whether what the function returns is to be drained."""
        function = self._function.get()
        return bool(getattr(function, "is_generator", False)) or is_generator(function)


def _unpacked(value: Any) -> Any:
    if type(value) is not tuple:
        return value
    payload = Payload._make(value)
    return unpack(payload) if payload.format == "json" else _load(payload, "one of its arguments")


def _load(payload: Payload, what: str) -> Any:
    try:
        return unpack(payload)
    except ModuleNotFoundError as error:
        first = sys.path[0] if sys.path else ""
        raise UnpicklableError(f"worker cannot import '{error.name}' (sys.path[0]={first!r})") from error
    except Exception as error:
        raise UnpicklableError(f"{what} cannot be rebuilt in a worker process: {reason(error)}") from error


def _find_initializer(initializer: str | bytes) -> Callable[[], object]:
    if isinstance(initializer, bytes):
        found: Callable[[], object] = pickle.loads(initializer)
        return found
    module, _, name = initializer.partition(":")
    found = importlib.import_module(module)  # type: ignore[assignment]
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _end_forked(outcome: Outcome) -> NoReturn:
    """End a child that a task has forked and that came back from the task: it is not the worker."""
    error = outcome.state.packed_data
    code = error.code if isinstance(error, SystemExit) else None if outcome.state.is_completed() else 1
    leave(code if isinstance(code, int) else int(code is not None))
