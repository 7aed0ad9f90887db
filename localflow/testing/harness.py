"""A place for flows to run in while they are tested: states in memory, one task after the other, no files."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from localflow.history import FlowRunHistory
from localflow.notifications import Notifications
from localflow.plugins import Plugins
from localflow.project import Project
from localflow.references import find_flow_run, find_task_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from localflow.history import RunHistory
    from localflow.interfaces import Executor, FlowRunSummary, LogEntry, StateStore
    from localflow.limits import Limits


class Harness:
    """What the flows of a `harness()` block have left in their state store.

    Runs are named as on the command line: by name, by id, or `@last`.
    """

    def __init__(self, store: StateStore) -> None:
        self.store = store

    def flow_runs(self) -> list[FlowRunSummary]:
        """Return all flow runs with their newest state, newest run first; those of subflows are among them."""
        return self.store.list_flow_runs()

    def read(self, run: str = "@last") -> FlowRunHistory:
        """Return a flow run with its task runs; raises RunNotFoundError."""
        return FlowRunHistory.read(self.store, find_flow_run(self.store, run).flow_run)

    def task_run(self, name: str, run: str = "@last") -> RunHistory:
        """Return a task run such as `add-0` with all its state changes; raises RunNotFoundError."""
        return find_task_run(self.read(run), name)

    def history(self, name: str | None = None, run: str = "@last") -> list[str]:
        """Return the names of the states that a task run, or the flow run itself, was in: `["Pending", ...]`."""
        found = self.read(run) if name is None else self.task_run(name, run)
        return [moment.name for moment in found.moments]

    def logs(self, name: str | None = None, run: str = "@last") -> list[LogEntry]:
        """Return what a flow run and its task runs, or one of these, have said, in order."""
        flow_run = find_flow_run(self.store, run).flow_run
        entries = (entry for _, entry in self.store.read_logs(flow_run.id))
        return [entry for entry in entries if name is None or entry.run.name == name]


@contextmanager
def harness(executor: str | Executor | None = "sequential", store: StateStore | None = None) -> Iterator[Harness]:
    """Run the flows of the block with states in memory and without notifiers, and give what they leave there.

        with harness() as runs:
            assert my_flow(3).is_completed()
            assert runs.history("load-0") == ["Pending", "Running", "Completed"]

    The settings of the working directory are read for the executors that they name, nothing else of them is used.

    Args:
        executor: what every flow and task runs on, whatever it names; None for what it names.
        store: where the states go instead; it is not closed.

    Raises:
        ConfigError, PluginError: the settings or a plugin they name are wrong.
    """
    # With plugins of its own: what a test has had imported, broken ones among it, is not the next one's trouble.
    loaded = Project.load(overrides={"store": "memory"}, plugins=Plugins.load())
    project = _Stage(loaded.root, loaded.settings, loaded.plugins)
    project.wanted = executor
    if store is not None:
        project.store = store
    with project.in_force():
        yield Harness(project.store)


class _Stage(Project):
    """A project whose store stays open from flow to flow, and whose executors are what the test wants."""

    wanted: str | Executor | None = None

    @cached_property
    def store(self) -> StateStore:
        # Never closed: it holds nothing but memory, and tests look into it after the block.
        return self.open_store()

    @contextmanager
    def opened_store(self) -> Iterator[StateStore]:
        yield self.store

    @contextmanager
    def prepared(self, executor: str | Executor | None) -> Iterator[None]:
        yield  # it may not be the one that is wanted

    def choose(self, executor: str | Executor) -> Executor:
        wanted = executor if self.wanted is None else self.wanted
        return super().choose(wanted)

    def limits_of(self) -> Callable[[Callable[[Any, Any], None]], Limits] | None:
        return None

    def make_notifications(self) -> Notifications:
        return Notifications([])
