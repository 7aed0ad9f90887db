"""One flow run from its first record to its last: attempts of its body, retries, its timeout, its hooks.

What happens is written once, as a generator of *steps*; whatever takes time in it (the body, waiting) is a step, done
here and now for a plain flow and awaited for an async one.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from localflow import arguments
from localflow.active import ActiveFlow
from localflow.calls import failed_state, recordable_here
from localflow.context import FlowContext, entered, flow_run_info
from localflow.coroutines import in_thread, is_being_cancelled
from localflow.errors import FlowDepthError, StoreError
from localflow.failpoints import reach
from localflow.final_state import final_state
from localflow.futures import TaskFuture
from localflow.hooks import call_here, hooks_of
from localflow.interrupts import STOPS, FlowStop
from localflow.logs import flush
from localflow.records import StateChange
from localflow.scheduler import stopped
from localflow.states import (
    INTERRUPTED,
    AwaitingRetry,
    Cancelled,
    Retrying,
    Running,
    RunRef,
    State,
    StateType,
    not_ready,
    timed_out,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from localflow.engine import Engine
    from localflow.flows import Flow
    from localflow.lanes import Lane
    from localflow.records import FlowRun
    from localflow.recovery import LeftFlow, Resumption

_log = logging.getLogger("localflow.flow_runs")

MAX_FLOW_DEPTH = 20

#: What a step has returned, or raised.
_Answer: TypeAlias = "tuple[Any, BaseException | None]"


class FlowCall:
    """Everything that a flow run is made of."""

    def __init__(
        self,
        engine: Engine,
        flow: Flow[..., Any],
        record: FlowRun,
        body: Callable[[], Any],
        lane: Lane,
        depth: int = 0,
        blocker: State | None = None,
        on_start: Callable[[ActiveFlow], None] | None = None,
        left: LeftFlow | None = None,
        resumption: Resumption | None = None,
    ) -> None:
        """Keep what is given.

        Args:
            engine: drives its task runs.
            flow: whose run it is.
            record: its record, not stored yet.
            body: calls the flow's function; gives something to await if that is async.
            lane: what its tasks run on.
            depth: how many flows it is inside of.
            blocker: a state that it waited for and that did not complete; it will never start.
            on_start: called once its start is stored.
            left: what earlier processes have left of it, if it is resumed.
            resumption: where the rest of that is known.
        """
        self.engine = engine
        self.flow = flow
        self.record = record
        self.body = body
        self.blocker = blocker
        self.on_start = on_start
        self.active = ActiveFlow(engine, record, lane, depth, flow)
        self._sequence = 0
        self._state = ""
        self._is_recorded = False
        self._first_attempt = 1
        if left is not None and resumption is not None:
            self._sequence, self._state = left.run.sequence, left.run.name
            self._first_attempt = left.run.begun + 1
            self.active.resume(resumption, self._first_attempt, *resumption.earlier(record.id))
        self._final: State | None = None
        self._expires: object = None
        """Stands for the attempt that may still take too long."""

    @property
    def has_renewed(self) -> bool:
        """Whether it is new, or has run anything that an earlier attempt had not completed."""
        return self.active.resumption is None or self.active.has_renewed

    def run(self) -> State:
        """Run the flow and return its recorded final state.

        Raises:
            KeyboardInterrupt, Terminated: it was interrupted, and is recorded as such.
            StoreError: a state could not be recorded.
        """
        steps = self._steps()
        try:
            step = next(steps)
            while True:
                try:
                    answer: _Answer = (step.run(), None)
                except BaseException as error:  # it is for the steps to say what that means
                    answer = (None, error)
                step = steps.send(answer)
        except StopIteration as end:
            return _ended(end)

    async def run_async(self) -> State:
        """Run an async flow in the loop that is running here and return its recorded final state."""
        steps = self._steps()
        try:
            step = next(steps)
            while True:
                try:
                    answer: _Answer = (await step.run_async(), None)
                except BaseException as error:
                    # A signal breaks the loop it arrives in, whose end then cancels what it runs.
                    stop = self.engine.shield.raised if is_being_cancelled(error) else None
                    answer = (None, stop or error)
                step = steps.send(answer)
        except StopIteration as end:
            return _ended(end)

    # -- the steps ---------------------------------------------------------------------------------------------------

    def _steps(self) -> Generator[Step, _Answer, State]:
        record, active = self.record, self.active
        if active.depth >= MAX_FLOW_DEPTH:
            raise FlowDepthError(record.flow, MAX_FLOW_DEPTH)
        if self.blocker is not None:
            return self._enter(not_ready(self.blocker))
        self.engine.add_flow(active)
        try:
            resumed = "resumed" if active.resumption is not None else ""
            self._enter(Retrying(resumed) if active.attempt > 1 else Running(resumed))
            reach("started")
            if self.on_start is not None:
                self.on_start(active)
            while True:
                state = yield from self._attempt()
                tries = active.attempt - self._first_attempt + 1
                if not self.flow.retry.wants(state, tries):
                    return self._end(state)
                delay = self.flow.retry.delay(tries)
                waiting = AwaitingRetry(state.message)
                waiting.cause = state.cause
                self._enter(waiting)
                yield from _done(_Pause(active, delay))
                if active.stop is not None:
                    return self._end((yield from self._obey(active.stop)))
                active.begin_attempt()
                self._enter(Retrying())
        except STOPS as stop:
            if isinstance(stop, FlowStop) and stop.flow_run_id == record.id:  # it came late
                return self._final or self._end(stop.state)
            if self._final is None:
                self._end(self._stopped(stop))
            raise
        except BaseException as error:
            if is_being_cancelled(error) and self._final is None:
                self._end(self._stopped(active.stop) if active.stop is not None else _interrupted())
            raise
        finally:
            active.over = True
            self.engine.remove_flow(active)

    def _end(self, state: State) -> State:
        """Enter the last state, once."""
        self._final = state
        return self._enter(state)

    def _attempt(self) -> Generator[Step, _Answer, State]:
        """Run the body, and wait for all that it started."""
        engine, active, seconds = self.engine, self.active, self.flow.timeout_seconds
        began = time.monotonic()
        if seconds is not None:
            expires = self._expires = object()
            engine.alarms.set(seconds, lambda: self._expire(expires, seconds))
        returned, failure = None, None
        try:
            try:
                returned = yield from _done(_Body(self))
            except STOPS:
                raise
            except BaseException as error:  # sys.exit() in a flow is its failure, not the program's end
                if error is engine.error or is_being_cancelled(error):
                    raise
                failure = failed_state(error, "Flow")
            yield from _done(_Wait(lambda: engine.wait_for_all(active), lambda: engine.has_ended(active)))
            for future in arguments.find(returned, (TaskFuture,)):
                yield from _done(_Wait(future.wait, future.done))  # it may be of the flow that called this one
        except FlowStop as own_or_outer:
            if own_or_outer.flow_run_id != self.record.id:
                yield from self._end_runs()
                raise
        except STOPS:
            engine.interrupt()
            raise
        except BaseException as error:
            if is_being_cancelled(error):
                yield from self._end_runs()
            raise
        finally:
            self._expires = None
        if active.stop is not None:
            return (yield from self._obey(active.stop))
        if seconds is not None and time.monotonic() - began > seconds:
            return timed_out(seconds, "Flow")
        if failure is not None:
            return failure
        return final_state(returned, [*(future.state for future in active.futures), *active.subflows])

    def _expire(self, attempt: object, seconds: float) -> None:
        """End the flow run if it is still in the attempt that took too long."""
        if self._expires is attempt and self.active.stop is None:
            self.engine.stopping.stop_flow(self.active, timed_out(seconds, "Flow"))

    def _obey(self, stop: FlowStop) -> Generator[Step, _Answer, State]:
        """End what still runs, and return the state to end in; raise the stop if it is for an outer flow run."""
        self.active.stop = None
        self.active.stopped.clear()
        yield from self._end_runs()
        if stop.flow_run_id != self.record.id:
            raise stop
        return stop.state

    def _end_runs(self) -> Generator[Step, _Answer, None]:
        engine, stopping = self.engine, self.engine.stopping
        family = stopping.family_of(self.active)
        stopping.cancel_runs(family, stopped)
        for each in family:
            wait, is_over = partial(engine.wait_for_all, each), partial(engine.has_ended, each)
            with suppress(StoreError):
                yield from _done(_Wait(wait, is_over))

    def _stopped(self, stop: BaseException) -> State:
        if isinstance(stop, FlowStop):
            return Cancelled("the flow run that called it was stopped")
        return _interrupted()

    # -- states ------------------------------------------------------------------------------------------------------

    def _enter(self, state: State) -> State:
        """Record that the flow run is in another state, and call the hooks for it."""
        record, active, engine = self.record, self.active, self.engine
        if state.run is None:
            state.run = RunRef(record.id, 0, record.name)
        before = [] if self._is_recorded else [record]
        self._is_recorded = True
        self._sequence += 1
        result = None if self.flow.persist_result is False else recordable_here(state, engine.folder)
        change = StateChange(
            record, self._sequence, state.type, state.name, state.message, state.instant, self._state or "Pending",
            active.attempt, None, state.cause, result,
        )  # fmt: skip
        self._state = state.name
        if state.type is not StateType.RUNNING:
            engine.end_log(record, active.attempt)
        engine.append([*before, change])
        info = flow_run_info(record, active.attempt)
        call_here(hooks_of(self.flow, f"flow run '{record.name}'", info, state))
        return state


def _done(step: Step) -> Generator[Step, _Answer, Any]:
    """Have a step done and return its value, or raise what it raised.

    An error is sent, not thrown: thrown into a generator, a GeneratorExit of the user's would end that instead.
    """
    value, error = yield step
    if error is not None:
        raise error
    return value


def _interrupted() -> State:
    return Cancelled("the flow run was interrupted", name=INTERRUPTED)


def _ended(end: StopIteration) -> State:
    state: State = end.value
    return state


# -- what takes time -------------------------------------------------------------------------------------------------


class Step(Protocol):
    """Something that takes time."""

    def run(self) -> Any:
        """Do it here and now."""

    async def run_async(self) -> Any:
        """Do it without blocking the loop that is running here."""


class _Body:
    def __init__(self, call: FlowCall) -> None:
        self._call = call
        self._active = call.active
        record, active, engine = call.record, call.active, call.engine
        attempt = active.attempt
        self._context = FlowContext(
            record, active, attempt, lambda line: engine.log(record, attempt, (line,)), active.log_prints
        )

    def run(self) -> Any:
        engine, active = self._call.engine, self._active
        if engine.shield.hears:
            active.interrupt = engine.shield.stop
        elif self._call.flow.timeout_seconds is not None and active.attempt == 1:
            _log.warning(
                "flow '%s' has a timeout, but outside the main thread its body cannot be interrupted: it ends when it "
                "next calls a task or waits for one",
                active.record.flow,
            )
        try:
            if active.stop is not None:
                raise active.stop
            with entered(self._context):
                return self._call.body()
        finally:
            flush(self._context)
            with active.lock:
                active.interrupt = None
                engine.shield.unstop(active.record.id)

    async def run_async(self) -> Any:
        import asyncio

        active, loop, task = self._active, asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        asked: list[FlowStop] = []
        at_work = True

        def cancel(stop: FlowStop) -> None:
            if at_work:  # a cancellation that comes later would hit whoever awaits the flow
                asked.append(stop)
                task.cancel()

        def interrupt(stop: FlowStop) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(cancel, stop)

        active.interrupt = interrupt
        try:
            if active.stop is not None:
                raise active.stop
            with entered(self._context):
                return await self._call.body()
        except asyncio.CancelledError:
            if asked and task.cancelling() == 1:  # by nobody else
                raise asked[0] from None
            raise
        finally:
            at_work = False
            if asked:
                task.uncancel()
            flush(self._context)
            with active.lock:
                active.interrupt = None


class _Wait:
    def __init__(self, wait: Callable[[], object], is_over: Callable[[], bool]) -> None:
        self._wait = wait
        self._is_over = is_over

    def run(self) -> None:
        self._wait()

    async def run_async(self) -> None:
        if not self._is_over():
            await in_thread(self._wait)


class _Pause:
    """Waits for another attempt, or until the flow run is stopped."""

    def __init__(self, active: ActiveFlow, seconds: float) -> None:
        self._active = active
        self._seconds = seconds

    def run(self) -> None:
        self._active.stopped.wait(min(self._seconds, threading.TIMEOUT_MAX))

    async def run_async(self) -> None:
        await in_thread(self.run)
