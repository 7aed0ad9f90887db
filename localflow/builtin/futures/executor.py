"""What the engine knows of the executor `futures`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from localflow.builtin.futures.dispatch import Dispatch
from localflow.builtin.futures.pools import (
    SIZE_OPTION,
    check_memory,
    check_options,
    check_size,
    end_pool,
    find_factory,
    fitted_options,
    make_pool,
    runs_in_threads,
    size_of,
)
from localflow.interfaces import AtLeast, Executor

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Sequence

    from localflow.interfaces import Call, Report

#: How many calls a pool of threads has in hand for each thread, so that none waits for the engine.
_CALLS_PER_THREAD = 2


class FuturesExecutor(Executor):
    """Runs calls in a pool that is a `concurrent.futures.Executor`.

    It can do what the pool can: calls in threads see the engine's objects, calls elsewhere get copies, as with the
    process executor. A pool cannot stop a call that runs. If it breaks, the calls it has in hand are CRASHED, and
    others run in a new one.
    """

    shares_memory: ClassVar[bool] = False
    """Of a pool of threads it is true, which the executor says itself."""

    def __init__(
        self,
        factory: str | Callable[..., concurrent.futures.Executor],
        workers: Annotated[int, AtLeast(1)] | None = None,
        shares_memory: bool | None = None,
        shares_files: bool = True,
        **options: Any,
    ) -> None:
        """Keep options.

        Args:
            factory: makes the pool: a callable, or its name as `"module:callable"`.
            workers: how many calls the pool runs at once, and what a factory that takes `max_workers` is told of it;
                by default what the pool says.
            shares_memory: whether its calls run in this interpreter; by default only those of a `ThreadPoolExecutor`.
            shares_files: whether its workers see the files of this machine, by which large values go.
            options: what else the factory is given.

        Raises:
            ValueError: there is no such factory, whose module is imported to see that; or it does not take such
                options.
        """
        if workers is not None:
            check_size("workers", workers)
            if options.get(SIZE_OPTION) is not None:
                raise ValueError(
                    f"workers and {SIZE_OPTION} say the same, got workers = {workers} and "
                    f"{SIZE_OPTION} = {options[SIZE_OPTION]!r}; keep workers, which is also what -j sets"
                )
        found = find_factory(factory)
        if found is not None:
            check_options(found, options, workers)
            if shares_memory:
                check_memory(found)
        self.factory = factory
        self.workers = workers
        self.options = options
        self._shares_memory = shares_memory
        self._shares_files = shares_files
        self._declare(shares_memory or False)
        self._size = workers
        self._dispatch: Dispatch | None = None

    def _declare(self, shares_memory: bool) -> None:
        """Say of this executor what depends on its pool, in the place of what its class says of all."""
        vars(self)["shares_memory"] = shares_memory

    @property
    def capacity(self) -> int | None:
        """A call or two for each worker, as many more as may go together while they are short; all, if nobody knows."""
        if self._size is None:
            return None
        if self.shares_memory:
            return self._size * _CALLS_PER_THREAD
        ahead = 1 if self._dispatch is None else self._dispatch.bundle_size
        return self._size if ahead == 1 else 2 * self._size * ahead

    @property
    def plenty(self) -> int | None:
        """Half of that, but a call for each worker."""
        capacity = self.capacity
        return None if capacity is None or self._size is None else max(self._size, capacity // 2)

    def start(self, report: Report) -> None:
        """Make the pool.

        Raises:
            RuntimeError: this executor is at work for another flow run.
            TypeError: what the factory makes is no pool.
            ValueError: there is no such factory, or what it makes does not share memory as an option says.
            Exception: whatever importing or calling the factory raises.
        """
        if self._dispatch is not None:
            raise RuntimeError("this futures executor is already at work for a flow run; give each flow run its own")
        factory = find_factory(self.factory)
        if factory is None:
            raise ValueError(f"factory {self.factory!r} is in a module that is not on the path; set PYTHONPATH to it")
        options = fitted_options(factory, self.options, self.workers)
        pool = make_pool(factory, options)
        if self._shares_memory:
            try:
                check_memory(pool)
            except ValueError:
                end_pool(pool, kill=True)
                raise
        shares_memory = runs_in_threads(pool) if self._shares_memory is None else self._shares_memory
        self._declare(shares_memory)
        self._size = size_of(pool, options, self.workers)
        sender = None
        if not shares_memory:
            from localflow.builtin.remote import Sender

            sender = Sender(self.folder, shares_files=self._shares_files)
        self._dispatch = Dispatch(lambda: make_pool(factory, options), pool, self._size, sender, report)

    def submit(self, calls: Sequence[Call]) -> None:
        """Take calls and send them to the pool."""
        if self._dispatch is None:
            raise RuntimeError("the futures executor is not started; call start(report) first")
        self._dispatch.take(calls)

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Stop calls that have not begun; a pool cannot stop one that runs."""
        if self._dispatch is not None:
            self._dispatch.cancel(call_ids)

    def shutdown(self) -> None:
        """End the pool without waiting for it; processes in a call are killed, as far as the pool tells of them."""
        dispatch, self._dispatch = self._dispatch, None
        if dispatch is not None:
            dispatch.close()
