"""The log book keeps what runs have said in order, within bounds, until it is taken."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from localflow.logbook import LogBook
from localflow.records import FlowRun, LogLine, TaskRun

if TYPE_CHECKING:
    import pytest

FLOW_RUN = FlowRun("f", "calm-owl", "main", 0.0, "f")
TASK_RUN = TaskRun(FLOW_RUN, 1, "add-0", "add", 0, 0.0)


def lines(*messages: str, level: int = 20, source: str = "stdout") -> list[LogLine]:
    """Return lines of the same level and source."""
    return [LogLine(1.5, level, source, message) for message in messages]


def test_entries_wait_in_order_until_they_are_taken() -> None:
    """What several runs have said is taken once, in the order in which it was added."""
    book = LogBook(lambda: None)

    book.add(FLOW_RUN, 1, lines("a"), echo=False)
    book.add(TASK_RUN, 2, lines("b", "c"), echo=False)

    assert [(e.run, e.attempt, e.timestamp, e.level, e.source, e.message) for e in book.take()] == [
        (FLOW_RUN, 1, 1.5, 20, "stdout", "a"),
        (TASK_RUN, 2, 1.5, 20, "stdout", "b"),
        (TASK_RUN, 2, 1.5, 20, "stdout", "c"),
    ]
    assert book.take() == []


def test_somebody_is_told_when_entries_begin_to_wait() -> None:
    """The callback comes with the first entry after nothing waited, may take entries itself, and not for nothing."""
    told: list[int] = []
    book = LogBook(lambda: told.append(len(book.take())))

    book.add(FLOW_RUN, 1, [], echo=False)
    book.add(FLOW_RUN, 1, lines("a", "b"), echo=False)
    book.add(FLOW_RUN, 1, lines("c"), echo=False)
    assert told == [2, 1]

    quiet: list[str] = []
    other = LogBook(lambda: quiet.append("told"))
    other.add(FLOW_RUN, 1, lines("a"), echo=False)
    other.add(FLOW_RUN, 1, lines("b"), echo=False)
    assert quiet == ["told"]


def test_each_attempt_has_a_limit_of_its_own() -> None:
    """Beyond the limit lines are counted, none gets through after the first, and the end tells how many there were."""
    book = LogBook(lambda: None, limit=10)

    book.add(TASK_RUN, 1, lines("12345", "é23", "1", "x"), echo=False)
    book.add(TASK_RUN, 2, lines("fits"), echo=False)
    book.end(TASK_RUN, 1)
    book.end(TASK_RUN, 2)
    book.end(FLOW_RUN, 1)

    assert [(e.attempt, e.level, e.source, e.message) for e in book.take()] == [
        (1, 20, "stdout", "12345"),
        (2, 20, "stdout", "fits"),
        (1, logging.WARNING, "localflow", "... truncated 9 bytes (3 lines)"),
    ]


def test_an_attempt_that_has_ended_is_forgotten() -> None:
    """What comes after the end is counted anew."""
    book = LogBook(lambda: None, limit=10)

    book.add(TASK_RUN, 1, lines("123456789", "y"), echo=False)
    book.end(TASK_RUN, 1)
    book.add(TASK_RUN, 1, lines("late"), echo=False)

    assert [entry.message for entry in book.take()] == ["123456789", "... truncated 2 bytes (1 lines)", "late"]


def test_threads_lose_nothing() -> None:
    """Lines of many threads are all there, each thread's in its order, and someone is told at least once."""
    told = threading.Event()
    book = LogBook(told.set)
    runs = [TASK_RUN._replace(number=n) for n in range(8)]

    def speak(run: TaskRun) -> None:
        for n in range(500):
            book.add(run, 1, lines(str(n)), echo=False)

    threads = [threading.Thread(target=speak, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    taken = book.take()
    for thread in threads:
        thread.join()
    taken += book.take()

    assert told.is_set()
    for run in runs:
        assert [entry.message for entry in taken if entry.run is run] == [str(n) for n in range(500)]


def test_lines_from_elsewhere_are_shown_where_they_were_meant_to_go(capsys: pytest.CaptureFixture[str]) -> None:
    """What was written to stdout and stderr of a worker comes out of ours, as it is."""
    book = LogBook(lambda: None)

    book.add(TASK_RUN, 1, lines("to out \x1b[1m"), echo=True)
    book.add(TASK_RUN, 1, lines("to err", source="stderr"), echo=True)
    book.add(TASK_RUN, 1, lines("said here"), echo=False)

    assert capsys.readouterr() == ("to out \x1b[1m\n", "to err\n")


def test_a_terminal_that_is_gone_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed stdout does not keep lines from being recorded."""

    class Closed:
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    book = LogBook(lambda: None)

    book.add(TASK_RUN, 1, lines("a"), echo=True)

    assert [entry.message for entry in book.take()] == ["a"]
