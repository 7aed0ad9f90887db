"""`localflow resume`: take up a flow run where it ended."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import click

from localflow.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from localflow.plans import Plan, Step
    from localflow.records import FlowRun
    from localflow.roots import FinishedRun

_SHOWN_STEPS = 20


@click.command()
@click.argument("reference", metavar="RUN")
@click.option("--plan", "plan_only", is_flag=True, help="Only print what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON; with --plan.")
@click.option("--from", "from_task", metavar="TASK", help="Run TASK again, and all that was called after it.")
@click.option(
    "--rerun", "patterns", metavar="GLOB", multiple=True,
    help="Run the task runs of these names again, and what depends on them. May be given several times.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Refuse to resume if code or arguments of what completed have changed.")
@click.option("--flow", "place", metavar="FILE[:FLOW]", help="Where the flow is now, if it has moved.")
@click.option("--executor", metavar="NAME", help="What it runs on, if not on what it ran on before.")
@click.option("-j", "--workers", type=click.IntRange(min=1), metavar="N", help="How many workers that executor has.")
@click.option("--full-traceback", is_flag=True, help="Show all frames of what failed, not only those of your code.")
def resume(
    reference: str,
    plan_only: bool,
    as_json: bool,
    from_task: str | None,
    patterns: Sequence[str],
    strict: bool,
    place: str | None,
    executor: str | None,
    workers: int | None,
    full_traceback: bool,
) -> int:
    """Take up a flow run that failed, crashed or was stopped, in whatever way.

    RUN is a name, an id or its beginning, @last or @last-failed. The flow runs again with the parameters that are
    recorded; task runs that completed are answered from the state store. What is done, and why, is told on stderr.
    """
    from localflow.cli.foreground import load_project, see_through, with_workers
    from localflow.cli.reading import recorded
    from localflow.errors import ChangedSinceError, UsageError
    from localflow.loading import load_entry_point, load_flow
    from localflow.recovery import Again, refuse_incomplete
    from localflow.references import find_flow_run
    from localflow.resuming import execute_again

    if as_json and not plan_only:
        raise UsageError("--json prints the plan; give it with --plan")
    project, overrides = load_project(executor)

    def take_plan(plan: Plan) -> bool:
        if plan_only and as_json:
            output.print_json(plan.as_json())
        elif plan_only:
            _print_plan(plan)
        else:
            output.say_line(f"resuming flow run {plan.flow_run.name!r} of {plan.flow_run.flow!r}: {plan}")
            _say_steps(plan)
        if strict:
            changed = [step.run.name for step in plan.steps if step.has_changed]
            if changed:
                raise ChangedSinceError(
                    f"not resumed: code has changed since {', '.join(changed[:5])} completed; "
                    "without --strict what has changed is run again"
                )
        return not plan_only

    with recorded(project) as store:
        run = find_flow_run(store, reference).flow_run
        refuse_incomplete(run)
        flow = load_flow(place) if place is not None else load_entry_point(run.entry_point, run.flow)
        if workers is not None:
            project = with_workers(
                overrides, flow.executor if isinstance(flow.executor, str) else executor or run.executor, workers
            )
        again = Again(from_task, patterns, strict)

        def execute(announce: Callable[[FlowRun], None]) -> FinishedRun | None:
            return execute_again(flow, project, store, run, again, take_plan, announce, executor)

        return see_through(store, execute, full_traceback)


def _print_plan(plan: Plan) -> None:
    output.print_data(str(plan))
    rows = [[step.run.name, "reuse" if step.is_reused else "run", step.reason] for step in plan.steps]
    if rows:
        output.print_table(["TASK RUN", "PLAN", "REASON"], rows)
    output.say_line("what the flow calls beside these shows when it runs")


def _say_steps(plan: Plan) -> None:
    """Say what runs and why, those of one task and reason in one line."""
    groups: defaultdict[tuple[str, str], list[Step]] = defaultdict(list)
    for step in plan.steps:
        if not step.is_reused:
            groups[step.run.task, step.reason].append(step)
    for (_, reason), steps in list(groups.items())[:_SHOWN_STEPS]:
        names = steps[0].run.name if len(steps) == 1 else f"{steps[0].run.name} and {len(steps) - 1} more"
        output.say_line(f"  run {names}: {reason}")
    if len(groups) > _SHOWN_STEPS:
        output.say_line(f"  ... and {sum(map(len, list(groups.values())[_SHOWN_STEPS:]))} more")
