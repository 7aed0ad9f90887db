"""Which argument, or which variable that a function uses, cannot be sent to a worker process, or is very large."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from localflow.builtin.process.outcomes import SIZE_LIMIT, reason, size_text
from localflow.builtin.process.parts import culprit
from localflow.interrupts import STOPS
from localflow.payloads import Packed, pickled_size, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.interfaces import Call

_HINT = "open it inside the task, pass what it is made from (such as a path), or use the thread executor"
_SIZE_HINT = "pass what it is made from, such as the path of a file"


def argument_message(call: Call, error: BaseException) -> str:
    """Word why the arguments of a call cannot travel, naming the first one at fault."""
    for name, value in _named_arguments(call):
        failure = _failure(value)
        if failure is not None:
            return (
                f"Task '{call.task_run.task}': argument '{name}' ({type_name(value)}) cannot be sent to a worker "
                f"process{culprit(name, value)}; {_HINT} ({reason(failure)})"
            )
    return f"Task '{call.task_run.task}': its arguments cannot be sent to a worker process; {_HINT} ({reason(error)})"


def size_message(call: Call) -> str:
    """Word why the arguments of a call are too much for one frame, naming the largest one."""
    name, value, size = _largest_argument(call)
    return (
        f"Task '{call.task_run.task}': argument '{name}' ({_kind(value)}) cannot be sent to a worker process: it takes "
        f"{size_text(size)} of at most {size_text(SIZE_LIMIT)}; {_SIZE_HINT}, or use the thread executor"
    )


def size_warning(call: Call) -> str:
    """Word that a call takes long to be sent because of its largest argument."""
    name, value, size = _largest_argument(call)
    return (
        f"Task '{call.task_run.task}': argument '{name}' ({_kind(value)}) takes {size_text(size)}, which are copied to "
        f"a worker process for each call; {_SIZE_HINT}"
    )


def _largest_argument(call: Call) -> tuple[str, object, int]:
    sized = [(name, value, _size(value)) for name, value in _named_arguments(call)]
    return max(sized, key=lambda item: item[2])


def _size(value: object) -> int:
    try:
        return len(value.payload.data) if isinstance(value, Packed) else pickled_size(value)
    except BaseException as error:  # it could be pickled before, but its code may do as it likes
        if isinstance(error, STOPS):
            raise
        return 0


def _kind(value: object) -> str:
    return "the result of a task" if isinstance(value, Packed) else type_name(value)


def function_message(function: Callable[..., Any], error: BaseException) -> str:
    """Word why a task's function cannot travel, naming the first variable of it at fault."""
    for name, value in _used_variables(function):
        failure = _failure(value)
        if failure is not None:
            return (
                f"variable '{name}' ({type_name(value)}), which its function uses, cannot be sent to a worker "
                f"process{culprit(name, value)}; {_HINT} ({reason(failure)})"
            )
    return f"its function cannot be sent to a worker process; define it in a module ({reason(error)})"


def _failure(value: object) -> BaseException | None:
    try:
        pickled_size(value)
    except BaseException as error:  # the value's own code runs here, and may call sys.exit()
        return error
    return None


def _named_arguments(call: Call) -> Iterator[tuple[str, object]]:
    try:
        signature = inspect.signature(call.function)
        bound = signature.bind(*call.args, **call.kwargs).arguments
    except (TypeError, ValueError):  # a callable without a signature
        yield from ((str(position), value) for position, value in enumerate(call.args))
        yield from call.kwargs.items()
        return
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((f"{name}[{position}]", item) for position, item in enumerate(value))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        else:
            yield name, value


def _used_variables(function: Callable[..., Any]) -> Iterator[tuple[str, object]]:
    plain = inspect.unwrap(function)
    try:
        used = inspect.getclosurevars(plain)
    except (TypeError, ValueError):  # not a Python function
        return
    yield from used.nonlocals.items()
    yield from used.globals.items()
    yield from (
        (name, parameter.default)
        for name, parameter in inspect.signature(plain).parameters.items()
        if parameter.default is not parameter.empty
    )
