"""The calls in hand between one `start` of the executor and its `shutdown`.

A call waits in the *backlog* until the pool has room for it. To the pool go *bundles*: one call each, or, while calls
are short and there are more of them than workers, several. A bundle comes back with its future:

    done         its outcomes are reported
    cancelled    calls that were to be cancelled are CANCELLED; others of the bundle go back to the backlog
    broken       a worker has died, and the pool with it: calls at the pool are CRASHED, those in the backlog go to a
                 new pool
    unreadable   what came is no answer: its calls are CRASHED, and the pool goes on

One thread does all of this, told by an inbox what has come: calls, ids to cancel, futures. The callback of a future
does nothing but put it there, for a pool may call it in the middle of its own affairs, with its locks held.
"""

from __future__ import annotations

import concurrent.futures
import logging
import reprlib
import threading
from collections import deque
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from localflow.builtin.futures.pools import (
    end_pool,
    is_imported_by_worker,
    kill_processes,
    lacks_guard,
    processes_of,
    rouse,
)
from localflow.calls import failed_state
from localflow.interfaces import Cause, Outcome, State, StateType
from localflow.payloads import type_name
from localflow.printable import printable
from localflow.states import WORKER_LOST, Cancelled, type_and_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from localflow.builtin.futures.pools import Pool
    from localflow.builtin.remote import Parcel, Sender
    from localflow.interfaces import Call, Report

_log = logging.getLogger("localflow.futures")

#: How much work a bundle may be, in seconds, and how many calls.
_BUNDLE_SECONDS = 0.005
_BUNDLE_CALLS = 64
_JOIN_DEADLINE = 1.0
#: How long nothing may come from the pool, in seconds, before it is looked at.
_LOOK_SECONDS = 0.5


#: What to do about a script that its own workers run.
_GUARD = "call the flow under `if __name__ == '__main__':`"


class _UnguardedError(Exception):
    """A script runs its flow while a worker imports it."""


class Bundle:
    """Calls that went to the pool together."""

    __slots__ = ("calls", "parcels", "pool", "unwanted")

    def __init__(self, calls: Sequence[Call], pool: Pool, parcels: Sequence[Parcel] = ()) -> None:
        self.calls = calls
        self.pool = pool
        self.parcels = parcels
        """What travels, and keeps files until it is answered."""
        self.unwanted: frozenset[int] = frozenset()
        """Ids of calls that were to be cancelled."""


class Dispatch:
    """Sends calls to a pool and reports what comes back."""

    def __init__(
        self, make_pool: Callable[[], Pool], pool: Pool, size: int | None, sender: Sender | None, report: Report
    ) -> None:
        """Begin with a pool, and make others when it breaks.

        Args:
            make_pool: makes a pool like it.
            pool: the first one.
            size: how many bundles it works on at once; None if that is not known, so that it gets all there are.
            sender: packs calls for another process; None if the pool sees this one's objects.
            report: takes outcomes.
        """
        self._make_pool = make_pool
        self._pool = pool
        self._size = size
        self._sender = sender
        self._report = report
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._backlog: deque[Call] = deque()
        self._at_pool: dict[concurrent.futures.Future[Any], Bundle] = {}
        self._finished: list[Outcome] = []
        self._left: list[Any] = []
        """Processes of pools that were replaced, and had them finish what they were at."""
        self._mean_seconds = _BUNDLE_SECONDS
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="localflow-futures", daemon=True)
        self._thread.start()

    @property
    def bundle_size(self) -> int:
        """How many calls may go in one bundle: those in other processes, while they are short."""
        if self._sender is None or self._size is None:
            return 1
        return max(1, min(_BUNDLE_CALLS, int(_BUNDLE_SECONDS / max(self._mean_seconds, 1e-6))))

    def take(self, calls: Sequence[Call]) -> None:
        """Add calls to the backlog, from which they are sent as soon as there is room."""
        self._inbox.put(lambda: self._backlog.extend(calls))

    def cancel(self, call_ids: Sequence[int]) -> None:
        """Have those of these calls reported as CANCELLED that have not begun."""
        unwanted = frozenset(call_ids)
        self._inbox.put(lambda: self._drop(unwanted))

    def close(self) -> None:
        """Give up all calls and have the pool end."""
        self._closed = True
        self._inbox.put(self._backlog.clear)
        if threading.current_thread() is not self._thread:  # as it is when `report` leads to this
            self._thread.join(_JOIN_DEADLINE)
        end_pool(self._pool, kill=any(not future.done() for future in [*self._at_pool]))
        kill_processes(self._left)

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._closed:
            item = self._next_item(_LOOK_SECONDS if self._at_pool else None)
            if item is None:
                rouse(self._pool)
                continue
            while item is not None and not self._closed:
                self._guarded(item)
                item = self._next_item(0)
            self._guarded(self._send_and_report)

    def _next_item(self, timeout: float | None) -> Callable[[], None] | None:
        """Return what has come next; None if nothing has."""
        try:
            return self._inbox.get(block=timeout != 0, timeout=timeout)
        except Empty:
            return None

    def _guarded(self, step: Callable[[], None]) -> None:
        """Take a step, whatever it raises: a thread that dies here would be missed by every call."""
        try:
            step()
        except Exception:
            _log.exception("calls could not be sent, or outcomes not be reported")

    def _send_and_report(self) -> None:
        while not self._closed and (bundle := self._next_bundle()):
            self._submit(bundle)
        outcomes, self._finished = self._finished, []
        if outcomes and not self._closed:
            self._report(outcomes)

    def _next_bundle(self) -> Bundle | None:
        """Take calls out of the backlog: an equal share for each worker that is free, at most."""
        waiting = len(self._backlog)
        room = waiting if self._size is None else self._size - len(self._at_pool)
        if not waiting or room <= 0:
            return None
        calls = [self._backlog.popleft() for _ in range(min(self.bundle_size, -(-waiting // room)))]
        if self._sender is None:
            return Bundle(calls, self._pool)
        try:
            parcels, refused = self._sender.pack(calls)
        except Exception as error:  # such as an argument in the store that cannot be loaded
            parcels, refused = [], [Outcome(call.id, failed_state(error)) for call in calls]
        self._finished.extend(refused)
        return Bundle([parcel.call for parcel in parcels], self._pool, parcels)

    def _submit(self, bundle: Bundle) -> None:
        """Submit a bundle, if need be to a new pool."""
        if not bundle.calls:
            return
        try:
            future = self._accepted(bundle)
            future.add_done_callback(lambda future: self._inbox.put(lambda: self._take_in(future)))
            self._at_pool[future] = bundle  # before this thread comes to look at the inbox
        except Exception as error:
            self._finished.extend(_lost(call, _refusal(bundle.pool, error)) for call in bundle.calls)

    def _accepted(self, bundle: Bundle) -> concurrent.futures.Future[Any]:
        """Return the future of a bundle that the pool, or a new one in its place, takes at the second try at most."""
        try:
            return _submitted(bundle)
        except Exception as error:
            if isinstance(error, RuntimeError) and is_imported_by_worker():  # no pool can start a process here
                raise _UnguardedError from None
            if isinstance(error, RuntimeError) and not isinstance(error, (NotImplementedError, RecursionError)):
                self._replace(bundle.pool, error)  # it is broken, or was shut down
            else:  # which says nothing of the calls that the pool has
                _log.warning("%s is asked again: %s", type_name(bundle.pool), type_and_text(error))
        bundle.pool = self._pool
        return _submitted(bundle)

    def _replace(self, former: Pool, error: BaseException) -> None:
        """Put a new pool in the place of one that takes no more calls, unless that is done."""
        if self._pool is not former:
            return
        try:
            self._pool = self._make_pool()
        except Exception as failure:
            _log.error("no new %s can be made for one that is broken: %s", type_name(former), type_and_text(failure))
            return
        _log.warning("%s takes no more calls and is replaced: %s", type_name(former), type_and_text(error))
        is_broken = isinstance(error, concurrent.futures.BrokenExecutor)
        if not is_broken:  # its calls may still end well
            self._left.extend(processes_of(former))
        try:
            end_pool(former, kill=is_broken)
        except Exception as failure:
            _log.warning("a %s that was replaced does not end: %s", type_name(former), type_and_text(failure))

    def _drop(self, unwanted: frozenset[int]) -> None:
        """Answer calls of the backlog, and take bundles back that have not begun."""
        self._finished.extend(_cancelled(call) for call in self._backlog if call.id in unwanted)
        self._backlog = deque(call for call in self._backlog if call.id not in unwanted)
        for future, bundle in [*self._at_pool.items()]:
            if not unwanted.isdisjoint(call.id for call in bundle.calls):
                bundle.unwanted |= unwanted
                try:
                    future.cancel()
                except Exception as error:  # then these calls are not stopped, as those that run
                    _log.warning("%s cannot cancel a call: %s", type_name(bundle.pool), type_and_text(error))

    def _take_in(self, future: concurrent.futures.Future[Any]) -> None:
        bundle = self._at_pool.pop(future, None)
        if bundle is None:  # it has been answered
            return
        try:
            if future.cancelled():
                self._take_back(bundle)
            elif (error := future.exception()) is not None:
                if isinstance(error, concurrent.futures.BrokenExecutor):
                    self._replace(bundle.pool, error)
                self._finished.extend(_lost(call, _broken(bundle.pool, error)) for call in bundle.calls)
            else:
                self._finished.extend(self._outcomes(bundle, future.result()))
        except Exception as error:
            self._finished.extend(_lost(call, _unreadable(bundle.pool, future, error)) for call in bundle.calls)

    def _take_back(self, bundle: Bundle) -> None:
        """Answer the calls of a bundle that was cancelled, or let them wait again."""
        kept = [call for call in bundle.calls if call.id not in bundle.unwanted]
        self._finished.extend(_cancelled(call) for call in bundle.calls if call.id in bundle.unwanted)
        if bundle.unwanted or bundle.pool is not self._pool:  # which has been replaced
            self._backlog.extendleft(reversed(kept))
        else:  # by somebody else who has the pool
            error = concurrent.futures.CancelledError("its future was cancelled")
            self._finished.extend(_lost(call, _broken(bundle.pool, error)) for call in kept)

    def _outcomes(self, bundle: Bundle, result: Any) -> Iterable[Outcome]:
        if self._sender is None:
            if not isinstance(result, Outcome):
                raise TypeError("the answer to a call is the Outcome that it returns")
            outcomes = [result]
        else:
            answers = zip(bundle.parcels, result, strict=True)
            outcomes = [self._sender.read_answer(parcel.call, answer) for parcel, answer in answers]
        for outcome in outcomes:
            self._learn(outcome)
        return outcomes

    def _learn(self, outcome: Outcome) -> None:
        ended = outcome.execution
        if ended is not None and ended.started_at is not None and ended.ended_at is not None:
            seconds = ended.ended_at - ended.started_at
            # One long call says more than many short ones: bundles shrink at once and grow slowly.
            self._mean_seconds += (seconds - self._mean_seconds) / (2 if seconds > self._mean_seconds else 8)


def _submitted(bundle: Bundle) -> concurrent.futures.Future[Any]:
    if bundle.parcels:
        return bundle.pool.submit(run_parcels, [parcel.data for parcel in bundle.parcels])
    [call] = bundle.calls
    return bundle.pool.submit(_run_here, call)


def run_parcels(parcels: Sequence[bytes]) -> list[bytes]:
    """Run calls one after the other, in a worker of the pool, and return their answers."""
    from localflow.builtin.remote import run_parcel

    return [run_parcel(parcel) for parcel in parcels]


def _run_here(call: Call) -> Outcome:
    try:
        # In an empty context: nothing that a task sets is seen by the next one in the same thread.
        return Context().run(call.run, threading.current_thread().name)
    except BaseException as error:  # such as sys.exit() in the __reduce__ of a result
        return Outcome(call.id, failed_state(error))


def _cancelled(call: Call) -> Outcome:
    return Outcome(call.id, Cancelled("the task was cancelled before it began"))


def _lost(call: Call, reason: str) -> Outcome:
    """Return the outcome of a call that its pool does not answer; `{}` in the reason stands for the call."""
    name = f"'{call.task_run.name}' (attempt {call.attempt}/{call.attempts})"
    message = reason.replace("{}", name, 1)
    return Outcome(call.id, State(StateType.CRASHED, WORKER_LOST, message, cause=Cause("worker", message=message)))


def _broken(pool: Pool, error: BaseException) -> str:
    reason = f"{type_name(pool)} broke while it had {{}} in hand: {type_and_text(error)}"
    if isinstance(error, concurrent.futures.BrokenExecutor) and lacks_guard(pool):
        return f"{reason} Its workers import the script: {_GUARD}"
    return reason


def _refusal(pool: Pool, error: BaseException) -> str:
    if isinstance(error, _UnguardedError):
        return f"{{}} cannot run while a worker process imports the script: {_GUARD}"
    return f"{type_name(pool)} did not take {{}}: {type_and_text(error)}"


def _unreadable(pool: Pool, future: concurrent.futures.Future[Any], error: BaseException) -> str:
    """Word what came of a call where its answer should have been."""
    try:
        came = reprlib.repr(future.result(timeout=0))
    except Exception:  # a future, or a repr, of somebody else
        came = "a future that cannot be read"
    return f"{type_name(pool)} gave no answer to {{}}, but {printable(came)}: {type_and_text(error)}"
