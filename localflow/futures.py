"""TaskFuture: the handle of a task run that may not have ended yet."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from localflow.arguments import allow_failure
from localflow.callbacks import Callback
from localflow.interrupts import NAP_SECONDS
from localflow.signatures import Handle
from localflow.states import State

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Generator, Iterable, Sequence
    from typing import Literal

    from localflow.records import TaskRun
    from localflow.states import RunRef

R_co = TypeVar("R_co", covariant=True)


class Waiter(Protocol):
    """Something to be told when a future is done."""

    def set(self) -> None:
        """Tell it; may be called in any thread, and must be quick."""


class _LoopWaiter:
    """Has a function called in an event loop."""

    def __init__(self, loop: AbstractEventLoop, tell: Callable[[], None]) -> None:
        self._loop = loop
        self._tell = tell

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._tell)


class _Wakeup:
    """Something to wait for, once. Unlike an Event it stays whole wherever in the wait Ctrl-C arrives."""

    __slots__ = ("_closed",)

    def __init__(self) -> None:
        self._closed = threading.Lock()
        self._closed.acquire()

    def set(self) -> None:
        """Let the one who waits go on; called once."""
        self._closed.release()

    def wait(self, timeout: float | None) -> None:
        """Wait until it is set, or for so many seconds."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        while not self._closed.acquire(timeout=max(0.0, min(until - time.monotonic(), NAP_SECONDS))):
            if time.monotonic() >= until:
                return


class TaskFuture(Handle[R_co]):
    """The handle of one task run: wait for it, ask for its state or its data, pass it to other calls."""

    __slots__ = (
        "_callbacks", "_done", "_ending", "_engine", "_node", "_run", "_state", "_waiters",
    )  # fmt: skip

    def __init__(self, run: TaskRun | RunRef, state: State, engine: Any) -> None:
        self._run = run  # the record while it is needed anyway, a reference once the run has ended
        self._state = state
        self._engine = engine
        self._node = -1
        self._ending: State | None = None  # the engine's: the last state before it is stored, when nobody may see it
        self._done = False
        self._waiters: list[Waiter] | None = None
        self._callbacks: list[Callback] | None = None

    @property
    def name(self) -> str:
        """The task run's name, such as `add_project-0`."""
        return self._run.name

    @property
    def task_run_id(self) -> str:
        """The id under which the task run is recorded."""
        return self._run.id

    @property
    def state(self) -> State:
        """The newest recorded state; not final while the run is pending or running."""
        if not self._done:
            self._hurry()
        return self._state

    def get_state(self) -> State:
        """Return the newest recorded state; not final while the run is pending or running."""
        return self.state

    def done(self) -> bool:
        """Return whether the run has ended, or will never start because an upstream did not complete."""
        if not self._done:
            self._hurry()
        return self._done

    @overload
    def wait(self, timeout: None = None) -> State: ...
    @overload
    def wait(self, timeout: float | None) -> State | None: ...
    def wait(self, timeout: float | None = None) -> State | None:
        """Wait until the run is done and return its state, or None if `timeout` seconds pass first."""
        if not self._done:
            waiter = _Wakeup()
            if self._watch(waiter):
                self._hurry()
                try:
                    waiter.wait(timeout)
                finally:
                    self._unwatch(waiter)
        if self._done:
            return self._state
        if self._engine.error is not None:
            raise self._engine.error
        return None

    @overload
    def result(self, timeout: float | None = None, raise_on_failure: Literal[True] = True) -> R_co: ...
    @overload
    def result(self, timeout: float | None = None, *, raise_on_failure: bool) -> R_co | BaseException: ...
    @overload
    def result(self, timeout: float | None, raise_on_failure: bool) -> R_co | BaseException: ...
    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R_co | BaseException:
        """Wait and return the task's data.

        Args:
            timeout: seconds to wait at most.
            raise_on_failure: if false, a failed run's exception is returned instead of raised.

        Raises:
            TimeoutError: the run was not done in time.
            UpstreamFailedError: the run never started; its cause is the root failure.
            Exception: the task's own exception, or the one that `State.result` words for it.
        """
        state = self.wait(timeout)
        if state is None:
            raise TimeoutError(f"task run '{self.name}' was not done within {timeout} second(s)")
        result: R_co | BaseException = state.result(raise_on_failure)
        return result

    def add_done_callback(self, callback: Callable[[TaskFuture[R_co]], object]) -> None:
        """Call `callback(future)` once the run is done, here and now if it is; its exceptions are logged.

        Callbacks that have to wait run in a thread of their own, in the context of this call, so that they may call
        tasks; the flow waits for them. They are not called if the state store fails: then nobody knows the end.
        """
        with self._engine.lock:
            if not self._done:
                if self._engine.error is not None:
                    return
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(Callback(self._described(), copy_context(), callback, (self,)))
                return
        self._engine.callbacks.call(self._described(), callback, self)

    def cancel(self) -> bool:
        """Have the run end CANCELLED; what waits for it will never start.

        Returns:
            Whether that will be so. False if the run has ended, or is at work where it cannot be stopped: in a thread,
            unless its function is async.
        """
        return not self._done and bool(self._engine.stopping.cancel(self))

    def __await__(self) -> Generator[Any, None, R_co]:
        """Wait without blocking the event loop, and return the task's data as `result()` does."""
        return self._awaited().__await__()

    async def _awaited(self) -> R_co:
        import asyncio

        if not self._done and self._engine.error is None:
            loop = asyncio.get_running_loop()
            came = loop.create_future()

            def tell() -> None:
                if not came.done():
                    came.set_result(None)

            waiter = _LoopWaiter(loop, tell)
            if self._watch(waiter):
                self._hurry()
                try:
                    await came
                finally:
                    self._unwatch(waiter)
        result: R_co = self.result()
        return result

    @property
    def _flow_run_id(self) -> str:
        return self.task_run_id.rpartition("-")[0]

    def _described(self) -> str:
        return f"a done callback of task run '{self.name}'"

    def __repr__(self) -> str:
        return f"<TaskFuture {self.name!r} {self._state.name}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            f"future '{self.name}' cannot be pickled; pass it as an argument of a task call, where it is replaced "
            "by its data, not inside a closure or an object"
        )

    # What follows is for those who wait for many futures at once.

    def _hurry(self) -> None:
        """Have the engine look at what waits for others to come: somebody wants to know."""
        if self._engine is not None:
            self._engine.flush()

    def _watch(self, waiter: Waiter) -> bool:
        """Have `waiter` told once the run is done or given up; return False if it is already."""
        with self._engine.lock:
            if self._done or self._engine.error is not None:
                return False
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(waiter)
            return True

    def _unwatch(self, waiter: Waiter) -> None:
        """Tell `waiter` no longer."""
        if self._waiters is not None:
            with self._engine.lock:
                if self._waiters is not None and waiter in self._waiters:
                    self._waiters.remove(waiter)

    # What follows is for the engine, which alone moves a future on.

    def _change(self, state: State) -> None:
        """Show a state that is not the end."""
        self._state = state

    def _resolve(self, state: State) -> Sequence[Callback]:
        """Show the last state, wake who waits, and return the callbacks to run."""
        with self._engine.lock:
            self._state = state
            self._done = True
            waiters, self._waiters = self._waiters, None
            callbacks, self._callbacks = self._callbacks, None
        for waiter in waiters or ():
            waiter.set()
        return callbacks or ()

    def _abandon(self) -> None:
        """Give up, unless the end has been shown: whoever waits gets the engine's error."""
        with self._engine.lock:
            waiters, self._waiters, self._callbacks = self._waiters, None, None
        for waiter in waiters or ():
            waiter.set()


def futures_in(wait_for: object) -> list[TaskFuture[Any] | State]:
    """Return the futures and states inside a `wait_for`, in order.

    Raises:
        TypeError: something else is in it; waiting for it would silently be no wait at all.
    """
    found: list[TaskFuture[Any] | State] = []
    entered: set[int] = set()
    pending = [wait_for]
    while pending:
        item = pending.pop()
        if isinstance(item, (TaskFuture, State)):
            found.append(item)
        elif isinstance(item, allow_failure):
            pending.append(item.value)
        elif isinstance(item, (list, tuple, set, frozenset, dict)):
            if id(item) not in entered:
                entered.add(id(item))
                pending.extend(reversed(_waited_for(item)))
        else:
            raise TypeError(
                f"wait_for takes futures, states and collections of these, not {type(item).__name__} {item!r}"
            )
    return found


def _waited_for(container: Iterable[Any]) -> list[Any]:
    """Return what of a container is waited for: of a dict its values, and keys that are futures or states."""
    if isinstance(container, dict):
        return [*(key for key in container if isinstance(key, (TaskFuture, State))), *container.values()]
    return list(container)
