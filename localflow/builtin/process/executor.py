"""ProcessExecutor: its options, and the door to the pool that does the work."""

from __future__ import annotations

import atexit
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, ClassVar

from localflow import strays
from localflow.builtin.cores import usable_cores
from localflow.builtin.process.importing import keep_importable, shipped_path
from localflow.builtin.process.memory import parse_size
from localflow.builtin.process.spawn import Supervisor
from localflow.interfaces import AtLeast, Executor
from localflow.payloads import pickle_value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localflow.builtin.process.pool import Pool
    from localflow.builtin.process.staff import Settings
    from localflow.interfaces import Call, Report

#: How many threads numeric libraries take for themselves, each by its own variable.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
)


class ProcessExecutor(Executor):
    """Runs calls in worker processes.

    Workers never import the main module again, so scripts need no guard, and a session or a notebook will do. A task
    that kills its worker ends CRASHED; no other task is affected. At its timeout a call is killed with its worker and
    with all that it has started.
    """

    shares_memory: ClassVar[bool] = False
    kills_on_timeout: ClassVar[bool] = True
    isolates_crashes: ClassVar[bool] = True

    def __init__(
        self,
        workers: Annotated[int, AtLeast(1)] | None = None,
        max_tasks_per_worker: Annotated[int, AtLeast(1)] | None = None,
        initializer: str | Callable[[], object] | None = None,
        env: dict[str, str] | None = None,
        worker_memory_limit: Annotated[int, AtLeast(1)] | str | None = None,
    ) -> None:
        """Keep options.

        Args:
            workers: how many processes there may be; by default one for each usable core.
            max_tasks_per_worker: replace a worker, between two tasks, when it has run so many; by default never.
            initializer: called in each worker before its first task; a text names it, as `"module:function"`.
            env: environment variables of the workers, beside those of this process.
            worker_memory_limit: kill a worker, and crash its task, when it uses more memory: bytes, or a text such as
                `"2 GiB"`. One that still uses more when its task has ended is replaced. By default there is none.

        Raises:
            ValueError: the memory limit or the name of the initializer is no such text.
        """
        if isinstance(initializer, str) and not all(initializer.partition(":")):
            raise ValueError(f"initializer must be 'module:function', got {initializer!r}")
        self.workers = workers or usable_cores()
        self.max_tasks_per_worker = max_tasks_per_worker
        self.initializer = initializer
        self.env = env or {}
        self.worker_memory_limit = worker_memory_limit
        self._memory_limit: int | None = None
        if worker_memory_limit is not None:
            try:
                self._memory_limit = parse_size(worker_memory_limit)
            except ValueError as error:
                raise ValueError(f"worker_memory_limit {error}") from None
        self._pool: Pool | None = None
        self._pid = 0
        self._supervisor: Supervisor | None = None
        """One that waits for the pool."""

    @property
    def capacity(self) -> int:
        """A call for each worker, and while calls are short as many more as make about ten milliseconds of work."""
        return self.workers if self._pool is None else self._pool.capacity

    @property
    def plenty(self) -> int:
        """Half of that while calls are short: refilled as a whole, they cost less than one by one."""
        return max(self.workers, self.capacity // 2)

    def prepare(self) -> None:
        """Start the supervisor, which imports what workers need while the engine imports what it needs itself."""
        if self._supervisor is None and self._pool is None:
            self._pid = os.getpid()
            with suppress(OSError):  # it is tried again, and told, when there is a call
                self._supervisor = Supervisor(shipped_path(), worker_environment(self.workers, self.env))

    def start(self, report: Report) -> None:
        """Get ready to run calls; workers start when there are calls for them.

        Raises:
            UnpicklableError: the initializer cannot be sent to a worker process.
        """
        from localflow.builtin.process.pool import Pool  # by now the supervisor is at its own imports

        if self._pool is not None and self._pid == os.getpid():
            raise RuntimeError("this process executor is already at work for a flow run; give each flow run its own")
        if self._pid != os.getpid():  # a supervisor is there for the process that has started it
            self._supervisor, self._pid = None, os.getpid()
        try:
            self._pool = Pool(self._settings(), report, self._supervisor)
        except BaseException:
            self.shutdown()
            raise
        self._supervisor = None  # it is the pool's
        atexit.register(self.shutdown)

    def _settings(self) -> Settings:
        from localflow.builtin.process.staff import Settings

        initializer: str | bytes | None
        if self.initializer is None or isinstance(self.initializer, str):
            initializer = self.initializer
        else:
            keep_importable(self.initializer)
            initializer = pickle_value(self.initializer)
        environment = worker_environment(self.workers, self.env)
        return Settings(
            self.workers, self.max_tasks_per_worker, initializer, environment, self._memory_limit, self.folder
        )

    def submit(self, calls: Sequence[Call]) -> None:
        """Take calls and send them to workers."""
        if self._pool is None or self._pid != os.getpid():
            raise RuntimeError("the process executor is not started in this process; call start(report) first")
        self._pool.take(calls)

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Stop calls: a running one gets SIGTERM with all that it has started, and five seconds later SIGKILL."""
        if self._pool is not None and self._pid == os.getpid():
            self._pool.cancel(call_ids)

    def shutdown(self) -> None:
        """End all workers; those in a task are killed at once, also if they have been told to end in order."""
        pool, supervisor = self._pool, self._supervisor
        self._supervisor = None
        if self._pid == os.getpid():  # in a forked child the processes are not its own
            if supervisor is not None:
                supervisor.end(kill=True)
            if pool is not None:
                atexit.unregister(self.shutdown)
                pool.close()  # to the end of which calls may come, and are given up, too: the engine may be in `report`
        self._pool = None


def worker_environment(workers: int, env: dict[str, str]) -> dict[str, str]:
    """Return the environment of workers: this one, without numeric libraries taking all cores in each worker."""
    threads = str(max(1, usable_cores() // workers))
    return {**dict.fromkeys(_THREAD_VARIABLES, threads), **os.environ, **env, strays.VARIABLE: strays.engine_mark()}
