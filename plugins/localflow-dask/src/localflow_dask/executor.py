"""What the engine knows of the executor `dask`."""

from __future__ import annotations

import atexit
import os
import uuid
from typing import TYPE_CHECKING, Annotated, ClassVar

from localflow.builtin.cores import usable_cores
from localflow.interfaces import AtLeast, Executor
from localflow_dask.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.interfaces import Call, Report
    from localflow_dask.crew import Crew
    from localflow_dask.loop import LoopThread

#: How many calls are in hand for each thread: the next one is there when a thread is free.
_CALLS_PER_THREAD = 2
_SHUTDOWN_SECONDS = 30.0


class DaskExecutor(Executor):
    """Runs calls in the workers of a Dask cluster: one of its own on this machine, or one that is there.

    Workers with one thread, as they are by default, are ended and replaced when a call is to be stopped or past its
    timeout, and a call that ends its worker is CRASHED alone. With more threads in a worker, calls cannot be stopped,
    and a crash takes along what runs beside it.
    """

    shares_memory: ClassVar[bool] = False
    kills_on_timeout: ClassVar[bool] = True
    isolates_crashes: ClassVar[bool] = True

    def __init__(
        self,
        workers: Annotated[int, AtLeast(1)] | None = None,
        threads_per_worker: Annotated[int, AtLeast(1)] | None = None,
        memory_limit: Annotated[int, AtLeast(1)] | str | None = None,
        env: dict[str, str] | None = None,
        address: str | None = None,
        timeout: Annotated[float, AtLeast(0)] = 30.0,
    ) -> None:
        """Keep options.

        Args:
            workers: how many worker processes the cluster has; by default one for each usable core.
            threads_per_worker: how many calls each of them runs at once; by default one.
            memory_limit: how much memory a worker may use before dask replaces it: bytes, or a text such as
                `"2 GiB"`; by default there is no limit.
            env: environment variables of the workers, beside those of this process.
            address: of a scheduler that is there, as `"tcp://host:8786"`; its cluster goes on after the flow.
            timeout: how long it may take to reach the scheduler and to find a first worker, in seconds.

        Raises:
            ValueError: there is an address, and an option of a cluster of its own; or the memory limit is no size.
        """
        own = {
            "workers": workers,
            "threads_per_worker": threads_per_worker,
            "memory_limit": memory_limit,
            "env": env,
        }
        given = [name for name, value in own.items() if value is not None]
        if address is not None and given:
            raise ValueError(f"the cluster at an 'address' has its workers already; leave out {', '.join(given)}")
        if memory_limit is not None:
            _check_size(memory_limit)
        self._settings = Settings(
            workers or usable_cores(), threads_per_worker or 1, memory_limit, env or {}, address, timeout
        )
        self._crew: Crew | None = None
        self._thread: LoopThread | None = None
        self._pid = 0
        if address is None and self._settings.threads_per_worker > 1:
            self._declare(kills_on_timeout=False, isolates_crashes=False)

    def _declare(self, **abilities: bool) -> None:
        """Say of this executor what depends on its cluster, in the place of what its class says of all."""
        vars(self).update(abilities)

    @property
    def capacity(self) -> int:
        """Two calls for each thread of the cluster."""
        threads = self._crew.threads if self._crew is not None else 0
        return _CALLS_PER_THREAD * (threads or self._settings.workers * self._settings.threads_per_worker)

    @property
    def plenty(self) -> int:
        """A call for each thread and one more."""
        return self.capacity // _CALLS_PER_THREAD + 1

    def start(self, report: Report) -> None:
        """Start or find the cluster.

        Raises:
            RuntimeError: this executor is at work for another flow run.
            OSError: there is no scheduler at the address.
            TimeoutError: the cluster has no worker.
        """
        if self._crew is not None and self._pid == os.getpid():
            raise RuntimeError("this dask executor is already at work for a flow run; give each flow run its own")
        # Imported here: dask takes half a second, which a flow that does not use it need not pay.
        from localflow_dask.cluster import Cluster
        from localflow_dask.crew import Crew
        from localflow_dask.loop import LoopThread

        self._pid = os.getpid()
        thread = LoopThread("localflow-dask")
        topic = f"localflow-{uuid.uuid4().hex}"
        crew = Crew(Cluster(self._settings), self.folder, topic, report)
        try:
            thread.run(crew.begin())
        except BaseException:
            thread.run(crew.close(), _SHUTDOWN_SECONDS)
            thread.close()
            raise
        self._crew, self._thread = crew, thread
        self._declare(kills_on_timeout=crew.kills_on_timeout, isolates_crashes=crew.isolates_crashes)
        atexit.register(self.shutdown)

    def submit(self, calls: Sequence[Call]) -> None:
        """Take calls and send them to workers."""
        if self._crew is None or self._thread is None or self._pid != os.getpid():
            raise RuntimeError("the dask executor is not started in this process; call start(report) first")
        self._thread.call(self._crew.take, calls)

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Stop calls: one that runs with its worker, if it is alone there, by SIGTERM and 5 s later by force."""
        if self._crew is not None and self._thread is not None and self._pid == os.getpid():
            self._thread.call(self._crew.cancel, call_ids)

    def shutdown(self) -> None:
        """End the cluster, if it is this executor's; workers in a call are killed at once."""
        crew, thread = self._crew, self._thread
        self._crew = self._thread = None
        if crew is None or thread is None or self._pid != os.getpid():
            return
        atexit.unregister(self.shutdown)
        try:
            thread.run(crew.close(), _SHUTDOWN_SECONDS)
        finally:
            thread.close()
            crew.end_reports()


def _check_size(size: int | str) -> None:
    from localflow.builtin.process.memory import parse_size

    try:
        parse_size(size)
    except ValueError as error:
        raise ValueError(f"memory_limit {error}") from None
