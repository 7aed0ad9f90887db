"""The contract of a state store: several processes that write it at once, and are killed meanwhile."""

from __future__ import annotations

import os
import random
import signal
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from localflow.testing.promises import belongs_to
from localflow.testing.store_records import (
    StoreFixtures,
    changes_of,
    make_completed,
    make_flow_run,
    make_log_entry,
    make_running,
    make_task_run,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.interfaces import FlowRun, StateStore

    Work = Callable[[StateStore, Callable[[int], None]], None]

WRITERS = 4
BATCHES = 40
CLAIMS = 25
KILLS = 6


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")


@belongs_to("processes")
class ProcessContract(StoreFixtures):
    """What a store must do that other processes can read."""

    @needs_fork
    def test_processes_append_at_once(
        self, open_store: Callable[[], StateStore], make_store: Callable[[], StateStore]
    ) -> None:
        """What each has appended is there once and in its order, in flow runs of its own and in a shared one."""
        store = open_store()
        shared = make_flow_run(id="shared")
        store.append([shared])

        def write(writer: int) -> Work:
            def work(store: StateStore, told: Callable[[int], None]) -> None:
                own, task_run = make_flow_run(id=f"own-{writer}"), make_task_run(shared, writer)
                store.append([own, task_run])
                for number in range(1, BATCHES + 1):
                    entry = make_log_entry(task_run, str(number))
                    store.append([make_running(own, number), make_running(task_run, number), entry])
                    told(number)

            return work

        with _processes(make_store, [write(writer) for writer in range(1, WRITERS + 1)]) as writers:
            ended = [writer.wait() for writer in writers]

        wanted = list(range(1, BATCHES + 1))
        assert [(writer.told, status) for writer, status in zip(writers, ended, strict=True)] == [(wanted, 0)] * WRITERS
        records = list(store.read(shared.id))
        log = list(store.read_logs(shared.id))
        assert [position for position, _ in log] == list(range(1, WRITERS * BATCHES + 1))
        for writer in range(1, WRITERS + 1):
            task_run = make_task_run(shared, writer)
            own = changes_of(list(store.read(f"own-{writer}")))
            assert [change.sequence for change in own] == wanted
            assert [change.sequence for change in changes_of(records, task_run)] == wanted
            assert [entry.message for _, entry in log if entry.run == task_run] == [str(number) for number in wanted]
        assert store.check() == []

    @needs_fork
    def test_processes_claim_at_once(
        self, open_store: Callable[[], StateStore], make_store: Callable[[], StateStore]
    ) -> None:
        """Of several that want the same flow runs each gets some, no one of them is had twice, and none is left."""
        open_store().append([])

        def work(store: StateStore, told: Callable[[int], None]) -> None:
            held = [(number, store.claim(f"run-{number}")) for number in range(CLAIMS)]
            for number, claim in held:
                if claim is not None:
                    told(number)
            told(CLAIMS)  # and all are held until every other has asked for them
            os.read(go, 1)

        go, going = os.pipe()
        try:
            with _processes(make_store, [work] * WRITERS, closing=going) as holders:
                for holder in holders:
                    holder.read_until(CLAIMS)
                os.close(going)
                going = -1
                ended = [holder.wait() for holder in holders]
        finally:
            os.close(go)
            if going >= 0:
                os.close(going)

        had = sorted(number for holder in holders for number in holder.told if number < CLAIMS)
        assert had == list(range(CLAIMS))
        assert ended == [0] * WRITERS

    @needs_fork
    def test_a_killed_writer_loses_nothing(
        self, open_store: Callable[[], StateStore], make_store: Callable[[], StateStore]
    ) -> None:
        """After `kill -9` at any instant every append that has returned is there, each batch whole; others go on."""
        store = open_store()

        def write(flow_run: FlowRun) -> Work:
            def work(store: StateStore, told: Callable[[int], None]) -> None:
                claim = store.claim(flow_run.id)
                assert claim is not None
                store.append([flow_run])
                for number in range(1, 100_000):
                    task_run = make_task_run(flow_run, number)
                    store.append([task_run, make_running(task_run), make_log_entry(task_run, str(number))])
                    told(number)

            return work

        for round in range(KILLS):
            flow_run = make_flow_run(id=f"killed-{round}")
            with _processes(make_store, [write(flow_run)]) as [writer]:
                writer.read_until(random.randint(1, 30))
                writer.kill()
                ended = writer.wait()

            assert ended == -signal.SIGKILL
            numbers = [change.run.number for change in changes_of(list(store.read(flow_run.id)))]
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(numbers) in (len(writer.told), len(writer.told) + 1)
            assert [entry.message for _, entry in store.read_logs(flow_run.id)] == [str(number) for number in numbers]
            claim = store.claim(flow_run.id)
            assert claim is not None
            store.append([make_running(flow_run), make_completed(flow_run)])
            claim.release()
        assert store.check() == []


class _Writer:
    """A forked process that tells numbers."""

    def __init__(self, make_store: Callable[[], StateStore], work: Work, closing: int) -> None:
        self.told: list[int] = []
        self._pipe, there = os.pipe()
        self._rest = b""
        self._status: int | None = None
        self.pid = fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self._pipe)
                if closing >= 0:
                    os.close(closing)
                store = make_store()
                work(store, lambda number: _write(there, number))
                store.close()
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(there)

    def read_until(self, number: int) -> None:
        """Take what is told until that number is, or the process ends."""
        while number not in self.told and self._read():
            pass

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Take all that is told and return how the process ended."""
        while self._read():
            pass
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._pipe)
        return self._status

    def end(self) -> None:
        """See to it that nothing is left."""
        if self._status is None:
            self.kill()
            self.wait()

    def _read(self) -> bool:
        data = b"" if self._status is not None else os.read(self._pipe, 65_536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.told.extend(int(line) for line in lines)
        return bool(data)


@contextmanager
def _processes(make_store: Callable[[], StateStore], works: list[Work], closing: int = -1) -> Iterator[list[_Writer]]:
    """Have each work done by a process of its own with an opening of its own; nothing is left of them afterwards."""
    writers: list[_Writer] = []
    try:
        for work in works:
            writers.append(_Writer(make_store, work, closing))  # noqa: PERF401 - those made are ended if one fails
        yield writers
    finally:
        for writer in writers:
            writer.end()


def _write(descriptor: int, number: int) -> None:
    os.write(descriptor, b"%d\n" % number)


def fork() -> int:
    """Fork; in a test nobody needs the locks that other threads may hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()
