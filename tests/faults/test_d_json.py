"""D: the JSON store damaged, removed, out of reach and out of space."""

from __future__ import annotations

import ctypes
import json
import os
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from localflow.builtin.json_files import JsonStateStore
from localflow.errors import CorruptStoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.conftest import Place

NOBODY = 65534
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2  # of <linux/prctl.h> and <linux/capability.h>
LARGE = 3  # the number of the task run with a large result

FLOW = """
@task
def load(number):
    note("load", number)
    get_run_logger().info("loading %s", number)
    return number * 2

@task
def large(numbers):
    note("large")
    return bytes(range(256)) * 400

@flow
def main():
    print("begun")
    return len(large.submit([load.submit(number) for number in range(2)]).result())
"""

STORE = ".localflow/runs"


@pytest.fixture(autouse=True)
def json_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the programs use the JSON store."""
    monkeypatch.setenv("LOCALFLOW_STORE", "json")


@pytest.fixture
def recorded(place: Place) -> Path:
    """Run the flow to its end and return the directory of its run."""
    place.write(FLOW)
    assert place.localflow("run", "flows.py").returncode == 0
    (run,) = place.read("runs")
    return place.folder / STORE / str(run["id"])


def everything(run: Path) -> list[object]:
    """Return all that a store tells of a flow run: records, summaries, results, log; damage in the place of each."""
    with closing(JsonStateStore(run.parent)) as store:
        return [
            told(lambda: list(store.read(run.name))),
            told(lambda: store.list_flow_runs(root_id=run.name)),
            told(lambda: [store.load_result(run.name, number) for number in range(LARGE + 1)]),
            told(lambda: list(store.read_logs(run.name))),
        ]


def told(ask: Callable[[], object]) -> object:
    """Return an answer, or CorruptStoreError for damage that is told with file and line."""
    try:
        return ask()
    except CorruptStoreError as error:
        has_place = re.search(r"/(journal|logs)\.jsonl:\d+: .*; run 'localflow doctor --repair'", str(error))
        return CorruptStoreError if has_place else str(error)


def last_lines(file: Path, count: int) -> tuple[bytes, int]:
    """Return what is in a file, and where the last lines begin."""
    content = file.read_bytes()
    return content, sum(map(len, content.splitlines(keepends=True)[:-count]))


@pytest.mark.parametrize("name", ["journal.jsonl", "logs.jsonl"])
def test_fault_D4_every_byte_of_the_last_three_records_flipped(recorded: Path, name: str) -> None:
    """A changed byte is damage that is told with file and line: nobody gets an answer from a line that has one."""
    file = recorded / name
    truth = everything(recorded)
    content, start = last_lines(file, 3)
    for place in range(start, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(damaged)

        if name == "journal.jsonl":
            assert everything(recorded) in ([CorruptStoreError] * 4, [*[CorruptStoreError] * 3, truth[3]])
        else:
            assert everything(recorded) == [*truth[:3], CorruptStoreError]
        assert file.read_bytes() == damaged
    file.write_bytes(content)
    assert everything(recorded) == truth


@pytest.mark.parametrize("name", ["journal.jsonl", "logs.jsonl"])
def test_fault_D4_every_byte_of_the_last_three_records_cut_off(recorded: Path, name: str) -> None:
    """A file cut anywhere tells what it told when its last whole line had just been written, or is damaged."""
    file = recorded / name
    content, start = last_lines(file, 3)
    truths: dict[int, Any] = {}  # by the length of the file: at the end of each of the last lines
    ends = [start]
    for line in content[start:].splitlines(keepends=True):
        ends.append(ends[-1] + len(line))
    for end in ends:
        file.write_bytes(content[:end])
        truths[end] = everything(recorded)
    assert len({repr(truth) for truth in truths.values()}) == 4

    for length in range(start, len(content)):
        file.write_bytes(content[:length])

        assert everything(recorded) == truths[max(end for end in ends if end <= length)], length


def test_fault_D4_every_byte_of_a_result_file(recorded: Path) -> None:
    """A large result that is not as it was written is damage, be it changed, cut or gone."""
    (file,) = (recorded / "results").iterdir()
    content = file.read_bytes()
    with closing(JsonStateStore(recorded.parent)) as store:
        assert store.load_result(recorded.name, LARGE) is not None
        for place in [*range(0, len(content), 499), len(content) - 1]:
            changed = bytearray(content)
            changed[place] ^= 1 << (place % 8)
            for damaged in (bytes(changed), content[:place]):
                file.write_bytes(damaged)
                with pytest.raises(CorruptStoreError, match=f"{file}: .*not as it was written"):
                    store.load_result(recorded.name, LARGE)
        file.unlink()
        with pytest.raises(CorruptStoreError, match=f"{file}: .*is missing"):
            store.load_result(recorded.name, LARGE)


def test_fault_D4_the_healthy_runs_are_listed(place: Place, recorded: Path) -> None:
    """The verbs about other runs go on, with one warning; those about the damaged one end with 3, nothing changed."""
    assert place.localflow("run", "flows.py").returncode == 0
    journal = recorded / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    damaged = b"".join([lines[0], lines[1].replace(b"kind", b"kinb", 1), *lines[2:]])
    journal.write_bytes(damaged)

    listed = place.localflow("runs", "--json")
    assert listed.returncode == 0
    (healthy,) = json.loads(listed.stdout)
    assert healthy["id"] != recorded.name
    assert listed.stderr.count(f"{journal}:2: ") == 1

    for verb in ("show", "logs", "cancel", "resume"):
        done = place.localflow(verb, recorded.name)
        assert done.returncode == 3, verb
        assert f"error: {journal}:2: " in done.stderr
        assert "run 'localflow doctor --repair'" in done.stderr
    assert journal.read_bytes() == damaged


@pytest.mark.parametrize("arrival", [3, 6, 9])
def test_fault_D4_torn_tail_is_dropped_and_the_run_goes_on(place: Place, arrival: int) -> None:
    """An engine killed in the middle of a line leaves a torn tail: cut off with one warning by who goes on with it."""
    place.write(FLOW)
    killed = place.localflow("run", "flows.py", LOCALFLOW_FAILPOINT=f"mid-line:{arrival}")
    assert killed.returncode == -9
    before = place.notes

    (run,) = place.read("runs")
    resumed = place.localflow("resume", "@last")

    assert (run["state"]["type"], run["state"]["name"]) == ("CRASHED", "EngineLost")
    assert resumed.returncode == 0, resumed.stderr
    assert {state for state, _ in place.states().values()} == {"COMPLETED"}
    assert set(place.notes) == {"load 0", "load 1", "large"}
    assert len(place.notes) <= len(before) + 3
    with closing(JsonStateStore(place.folder / STORE)) as store:
        assert store.check() == []


# -- gone, or out of reach -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removed", [".localflow", STORE, f"{STORE}/*"])
def test_fault_D5_store_deleted_during_the_run(place: Place, removed: str) -> None:
    """The run stops at the next commit with exit code 3, no further task runs, and no new store appears."""
    place.write(
        FLOW
        + f"""
@task
def remove():
    subprocess.run("rm -rf {removed}", shell=True, check=True)

@flow
def careless():
    load.submit(0)
    remove.submit()
    load.submit(1)
    note("not reached")
"""
    )

    done = place.localflow("run", "flows.py:careless")

    assert done.returncode == 3
    assert "was removed or replaced while it was in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert place.notes == ["load 0"]
    assert not [*(place.folder / ".localflow").rglob("journal.jsonl")]


def test_fault_D5_empty_marker_of_a_store_is_damage(place: Place, recorded: Path) -> None:
    """A store.json of no bytes is not taken for a new store."""
    marker = recorded.parent / "store.json"
    marker.write_bytes(b"")
    before = place.notes

    done = place.localflow("run", "flows.py")

    assert done.returncode == 3
    assert f"error: {marker}: " in done.stderr
    assert (marker.read_bytes(), place.notes) == (b"", before)


def test_fault_D2_file_in_place_of_the_store(place: Place) -> None:
    """A file where the state directory should be is an error of every verb, not an empty history."""
    place.write(FLOW)
    (place.folder / ".localflow").touch()

    for verb in (["run", "flows.py"], ["runs"], ["show", "@last"]):
        done = place.localflow(*verb)
        assert done.returncode == 3, verb
        assert f"state store {place.folder / STORE} cannot be used: Not a directory" in done.stderr
    assert place.notes == []


@pytest.mark.parametrize("mode", ["read-only", "unreachable", "of others"])
def test_fault_D2_store_without_permission(place: Place, recorded: Path, mode: str) -> None:
    """Without the right to write it is told before any task runs: path and cause, exit code 3."""
    before = place.notes
    store = recorded.parent
    if mode == "of others":
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(store, NOBODY, NOBODY)
    store.chmod({"read-only": 0o500, "unreachable": 0o000, "of others": 0o700}[mode])

    done = place.start("-m", "localflow", "run", "flows.py", before=without_the_rights_of_root).wait()

    store.chmod(0o700)
    assert done.returncode == 3, done.stderr
    assert str(store) in done.stderr
    assert "Traceback" not in done.stderr
    assert place.notes == before


def without_the_rights_of_root() -> None:
    """Have the modes of files hold for this process, as for any user, even if it is root's."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


# -- out of space ------------------------------------------------------------------------------------------------------


SHORT_OF_SPACE = """
import glob, resource

def journal():
    found, = glob.glob(".localflow/runs/*/journal.jsonl")
    return found

@task
def count(number):
    note("count", number)
    if number == 5 and not os.path.exists("space"):
        limit = os.path.getsize(journal()) + 700
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    return number

@flow
def main():
    return sum(count.submit(number).result() for number in range(20))
"""


def test_fault_D1_no_space_for_the_journal(place: Place) -> None:
    """A journal that cannot grow ends the run with 3; what is shown is stored, and with space the run goes on."""
    place.write(SHORT_OF_SPACE)

    done = place.localflow("run", "flows.py")

    assert done.returncode == 3
    assert "state store" in done.stderr
    assert "Traceback" not in done.stderr
    (journal,) = (place.folder / STORE).glob("*/journal.jsonl")
    content = journal.read_bytes()
    assert content.endswith(b"\n")
    ran = place.notes
    assert len(ran) < 20
    shown = {line.split("'")[1] for line in done.stderr.splitlines() if "Completed" in line and "'count-" in line}
    stored = {name for name, state in place.states().items() if state == ("COMPLETED", "Completed")}
    assert shown <= stored
    assert len(stored) >= 5

    (place.folder / "space").touch()
    resumed = place.localflow("resume", "@last")

    assert resumed.returncode == 0, resumed.stderr
    assert journal.read_bytes().startswith(content)
    again = place.notes[len(ran) :]
    assert not {f"count-{note.split()[1]}" for note in again} & stored
    assert {f"count {number}" for number in range(20)} == set(place.notes)
