"""What is known of other people's pools: how they are made, what they can do, and how they end."""

from __future__ import annotations

import concurrent.futures
import importlib
import inspect
import multiprocessing
import re
from contextlib import suppress
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias

from localflow.payloads import type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Pool: TypeAlias = concurrent.futures.Executor

#: How many calls a pool runs at once, by the names under which factories take it.
SIZE_OPTION = "max_workers"


def check_factory(factory: object) -> None:
    """Raise ValueError unless this is a callable, or a text that may name one."""
    if isinstance(factory, str):
        if re.fullmatch(r"[\w.]+:[\w.]+", factory):
            return
        raise ValueError(f"factory must be 'module:callable', got {factory!r}")
    if not callable(factory):
        raise ValueError(f"factory must be a callable, or 'module:callable', got {type_name(factory)}")


def find_factory(factory: str | Callable[..., Pool]) -> Callable[..., Pool]:
    """Return the callable that a text names, or the one that is given."""
    if not isinstance(factory, str):
        return factory
    module, _, name = factory.partition(":")
    found: Callable[..., Pool] = attrgetter(name)(importlib.import_module(module))
    return found


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
    interpreters = getattr(concurrent.futures, "InterpreterPoolExecutor", ())  # whose base is that of threads
    return isinstance(pool, concurrent.futures.ThreadPoolExecutor) and not isinstance(pool, interpreters)


def size_of(pool: Pool, options: Mapping[str, Any], workers: int | None) -> int | None:
    """Return how many calls a pool runs at once, or None if it does not say."""
    for size in (workers, getattr(pool, "_max_workers", None), options.get(SIZE_OPTION)):
        if isinstance(size, int) and size >= 1:
            return size
    return None


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
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
