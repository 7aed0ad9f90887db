"""A flow called in the body of another one, or inside a task: its own flow run, below the one it was called in."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from localflow.engine import Engine
from localflow.flow_records import flow_record, flow_record_again
from localflow.flow_runs import FlowCall
from localflow.settling import fitting, fitting_async

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow.active import SubflowCall
    from localflow.context import FlowContext, TaskContext
    from localflow.flows import Flow
    from localflow.states import State


def run(flow: Flow[..., Any], context: FlowContext, parameters: dict[str, Any], wait_for: object) -> State:
    """Run a flow that was called in the body of another one."""
    called = context.active.subflow_call(flow, parameters, wait_for)
    if called.state is None:
        call = _subflow(flow, context, called, *fitting(flow, parameters, wait_for))
        called.state = call.run()
        context.active.add_subflow(called, call.record.id, call.has_renewed)
    else:
        context.active.add_subflow(called, called.state.run_id, False)
    return called.state


async def run_async(flow: Flow[..., Any], context: FlowContext, parameters: dict[str, Any], wait_for: object) -> State:
    """Run an async flow that was called in the body of another one."""
    called = context.active.subflow_call(flow, parameters, wait_for)
    if called.state is None:
        call = _subflow(flow, context, called, *await fitting_async(flow, parameters, wait_for))
        called.state = await call.run_async()
        context.active.add_subflow(called, call.record.id, call.has_renewed)
    else:
        context.active.add_subflow(called, called.state.run_id, False)
    return called.state


def run_in_task(flow: Flow[..., Any], context: TaskContext, parameters: dict[str, Any], wait_for: object) -> State:
    """Run a flow that was called inside a task: with an engine of its own, sequentially."""
    parameters, blocker = fitting(flow, parameters, wait_for)
    with _inside(context) as engine:
        return _flow_in_task(flow, engine, context, parameters, blocker).run()


async def run_in_task_async(
    flow: Flow[..., Any], context: TaskContext, parameters: dict[str, Any], wait_for: object
) -> State:
    """Run an async flow that was called inside a task."""
    parameters, blocker = await fitting_async(flow, parameters, wait_for)
    with _inside(context) as engine:
        return await _flow_in_task(flow, engine, context, parameters, blocker).run_async()


def _subflow(
    flow: Flow[..., Any],
    context: FlowContext,
    called: SubflowCall,
    parameters: dict[str, Any],
    blocker: State | None,
) -> FlowCall:
    parent = context.active
    if parent.stop is not None:
        raise parent.stop
    engine = parent.engine
    lane = parent.lane if flow.executor is None else engine.lane(flow.executor)
    left = resumption = None
    if called.earlier is not None and parent.resumption is not None:
        resumption = parent.resumption
        left = resumption.left(called.earlier.record.id)
        record = flow_record_again(flow, left.run.record, parameters, lane.name, called.inputs)
    else:
        family = (context.flow_run.root_id, context.flow_run.id)
        record = flow_record(flow, parameters, lane.name, *family, called.inputs)
    return FlowCall(
        engine,
        flow,
        record,
        lambda: flow.body(parameters),
        lane,
        parent.depth + 1,
        blocker,
        None,
        left,
        resumption,
    )


@contextmanager
def _inside(context: TaskContext) -> Iterator[Engine]:
    """Give an engine for a flow inside a task: what it records travels to the store with the task's outcome."""
    from localflow import SequentialExecutor
    from localflow.record_buffer import RecordBuffer

    engine = Engine(RecordBuffer(context.records), lambda executor: SequentialExecutor())
    try:
        yield engine
    finally:
        engine.close()


def _flow_in_task(
    flow: Flow[..., Any], engine: Engine, context: TaskContext, parameters: dict[str, Any], blocker: State | None
) -> FlowCall:
    task_run, lane = context.task_run, engine.lane("sequential")
    record = flow_record(flow, parameters, lane.name, task_run.flow_run.root_id, task_run.id)
    return FlowCall(engine, flow, record, lambda: flow.body(parameters), lane, context.depth, blocker)
