"""A state store that only collects: for flows inside tasks, whose records travel with the task's outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow.interfaces import StateStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localflow.interfaces import Claim
    from localflow.payloads import Payload
    from localflow.records import CachedResult, FlowRunSummary, LogEntry, Record


class RecordBuffer(StateStore):
    """Collects records into a list that somebody else will store."""

    def __init__(self, records: list[Record]) -> None:
        self._records = records

    @property
    def location(self) -> str:
        """The outcome that will carry the records."""
        return "the outcome of the task"

    def append(self, records: Sequence[Record]) -> None:
        """Collect records."""
        self._records.extend(records)

    def list_flow_runs(
        self, limit: int | None = None, *, root_id: str | None = None, unfinished: bool = False
    ) -> list[FlowRunSummary]:
        """Return nothing: a buffer is only written."""
        return []

    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Return nothing: a buffer is only written."""
        return iter(())

    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return nothing: a buffer is only written."""
        return None

    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Return nothing: a buffer is only written."""
        return None

    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Return nothing: a buffer is only written."""
        return iter(())

    def claim(self, flow_run_id: str) -> Claim:
        """Hold nothing: whoever stores the records has a claim on the flow run at the top."""
        return _NoClaim()

    def close(self) -> None:
        """Leave the records to their owner."""


class _NoClaim:
    def release(self) -> None:
        """Do nothing."""
