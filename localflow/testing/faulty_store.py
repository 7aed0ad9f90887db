"""A state store that fails on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from localflow.capabilities import find_capability
from localflow.interfaces import StateStore
from localflow.testing.faults import FailsAtRandom, Fault, applied, as_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from localflow.interfaces import CachedResult, Claim, FlowRunSummary, Folder, LogEntry, Payload, Record, Standing

    T = TypeVar("T")

_OPERATIONS = (
    "append",
    "list_flow_runs",
    "read",
    "read_chosen",
    "read_standings",
    "load_result",
    "find_cached",
    "read_logs",
    "value_folder",
    "claim",
    "remove",
    "check",
)


class FaultyStore(StateStore):
    """Another store with faults, which are told for each method by its name:

        FaultyStore(store, append=Fails(after=3), load_result=[Slow(0.1), Fails(every=2)])

    `rate` and `execute_and_fail` are short for faults of `append` that strike at random.
    """

    def __init__(
        self,
        store: StateStore,
        rate: float = 0.0,
        *,
        execute_and_fail: float = 0.0,
        seed: int | None = None,
        **faults: Fault | Sequence[Fault],
    ) -> None:
        """Wrap a store.

        Args:
            store: where the records go.
            rate: the part of the appends that fail and write nothing, from 0 to 1.
            execute_and_fail: the part of them that write everything and fail then.
            seed: makes the same appends fail each time.
            faults: what goes wrong with each method of a state store, such as `append`; see `localflow.testing.faults`.
        """
        if not (rate >= 0 and execute_and_fail >= 0 and rate + execute_and_fail <= 1):
            raise ValueError(f"rate and execute_and_fail are parts of 1, not {rate!r} and {execute_and_fail!r}")
        if unknown := sorted(faults.keys() - set(_OPERATIONS)):
            raise TypeError(f"no faults of {', '.join(unknown)}; those that may fail are {', '.join(_OPERATIONS)}")
        self._store = store
        self._faults = {name: as_faults(given) for name, given in faults.items()}
        at_random: list[Fault] = []
        if rate:
            at_random.append(FailsAtRandom(rate, seed=seed))
        if execute_and_fail:  # of those that have not failed before
            at_random.append(FailsAtRandom(execute_and_fail / (1 - rate), done=True, seed=seed and seed + 1))
        self._faults["append"] = [*at_random, *self._faults.get("append", [])]

    @property
    def failures(self) -> int:
        """How many appends have been struck so far."""
        return sum(fault.strikes for fault in self._faults["append"])

    @property
    def survives(self) -> bool:  # type: ignore[override]
        """Whether the wrapped store survives."""
        return self._store.survives

    @property
    def removes(self) -> bool:
        """Whether the wrapped store removes runs."""
        return bool(find_capability("state store", "remove").is_promised(self._store))

    @property
    def location(self) -> str:
        """Where the wrapped store is."""
        return self._store.location

    def append(self, records: Sequence[Record]) -> None:
        """Append, unless a fault strikes."""
        self._do("append", lambda: self._store.append(records))

    def list_flow_runs(
        self, limit: int | None = None, *, root_id: str | None = None, unfinished: bool = False
    ) -> list[FlowRunSummary]:
        """Ask the wrapped store."""
        return self._do(
            "list_flow_runs", lambda: self._store.list_flow_runs(limit, root_id=root_id, unfinished=unfinished)
        )

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Ask the wrapped store."""
        return self._do("read", lambda: self._store.read(flow_run_id))

    def read_chosen(
        self, flow_run_id: str, numbers: Collection[int] = (), *, called: str | None = None
    ) -> Iterator[Record]:
        """Ask the wrapped store."""
        return self._do("read_chosen", lambda: self._store.read_chosen(flow_run_id, numbers, called=called))

    def read_standings(self, flow_run_id: str) -> list[Standing]:
        """Ask the wrapped store."""
        return self._do("read_standings", lambda: self._store.read_standings(flow_run_id))

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Ask the wrapped store."""
        return self._do("load_result", lambda: self._store.load_result(flow_run_id, number))

    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Ask the wrapped store."""
        return self._do("find_cached", lambda: self._store.find_cached(key, now))

    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Ask the wrapped store."""
        return self._do("read_logs", lambda: self._store.read_logs(flow_run_id, after))

    def value_folder(self, root_id: str) -> Folder | None:
        """Ask the wrapped store."""
        return self._do("value_folder", lambda: self._store.value_folder(root_id))

    def claim(self, flow_run_id: str) -> Claim | None:
        """Ask the wrapped store."""
        return self._do("claim", lambda: self._store.claim(flow_run_id))

    def remove(self, root_ids: Sequence[str], *, results_only: bool = False) -> None:
        """Ask the wrapped store."""
        self._do("remove", lambda: self._store.remove(root_ids, results_only=results_only))

    def check(self) -> list[str]:
        """Ask the wrapped store."""
        return self._do("check", self._store.check)

    def close(self) -> None:
        """Close the wrapped store; what hangs goes on."""
        for fault in (fault for faults in self._faults.values() for fault in faults):
            fault.close()
        self._store.close()

    def _do(self, name: str, proceed: Callable[[], T]) -> T:
        faults = self._faults.get(name)
        if not faults:
            return proceed()
        return applied(faults, f"{name} of state store {self.location}", proceed)  # type: ignore[return-value]
