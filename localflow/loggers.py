"""The loggers of runs, by name: whose records they are, and what a record says of its run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localflow.records import TaskRun

if TYPE_CHECKING:
    from localflow.records import FlowRun

#: The root of the loggers below, and of localflow's own, which no run is blamed for.
OWN = "localflow"
FLOW_RUNS = f"{OWN}.flow_runs"
TASK_RUNS = f"{OWN}.task_runs"
RUN_LOGGERS = frozenset({FLOW_RUNS, TASK_RUNS})


def run_logger_name(run: FlowRun | TaskRun) -> str:
    """Return the name of the logger for what this run's code says by `get_run_logger()`."""
    return TASK_RUNS if isinstance(run, TaskRun) else FLOW_RUNS


def is_own(name: str) -> bool:
    """Return whether a logger is localflow's own: not a run's, and not the user's."""
    return (name == OWN or name.startswith(f"{OWN}.")) and name not in RUN_LOGGERS


def run_names(run: FlowRun | TaskRun) -> dict[str, str]:
    """Return what a formatter can name of a run: `%(run_name)s` and so on."""
    return {
        "run_name": run.name,
        "run_id": run.id,
        "flow_run_name": run.flow_run.name,
        "flow_run_id": run.flow_run.id,
    }
