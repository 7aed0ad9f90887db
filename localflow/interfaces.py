"""The three interfaces a plugin may implement. This file is all a plugin author must read.

A plugin registers factories under names (see `hookspecs.py`); the options of a table in localflow.toml become the
factory's keyword arguments, checked against its annotated signature. Annotate with `str`, `int`, `float`, `bool`,
`list[...]`, `dict[str, ...]`, `Literal[...]`, unions of these, and `Annotated[int, AtLeast(1)]` for a least value,
`Annotated[str, Secret()]` for a value that is never shown.
An option annotated `Path` is taken from the folder of localflow.toml.

What passes through an interface are frozen named tuples; `help(FlowRun)` and so on tell each field:

    Call          id task_run attempt function args kwargs timeout_seconds; `run(worker)` runs it, returns its outcome
    Outcome       call_id state result execution records lines
    Output        call_id lines: what a call that is still running has said
    State         type name message data timestamp cause; `Completed(data=...)` and `Failed(message=...)` make one
    FlowRun       id name flow created_at root_id parent_id parameters arguments entry_point executor versions host pid
                  tags code inputs
    TaskRun       flow_run number name task ordinal created_at upstreams tags version map_number map_index code inputs;
                  `id`
    StateChange   run sequence type name message timestamp previous attempt execution cause result cache
    LogEntry      run attempt timestamp level source message
    Standing      map_number type name numbers started_at ended_at: task runs in one state
    Execution     worker pid started_at ended_at cpu_seconds peak_rss_bytes
    Payload       format data: a value as bytes

`localflow.testing` has a suite for each interface; a subclass of it with a fixture is a plugin's test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import ClassVar, Protocol, TypeAlias

from localflow.calls import Call, Outcome, Output
from localflow.errors import StoreError
from localflow.large_values import Folder
from localflow.payloads import Packed, Payload
from localflow.records import (
    CachedResult,
    CacheEntry,
    Execution,
    FlowRun,
    FlowRunSummary,
    LogEntry,
    LogLine,
    Record,
    Standing,
    StateChange,
    TaskRun,
)
from localflow.standings import chosen, standings_of
from localflow.states import Cause, State, StateType
from localflow.typed import NamedTuple

__all__ = [
    "API_VERSION",
    "AtLeast",
    "CacheEntry",
    "CachedResult",
    "Call",
    "Cause",
    "Claim",
    "Execution",
    "Executor",
    "FlowRun",
    "FlowRunSummary",
    "Folder",
    "LogEntry",
    "LogLine",
    "Notifier",
    "Outcome",
    "Output",
    "Packed",
    "Payload",
    "Record",
    "Report",
    "Secret",
    "Standing",
    "State",
    "StateChange",
    "StateStore",
    "StateType",
    "StoreError",
    "TaskRun",
]

API_VERSION = 1

#: What an executor calls with the outcomes of calls, and with their output before that if it likes: from any thread,
#: as many at once as it has.
Report: TypeAlias = Callable[[Sequence[Outcome | Output]], None]


class AtLeast(NamedTuple):
    """The least value an option may have, as in `workers: Annotated[int, AtLeast(1)] = 4`."""

    minimum: float


class Secret:
    """Marks an option whose value is never shown, as in `url: Annotated[str, Secret()]`; `env:` values never are.

    Neither are options whose names end in `token`, `password`, `secret`, `key` and the like, nor what stands before the
    @ and after the ? of a URL.
    """


class Claim(Protocol):
    """The hold that a process has on a flow run; it ends with `release()` or with the process, however that dies."""

    def release(self) -> None:
        """Let the flow run go; a second time, or in a forked child, nothing happens."""


class Executor(ABC):
    """Runs calls.

    The engine hands over only calls that are ready, after their start is recorded, and at most `capacity` at a time.
    Each call is answered by exactly one outcome; `call.run()` makes one wherever the call is run. The constructor keeps
    options and does nothing else: threads, processes and files begin with `prepare` or `start`. After `shutdown` the
    executor may be started again.

    In a pool of threads, run a call as `contextvars.Context().run(call.run, name)`: in a context of its own, so that
    nothing a task sets is seen by the next, and with the name of the worker. To run a call in another process, send
    `cloudpickle.dumps(call)` there and the outcome back in the same way; plain pickle knows nothing of the functions of
    a script. What travels like that must not be loaded in `report`'s thread if it can hurt: wrap data in `Packed`.
    """

    #: Calls see the engine's own objects; if false they see copies.
    shares_memory: ClassVar[bool] = True
    #: `submit` runs the calls itself, in the thread that called the task, before it returns.
    runs_in_caller: ClassVar[bool] = False
    #: A running call can be stopped: at its timeout, and when it is cancelled. Otherwise its code goes on.
    kills_on_timeout: ClassVar[bool] = False
    #: A running call that cannot be stopped is answered at its timeout all the same, and its code goes on.
    gives_up_late_calls: ClassVar[bool] = False
    #: A task that kills its process harms no other task and not the engine.
    isolates_crashes: ClassVar[bool] = False
    #: Where calls may write large values, for all to map; set by the engine before `start`, its `place` before the
    #: first call. None: nowhere.
    folder: Folder | None = None

    @property
    def capacity(self) -> int | None:
        """How many calls it wants in hand now, running ones included; None for all there are.

        Read before every hand-over, so it may change while the executor learns how long its calls take.
        """
        return None

    @property
    def plenty(self) -> int | None:
        """With how many calls in hand no worker is idle before the next outcome comes; None if only at `capacity`.

        While it has so many, the engine lets calls wait for that outcome and hands them over together. Never fewer than
        there are workers.
        """
        return None

    @property
    def async_capacity(self) -> int | None:
        """How many calls of async functions it wants in hand beside the others; None if they count like any call."""
        return None

    def prepare(self) -> None:  # noqa: B027 - optional
        """Begin what takes long before `start`, such as processes: a flow is about to run here.

        Need not be called; what follows is `start`, or else `shutdown`. Whatever is wrong shows when it starts.
        """

    @abstractmethod
    def start(self, report: Report) -> None:
        """Get ready to run calls and give their outcomes to `report`."""

    @abstractmethod
    def submit(self, calls: Sequence[Call]) -> None:
        """Take calls to run. Returns soon; may be called from several threads at once, and from inside `report`."""

    @abstractmethod
    def shutdown(self) -> None:
        """Release everything. Calls still in hand are given up; the engine waits for outcomes first where it can."""

    def cancel(self, call_ids: Sequence[int]) -> None:  # noqa: B027 - optional
        """Stop these calls if possible, those that run politely first; each is still answered by an outcome.

        The outcome of a call that was stopped is CANCELLED. `call.timeout_seconds` is an executor's own affair: the
        clock starts when the call begins, and `calls.timed_out_outcome(call)` is the outcome; without anything done
        about it, `call.run()` gives that outcome when the function has returned at last.
        """


class StateStore(ABC):
    """Keeps records. Used by several threads of one process; several processes may write one store at once.

    `survives` says whether other processes can read what one has written.

    Everything it cannot do raises a StoreError that names the place and the cause: what is no record, records of a flow
    run that has not been recorded, a full disk, any use after `close`.

    For `localflow doctor` a class may have a class method `repair`, which takes the options of the constructor, mends
    what they lead to without opening it and returns a line for each thing done; and `format_version`, an integer.
    """

    #: Other processes can read the records, during the run and afterwards.
    survives: ClassVar[bool] = True

    @property
    @abstractmethod
    def location(self) -> str:
        """Where the records are, for messages: a path, a URL, `memory`."""

    @abstractmethod
    def append(self, records: Sequence[Record]) -> None:
        """Add records in their order, all or none; on return they are committed. Raises StoreError.

        A FlowRun or TaskRun that is there already takes the place of the one before, of which all else stays. Two
        state changes of one run with the same sequence are a StoreError.
        """

    @abstractmethod
    def list_flow_runs(
        self, limit: int | None = None, *, root_id: str | None = None, unfinished: bool = False
    ) -> list[FlowRunSummary]:
        """Return the flow runs with their newest state, the one recorded last first.

        Args:
            limit: how many at most.
            root_id: only the flow run with this id and all those below it, at any depth.
            unfinished: only those whose newest state is not final, found without a look at all the others.
        """

    @abstractmethod
    def read(self, flow_run_id: str) -> Iterator[Record]:
        """Yield a flow run's own records: its FlowRun, its TaskRuns by number, then all state changes.

        The changes of one run come in their sequence, without results. Yields nothing for an unknown id.
        """

    def read_chosen(
        self, flow_run_id: str, numbers: Collection[int] = (), *, called: str | None = None
    ) -> Iterator[Record]:
        """Yield of what `read` yields the records of some runs only; a store that can should not read the others.

        Args:
            flow_run_id: the flow run.
            numbers: the numbers of these runs, 0 for the flow run itself; what is not there is passed by.
            called: those beside them that have this name, or are of the task with this name.
        """
        return chosen(self.read(flow_run_id), numbers, called)

    def read_standings(self, flow_run_id: str) -> list[Standing]:
        """Return how the task runs of a flow run stand, by the first number of each; of large runs, too, soon."""
        return standings_of(self.read(flow_run_id))

    @abstractmethod
    def load_result(self, flow_run_id: str, number: int) -> Payload | None:
        """Return the result that a task run (for number 0 the flow run itself) has last completed with.

        None if it has not completed, or if that result was not recorded, whatever it had completed with before.
        """

    @abstractmethod
    def find_cached(self, key: str, now: float) -> CachedResult | None:
        """Return the newest result recorded with this cache key that has not expired at `now`, or None."""

    @abstractmethod
    def read_logs(self, flow_run_id: str, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
        """Yield a flow run's own log entries and those of its task runs, in the order they were appended.

        Each comes with its position in this flow run's log, from 1 and growing; those up to `after` are left out, so
        that a reader can ask for what is new. Yields nothing for an unknown id.
        """

    def value_folder(self, root_id: str) -> Folder | None:
        """Return where the large values of a tree of flow runs are written, which need not be there yet.

        A payload of the format `"file"` then names a draft in it, which `append` keeps under its final name, and the
        file goes with its records. None if the store has no such place: all payloads are bytes.
        """
        return None

    @abstractmethod
    def claim(self, flow_run_id: str) -> Claim | None:
        """Take hold of a flow run, recorded or not, for this process alone; None if another claim on it is alive.

        An engine claims the flow run at the top of a tree before its first record and releases it after the last one.
        So a claim that can be had on an unfinished run says that its engine is gone. That must be so at once after
        `kill -9`, also where children of that process live on: a lock of the operating system, or of the connection to
        a database, never a file whose mere existence means something.
        """

    def remove(self, root_ids: Sequence[str], *, results_only: bool = False) -> None:
        """Remove flow runs that are at the top of a tree, with all below them, and give the space back.

        Ids that are not there are passed by. With `results_only` only results go, large and small, and what the cache
        has of them; the history stays.
        """
        raise StoreError(f"state store {self.location} does not know how to remove runs")

    def check(self) -> list[str]:
        """Look at everything, however long it takes; return a line for each thing that is wrong."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Release files and connections; closing twice is harmless."""


class Notifier(ABC):
    """Is told of state changes after they are stored, in its own thread; it may fail or hang without harm.

    Names and messages are the user's: escape control characters before they reach a terminal or a line of a file, and
    shorten what may be long. Arguments, parameters and results are nobody else's business.
    """

    @abstractmethod
    def notify(self, change: StateChange) -> None:
        """Tell somebody. An exception is logged and changes nothing."""

    def close(self) -> None:  # noqa: B027 - optional
        """Release what the notifier holds; called once at the end of the flow run."""
