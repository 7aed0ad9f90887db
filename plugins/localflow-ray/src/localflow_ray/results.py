"""Large results: fetched from the cluster to be recorded, by threads of their own, or left there until asked for."""

from __future__ import annotations

import contextlib
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from localflow.errors import LargeValueError
from localflow.large_values import FILE, Reference, join_parts
from localflow.payloads import CONTENT, Payload
from localflow.states import State, StateType
from localflow_ray.values import Kept, fetch

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.interfaces import Call, Folder, Outcome

#: How much of the results that only the cluster has is fetched at the end, in bytes.
_SETTLED_BYTES = 1 << 30


class Results:
    """The large results of one executor."""

    def __init__(self, folder: Folder | None) -> None:
        """Write into `folder`; without one what is recorded is in memory."""
        self._folder = folder
        self._fetching = ThreadPoolExecutor(2, "localflow-ray-values")
        self._on_cluster: weakref.WeakSet[Kept] = weakref.WeakSet()

    def left(self, outcome: Outcome, value: Any, size: int) -> Outcome:
        """Return the outcome with a result that stays on the cluster alone; `value` is the ObjectRef of its parts."""
        kept = Kept(value, size)
        self._on_cluster.add(kept)
        return _with_data(outcome, kept, None)

    def record(
        self,
        call: Call,
        outcome: Outcome,
        value: Any,
        size: int,
        failed: Callable[[BaseException], State],
        done: Callable[[Outcome], None],
    ) -> None:
        """Fetch a result, and give the outcome with it to `done`; `failed` makes a state of what Ray says instead."""

        def work() -> None:
            try:
                recorded = self._recorded(outcome, value, size)
            except LargeValueError as error:
                text = f"Task '{call.task_run.task}': {error}"
                recorded = outcome._replace(state=State(StateType.FAILED, message=text, data=error), result=None)
            except BaseException as error:  # whatever has become of the value
                recorded = outcome._replace(state=failed(error), result=None)
            done(recorded)

        with contextlib.suppress(RuntimeError):  # it is closed meanwhile
            self._fetching.submit(work)

    def close(self) -> None:
        """Fetch what only the cluster has and somebody may still ask for, small values first, up to a limit."""
        self._fetching.shutdown(cancel_futures=True)
        room = _SETTLED_BYTES
        for kept in sorted(self._on_cluster, key=lambda kept: kept.size):
            room -= kept.size
            if room >= 0:
                kept.settle(self._folder)
            else:
                kept.reference = None

    def _recorded(self, outcome: Outcome, value: Any, size: int) -> Outcome:
        parts = fetch(value)
        folder, temporary = self._folder, None
        if folder is None or folder.path is None:
            payload = Payload(CONTENT, join_parts(*parts.views))
        else:
            written = parts.write(folder)
            if isinstance(written, Reference):
                payload, temporary = Payload(FILE, written.data()), folder.hold(written.file)
            else:
                payload = Payload("pickle", written)
        return _with_data(outcome, Kept(value, size, payload, temporary), payload)


def _with_data(outcome: Outcome, kept: Kept, payload: Payload | None) -> Outcome:
    """Return the outcome of a call whose result lies on the cluster."""
    before = outcome.state
    state = State(before.type, before.name, before.message, kept, instant=before.instant, cause=before.cause)
    return outcome._replace(state=state, result=payload)
