"""What a task run passes through before it may start: the cache, then the limits of its tags.

Questions that run code of the user's (cache keys, conditions of retries) or that look into the store are answered in a
thread of their own; the answer comes back to the engine as news.
"""

from __future__ import annotations

import logging
import time
from contextvars import Context
from typing import TYPE_CHECKING, Any

from localflow.caching import hit_message, miss_message
from localflow.callbacks import Callback, CallbackRunner
from localflow.context import task_run_context
from localflow.errors import NotCacheableError, StoreError
from localflow.payloads import Packed
from localflow.states import CACHED, Completed

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.interfaces import StateStore
    from localflow.limits import Limits
    from localflow.live import LiveRun
    from localflow.records import CachedResult

_log = logging.getLogger("localflow.admission")

_WAITING = "waiting"


class Admission:
    """Decides when runs may be queued. Entered and left under the engine's baton."""

    def __init__(
        self,
        store: StateStore,
        make_limits: Callable[[Callable[[Any, Any], None]], Limits] | None,
        tell: Callable[[Callable[[], None]], None],
    ) -> None:
        self._store = store
        self._tell = tell
        self._limits = None if make_limits is None else make_limits(self._granted)
        self._queue: Callable[[LiveRun], None]
        self._judge = CallbackRunner("localflow-admission")
        self._warned: set[str] = set()

    def applies(self, run: LiveRun) -> bool:
        """Return whether the tags of a run are limited."""
        return self._limits is not None and self._limits.applies(run.record.tags)

    def enter(self, run: LiveRun, queue: Callable[[LiveRun], None], finish: Callable[..., None]) -> None:
        """Have `queue(run)` called once the run may start, or `finish(run, state, ...)` if the cache has its result."""
        self._queue = queue
        caching = run.task.caching
        if caching is None or run.attempt > run.first_attempt:
            self._ask(run)
            return
        call = run.make_call()

        def look_up() -> None:
            hit = None
            try:
                hit = self._look_up(run, call)
            finally:
                self._tell(lambda: self._ask(run) if hit is None else self._answer(run, hit, finish))

        self.judge(f"the cache key of {run.described()}", look_up)

    def judge(self, described: str, function: Callable[[], None]) -> None:
        """Have a question answered in the thread for that; what it raises is logged."""
        self._judge.add([Callback(described, Context(), function, ())])

    def leave(self, run: LiveRun) -> None:
        """Give back what the run was granted, or is still waiting for."""
        permit, run.permit = run.permit, None
        if self._limits is not None and permit is not None:
            if permit is _WAITING:
                self._limits.withdraw(run)
            else:
                self._limits.release(permit)

    def expires_at(self, run: LiveRun) -> float | None:
        """Return until when the result of a run that completes now may be used again."""
        assert run.task.caching is not None
        seconds = run.task.caching.expiration
        return None if seconds is None else time.time() + seconds

    def close(self) -> None:
        """Answer nothing more, and let go of every limit."""
        self._judge.close()
        if self._limits is not None:
            self._limits.close()

    def _look_up(self, run: LiveRun, call: Any) -> CachedResult | None:
        caching = run.task.caching
        assert caching is not None
        key = None
        try:
            key = caching.key(call, context=task_run_context(run.record, run.attempt))
        except NotCacheableError as error:
            run.note = miss_message(caching, None, error)
            if run.task.name not in self._warned:
                self._warned.add(run.task.name)
                _log.warning("task '%s' is not cached: %s", run.task.name, error)
            return None
        cached = None
        if key is not None and not caching.refresh:
            try:
                cached = self._store.find_cached(key, time.time())
            except StoreError as error:
                _log.warning("the cache of task '%s' cannot be read: %s", run.task.name, error)
        run.cache_key = key
        if cached is None:
            run.note = miss_message(caching, key)
        return cached

    def _answer(self, run: LiveRun, cached: CachedResult, finish: Callable[..., None]) -> None:
        run.cache_key = None  # it is kept under the key already, and for no longer than it was
        state = Completed(hit_message(cached), Packed(cached.result), name=CACHED)
        finish(run, state, None, cached.result)

    def _ask(self, run: LiveRun) -> None:
        if self._limits is None or not self._limits.applies(run.record.tags):
            self._queue(run)
        else:
            run.lane.limited.append(run)

    def ask_for_permit(self, run: LiveRun) -> None:
        """Have a limited run, for which there is a free worker, queued once its limits allow it."""
        assert self._limits is not None
        run.permit = self._limits.ask(run, run.record.tags)
        if run.permit is None:
            run.permit = _WAITING
        else:
            self._queue(run)

    def _granted(self, run: Any, permit: Any) -> None:
        def take() -> None:
            if run.permit is _WAITING:
                run.permit = permit
                self._queue(run)
            elif self._limits is not None:
                self._limits.release(permit)

        self._tell(take)
