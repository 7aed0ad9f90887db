"""RayExecutor: its options, and the door to what does the work."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from localflow.builtin.cores import usable_cores
from localflow.builtin.process.memory import parse_size
from localflow.interfaces import AtLeast, Executor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.interfaces import Call, Report
    from localflow_ray.connection import Connection
    from localflow_ray.dispatcher import Dispatcher

#: Calls that take less, in seconds, are handed over ahead of time.
_SHORT = 0.05
_LOOK_SECONDS = 5.0


class RayExecutor(Executor):
    """Runs calls as tasks of Ray: on a cluster, or on a Ray of this machine that lives as long as the flow run.

    A task that kills its worker ends CRASHED; no other task is affected, and Ray never runs one again by itself. At its
    timeout a call is killed with its worker. Large results stay in Ray's object store, where tasks that depend on them
    map them.
    """

    shares_memory: ClassVar[bool] = False
    kills_on_timeout: ClassVar[bool] = True
    isolates_crashes: ClassVar[bool] = True

    def __init__(
        self,
        address: str | None = None,
        workers: Annotated[int, AtLeast(1)] | None = None,
        num_cpus: Annotated[float, AtLeast(0)] = 1,
        num_gpus: Annotated[float, AtLeast(0)] = 0,
        resources: dict[str, float] | None = None,
        runtime_env: dict[str, Any] | None = None,
        object_store_memory: Annotated[int, AtLeast(1)] | str | None = None,
    ) -> None:
        """Keep options.

        Args:
            address: of a cluster that this machine is a node of: `"auto"` or `"host:6379"`. By default a Ray of this
                machine is started, unless the program has called `ray.init` itself.
            workers: how many calls run at once at most; by default as many as there is room for, on this machine one
                for each usable core.
            num_cpus: how many CPUs of the cluster a call takes.
            num_gpus: how many GPUs.
            resources: what it takes of other resources of the cluster, by their names.
            runtime_env: packages, files and variables for the workers, as Ray takes them.
            object_store_memory: how much memory a Ray of this machine has for large values: bytes, or a text such as
                `"2 GiB"`. By default Ray decides.

        Raises:
            ValueError: `object_store_memory` is no such text, or `address` that of a Ray client.
        """
        if address is not None and address.startswith("ray://"):
            raise ValueError(
                "address must be that of a cluster which this machine is a node of, such as 'auto' or 'host:6379', "
                f"got {address!r}; run the flow on a node, as by `ray job submit`"
            )
        self.address = address
        self.workers = workers
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self.resources = resources or {}
        self.runtime_env = runtime_env
        self.object_store_memory = object_store_memory
        self._object_store_bytes: int | None = None
        if object_store_memory is not None:
            try:
                self._object_store_bytes = parse_size(object_store_memory)
            except ValueError as error:
                raise ValueError(f"object_store_memory {error}") from None
        self._connection: Connection | None = None
        self._dispatcher: Dispatcher | None = None
        self._room = 0
        self._looked_at = 0.0
        self._pid = 0

    @property
    def capacity(self) -> int:
        """A call for each worker; twice as many while calls are short, and where a cluster may grow for them."""
        room = self._workers_there_are()
        dispatcher = self._dispatcher
        if dispatcher is None or (self.workers is not None and not self._is_own):
            return room
        return 2 * room if not self._is_own or dispatcher.mean_seconds < _SHORT else room

    @property
    def plenty(self) -> int:
        """A call for each worker."""
        return self._workers_there_are()

    @property
    def _is_own(self) -> bool:
        return self._connection is None or self._connection.is_own

    def start(self, report: Report) -> None:
        """Connect to Ray, or start one, which takes seconds.

        Raises:
            ConnectionError: there is no cluster at the address.
            RuntimeError: this process is connected to another Ray already.
        """
        from localflow_ray.connection import Wanted, connect  # Ray, which takes a second to import
        from localflow_ray.dispatcher import Dispatcher, Terms

        if self._dispatcher is not None and self._pid == os.getpid():
            raise RuntimeError("this Ray executor is already at work for a flow run; give each flow run its own")
        workers = self.workers or usable_cores()
        wanted = Wanted(
            self.address,
            max(1, round(workers * self.num_cpus)),
            round(workers * self.num_gpus) or None,
            {name: workers * amount for name, amount in self.resources.items()},
            self._object_store_bytes,
            self.runtime_env,
        )
        self._connection = connection = connect(wanted)
        options: dict[str, Any] = {"num_cpus": self.num_cpus}
        if self.num_gpus:
            options["num_gpus"] = self.num_gpus
        if self.resources:
            options["resources"] = self.resources
        if self.runtime_env and connection.runtime_env != self.runtime_env:
            options["runtime_env"] = self.runtime_env
        limit = self.workers if self.workers is not None and not connection.is_own else None
        ships_path = "working_dir" not in (self.runtime_env or {})
        self._pid = os.getpid()
        self._dispatcher = Dispatcher(connection, Terms(options, limit, ships_path), self.folder, report)

    def submit(self, calls: Sequence[Call]) -> None:
        """Take calls and hand them to Ray."""
        if self._dispatcher is None or self._pid != os.getpid():
            raise RuntimeError("the Ray executor is not started in this process; call start(report) first")
        self._dispatcher.take(calls)

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Stop calls: a running one gets a KeyboardInterrupt, and five seconds later its worker is killed."""
        if self._dispatcher is not None and self._pid == os.getpid():
            self._dispatcher.cancel(call_ids)

    def shutdown(self) -> None:
        """Give up all calls and leave Ray; one that was started here ends."""
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None and self._pid == os.getpid():
            from localflow_ray.connection import disconnect

            dispatcher.close()
            disconnect()
        self._connection = None
        self._looked_at = 0.0

    def _workers_there_are(self) -> int:
        if self.workers is not None or self._is_own:
            return self.workers or usable_cores()
        now = time.monotonic()
        if not self._looked_at or now - self._looked_at > _LOOK_SECONDS:
            self._looked_at = now
            self._room = self._find_room()
        return self._room

    def _find_room(self) -> int:
        """Return how many calls the cluster can run at once as it is now."""
        import ray

        try:
            there = ray.cluster_resources()
        except Exception:  # it is being left, or lost
            return max(1, self._room)
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        counts = [int(there.get(name, 0) / amount) for name, amount in wanted.items() if amount]
        return max(1, min(counts, default=usable_cores()))
