"""Coroutines and async generators run to their end, from code that may or may not be inside a running loop.

asyncio is imported only when there is a coroutine: it takes as long as everything else together.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from contextvars import copy_context
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

T = TypeVar("T")


class Expired(Exception):
    """The coroutine was stopped at its deadline."""


async def drained(value: Coroutine[Any, Any, Any] | AsyncGenerator[Any, Any], timeout_seconds: float | None) -> Any:
    """Await a coroutine and return its value; of an async generator return the list of what it yields.

    Raises:
        Expired: it took longer than `timeout_seconds` and was cancelled.
    """
    import asyncio

    try:
        async with asyncio.timeout(timeout_seconds) as limit:
            if isinstance(value, AsyncGeneratorType):
                return [item async for item in value]
            return await value  # type: ignore[misc]  # a coroutine, as it is no generator
    except TimeoutError:
        if limit.expired():
            raise Expired from None
        raise


def run_to_its_end(
    value: Coroutine[Any, Any, Any] | AsyncGenerator[Any, Any], timeout_seconds: float | None = None
) -> Any:
    """Run a coroutine in a loop of its own and return its value; inside a running loop, in a thread of its own."""
    import asyncio

    if asyncio._get_running_loop() is None:  # the public function says so by an exception, which would stay in others
        return asyncio.run(drained(value, timeout_seconds))
    ending: list[Any] = []
    loop = asyncio.new_event_loop()

    def work() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                ending.append((runner.run(drained(value, timeout_seconds)), None))
        except BaseException as error:  # it is the caller's
            ending.append((None, error))

    thread = threading.Thread(target=copy_context().run, args=(work,), name="localflow-coroutine", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:  # Ctrl-C is for the coroutine too
        with suppress(RuntimeError):  # it has just ended
            loop.call_soon_threadsafe(loop.stop)
        raise
    result, error = ending[0]
    if error is not None:
        raise error
    return result


def is_being_cancelled(error: BaseException) -> bool:
    """Return whether `error` says that the asyncio task that runs here is being cancelled from outside."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or not isinstance(error, asyncio.CancelledError):  # nobody has a loop without having imported it
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def in_thread(wait: Callable[[], T]) -> T:
    """Await what blocks, in a thread of its own.

    The loop's own pool has few threads: waiting flow runs could take all of them and keep out what they wait for.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    came: asyncio.Future[T] = loop.create_future()

    def tell(value: Any, error: BaseException | None) -> None:
        if came.done():  # nobody waits any more
            return
        if error is None:
            came.set_result(value)
        else:
            came.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = wait()
        except BaseException as raised:  # it is for who awaits
            error = raised
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, value, error)

    threading.Thread(target=copy_context().run, args=(work,), name="localflow-wait", daemon=True).start()
    return await came
