"""A state store that says when the flow run is recorded: only then may its name be shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow.interfaces import FlowRun, StateStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from localflow.interfaces import FlowRunSummary, Payload, Record


class AnnouncingStore(StateStore):
    """Passes everything on to a store, and the first flow run also to `announce` once it is committed."""

    def __init__(self, store: StateStore, announce: Callable[[FlowRun], None]) -> None:
        self._store = store
        self._announce: Callable[[FlowRun], None] | None = announce

    @property
    def location(self) -> str:
        """Where the records are."""
        return self._store.location

    def append(self, records: Sequence[Record]) -> None:
        """Add records, then announce the first flow run among them."""
        self._store.append(records)
        announce = self._announce
        if announce is not None:
            for record in records:
                if isinstance(record, FlowRun):
                    self._announce = None
                    announce(record)
                    break

    def list_flow_runs(self, limit: int | None = None) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state."""
        return self._store.list_flow_runs(limit)

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Yield a flow run's own records."""
        return self._store.read(flow_run_id)

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the newest recorded result of a run."""
        return self._store.load_result(flow_run_id, number)

    def close(self) -> None:
        """Close the store."""
        self._store.close()
