"""A cluster: one of our own on this machine, for as long as a flow runs, or one that is there. Used in one event loop.

What is here knows dask; what calls are, and who gets which, is the affair of `crew`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import tempfile
import warnings
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import dask
from distributed import Client, LocalCluster

from localflow.builtin.process.executor import worker_environment
from localflow_dask.spawning import main_left_alone
from localflow_dask.worker import Description, describe, end_worker, run_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from localflow_dask.settings import Settings
    from localflow_dask.worker import Errand

#: The topic under which a scheduler tells of workers that come and go.
_ALL = "all"
_LOOK_SECONDS = 0.1
_CLOSE_SECONDS = 10.0
#: How long workers may take to end in order when nothing runs in them, in seconds; then they are killed.
_GRACE_SECONDS = 1.0
#: What begins to be large for dask, which would warn of it, in bytes.
_LARGE = 5_000_000


class Cluster:
    """A client of a scheduler, and for a cluster of our own also that."""

    def __init__(self, settings: Settings) -> None:
        """Keep the settings."""
        self._settings = settings
        self._stack = ExitStack()
        self._cluster: Any = None
        self._client: Any = None
        self._topics: list[str] = []

    @property
    def is_ours(self) -> bool:
        """Whether it begins and ends with the executor."""
        return self._settings.address is None

    @property
    def host(self) -> str:
        """What to call it, for messages."""
        return "this machine" if self.is_ours else str(self._settings.address)

    async def open(self, on_event: Callable[[str, Any], None], topic: str) -> None:
        """Start or find the cluster, and have its events told, and those of a topic.

        Raises:
            OSError, TimeoutError: there is no scheduler at the address.
        """
        settings = self._settings
        try:
            with _quietly():
                if self.is_ours:
                    await self._start(settings)
                where = self._cluster if self.is_ours else settings.address
                self._client = await Client(
                    where, asynchronous=True, set_as_default=False, timeout=settings.timeout, name="localflow"
                )
        except BaseException:
            await self.close(is_at_work=False)
            raise
        for each in (_ALL, topic):
            self._topics.append(each)
            self._client.subscribe_topic(each, lambda event, each=each: on_event(each, event[1]))

    async def _start(self, settings: Settings) -> None:
        self._stack.enter_context(main_left_alone())
        scratch = tempfile.mkdtemp(prefix="localflow-dask-")
        self._stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        wanted = worker_environment(settings.workers * settings.threads_per_worker, dict(settings.env))
        environment = {name: value for name, value in wanted.items() if os.environ.get(name) != value}
        with dask.config.set({"distributed.nanny.pre-spawn-environ": {}, "distributed.nanny.environ": {}}):
            self._cluster = await LocalCluster(
                n_workers=settings.workers,
                threads_per_worker=settings.threads_per_worker,
                memory_limit=settings.memory_limit or 0,
                processes=True,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
                asynchronous=True,
                local_directory=scratch,
                env=environment,
                # A call whose worker dies is not run again unless the task says so.
                scheduler_kwargs={"allowed_failures": 0},
            )

    # -- workers -----------------------------------------------------------------------------------------------------

    async def describe(self, place: tuple[Any, ...] | None, addresses: Sequence[str] | None) -> list[Description]:
        """Return what workers tell of themselves: those at some addresses that are there, or all."""
        where = None if addresses is None else [*addresses]
        told = await self._client.run(describe, place, self.is_ours, workers=where, on_error="return")
        errors = [each for each in told.values() if isinstance(each, BaseException)]
        described = [Description(*each) for each in told.values() if not isinstance(each, BaseException)]
        if errors and not described and not isinstance(errors[0], OSError):
            raise errors[0]  # such as that the plugin is not installed there
        return described

    async def wait_for_workers(self, place: tuple[Any, ...] | None) -> list[Description]:
        """Return all workers as soon as there is one; raises TimeoutError if none comes in time."""
        deadline = asyncio.get_running_loop().time() + self._settings.timeout
        while True:
            if found := await self.describe(place, None):
                return found
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(
                    f"the cluster at {self.host} has had no worker for {self._settings.timeout:g} seconds; start one, "
                    "or give it a longer 'timeout'"
                )
            await asyncio.sleep(_LOOK_SECONDS)

    async def end_worker(self, worker: Description, grace: float) -> None:
        """End a worker process that is in a call: by SIGTERM, and after a grace by its nanny."""
        with suppress(Exception):  # the answer never comes
            async with asyncio.timeout(grace):
                await self._client.run(end_worker, worker.pid, workers=[worker.address], on_error="ignore")
        await asyncio.sleep(grace)
        with suppress(Exception):
            await self._client.restart_workers([worker.address], timeout=grace, raise_for_error=False)

    # -- calls -------------------------------------------------------------------------------------------------------

    def submit(self, worker: Description, key: str, parcel: bytes, errand: Errand, copies: Sequence[Any]) -> Any:
        """Hand a call to a worker, and to nobody else; return the dask future of its answer."""
        with _large_allowed() if len(parcel) > _LARGE else contextlib.nullcontext():
            return self._client.submit(
                run_call,
                parcel,
                tuple(errand),
                *copies,
                key=key,
                workers=[worker.address],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )

    async def forget(self, futures: Sequence[Any]) -> None:
        """Give up calls."""
        if futures:
            with suppress(Exception):
                await self._client.cancel([*futures], force=True)

    async def has_copy(self, future: Any) -> bool:
        """Return whether a worker has the answer in this future."""
        told = await self._client.who_has([future])
        return any(told.values())

    # -- the end -----------------------------------------------------------------------------------------------------

    async def close(self, *, is_at_work: bool) -> None:
        """Let go of the cluster; one of our own ends, at once if workers are in calls that nobody waits for."""
        try:
            if self._client is not None:
                with suppress(Exception):
                    for topic in self._topics:  # or the scheduler tries to tell us that we are gone
                        self._client.unsubscribe_topic(topic)
                    async with asyncio.timeout(_CLOSE_SECONDS):
                        await self._client.close()
            if self._cluster is not None:
                await self._end(0.0 if is_at_work else _GRACE_SECONDS)
        finally:
            self._client = self._cluster = None
            self._topics.clear()
            self._stack.close()

    async def _end(self, grace: float) -> None:
        nannies = [*self._cluster.workers.values()]
        closing = asyncio.ensure_future(self._cluster.close())
        await asyncio.wait([closing], timeout=grace or _LOOK_SECONDS)
        deadline = asyncio.get_running_loop().time() + _CLOSE_SECONDS
        while not closing.done() and asyncio.get_running_loop().time() < deadline:
            for nanny in nannies:  # again and again: one may have been about to start another worker
                with suppress(ProcessLookupError):
                    if nanny.pid:
                        os.kill(nanny.pid, signal.SIGKILL)
            await asyncio.wait([closing], timeout=_LOOK_SECONDS)
        if not closing.done():
            closing.cancel()
        with suppress(Exception, asyncio.CancelledError):
            await closing


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Have warnings of dask's own code not be errors of whoever has asked for a cluster."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _large_allowed() -> Any:
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 PiB"})
