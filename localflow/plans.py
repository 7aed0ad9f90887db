"""What resuming a flow run will do, as far as that can be known beforehand."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from localflow.code import code_of, is_changed, is_own
from localflow.earlier import OUTDATED
from localflow.states import (
    ENGINE_LOST,
    NOT_READY,
)
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import FunctionType

    from localflow.earlier import EarlierRun
    from localflow.records import FlowRun, TaskRun
    from localflow.recovery import Resumption


_CHANGED = "its code has changed"


class Step(NamedTuple):
    """What is to become of a task run."""

    run: TaskRun
    is_reused: bool
    reason: str

    @property
    def has_changed(self) -> bool:
        """Whether it runs again because its code has changed."""
        return self.reason == _CHANGED


class Plan(NamedTuple):
    """What resuming a flow run will do, as far as that can be known beforehand."""

    flow_run: FlowRun
    steps: list[Step]

    def __str__(self) -> str:
        reused = sum(step.is_reused for step in self.steps)
        return f"reuse {reused}, run {len(self.steps) - reused}"

    def as_json(self) -> dict[str, Any]:
        """Return the plan as `localflow resume --plan --json` prints it."""
        reused = sum(step.is_reused for step in self.steps)
        return {
            "id": self.flow_run.id,
            "name": self.flow_run.name,
            "flow": self.flow_run.flow,
            "reuse": reused,
            "run": len(self.steps) - reused,
            "task_runs": [
                {
                    "id": step.run.id,
                    "name": step.run.name,
                    "task": step.run.task,
                    "action": "reuse" if step.is_reused else "run",
                    "reason": step.reason,
                }
                for step in self.steps
            ],
        }


def make_plan(resumption: Resumption, flow_run: FlowRun, codes: Mapping[str, str]) -> Plan:
    """Return what resuming will do; `codes` has the fingerprints of the tasks that are known by now, by name.

    What the flow does with other data, after other tasks or with other code of its own shows only when it runs.
    """
    steps: list[Step] = []
    renewed: dict[str, str] = {}
    for run in resumption.task_runs():
        reason = _reason_to_run(resumption, run, codes, renewed)
        if reason:
            renewed[run.record.id] = run.record.name
        steps.append(Step(run.record, not reason, reason or "completed before"))
    return Plan(flow_run, steps)


def _reason_to_run(
    resumption: Resumption, run: EarlierRun[TaskRun], codes: Mapping[str, str], renewed: Mapping[str, str]
) -> str:
    record = run.record
    if not run.is_completed:
        return _reason_left(run)
    if resumption.is_wanted(record):
        return "asked for"
    if is_changed(codes.get(record.task, ""), record.code):
        return _CHANGED
    if record.code == OUTDATED:
        return "what it was built on has run again since"
    upstream = next((renewed[each] for each in record.upstreams if each in renewed), None)
    if upstream is not None:
        return f"its upstream '{upstream}' runs"
    return "" if resumption.answer(run) is not None else "its result was not kept"


def _reason_left(run: EarlierRun[TaskRun]) -> str:
    if run.name == ENGINE_LOST:
        return "it was running when its engine went away"
    if run.name == NOT_READY:
        return "it never started: an upstream did not complete"
    if not run.begun:
        return "it never started"
    return f"it was {run.name}{f': {run.message}' if run.message else ''}"


def codes_of_tasks(functions: Iterable[FunctionType | None]) -> dict[str, str]:
    """Return the fingerprints of the tasks in the modules of these functions and in what those import, by name."""
    spaces: dict[int, Mapping[str, Any]] = {}
    for function in functions:
        if function is not None:
            spaces[id(function.__globals__)] = function.__globals__
            for value in list(function.__globals__.values()):
                name = getattr(value, "__name__", None)
                if type(value).__name__ == "module" and is_own(name):
                    spaces[id(vars(value))] = vars(value)
    found: defaultdict[str, set[str]] = defaultdict(set)
    for space in spaces.values():
        values = list(space.values())
        for kind in values:
            if isinstance(kind, type) and is_own(kind.__module__):
                values = [*values, *vars(kind).values()]
        for value in values:
            if getattr(type(value), "kind", None) == "Task" and hasattr(value, "fn"):
                found[value.name].add(code_of(value.fn))
    # Of two tasks of one name, which a run is of is known only when it is called.
    return {name: codes.pop() for name, codes in found.items() if len(codes) == 1}
