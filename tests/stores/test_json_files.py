"""The JSON store: its journals are there to be read, and every broken one is noticed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from localflow.builtin.json_files import JsonStateStore
from localflow.errors import CorruptStoreError, StoreError, StoreVersionError
from localflow.interfaces import FlowRun, Payload
from localflow.testing.store_records import (
    make_completed,
    make_flow_run,
    make_log_entry,
    make_running,
    make_task_run,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGE = Payload("pickle", bytes(range(256)) * 400)


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
    return make_flow_run(parameters={"names": ["orion", "café"]})


@pytest.fixture
def journal(store: JsonStateStore, path: Path, flow_run: FlowRun) -> Path:
    """Record a flow run in three lines and say where its journal is."""
    store.append([flow_run])
    store.append([make_task_run(flow_run), make_running(make_task_run(flow_run))])
    store.append([make_completed(make_task_run(flow_run))])
    return path / flow_run.id / "journal.jsonl"


def test_each_append_is_one_line_of_json(journal: Path, flow_run: FlowRun) -> None:
    """Each line holds the records of one append, each with its kind, and a checksum."""
    lines: list[Any] = [json.loads(line, parse_constant=pytest.fail) for line in journal.read_text().splitlines()]

    assert [[record["kind"] for record in line["records"]] for line in lines] == [
        ["flow_run"],
        ["task_run", "state"],
        ["state"],
    ]
    assert lines[0]["records"][0]["parameters"] == {"names": ["orion", "café"]}
    assert lines[2]["records"][0]["flow_run"] == flow_run.id
    assert lines[2]["records"][0]["result"] == {"format": "json", "text": '{"rows": 3}'}
    assert all(len(line["crc"]) == 8 for line in lines)


def test_journal_is_read_by_jq(journal: Path) -> None:
    """The names of all states are one jq filter away."""
    jq = shutil.which("jq")
    if jq is None:
        pytest.skip("jq is not installed")

    command = [jq, "-r", '.records[] | select(.kind == "state").name', str(journal)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert output.split() == ["Running", "Completed"]


def test_torn_last_line_is_dropped(journal: Path, path: Path, flow_run: FlowRun) -> None:
    """A journal cut anywhere in its last line reads as if that append had never begun, and is added to as usual."""
    content = journal.read_bytes()
    start = content.rstrip(b"\n").rindex(b"\n") + 1
    expected = [flow_run, make_task_run(flow_run), make_running(make_task_run(flow_run))]
    for cut in range(start, len(content)):
        journal.write_bytes(content[:cut])
        with closing(JsonStateStore(path)) as store:
            assert list(store.read(flow_run.id)) == expected

            store.append([make_running(flow_run)])

            assert list(store.read(flow_run.id)) == [*expected, make_running(flow_run)]


def test_line_that_is_being_written_is_waited_for(journal: Path, store: JsonStateStore, flow_run: FlowRun) -> None:
    """A writer in the middle of a line holds the journal's lock, and nobody takes the line for a torn one."""
    content = journal.read_bytes()
    journal.write_bytes(content[:-40])
    with journal.open("ab", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        end = threading.Timer(0.3, lambda: (other.write(content[-40:]), fcntl.flock(other, fcntl.LOCK_UN)))
        end.start()

        store.append([make_running(flow_run)])
        end.join()

    assert journal.read_bytes().startswith(content)
    assert len(list(store.read(flow_run.id))) == 5


def test_cutting_off_a_torn_line_is_told(
    journal: Path, store: JsonStateStore, flow_run: FlowRun, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever cuts off a torn line says so in the log."""
    with journal.open("ab") as file:
        file.write(b'{"records":[{"ki')

    store.append([make_running(flow_run)])

    assert str(journal) in caplog.text
    assert b'"ki{' not in journal.read_bytes()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_changed_byte_is_noticed(journal: Path, path: Path, flow_run: FlowRun, number: int) -> None:
    """A line in which a byte is not as it was written is damage, with file and line; nothing is changed."""
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    start = sum(map(len, lines[: number - 1]))
    with closing(JsonStateStore(path)) as store:
        for place in range(start, start + len(lines[number - 1])):
            damaged = bytearray(content)
            damaged[place] ^= 1 << (place % 7)
            journal.write_bytes(damaged)

            with pytest.raises(CorruptStoreError, match=rf"{journal}:{number}\b"):
                list(store.read(flow_run.id))
            assert journal.read_bytes() == damaged


def test_damage_is_noticed_by_all_who_read(journal: Path, path: Path, flow_run: FlowRun) -> None:
    """Nothing is given from a damaged line: neither records nor results nor the state of the flow run."""
    journal.write_bytes(journal.read_bytes().replace(b"orion", b"opion").replace(b"rows", b"tows"))

    with closing(JsonStateStore(path)) as store:
        with pytest.raises(CorruptStoreError, match=rf"{journal}:1: .*doctor --repair"):
            store.list_flow_runs(root_id=flow_run.id)
        with pytest.raises(CorruptStoreError):
            store.load_result(flow_run.id, 1)
        with pytest.raises(CorruptStoreError):
            list(store.read(flow_run.id))
        with pytest.raises(CorruptStoreError):
            store.append([make_running(flow_run)])


@pytest.mark.parametrize("word", [b'"kind":"flow_run"', b'"records"', b'"crc"'])
def test_damaged_run_is_left_out_of_the_list(
    journal: Path, path: Path, flow_run: FlowRun, word: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The healthy flow runs are listed, and one warning names file and line of the damage, whatever it hit."""
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0].replace(word, word.upper()))
    healthy = make_flow_run()

    with closing(JsonStateStore(path)) as store:
        store.append([healthy])
        for _ in range(2):
            assert [summary.flow_run for summary in store.list_flow_runs()] == [healthy]

    assert caplog.text.count(f"{journal}:1: ") == 1


def test_large_result_is_a_file(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """A large result lies beside the journal, byte for byte, and the journal stays small."""
    store.append([flow_run, make_completed(flow_run, 1, result=LARGE)])

    (file,) = (path / flow_run.id / "results").iterdir()
    assert file.read_bytes() == LARGE.data
    assert (path / flow_run.id / "journal.jsonl").stat().st_size < 2000
    assert store.load_result(flow_run.id, 0) == LARGE


def test_changed_result_file_is_noticed(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """A result's file that is not as it was written, or missing, is damage."""
    store.append([flow_run, make_completed(flow_run, 1, result=LARGE)])
    (file,) = (path / flow_run.id / "results").iterdir()

    file.write_bytes(LARGE.data[:-1] + b"x")
    with pytest.raises(CorruptStoreError, match="not as it was written"):
        store.load_result(flow_run.id, 0)
    file.unlink()
    with pytest.raises(CorruptStoreError, match="missing"):
        store.load_result(flow_run.id, 0)


def test_refused_append_leaves_no_result_file(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """The file of a large result goes again when its line cannot be written."""
    store.append([flow_run])
    bad: Any = {1, 2}

    with pytest.raises(TypeError):
        store.append([make_completed(flow_run, 1, result=LARGE), make_running(flow_run, 2, message=bad)])

    assert list((path / flow_run.id / "results").iterdir()) == []


def test_id_that_is_no_name_is_refused(store: JsonStateStore, path: Path) -> None:
    """An id never becomes a path that leads elsewhere."""
    for id in ("", ".", "..", "../run", "a/b", "/run", "Run", "a" * 65, "a\n", "a\x00", "é"):
        with pytest.raises(StoreError, match="no flow run's id"):
            store.append([make_flow_run(id=id)])
        assert list(store.read(id)) == []

    assert sorted(place.name for place in path.iterdir()) == [".gitignore", "store.json"]


def test_subflow_id_that_is_no_name_is_refused(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """A subflow's id does not become a path either."""
    child = make_flow_run(id="../../child", root_id=flow_run.id)

    store.append([flow_run, make_completed(flow_run, 1, result=LARGE)])

    with pytest.raises(StoreError, match="cannot name a file"):
        store.append([child, make_completed(child, 1, result=LARGE)])
    assert not list(path.parent.rglob("*child*"))


def test_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    """A directory with other things in it is not taken for a store."""
    (tmp_path / "main.py").touch()

    with pytest.raises(StoreError, match=r"is no state store: it holds 'main\.py'"):
        JsonStateStore(tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == ["main.py"]


def test_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    """A file is no store."""
    (tmp_path / "runs").touch(mode=0o600)

    with pytest.raises(StoreError, match="not a directory"):
        JsonStateStore(tmp_path / "runs")


def test_newer_format_is_refused(store: JsonStateStore, path: Path) -> None:
    """A store of a later localflow is named as such."""
    (path / "store.json").write_text('{"format": "localflow state store", "version": 9}')

    with pytest.raises(StoreVersionError, match="format version 9, this localflow reads version 2"):
        JsonStateStore(path)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", CorruptStoreError),
        ("{", CorruptStoreError),
        ("[]", CorruptStoreError),
        ('{"format":1,"version":1}', StoreError),
    ],
)
def test_broken_marker_is_refused(store: JsonStateStore, path: Path, content: str, error: type[StoreError]) -> None:
    """A store whose store.json says something else is not guessed at."""
    (path / "store.json").write_text(content)

    with pytest.raises(error, match=r"store\.json"):
        JsonStateStore(path)


def test_directory_without_a_journal_is_passed_by(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """A run whose engine died before its first line is as if it had never been."""
    (path / flow_run.id).mkdir(mode=0o700)

    assert store.list_flow_runs() == []
    assert list(store.read(flow_run.id)) == []
    store.append([flow_run])
    assert list(store.read(flow_run.id)) == [flow_run]


def test_many_flow_runs_need_few_descriptors(store: JsonStateStore) -> None:
    """However many flow runs a process writes to, it keeps some twenty files open."""
    runs = [make_flow_run() for _ in range(60)]
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for run in runs:
        store.append([run])

    assert len(os.listdir("/proc/self/fd")) - before <= 20  # noqa: PTH208
    for run in runs:
        store.append([make_running(run)])
    assert all(summary.change for summary in store.list_flow_runs())


def test_removed_run_does_not_begin_anew(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """A flow run that is removed while its journal is not open is missed at the next append all the same."""
    store.append([flow_run])
    for _ in range(20):
        store.append([make_flow_run()])
    shutil.rmtree(path / flow_run.id)

    with pytest.raises(StoreError, match="removed"):
        store.append([make_running(flow_run)])
    with pytest.raises(StoreError, match="removed"):
        store.append([flow_run._replace(pid=2), make_running(flow_run)])
    assert not (path / flow_run.id).exists()


def test_journal_that_was_cut_is_missed(journal: Path, store: JsonStateStore, flow_run: FlowRun) -> None:
    """A journal that has lost lines since its writer looked is not added to."""
    content = journal.read_bytes().splitlines(keepends=True)[0]
    journal.write_bytes(content)

    with pytest.raises(StoreError, match="removed or replaced"):
        store.append([make_running(flow_run)])
    assert journal.read_bytes() == content


def test_damage_is_listed_by_the_check(journal: Path, store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """Each damaged line and file has a line of its own, and what is only torn has none."""
    task_runs = [make_task_run(flow_run, number) for number in (2, 3)]
    store.append([*task_runs, *(make_completed(task_run, 1, result=LARGE) for task_run in task_runs)])
    store.append([make_log_entry(flow_run, "said")])
    with journal.open("ab") as file:
        file.write(b'{"records":[{"ki')
    assert store.check() == []
    files = sorted((path / flow_run.id / "results").iterdir())
    files[0].unlink()
    files[1].write_bytes(b"x")
    log = journal.with_name("logs.jsonl")
    log.write_bytes(log.read_bytes().replace(b"said", b"sand"))
    journal.write_bytes(journal.read_bytes().replace(b"orion", b"opion").replace(b"rows", b"tows"))

    problems = store.check()

    places = [f"{journal}:1: ", f"{journal}:3: ", f"{files[0]}: ", f"{files[1]}: ", f"{log}:1: "]
    assert [problem.startswith(place) for problem, place in zip(problems, places, strict=True)] == [True] * 5


def test_result_is_found_among_many(store: JsonStateStore, flow_run: FlowRun) -> None:
    """Results are found in any order, whether their line was written in this moment or long ago."""
    tasks = [make_task_run(flow_run, number) for number in range(1, 41)]
    store.append([flow_run, *tasks])
    for start in range(0, 40, 10):
        some = tasks[start : start + 10]
        store.append([make_completed(task, 1, result=Payload("json", b"%d" % task.number)) for task in some])
        for task in reversed(tasks[: start + 10]):
            assert store.load_result(flow_run.id, task.number) == Payload("json", b"%d" % task.number)


def test_long_line_is_looked_through_once(path: Path, flow_run: FlowRun) -> None:
    """Whoever takes up a run of a large map, whose task runs are one line, reads it in time that grows as it does."""
    tasks = [make_task_run(flow_run, number) for number in range(1, 10_001)]
    with closing(JsonStateStore(path)) as store:
        store.append([flow_run, *tasks, *map(make_running, tasks)])

    with closing(JsonStateStore(path)) as store:
        began_at = time.thread_time()
        store.append([make_completed(tasks[0], 2)])
        seconds = time.thread_time() - began_at

    assert seconds < 1.5  # a tenth of it is usual; a look at all of the line for each record takes several seconds
