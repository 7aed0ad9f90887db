"""An executor that fails on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow.capabilities import find_capability
from localflow.interfaces import Executor, Outcome
from localflow.testing.faults import Fault, applied, as_faults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.interfaces import Call, Folder, Output, Report


class FaultyExecutor(Executor):
    """Another executor with faults: of each outcome that it reports, and of what the engine asks of it.

        FaultyExecutor(executor, outcome=Loses(after=3, times=1))
        FaultyExecutor(executor, outcome=[Repeats(every=2), Late(0.2, every=5)], submit=Fails(OSError("gone"), after=1))

    It is for tests of what stands between an executor and the engine, and of how flows fare with an executor that
    breaks its contract: one outcome for each call, no more, no less.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        outcome: Fault | Sequence[Fault] = (),
        submit: Fault | Sequence[Fault] = (),
        start: Fault | Sequence[Fault] = (),
        shutdown: Fault | Sequence[Fault] = (),
        cancel: Fault | Sequence[Fault] = (),
    ) -> None:
        """Wrap an executor, which is started and shut down with this one.

        Args:
            executor: what runs the calls.
            outcome: faults of the reports, asked for each outcome: `Loses`, `Repeats`, `Late`, `Slow`, `Hangs`, `Dies`.
            submit: faults of taking calls, asked for each batch of them.
            start: faults of starting.
            shutdown: faults of shutting down.
            cancel: faults of cancelling.
        """
        self._executor = executor
        self._outcome, self._submit = as_faults(outcome), as_faults(submit)
        self._start, self._shutdown, self._cancel = as_faults(start), as_faults(shutdown), as_faults(cancel)

    @property
    def shares_memory(self) -> bool:  # type: ignore[override]
        """Whether the wrapped executor shares memory."""
        return self._executor.shares_memory

    @property
    def runs_in_caller(self) -> bool:  # type: ignore[override]
        """Whether the wrapped executor runs calls in the caller's thread."""
        return self._executor.runs_in_caller

    @property
    def kills_on_timeout(self) -> bool:  # type: ignore[override]
        """Whether the wrapped executor stops calls."""
        return self._executor.kills_on_timeout

    @property
    def gives_up_late_calls(self) -> bool:  # type: ignore[override]
        """Whether the wrapped executor answers calls in time that it cannot stop."""
        return self._executor.gives_up_late_calls

    @property
    def isolates_crashes(self) -> bool:  # type: ignore[override]
        """Whether the wrapped executor isolates crashes."""
        return self._executor.isolates_crashes

    @property
    def cancels(self) -> bool:
        """Whether the wrapped executor cancels calls."""
        return bool(find_capability("executor", "cancel").is_promised(self._executor))

    @property
    def folder(self) -> Folder | None:
        """Where calls may write large values."""
        return self._executor.folder

    @folder.setter
    def folder(self, folder: Folder | None) -> None:
        self._executor.folder = folder

    @property
    def capacity(self) -> int | None:
        """How many calls the wrapped executor wants."""
        return self._executor.capacity

    @property
    def plenty(self) -> int | None:
        """With how many calls the wrapped executor is busy."""
        return self._executor.plenty

    @property
    def async_capacity(self) -> int | None:
        """How many async calls the wrapped executor wants."""
        return self._executor.async_capacity

    def prepare(self) -> None:
        """Let the wrapped executor begin what takes long."""
        self._executor.prepare()

    def start(self, report: Report) -> None:
        """Start the wrapped executor, with faults between its reports and who gets them."""

        def faulty(reported: Sequence[Outcome | Output]) -> None:
            if not self._outcome:
                report(reported)
                return
            for item in reported:
                if isinstance(item, Outcome):
                    applied(self._outcome, f"outcome of call {item.call_id}", lambda item=item: report([item]))  # type: ignore[misc]
                else:
                    report([item])

        applied(self._start, "start of the executor", lambda: self._executor.start(faulty))

    def submit(self, calls: Sequence[Call]) -> None:
        """Hand calls to the wrapped executor."""
        applied(self._submit, "submit of the executor", lambda: self._executor.submit(calls))

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Have the wrapped executor cancel calls."""
        applied(self._cancel, "cancel of the executor", lambda: self._executor.cancel(call_ids))

    def shutdown(self) -> None:
        """Shut the wrapped executor down; what hangs or is late goes no further."""
        for fault in (*self._outcome, *self._submit, *self._start, *self._cancel):
            fault.close()
        applied(self._shutdown, "shutdown of the executor", self._executor.shutdown)
