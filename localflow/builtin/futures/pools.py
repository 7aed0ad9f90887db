"""What is known of other people's pools: how they are made, what they can do, and how they end."""

from __future__ import annotations

import concurrent.futures
import importlib
import inspect
import multiprocessing
import re
import sys
import tokenize
from contextlib import suppress
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from localflow.errors import suggestion
from localflow.masking import found as shown
from localflow.payloads import type_name
from localflow.printable import printable
from localflow.states import type_and_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Pool: TypeAlias = concurrent.futures.Executor

#: How many calls a pool runs at once, by the name under which factories take it.
SIZE_OPTION = "max_workers"
_OWN_OPTIONS = ("factory", "workers", "shares_memory", "shares_files")

_interpreters = getattr(concurrent.futures, "InterpreterPoolExecutor", None)  # whose base is that of threads
_APART: tuple[type, ...] = (concurrent.futures.ProcessPoolExecutor, *([_interpreters] if _interpreters else []))
"""Pools whose calls cannot see this interpreter's objects."""


def find_factory(factory: str | Callable[..., Pool]) -> Callable[..., Pool] | None:
    """Return the callable that a text names, or the one that is given.

    None stands for one in a module of the working directory that cannot be imported yet: a script that begins there
    puts its folder on the path.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(factory, str):
        if not callable(factory):
            raise ValueError(f"factory must be a callable, or 'module:callable', got {type_name(factory)}")
        return factory
    if not re.fullmatch(r"[\w.]+:[\w.]+", factory):
        example = "such as 'concurrent.futures:ThreadPoolExecutor'"
        raise ValueError(f"factory must be 'module:callable', {example}, got {factory!r}")
    name, _, path = factory.partition(":")
    try:
        found: Any = importlib.import_module(name)
    except Exception as error:
        top = name.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == top and PathFinder.find_spec(top, [""]):
            return None
        raise ValueError(
            f"factory must be 'module:callable' of a module that can be imported, got {factory!r}: "
            f"{type_and_text(error)}; install the module, or put its folder on PYTHONPATH"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            near = suggestion(part, dir(found)) or f"; name what makes a pool in {name}"
            raise ValueError(f"factory must be 'module:callable', but there is no {part!r} in {factory!r}{near}")
        found = getattr(found, part)
    if not callable(found):
        wanted = "a class or function that returns a concurrent.futures.Executor"
        raise ValueError(f"factory must name {wanted}, but {factory!r} is {type_name(found)}; name one that is there")
    return cast("Callable[..., Pool]", found)


def check_options(factory: Callable[..., Pool], options: Mapping[str, Any], workers: int | None) -> None:
    """Check options against the signature of their factory, where it can be read.

    Raises:
        ValueError: the factory does not take one of them, or needs another one.
    """
    kinds = inspect.Parameter
    parameters = _parameters(factory).values()
    taken = {each.name: each for each in parameters if each.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
    made_by = getattr(factory, "__name__", "the factory")
    if not any(each.kind is kinds.VAR_KEYWORD for each in parameters):
        for name in options:
            if name not in taken:
                near = suggestion(name, (*taken, *_OWN_OPTIONS)) or f"; it has {', '.join(taken) or 'none'}"
                raise ValueError(f"unknown option '{printable(name)}' of {made_by}{near}")
    given = {*options, *([SIZE_OPTION] if workers is not None else [])}
    for name, parameter in taken.items():
        if parameter.default is kinds.empty and name not in given:
            raise ValueError(f"missing required option '{name}' of {made_by}")
    size = options.get(SIZE_OPTION)
    if size is not None and _is_class_of(factory, concurrent.futures.ThreadPoolExecutor, *_APART):
        check_size(SIZE_OPTION, size)


def check_size(name: str, size: object) -> None:
    """Raise ValueError unless this is a number of workers."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {shown(size)}")


def check_memory(maker: object) -> None:
    """Raise ValueError if calls of a pool, or of what a class makes, cannot share memory, though somebody says so."""
    if isinstance(maker, _APART) or hasattr(maker, "_processes") or _is_class_of(maker, *_APART):
        name = maker.__name__ if isinstance(maker, type) else type_name(maker)
        raise ValueError(
            f"shares_memory must be false for {name}, got true: its calls run in other processes or interpreters and "
            "get copies; leave it out, or use concurrent.futures:ThreadPoolExecutor"
        )


def _is_class_of(factory: object, *bases: type) -> bool:
    return isinstance(factory, type) and issubclass(factory, bases)


def fitted_options(factory: Callable[..., Pool], options: Mapping[str, Any], workers: int | None) -> dict[str, Any]:
    """Return the options of a pool as its factory takes them.

    A start method of processes may be given by its name; `ProcessPoolExecutor` gets one that does not fork the engine,
    as it is the default from Python 3.14 on.
    """
    fitted = dict(options)
    if workers is not None and SIZE_OPTION not in fitted and SIZE_OPTION in _parameters(factory):
        fitted[SIZE_OPTION] = workers
    context = fitted.get("mp_context")
    if context is None and factory is concurrent.futures.ProcessPoolExecutor:
        context = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    if isinstance(context, str):
        fitted["mp_context"] = multiprocessing.get_context(context)
    return fitted


def make_pool(factory: Callable[..., Pool], options: Mapping[str, Any]) -> Pool:
    """Return a new pool; raises TypeError if what the factory makes is none."""
    pool = factory(**options)
    if not isinstance(pool, concurrent.futures.Executor):
        raise TypeError(f"its factory made {type_name(pool)}, which is no concurrent.futures.Executor")
    return pool


def runs_in_threads(pool: Pool) -> bool:
    """Return whether calls in a pool see this interpreter's objects, as far as that can be known."""
    return isinstance(pool, concurrent.futures.ThreadPoolExecutor) and not isinstance(pool, _APART)


def size_of(pool: Pool, options: Mapping[str, Any], workers: int | None) -> int | None:
    """Return how many calls a pool runs at once, or None if it does not say."""
    for size in (workers, getattr(pool, "_max_workers", None), options.get(SIZE_OPTION)):
        if isinstance(size, int) and size >= 1:
            return size
    return None


def is_imported_by_worker() -> bool:
    """Return whether this process is a worker that is importing the script, and may start no others meanwhile."""
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


def lacks_guard(pool: Pool) -> bool:
    """Return whether workers of a pool run the flow of the script once more when they import it, by its looks."""
    context = getattr(pool, "_mp_context", None)
    if context is None or context.get_start_method() == "fork":
        return False
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is None:
        return False
    try:
        with tokenize.open(script) as file:
            return "__name__" not in file.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        return False


def rouse(pool: Pool) -> None:
    """Have a pool of processes look at them, if one has died.

    `ProcessPoolExecutor` waits for the end of those that it had when it began to wait, and may overlook a worker that
    it has started since, until it has something else to do.
    """
    processes = processes_of(pool)
    with suppress(Exception):  # it may be broken by now, or its processes none of multiprocessing
        if any(process.exitcode is not None for process in processes):
            pool.submit(int)


def end_pool(pool: Pool, *, kill: bool) -> None:
    """Have a pool end without waiting for it.

    Args:
        pool: the pool.
        kill: whether to kill its processes, where it has some, for they are in calls that nobody waits for any more.
    """
    parameters = _parameters(pool.shutdown)
    processes = processes_of(pool)
    arguments: dict[str, Any] = {"wait": False}
    if "cancel_futures" in parameters:
        arguments["cancel_futures"] = True
    if kill and "kill_workers" in parameters:
        arguments["kill_workers"] = True
    pool.shutdown(**arguments)
    if kill:
        kill_processes(processes)


def processes_of(pool: Pool) -> list[Any]:
    """Return the processes of a pool, as far as it tells of them; once it is shut down it does not."""
    return [*(getattr(pool, "_processes", None) or {}).values()]


def kill_processes(processes: Iterable[Any]) -> None:
    """Kill processes of a pool, where they have not ended by themselves."""
    for process in processes:
        with suppress(Exception):  # not one of multiprocessing, or gone already
            process.kill()


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function; any there may be, if they cannot be read."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}
