"""A plugin as it was written for version 1 of the plugin interface. It is never to be edited.

It has what that version asked for and nothing more: of the executor, the state store and the notifier only the methods
that have no default. As long as localflow says `API_VERSION = 1` it must work as it is, whatever has been added since;
`tests/test_plugin_api.py` sees to that. A change that breaks it is a change of the version, with a new folder beside
this one.
"""

import fcntl
import pickle
import queue
import threading
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from typing import Annotated

from localflow import hookimpl
from localflow.interfaces import (
    AtLeast,
    CachedResult,
    Executor,
    FlowRun,
    FlowRunSummary,
    LogEntry,
    Notifier,
    StateChange,
    StateStore,
    StateType,
    StoreError,
    TaskRun,
)

localflow_api = 1

FINAL = {StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED}


class OldExecutor(Executor):
    """Runs calls in threads that take them from a queue."""

    def __init__(self, threads: Annotated[int, AtLeast(1)] = 2) -> None:
        self._count = threads
        self._threads: list[threading.Thread] = []
        self._calls = queue.SimpleQueue()

    def start(self, report):
        """Start the threads."""
        self._calls = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, args=(self._calls, report, f"old {number}"), daemon=True)
            for number in range(self._count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, calls):
        """Queue the calls."""
        for call in calls:
            self._calls.put(call)

    def shutdown(self):
        """Let the threads end."""
        for _ in self._threads:
            self._calls.put(None)
        self._threads = []

    @staticmethod
    def _work(calls, report, name):
        while (call := calls.get()) is not None:
            report([Context().run(call.run, name)])


class OldStateStore(StateStore):
    """Adds each batch of records to a file, as a pickle, and reads all of them to answer anything."""

    def __init__(self, path: Path = Path("old.pickles")) -> None:
        self._path = path
        self._is_closed = False

    @property
    def location(self):
        """The file."""
        return str(self._path)

    def append(self, records):
        """Add a batch."""
        with self._locked() as file:
            known = {record.id for record in self._loaded(file) if isinstance(record, FlowRun)}
            for record in records:
                if isinstance(record, FlowRun):
                    known.add(record.id)
                elif _flow_run_id(record) not in known:
                    raise StoreError(f"flow run '{_flow_run_id(record)}' is not recorded in {self.location}")
            file.write(pickle.dumps(list(records)))

    def list_flow_runs(self, limit=None, *, root_id=None, unfinished=False):
        """Return the flow runs, the one recorded last first."""
        with self._locked() as file:
            records = self._loaded(file)
        flow_runs = {record.id: record for record in records if isinstance(record, FlowRun)}
        found = []
        for flow_run in reversed(flow_runs.values()):
            own = [each for each in _changes(records, flow_run.id) if each.run.number == 0]
            newest = own[-1] if own else None
            is_final = newest is not None and newest.type in FINAL
            if root_id in (None, flow_run.root_id) and not (unfinished and is_final):
                started_at = next((each.timestamp for each in own if each.type is StateType.RUNNING), None)
                found.append(FlowRunSummary(flow_run, newest, started_at, newest.timestamp if is_final else None))
        return found[:limit]

    def read(self, flow_run_id):
        """Yield the records of a flow run."""
        with self._locked() as file:
            records = self._loaded(file)
        runs = {
            record.number: record
            for record in records
            if isinstance(record, (FlowRun, TaskRun)) and record.flow_run.id == flow_run_id
        }
        if runs:
            tasks = [run._replace(flow_run=runs[0]) for number, run in sorted(runs.items()) if number]
            runs = {0: runs[0], **{task.number: task for task in tasks}}
        yield from runs.values()
        for change in _changes(records, flow_run_id):
            yield change._replace(run=runs[change.run.number], result=None)

    def load_result(self, flow_run_id, number):
        """Return the newest result of a run."""
        with self._locked() as file:
            changes = _changes(self._loaded(file), flow_run_id)
        completed = [each for each in changes if each.run.number == number and each.type is StateType.COMPLETED]
        return completed[-1].result if completed else None

    def find_cached(self, key, now):
        """Return the newest result of this cache key."""
        with self._locked() as file:
            records = self._loaded(file)
        for change in reversed(records):
            if isinstance(change, StateChange) and change.type is StateType.COMPLETED and change.result is not None:
                cache = change.cache
                if cache is not None and cache.key == key and (cache.expires_at is None or cache.expires_at > now):
                    names = change.run.id, change.run.name, change.run.flow_run.name
                    return CachedResult(*names, change.timestamp, cache.expires_at, change.result)
        return None

    def read_logs(self, flow_run_id, after=0):
        """Yield what a flow run has said."""
        with self._locked() as file:
            records = self._loaded(file)
        entries = [each for each in records if isinstance(each, LogEntry) and each.run.flow_run.id == flow_run_id]
        yield from list(enumerate(entries, 1))[after:]

    def claim(self, flow_run_id):
        """Lock a file."""
        file = self._path.with_name(f"{self._path.name}-{flow_run_id}").open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return OldClaim(file)

    def close(self):
        """Take no more."""
        self._is_closed = True

    @contextmanager
    def _locked(self):
        if self._is_closed:
            raise StoreError(f"state store {self.location} is closed")
        self._path.touch(mode=0o600)
        with self._path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    @staticmethod
    def _loaded(file):
        file.seek(0)
        records = []
        while True:
            try:
                records += pickle.load(file)
            except EOFError:
                return records


class OldClaim:
    """A locked file."""

    def __init__(self, file):
        self._file = file

    def release(self):
        """Unlock it."""
        self._file.close()


class OldNotifier(Notifier):
    """Adds a line to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def notify(self, change):
        """Add the line."""
        with self._path.open("a") as file:
            file.write(f"{change.run.name} is {change.name}\n")


def _flow_run_id(record):
    return record.flow_run.id if isinstance(record, TaskRun) else record.run.flow_run.id


def _changes(records, flow_run_id):
    return [each for each in records if isinstance(each, StateChange) and each.run.flow_run.id == flow_run_id]


@hookimpl
def localflow_register_executors(register):
    """Register the executor, by where it is."""
    register("old", "localflow_old:OldExecutor")


@hookimpl
def localflow_register_state_stores(register):
    """Register the state store itself."""
    register("old", OldStateStore)


@hookimpl
def localflow_register_notifiers(register):
    """Register a function that makes the notifier."""

    def make(path: Path = Path("told.txt")) -> OldNotifier:
        return OldNotifier(path)

    register(name="old", factory=make)
