"""Stores in several processes: at once, killed at any instant, forked, and short of space."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from localflow.interfaces import LogEntry, StateChange, TaskRun
from localflow.testing.store_records import make_flow_run, make_running, make_task_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localflow.interfaces import StateStore

    OpenStore = Callable[[], StateStore]
    Start = Callable[..., subprocess.Popen[str]]
    Run = Callable[..., list[str]]

WRITER = """
say("ready")
sys.stdin.readline()
store, name = open_store(), sys.argv[3]
flow_run = make_flow_run(id=name)
store.append([flow_run, make_running(flow_run)])
for number in range(1, 101):
    task_run = make_task_run(flow_run, number)
    store.append([task_run, make_running(task_run)])
    store.append([make_completed(task_run)])
store.append([make_completed(flow_run)])
store.close()
"""

SHARED_WRITER = """
store, number = open_store(), int(sys.argv[4])
flow_run = make_flow_run(id=sys.argv[3])
say("ready")
sys.stdin.readline()
for sequence in range(1, 101):
    store.append([make_running(make_task_run(flow_run, number), sequence)])
    if sequence % 2:
        store.close()
        store = open_store()
store.close()
"""

LOGGER = """
store, number = open_store(), int(sys.argv[4])
task_run = make_task_run(make_flow_run(id=sys.argv[3]), number)
say("ready")
sys.stdin.readline()
for sequence in range(1, 101):
    said = [make_log_entry(task_run, f"{sequence} {part}") for part in "ab"]
    cache = CacheEntry(f"{number}-{sequence}" if sequence % 2 else "shared")
    result = Payload("json", b"%d" % number * 3000)
    store.append([*said, make_completed(task_run, sequence, result=result, cache=cache)] if sequence % 3 else said)
store.close()
"""

VICTIM = """
store = open_store()
flow_run = make_flow_run(id=sys.argv[3])
claim = store.claim(flow_run.id)
store.append([flow_run])
for number in range(1, 1000000):
    task_run = make_task_run(flow_run, number)
    size = 100_000 if number % 7 == 0 else number % 5 * 300
    completed = make_completed(task_run, result=Payload("pickle", b"r" * size), cache=CacheEntry(str(number % 3)))
    batch = [task_run, make_log_entry(task_run, str(number)), make_running(task_run), completed]
    store.append(batch)
    os.write(1, b"%d\\n" % number)
"""

FORKED = """
kind = sys.argv[1]
store = MemoryStateStore() if kind == "memory" else open_store()
flow_run = make_flow_run()
store.append([flow_run])
child = os.fork()
if child == 0:
    for use in (lambda: store.append([make_running(flow_run)]), lambda: list(store.read(flow_run.id)),
                store.list_flow_runs, lambda: store.load_result(flow_run.id, 0),
                lambda: store.find_cached("key", 0.0), lambda: list(store.read_logs(flow_run.id))):
        try:
            use()
            say("used")
        except StoreError as error:
            say("forked" in str(error))
    store.close()
    os._exit(0)
os.waitpid(child, 0)
store.append([make_running(flow_run)])
say(len(list(store.read(flow_run.id))))
store.close()
"""

SHORT_OF_SPACE = """
store = open_store()
flow_run = make_flow_run()
store.append([flow_run])
grows = sys.argv[2] + ("-wal" if sys.argv[1] == "sqlite" else f"/{flow_run.id}/journal.jsonl")
limit = os.path.getsize(grows)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit + 20_000, resource.RLIM_INFINITY))
kept = 0
while True:
    batch = [make_log_entry(flow_run, str(kept)), make_running(flow_run, kept + 1, message="m" * 3000)]
    try:
        store.append(batch)
    except StoreError as error:
        say(sys.argv[2] in str(error))
        break
    kept += 1
say(kept > 0 and [change.sequence for change in changes_of(list(store.read(flow_run.id)))] == list(range(1, kept + 1)))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.append(batch)
say(len(list(store.read(flow_run.id))) == kept + 2)
say([entry.message for _, entry in store.read_logs(flow_run.id)] == [str(number) for number in range(kept + 1)])
store.close()
"""


LARGE_RESULT_SHORT_OF_SPACE = """
store = open_store()
flow_run = make_flow_run()
store.append([flow_run])
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
large = make_completed(flow_run, 1, result=Payload("pickle", bytes(1_000_000)))
try:
    store.append([large])
except StoreError as error:
    say(sys.argv[2] in str(error))
say(sum(len(names) for _, _, names in os.walk(sys.argv[2])))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.append([large])
say(store.load_result(flow_run.id, 0) == large.result)
store.close()
"""

FULL_DISK = """
store = open_store()
flow_run = make_flow_run()
store.append([flow_run])
with open(sys.argv[3], "wb") as ballast:
    ballast.write(bytes(80_000))
kept = 0
while True:
    try:
        store.append([make_running(flow_run, kept + 1, message="m" * 3000)])
    except StoreError as error:
        say("is full:" in str(error) and "bytes are free" in str(error))
        break
    kept += 1
say(kept > 0 and [change.sequence for change in changes_of(list(store.read(flow_run.id)))] == list(range(1, kept + 1)))
os.unlink(sys.argv[3])
store.append([make_running(flow_run, kept + 1)])
say(len(list(store.read(flow_run.id))) == kept + 2)
store.close()
"""

OPENING = """
try:
    open_store()
except StoreError as error:
    say(sys.argv[2] in str(error) and "cannot be" in str(error))
"""


def release(processes: list[subprocess.Popen[str]]) -> None:
    """Let processes go on together that have said they are ready, and wait for their good end."""
    get_ready(processes)
    see_end(processes)


def get_ready(processes: list[subprocess.Popen[str]]) -> None:
    """Let processes go on together that have said they are ready."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def see_end(processes: list[subprocess.Popen[str]]) -> None:
    """Wait for the good end of processes."""
    for process in processes:
        _, errors = process.communicate(timeout=40)
        assert errors == ""
        assert process.returncode == 0


def test_processes_make_and_write_one_store_at_once(open_store: OpenStore, kind: str, path: Path, start: Start) -> None:
    """Several engines make the same store in the same moment and write to it; nothing is locked, lost or doubled."""
    names = [f"run-{number}" for number in range(4)]

    release([start(WRITER, kind, path, name) for name in names])

    store = open_store()
    assert sorted(summary.flow_run.id for summary in store.list_flow_runs()) == names
    for name in names:
        records = list(store.read(name))
        assert len(records) == 1 + 100 + 2 + 200
        assert [record.number for record in records if isinstance(record, TaskRun)] == list(range(1, 101))
        assert all(store.load_result(name, number) for number in range(101))


def test_processes_write_one_flow_run_at_once(open_store: OpenStore, kind: str, path: Path, start: Start) -> None:
    """Several processes add to one flow run, each sees what others have added, and no record is torn."""
    flow_run = make_flow_run()
    store = open_store()
    store.append([flow_run, *(make_task_run(flow_run, number) for number in (1, 2, 3))])

    release([start(SHARED_WRITER, kind, path, flow_run.id, number) for number in (1, 2, 3)])

    changes = [record for record in store.read(flow_run.id) if isinstance(record, StateChange)]
    for number in (1, 2, 3):
        assert [change.sequence for change in changes if change.run.number == number] == list(range(1, 101))


def test_processes_log_and_cache_at_once(open_store: OpenStore, kind: str, path: Path, start: Start) -> None:
    """Several processes add to one log and to one cache: nothing is lost, and a key they share has a whole result."""
    flow_run = make_flow_run()
    tasks = [make_task_run(flow_run, number) for number in (1, 2, 3)]
    store = open_store()
    store.append([flow_run, *tasks])
    told: list[tuple[int, LogEntry]] = []

    writers = [start(LOGGER, kind, path, flow_run.id, number) for number in (1, 2, 3)]
    get_ready(writers)
    while any(writer.poll() is None for writer in writers):
        told += store.read_logs(flow_run.id, told[-1][0] if told else 0)
        shared = store.find_cached("shared", 0.0)
        assert shared is None or shared.result.data == shared.task_run_id[-1:].encode() * 3000
    see_end(writers)
    told += store.read_logs(flow_run.id, told[-1][0] if told else 0)

    assert [position for position, _ in told] == list(range(1, 601))
    for task_run in tasks:
        said = [entry.message for _, entry in told if entry.run == task_run]
        assert said == [f"{sequence} {part}" for sequence in range(1, 101) for part in "ab"]
        for sequence in range(1, 101, 2):
            found = store.find_cached(f"{task_run.number}-{sequence}", 0.0)
            assert (found is None) == (sequence % 3 == 0)
            assert found is None or found.result.data == b"%d" % task_run.number * 3000
    assert store.find_cached("shared", 0.0) is not None


def test_nothing_acknowledged_is_lost_by_kill_9(open_store: OpenStore, kind: str, path: Path, start: Start) -> None:
    """A writer killed at any instant leaves a store that opens at once with every acknowledged batch, whole."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for attempt in range(25):
        name = f"victim-{attempt}"
        victim = start(VICTIM, kind, path, name)
        assert victim.stdout is not None
        assert victim.stdout.readline() == "1\n"
        time.sleep(chance.uniform(0, 0.02))  # not to wait for anything: the instant of death
        victim.send_signal(signal.SIGKILL)
        acknowledged = 1 + victim.stdout.read().count("\n")

        store = open_store()
        numbers = [record.number for record in store.read(name) if isinstance(record, TaskRun)]
        changes = [record for record in store.read(name) if isinstance(record, StateChange)]
        assert acknowledged <= len(numbers) <= acknowledged + 1, f"seed {seed}"
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(changes) == 2 * len(numbers)
        assert all(store.load_result(name, number) for number in numbers)
        assert [entry.message for _, entry in store.read_logs(name)] == [str(number) for number in numbers]
        for key in "012":
            found = store.find_cached(key, 0.0)
            assert found is None or set(found.result.data) <= set(b"r")
        store.append([make_running(make_flow_run(id=name))])
        store.close()


@pytest.mark.parametrize("kind", ["sqlite", "json", "memory"])
def test_forked_child_may_not_use_the_store(kind: str, tmp_path: Path, run: Run) -> None:
    """A child made by fork is refused, and its parent goes on undisturbed."""
    output = run(FORKED, kind, tmp_path / "state" / "store")

    assert output == ["True"] * 6 + ["2"]


def test_file_that_cannot_grow_is_an_error(kind: str, path: Path, run: Run) -> None:
    """When writing fails in the middle, nothing of the batch stays, and the store goes on once there is room again."""
    output = run(SHORT_OF_SPACE, kind, path)

    assert output == ["True", "True", "True", "True"]


def test_result_that_cannot_be_written_leaves_nothing(kind: str, path: Path, run: Run) -> None:
    """A large result for which there is no room leaves no file behind, and can be appended again."""
    output = run(LARGE_RESULT_SHORT_OF_SPACE, kind, path)

    files = {"sqlite": "0", "json": "3"}  # below the path: none, or store.json, the journal and that it is unfinished
    assert output == ["True", files[kind], "True"]


def test_full_disk_is_an_error(kind: str, tmp_path: Path, run: Run) -> None:
    """A full disk is named as such, and the store goes on once there is room again."""
    mount = in_own_mounts('mount -t tmpfs -o size=300k tmpfs "$0"', tmp_path)

    output = run(FULL_DISK, kind, tmp_path / "state" / "store", tmp_path / "ballast", under=mount)

    assert output == ["True", "True", "True"]


def test_read_only_file_system_is_an_error(open_store: OpenStore, kind: str, path: Path, run: Run) -> None:
    """A store that cannot be written is noticed when it is opened, before any task runs."""
    open_store().close()
    mount = in_own_mounts('mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"', path.parent)

    output = run(OPENING, kind, path, under=mount)

    assert output == ["True"]


def in_own_mounts(script: str, place: Path) -> list[str]:
    """Return the command that runs another where `script` has mounted something at `place`, seen by nobody else."""
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{script} && exec "$@"', str(place)]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this system does not let us mount anything")
    return command
