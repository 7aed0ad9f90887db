"""Large values: written once, mapped by every process, and gone when nobody needs them."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from array import array
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from localflow import ProcessExecutor, SequentialExecutor, ThreadExecutor, flow, task
from localflow.large_values import DRAFT, LARGE_BYTES
from localflow.payloads import unpack
from localflow.project import Project

if TYPE_CHECKING:
    from localflow import State
    from tests.faults.conftest import Place

SIZE = 4 << 20


@dataclass
class Box:
    """Something that holds a large value."""

    content: Any


@task
def total(values: Any) -> float:
    """Return the sum of an array."""
    return float(values.sum())


def value_files() -> list[Path]:
    """Return the files of large values that there are."""
    return [path for path in Path(".localflow").rglob("*") if path.is_file() and path.stat().st_size >= LARGE_BYTES]


def returned(state: State) -> Any:
    """Return the result of a flow run that must have completed."""
    assert state.is_completed(), state.result()
    return state.result()


def test_a_large_result_is_one_file_that_every_reader_maps(store: str) -> None:
    """Eight tasks that read a result read one file, through read-only views."""
    numpy = pytest.importorskip("numpy")

    @task
    def make() -> Any:
        return numpy.arange(SIZE // 8, dtype="f8")

    @task
    def look(values: Any) -> tuple[float, bool]:
        return float(values.sum()), values.flags.writeable

    @flow(executor=ProcessExecutor(workers=2))
    def main() -> Any:
        made = make()
        return [future.result() for future in [look(made) for _ in range(8)]], made.result().sum()

    looks, total = returned(main())

    assert looks == [(total, False)] * 8
    assert [path.suffix for path in value_files()] == [""]
    assert value_files()[0].stat().st_mode & 0o777 == 0o600
    assert value_files()[0].parent.stat().st_mode & 0o777 == 0o700


def test_a_change_in_place_of_a_shared_array_is_an_error() -> None:
    """What other tasks read cannot be changed; a copy can."""
    numpy = pytest.importorskip("numpy")

    @task
    def change(values: Any) -> None:
        values[0] = 1

    @task
    def change_copy(values: Any) -> float:
        copy = values.copy()
        copy[0] = 1
        return float(copy[0])

    @flow(executor=ProcessExecutor(workers=1))
    def main() -> Any:
        zeros = numpy.zeros(SIZE // 8)
        return str(change(zeros).wait().message), change_copy(zeros).result()

    message, changed = returned(main())

    assert "ValueError: assignment destination is read-only" in message
    assert changed == 1


@pytest.mark.parametrize(
    "value",
    [bytes(SIZE), bytearray(SIZE), array("d", bytes(SIZE)), "x" * SIZE, [bytes(SIZE)], {"a": [Box(bytearray(SIZE))]}],
    ids=["bytes", "bytearray", "array", "str", "list", "nested"],
)
def test_any_large_value_goes_both_ways(value: Any) -> None:
    """Values without buffers of their own arrive as they were, as arguments, as results and between tasks."""

    @task
    def give_back(value: Any) -> Any:
        return value

    @flow(executor=ProcessExecutor(workers=1))
    def main() -> Any:
        return give_back(give_back(value)).result()

    found = returned(main())

    assert type(found) is type(value)
    assert found == value


def test_a_cached_result_outlives_the_run_that_made_it(place: Place, store: str) -> None:
    """Each run that is answered from the cache has a large result as its own."""
    place.write("""
@task(cache_policy=INPUTS)
def make(size):
    note("made")
    return bytes(size)

@flow(executor="process")
def main():
    made = make(8 << 20)
    note(len(made.result()))
    return made
""")
    assert [place.localflow("run", "flows.py").returncode for _ in range(2)] == [0, 0]
    oldest = place.read("runs")[-1]["id"]

    assert place.localflow("clean", oldest).returncode == 0

    assert place.localflow("run", "flows.py").returncode == 0
    assert place.localflow("doctor").returncode == 0
    assert place.notes.count("made") <= 2
    assert place.notes.count(str(8 << 20)) == 3


def test_what_is_one_object_in_the_engine_is_one_in_the_worker() -> None:
    """An array that is there twice in the arguments is one array in the task."""
    numpy = pytest.importorskip("numpy")

    @task
    def is_same(first: Any, box: Any) -> bool:
        return first is box["it"]

    @flow(executor=ProcessExecutor(workers=1))
    def main() -> Any:
        values = numpy.zeros(SIZE // 8)
        return is_same(values, {"it": values}).result()

    assert returned(main()) is True


@pytest.mark.parametrize(
    "make",
    [
        lambda: pytest.importorskip("numpy").zeros(SIZE // 8),
        lambda: pytest.importorskip("numpy").zeros((1024, SIZE // 8192)).T,
        lambda: pytest.importorskip("numpy").zeros(SIZE // 4)[SIZE // 8 :],
        lambda: bytes(SIZE),
    ],
    ids=["array", "transposed", "slice", "bytes"],
)
def test_an_argument_of_many_calls_is_written_once(make: Any) -> None:
    """While a hundred calls have the same argument there is one file of it, and none when they have ended."""
    value = make()

    @task
    def count_files(value: Any, folder: str, number: int) -> int:
        return len([*Path(folder).rglob(f"*{DRAFT}")])

    @flow(executor=ProcessExecutor(workers=2))
    def main() -> Any:
        folder = str(Path(".localflow").absolute())
        return [future.result() for future in [count_files(value, folder, n) for n in range(100)]]

    assert returned(main()) == [1] * 100
    assert value_files() == []


def test_the_file_of_an_argument_goes_when_nobody_can_pass_it_again() -> None:
    """A flow that makes one array after the other needs room for one, not for all."""
    numpy = pytest.importorskip("numpy")

    @flow(executor=ProcessExecutor(workers=1))
    def main() -> Any:
        counts = []
        for number in range(5):
            assert total(numpy.full(SIZE // 8, number)).result() == number * SIZE // 8
            counts.append(len([*Path(".localflow").rglob(f"*{DRAFT}")]))
        return counts

    assert max(returned(main())) <= 2


def test_files_that_no_call_needs_do_not_fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for an argument, files that were kept for calls to come go first."""
    write = os.write

    def write_if_there_is_room(descriptor: int, data: Any) -> int:
        if memoryview(data).nbytes >= SIZE and len([*Path(".localflow").rglob(f"*{DRAFT}")]) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    @task
    def size(value: bytes) -> int:
        return len(value)

    @flow(executor=ProcessExecutor(workers=1))
    def main() -> Any:
        sizes = [size(bytes(SIZE)).result()]
        monkeypatch.setattr(os, "write", write_if_there_is_room)
        return [*sizes, size(bytes(SIZE + 1)).result()]

    assert returned(main()) == [SIZE, SIZE + 1]


@pytest.mark.parametrize("make", [lambda: bytes(SIZE), lambda: [bytes(SIZE)]], ids=["bytes", "list"])
def test_bytes_that_are_passed_twice_are_there_once(make: Any) -> None:
    """An argument that a call has twice takes memory once."""

    @task
    def is_same(first: Any, second: Any) -> bool:
        return first is second

    @flow(executor=ProcessExecutor(workers=1))
    def main() -> Any:
        value = make()
        return is_same(value, second=value).result()

    assert returned(main()) is True


def test_the_umask_of_a_task_leaves_its_owner_the_result() -> None:
    """The file of a result can be read again, whatever rights a task takes away from new files."""

    @task
    def make() -> bytes:
        os.umask(0o777)
        return bytes(SIZE)

    @flow(executor=ProcessExecutor(workers=1))
    def main() -> Any:
        return make()

    assert len(returned(main())) == SIZE
    assert [file.stat().st_mode & 0o777 for file in value_files()] == [0o600]


def test_parts_of_an_array_are_told_apart_whatever_their_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts of one array are two values."""
    numpy = pytest.importorskip("numpy")
    monkeypatch.setattr("localflow.large_values.crc32", lambda *_: 0)

    @task
    def first(values: Any) -> float:
        return float(values[0])

    @flow(executor=ProcessExecutor(workers=1))
    def main() -> Any:
        values = numpy.arange(SIZE // 4, dtype="f8")
        return first(values[: SIZE // 8]).result(), first(values[SIZE // 8 :]).result()

    assert returned(main()) == (0, SIZE // 8)


def test_an_array_that_was_changed_between_two_calls_is_written_again() -> None:
    """Each call sees the array as it was when it was handed over."""
    numpy = pytest.importorskip("numpy")

    @flow(executor=ProcessExecutor(workers=1))
    def main() -> Any:
        values = numpy.zeros(SIZE // 8)
        before = total(values).result()
        values[7] = 1
        return before, total(values).result()

    assert returned(main()) == (0, 1)


def test_a_result_that_is_not_kept_can_be_asked_for_after_the_run_and_leaves_no_file() -> None:
    """With persist_result=False the file goes with the run; who holds the future has the value all the same."""
    held = []

    @task(persist_result=False)
    def make() -> bytes:
        return bytes(SIZE)

    @flow(executor=ProcessExecutor(workers=1))
    def main() -> None:
        held.append(make())

    assert main().is_completed()

    assert value_files() == []
    assert held[0].result() == bytes(SIZE)


def test_a_result_that_is_not_kept_goes_into_another_run() -> None:
    """The state of an ended run passes its value on, to tasks and into the store, when its file has gone."""

    @task(persist_result=False)
    def make() -> bytes:
        return bytes(SIZE)

    @task
    def measure(value: bytes) -> int:
        return len(value)

    @flow(executor=ProcessExecutor(workers=1))
    def first() -> Any:
        return make()

    @flow(executor=ProcessExecutor(workers=1))
    def second(state: State) -> Any:
        return measure(state), measure([state, state])

    state = first()

    assert returned(second(state)) == (SIZE, 2)


@pytest.mark.parametrize("executor", [SequentialExecutor(), ThreadExecutor(workers=1)])
def test_executors_that_share_memory_pass_the_very_object(executor: Any) -> None:
    """Nothing is written or copied where tasks and the engine are one process."""
    value = bytearray(SIZE)

    @task(persist_result=False)
    def identity(value: Any) -> Any:
        return value

    @flow(executor=executor)
    def main() -> Any:
        return identity(identity(value)).result() is value

    assert returned(main()) is True
    assert value_files() == []


IN_PROCESS = [SequentialExecutor(), ThreadExecutor(workers=1)]


@pytest.mark.parametrize("executor", IN_PROCESS)
def test_what_a_task_and_its_flow_return_in_the_engines_process_is_in_files(executor: Any) -> None:
    """The database has what tells of them; who asks another time maps them."""

    @task
    def make() -> bytes:
        return bytes(SIZE)

    @flow(executor=executor)
    def main() -> Any:
        return make().result() + b"!"

    returned(main())

    files = sorted(value_files(), key=lambda path: path.stat().st_size)
    assert [path.parent.parent.name for path in files] == ["localflow.db-values"] * 2
    assert [path.stat().st_size // SIZE for path in files] == [1, 1]
    with closing(Project.load().open_store()) as store:
        [run] = store.list_flow_runs()
        kept = [store.load_result(run.flow_run.id, number) for number in (0, 1)]
    assert [unpack(payload) for payload in kept if payload is not None] == [bytes(SIZE) + b"!", bytes(SIZE)]


@pytest.mark.parametrize("executor", IN_PROCESS)
def test_where_no_file_can_be_written_a_result_of_the_engines_process_is_stored_all_the_same(executor: Any) -> None:
    """Its task has done its work, and the store may have room for it."""

    @task
    def make() -> bytes:
        shutil.rmtree(".localflow/localflow.db-values", ignore_errors=True)
        Path(".localflow/localflow.db-values").write_bytes(b"in the way")
        return bytes(SIZE)

    @flow(executor=executor)
    def main() -> int:
        return len(make().result())

    assert returned(main()) == SIZE


FLOWS = """
SIZE = 8 << 20

@task
def make():
    note("made")
    return bytes(SIZE)

@task
def measure(data):
    note("measured", len(data))
    if os.path.exists("fail"):
        raise ValueError("told to")
    return len(data)

@flow(executor="process")
def main():
    return measure(make())
"""


def files_of(place: Place) -> list[Path]:
    """Return the files of large values in the folder of programs."""
    return [path for path in place.folder.rglob("*") if path.is_file() and path.stat().st_size >= 1 << 20]


def test_a_resumed_run_is_answered_from_the_file(place: Place, store: str) -> None:
    """A large result of an earlier attempt is read by the next one from where it is."""
    place.write(FLOWS)
    (place.folder / "fail").touch()
    assert place.localflow("run", "flows.py").returncode == 1
    (place.folder / "fail").unlink()

    done = place.localflow("resume", "@last")

    assert done.returncode == 0, done.stderr
    assert place.notes == ["made", f"measured {8 << 20}", f"measured {8 << 20}"]
    assert len(files_of(place)) == 1


@pytest.mark.parametrize("arguments", [("--results",), ()], ids=["results", "runs"])
def test_clean_removes_the_files(place: Place, store: str, arguments: tuple[str, ...]) -> None:
    """Files of large results go with their runs, and with the results alone."""
    place.write(FLOWS)
    assert place.localflow("run", "flows.py").returncode == 0
    assert len(files_of(place)) == 1

    done = place.localflow("clean", "--keep-last", "0", *arguments)

    assert done.returncode == 0, done.stderr
    assert files_of(place) == []


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_doctor_tells_of_a_damaged_file(place: Place, store: str, damage: str) -> None:
    """A file that is not as it was written is found by whoever looks at everything."""
    place.write(FLOWS)
    assert place.localflow("run", "flows.py").returncode == 0
    assert place.localflow("doctor").returncode == 0
    [path] = files_of(place)
    if damage == "cut":
        os.truncate(path, 5 << 20)
    elif damage == "gone":
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.seek(5 << 20)
            file.write(b"x")

    done = place.localflow("doctor")

    assert done.returncode == 3
    assert path.name in done.stdout + done.stderr


def test_a_worker_that_dies_in_the_middle_of_a_file_leaves_nothing(place: Place, store: str) -> None:
    """Its task is CRASHED; half a file is no value, and goes with the run."""
    place.write(FLOWS)

    done = place.localflow("run", "flows.py", LOCALFLOW_FAILPOINT="large-value-written:1")

    assert done.returncode == 1
    assert place.states()["make-0"][0] == "CRASHED"
    assert list(place.folder.rglob(f"*{DRAFT}")) == []
    assert files_of(place) == []


@pytest.mark.parametrize("moment", ["outcome-read:1", "value-kept:1"])
def test_an_engine_that_dies_before_it_has_recorded_a_value_leaves_nothing_for_long(
    place: Place, store: str, moment: str
) -> None:
    """What no record names is gone when the run is found to be dead; the task runs again."""
    place.write(FLOWS)
    assert place.localflow("run", "flows.py", LOCALFLOW_FAILPOINT=moment).returncode < 0

    done = place.localflow("resume", "@last")

    assert done.returncode == 0, done.stderr
    assert place.notes.count("made") == 2
    assert len(files_of(place)) == 1


def test_a_file_that_grows_too_large_fails_its_task(place: Place) -> None:
    """A full disk, or a limit, is told with the path and what is needed; others go on."""
    place.write(
        FLOWS
        + """
@task
def other():
    return 1

@flow(executor="process")
def limited():
    return make(), other()
"""
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))

    done = place.start("-m", "localflow", "run", "flows.py:limited", before=limit).wait()

    found = {each["name"]: each for each in place.task_runs()}
    assert done.returncode == 1
    assert "File too large" in found["make-0"]["state"]["message"]
    assert "bytes are needed" in found["make-0"]["state"]["message"]
    assert "return what it is made from" not in found["make-0"]["state"]["message"]
    assert found["other-0"]["state"]["type"] == "COMPLETED"
    assert [*place.folder.rglob(f"*{DRAFT}")] == []


def test_the_engine_keeps_no_copy_of_a_large_value(place: Place) -> None:
    """A value of 200 MB that tasks hand to each other takes no memory of the engine."""
    pytest.importorskip("numpy")
    place.write("""
import resource

@task
def make():
    import numpy
    return numpy.ones(25_000_000)

@task
def total(values):
    return float(values.sum())

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

@flow(executor="process")
def main():
    before = peak()
    made = make()
    results = [future.result() for future in [total(made) for _ in range(8)]]
    note("grown", (peak() - before) // 1024, results == [25_000_000.0] * 8)
""")

    done = place.localflow("run", "flows.py")

    assert done.returncode == 0, done.stderr
    _, grown, right = place.notes[0].split()
    assert int(grown) < 20
    assert right == "True"
