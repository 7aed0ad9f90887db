"""A plugin's state store, whose mistakes are told as what they are: failures of that store, without its secrets."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from localflow.capabilities import find_capability
from localflow.errors import StoreError
from localflow.interfaces import StateStore
from localflow.printable import printable
from localflow.states import type_and_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from localflow.interfaces import (
        CachedResult,
        Claim,
        FlowRunSummary,
        Folder,
        LogEntry,
        Payload,
        Record,
        Standing,
    )


class GuardedStore(StateStore):
    """Does what another store does; whatever that raises comes out as a StoreError that names it."""

    def __init__(self, store: StateStore, described: str, discreet: Callable[[str], str]) -> None:
        """Guard a store.

        Args:
            store: the store.
            described: what it is, with the plugin it comes from, for messages.
            discreet: masks what is secret in a text.
        """
        self.guarded = store
        """The store itself."""
        self._described = described
        self._discreet = discreet
        vars(self)["survives"] = store.survives

    @property
    def removes(self) -> bool:
        """Whether the store itself knows how to remove runs, for who asks what it promises."""
        return bool(find_capability("state store", "remove").is_promised(self.guarded))

    @property
    def location(self) -> str:
        """Where the records are, for messages."""
        with self._telling("location"):
            return self.guarded.location

    def append(self, records: Sequence[Record]) -> None:
        """Add records in their order, all or none."""
        with self._telling("append"):
            self.guarded.append(records)

    def list_flow_runs(
        self, limit: int | None = None, *, root_id: str | None = None, unfinished: bool = False
    ) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, the one recorded last first."""
        with self._telling("list_flow_runs"):
            return self.guarded.list_flow_runs(limit, root_id=root_id, unfinished=unfinished)

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Yield a flow run's own records."""
        with self._telling("read"):
            yield from self.guarded.read(flow_run_id)

    def read_chosen(
        self, flow_run_id: str, numbers: Collection[int] = (), *, called: str | None = None
    ) -> Iterator[Record]:
        """Yield of what `read` yields the records of some runs only."""
        with self._telling("read_chosen"):
            yield from self.guarded.read_chosen(flow_run_id, numbers, called=called)

    def read_standings(self, flow_run_id: str) -> list[Standing]:
        """Return how the task runs of a flow run stand."""
        with self._telling("read_standings"):
            return self.guarded.read_standings(flow_run_id)

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the result that a run has last completed with."""
        with self._telling("load_result"):
            return self.guarded.load_result(flow_run_id, number)

    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Return the newest result recorded with this cache key that has not expired at `now`."""
        with self._telling("find_cached"):
            return self.guarded.find_cached(key, now)

    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Yield a flow run's log entries after a position, with theirs."""
        with self._telling("read_logs"):
            yield from self.guarded.read_logs(flow_run_id, after)

    def value_folder(self, root_id: str) -> Folder | None:
        """Return where the large values of a tree of flow runs are written."""
        with self._telling("value_folder"):
            return self.guarded.value_folder(root_id)

    def claim(self, flow_run_id: str) -> Claim | None:
        """Take hold of a flow run for this process alone."""
        with self._telling("claim"):
            return self.guarded.claim(flow_run_id)

    def remove(self, root_ids: Sequence[str], *, results_only: bool = False) -> None:
        """Remove flow runs that are at the top of a tree, with all below them."""
        with self._telling("remove"):
            self.guarded.remove(root_ids, results_only=results_only)

    def check(self) -> list[str]:
        """Look at everything; return a line for each thing that is wrong."""
        with self._telling("check"):
            return [self._discreet(line) for line in self.guarded.check()]

    def close(self) -> None:
        """Release files and connections."""
        with self._telling("close"):
            self.guarded.close()

    @contextmanager
    def _telling(self, method: str) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            told = str(error)
            if (discreet := self._discreet(told)) != told:
                raise StoreError(discreet) from None  # the cause would tell it after all
            raise
        except (Exception, SystemExit) as error:
            told = printable(" ".join(type_and_text(error).split()))
            discreet = self._discreet(told)
            cause = error if discreet == told else None
            raise StoreError(f"{self._described} failed in {method}: {discreet}") from cause
