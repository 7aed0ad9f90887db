"""A flow run at the top of its tree: it has an engine, a claim in the state store, and a channel to be cancelled by.

It is begun anew, or taken up where an earlier process has left it (see `resuming`).
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from localflow.control import ControlChannel, control_path
from localflow.engine import Engine
from localflow.errors import PluginError
from localflow.flow_records import flow_record, flow_record_again
from localflow.flow_runs import FlowCall
from localflow.logs import recording
from localflow.states import Cancelled
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from localflow.active import ActiveFlow
    from localflow.flows import Flow
    from localflow.interfaces import Claim, Executor, StateStore
    from localflow.lanes import Lane
    from localflow.notifications import Notifications
    from localflow.project import Project
    from localflow.records import FlowRun
    from localflow.recovery import Resumption
    from localflow.states import State

_log = logging.getLogger("localflow.flows")


class FinishedRun(NamedTuple):
    """A flow run that has ended, and how."""

    flow_run: FlowRun
    state: State
    failed_notifications: int = 0
    """How many notifications nobody got: their notifier failed, was too slow or had too many waiting."""
    incomplete: Sequence[str] = ()
    """The names of its own task runs that did not complete, whatever it made of that."""


@contextmanager
def begun(
    flow: Flow[..., Any],
    project: Project,
    store: StateStore,
    parameters: dict[str, Any],
    blocker: State | None,
    on_start: Callable[[FlowRun], None] | None = None,
    notifications: Notifications | None = None,
    left: tuple[FlowRun, Resumption, str] | None = None,
) -> Iterator[FlowCall]:
    """Give what is needed to run the flow at the top of a tree, and release it afterwards."""
    with ExitStack() as exits:  # the last is released first
        if project.settings.retention:
            exits.callback(_apply_retention, project, store)
        claims: list[Claim] = []
        exits.callback(_release, claims)
        if notifications is None:
            notifications = project.make_notifications()
            exits.callback(notifications.close)
        engine = Engine(store, project.choose, notifications, project.limits_of(), project.discreet)
        exits.callback(engine.close)

        def started(active: ActiveFlow) -> None:
            if store.survives:
                exits.callback(_listen(project, active).close)
            if on_start is not None:
                on_start(active.record)

        if left is None:
            lane = engine.lane(flow.executor or project.executor)
            record, resumption, left_flow = flow_record(flow, parameters, lane.name), None, None
            claim = store.claim(record.id)
            if claim is not None:  # nobody else knows the id
                claims.append(claim)
        else:
            run, resumption, executor = left
            lane = _lane_again(engine, flow.executor or executor, project.executor)
            record, left_flow = flow_record_again(flow, run, parameters, lane.name), resumption.left(run.id)
        folder = store.value_folder(record.root_id)
        if folder is not None:
            engine.folder.place, engine.folder.power_safe = folder.place, folder.power_safe
        with engine.shield.listening(), recording():
            yield FlowCall(
                engine, flow, record, lambda: flow.body(parameters), lane, 0, blocker, started, left_flow,
                resumption,
            )  # fmt: skip


def _release(claims: Sequence[Claim]) -> None:
    for claim in claims:
        claim.release()


def _apply_retention(project: Project, store: StateStore) -> None:
    from localflow.housekeeping import apply_retention

    apply_retention(project, store)


def execute(
    flow: Flow[..., Any],
    project: Project,
    store: StateStore,
    parameters: dict[str, Any],
    on_start: Callable[[FlowRun], None] | None = None,
) -> FinishedRun:
    """Run a flow with fitting parameters, as `Flow.execute` tells it."""
    notifications = project.make_notifications()
    try:
        with begun(flow, project, store, parameters, None, on_start, notifications) as call:
            state = run_to_end(call)
    finally:
        failed = notifications.close()
    return FinishedRun(call.record, state, failed, call.active.incomplete())


def run_to_end(call: FlowCall) -> State:
    """Run a flow, an async one in an event loop of its own, and return its final state."""
    if not call.flow.is_async:
        return call.run()
    import asyncio

    return asyncio.run(call.run_async())


def _lane_again(engine: Engine, executor: str | Executor, default: str) -> Lane:
    """Return the lane of the executor that a flow run had before; of the project's own if that is no more."""
    try:
        return engine.lane(executor)
    except PluginError as error:
        if executor == default or not isinstance(executor, str):
            raise
        _log.warning("%s; resuming on executor '%s'", str(error).split("\n")[0], default)
        return engine.lane(default)


def _listen(project: Project, active: ActiveFlow) -> ControlChannel:
    """Let other processes cancel a flow run."""

    def cancel() -> None:
        active.engine.stopping.stop_flow(active, Cancelled("the flow run was cancelled from outside"))

    channel = ControlChannel(control_path(project.state_directory, active.record.id), cancel)
    channel.open()
    return channel
