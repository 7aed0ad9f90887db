"""A state store that fails on purpose."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

from localflow.interfaces import StateStore, StoreError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from localflow.interfaces import CachedResult, Claim, FlowRunSummary, LogEntry, Payload, Record, Standing


class FaultyStore(StateStore):
    """Another store, some of whose appends fail: before anything is written, or after all of it is.

    The second is how a store fails that dies between its commit and its answer: the caller must not take what it was
    told for what is stored.

    Attributes:
        failures: how many appends have failed so far.
    """

    def __init__(
        self, store: StateStore, rate: float = 0.0, *, execute_and_fail: float = 0.0, seed: int | None = None
    ) -> None:
        """Wrap a store.

        Args:
            store: where the records go.
            rate: the part of the appends that fail and write nothing, from 0 to 1.
            execute_and_fail: the part of them that write everything and fail then.
            seed: makes the same appends fail each time.
        """
        if not (rate >= 0 and execute_and_fail >= 0 and rate + execute_and_fail <= 1):
            raise ValueError(f"rate and execute_and_fail are parts of 1, not {rate!r} and {execute_and_fail!r}")
        self.failures = 0
        self._store = store
        self._rate = rate
        self._execute_and_fail = execute_and_fail
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def survives(self) -> bool:  # type: ignore[override]
        """Whether the wrapped store survives."""
        return self._store.survives

    @property
    def location(self) -> str:
        """Where the wrapped store is."""
        return self._store.location

    def append(self, records: Sequence[Record]) -> None:
        """Append, or raise a StoreError before or after it."""
        with self._lock:
            draw = self._random.random()
            fails = draw < self._rate + self._execute_and_fail
            self.failures += fails
        if fails and draw < self._rate:
            raise StoreError(f"state store {self.location} fails on purpose: nothing of this was written")
        self._store.append(records)
        if fails:
            raise StoreError(f"state store {self.location} fails on purpose: all of this was written")

    def list_flow_runs(
        self, limit: int | None = None, *, root_id: str | None = None, unfinished: bool = False
    ) -> list[FlowRunSummary]:
        """Ask the wrapped store."""
        return self._store.list_flow_runs(limit, root_id=root_id, unfinished=unfinished)

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Ask the wrapped store."""
        return self._store.read(flow_run_id)

    def read_chosen(
        self, flow_run_id: str, numbers: Collection[int] = (), *, called: str | None = None
    ) -> Iterator[Record]:
        """Ask the wrapped store."""
        return self._store.read_chosen(flow_run_id, numbers, called=called)

    def read_standings(self, flow_run_id: str) -> list[Standing]:
        """Ask the wrapped store."""
        return self._store.read_standings(flow_run_id)

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Ask the wrapped store."""
        return self._store.load_result(flow_run_id, number)

    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Ask the wrapped store."""
        return self._store.find_cached(key, now)

    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Ask the wrapped store."""
        return self._store.read_logs(flow_run_id, after)

    def claim(self, flow_run_id: str) -> Claim | None:
        """Ask the wrapped store."""
        return self._store.claim(flow_run_id)

    def remove(self, root_ids: Sequence[str], *, results_only: bool = False) -> None:
        """Ask the wrapped store."""
        self._store.remove(root_ids, results_only=results_only)

    def check(self) -> list[str]:
        """Ask the wrapped store."""
        return self._store.check()

    def close(self) -> None:
        """Close the wrapped store."""
        self._store.close()
