"""The logs of the JSON store: files beside the journals, which they cannot contradict."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from localflow.builtin.json_files import JsonStateStore
from localflow.errors import CorruptStoreError, StoreError
from localflow.testing.store_records import make_flow_run, make_log_entry, make_running, make_task_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from localflow.interfaces import FlowRun


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Say where the store is."""
    return tmp_path / "runs"


@pytest.fixture
def store(path: Path) -> Iterator[JsonStateStore]:
    """Open the store."""
    with closing(JsonStateStore(path)) as store:
        yield store


@pytest.fixture
def flow_run() -> FlowRun:
    """Make a flow run."""
    return make_flow_run()


@pytest.fixture
def log(store: JsonStateStore, path: Path, flow_run: FlowRun) -> Path:
    """Record a flow run that says something: alone, with a task run, and alone again; say where its log is."""
    task_run = make_task_run(flow_run)
    store.append([flow_run])
    store.append([make_log_entry(flow_run, "one"), make_log_entry(flow_run, "two")])
    store.append([task_run, make_log_entry(task_run, "three"), make_running(task_run)])
    store.append([make_log_entry(task_run, "four")])
    return path / flow_run.id / "logs.jsonl"


def messages(store: JsonStateStore, flow_run: FlowRun, after: int = 0) -> list[str]:
    """Return what is in the log of a flow run, and see that the positions have no gaps."""
    log = list(store.read_logs(flow_run.id, after))
    assert [position for position, _ in log] == list(range(after + 1, after + 1 + len(log)))
    return [entry.message for _, entry in log]


def test_log_is_a_file_of_its_own(log: Path, flow_run: FlowRun) -> None:
    """The log has one line of JSON for each append, and nothing of it is in the journal."""
    lines: list[Any] = [json.loads(line) for line in log.read_text().splitlines()]

    assert [[entry["message"] for entry in line["records"]] for line in lines] == [["one", "two"], ["three"], ["four"]]
    assert lines[0]["records"][0] == {
        "kind": "log",
        "flow_run": flow_run.id,
        "number": 0,
        "attempt": 1,
        "timestamp": 1700000002.5,
        "level": 20,
        "source": "etl.load",
        "message": "one",
    }
    assert 'message":"three' not in log.with_name("journal.jsonl").read_text()


def test_log_is_read_by_jq(log: Path) -> None:
    """What was said is one jq filter away."""
    jq = shutil.which("jq")
    if jq is None:
        pytest.skip("jq is not installed")

    output = subprocess.run([jq, "-r", ".records[].message", str(log)], capture_output=True, text=True, check=True)

    assert output.stdout.split() == ["one", "two", "three", "four"]


def test_torn_end_of_a_log_is_dropped(log: Path, path: Path, flow_run: FlowRun) -> None:
    """A log cut anywhere in its last line has the entries before it, and is added to as usual."""
    content = log.read_bytes()
    start = content.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(start, len(content), 3):
        log.write_bytes(content[:cut])
        with closing(JsonStateStore(path)) as store:
            assert messages(store, flow_run) == ["one", "two", "three"]

            store.append([make_log_entry(flow_run, "five")])

            assert messages(store, flow_run) == ["one", "two", "three", "five"]
            assert messages(store, flow_run, 3) == ["five"]


def test_log_without_its_records_does_not_count(log: Path, path: Path, flow_run: FlowRun) -> None:
    """What was said in one batch with records that the writer did not live to write is not there, now or later."""
    journal = log.with_name("journal.jsonl")
    lines, said = journal.read_bytes().splitlines(keepends=True), log.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0])
    log.write_bytes(b"".join(said[:2]))
    with closing(JsonStateStore(path)) as store, closing(JsonStateStore(path)) as follower:
        assert messages(follower, flow_run) == ["one", "two"]

        store.append([make_task_run(flow_run, 2), make_log_entry(flow_run, "next")])
        store.append([make_log_entry(flow_run, "last")])

        assert messages(follower, flow_run, 2) == ["next", "last"]
        assert messages(store, flow_run) == ["one", "two", "next", "last"]


def test_log_entry_is_waited_for_that_is_just_being_committed(log: Path, path: Path, flow_run: FlowRun) -> None:
    """A reader that comes between the two lines of a batch meets the entry later, at its place."""
    journal = log.with_name("journal.jsonl")
    lines, said = journal.read_bytes().splitlines(keepends=True), log.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0])
    log.write_bytes(b"".join(said[:2]))
    with closing(JsonStateStore(path)) as follower:
        assert messages(follower, flow_run) == ["one", "two"]

        journal.write_bytes(b"".join(lines[:2]))
        log.write_bytes(b"".join(said))

        assert messages(follower, flow_run, 2) == ["three", "four"]


def test_damage_to_a_log_is_noticed(log: Path, path: Path, flow_run: FlowRun) -> None:
    """A line of a log that is not as it was written is named, and the journal is read without it."""
    log.write_bytes(log.read_bytes().replace(b"two", b"too"))

    with closing(JsonStateStore(path)) as store:
        with pytest.raises(CorruptStoreError, match=rf"{log}:1\b"):
            store.read_logs(flow_run.id)
        assert len(list(store.read(flow_run.id))) == 3


def test_refused_batch_is_not_in_the_log(log: Path, store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """When the journal refuses a batch, what was said in it is not in the log either."""
    before = log.read_bytes()

    change = make_running(make_task_run(flow_run))
    with pytest.raises(StoreError, match="already"):
        store.append([change, make_log_entry(flow_run, "again")])
    with closing(JsonStateStore(path)) as other, pytest.raises(StoreError, match="already"):
        other.append([change, make_log_entry(flow_run, "again")])

    assert log.read_bytes() == before


def test_follower_reads_what_is_new(log: Path, store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """Whoever follows a log does not read it from its beginning again, nor the journal: not even damage is met."""
    task_run = make_task_run(flow_run, 2)
    store.append([task_run])
    for number in range(5, 301):
        store.append([make_log_entry(task_run, str(number))])
    with closing(JsonStateStore(path)) as follower:
        assert len(messages(follower, flow_run)) == 300
        for file in (log, log.with_name("journal.jsonl")):
            file.write_bytes(file.read_bytes().replace(b"crc", b"cry", 1))

        store.append([make_log_entry(task_run, "new")])

        assert messages(follower, flow_run, 300) == ["new"]
        assert messages(follower, flow_run, 250) == [*map(str, range(251, 301)), "new"]
        with pytest.raises(CorruptStoreError):
            follower.read_logs(flow_run.id)
