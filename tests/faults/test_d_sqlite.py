"""D: the SQLite store damaged, removed, out of reach, out of space, of other versions, and locked by others."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import cloudpickle
import pytest

from localflow.builtin.sqlite import SqliteStateStore
from localflow.builtin.storage import database
from localflow.errors import CorruptStoreError, StoreError
from localflow.interfaces import CacheEntry, Payload, StateChange
from localflow.testing.store_records import make_completed, make_flow_run, make_log_entry, make_running, make_task_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from localflow.interfaces import Record
    from tests.faults.conftest import Place

NOBODY = 65534
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2  # of <linux/prctl.h> and <linux/capability.h>
STORE = ".localflow/localflow.db"
GOLDEN = Path(__file__).parent.parent / "stores" / "golden" / "sqlite-version-1.sql"

FLOW = """
@task
def load(number):
    note("load", number)
    return number * 2

@flow
def main():
    return sum(load.submit(number).result() for number in range(3))
"""


def assert_refused(place: Place, *said: str) -> None:
    """Assert that a run ends with 3 before any task runs, with these words and no traceback."""
    before = place.notes

    done = place.localflow("run", "flows.py")

    assert done.returncode == 3, done.stderr
    for words in (*said, str(place.folder / STORE)):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert place.notes == before


# -- out of space ------------------------------------------------------------------------------------------------------

SHORT_OF_SPACE = """
import resource

@task
def count(number):
    note("count", number)
    if number == 5 and not os.path.exists("space"):
        limit = os.path.getsize(".localflow/localflow.db-wal") + 5000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    time.sleep(0.02)
    return number

@flow
def main():
    return sum(count.submit(number).result() for number in range(20))
"""

FULL_DISK = """
@task
def count(number):
    note("count", number)
    if number == 5 and not os.path.exists("space"):
        free = os.statvfs(".localflow").f_bavail * os.statvfs(".localflow").f_frsize
        with open(".localflow/ballast", "wb") as ballast:
            ballast.write(bytes(max(free - 12_000, 0)))
    return number

@flow
def main():
    return sum(count.submit(number).result() for number in range(20))
"""


def assert_goes_on(place: Place, first: tuple[int, str], resume: Callable[[], tuple[int, str]]) -> None:
    """Assert that a run that met no space has ended with 3, has shown what is stored, and ends well with space."""
    code, told = first
    assert code == 3, told
    assert "Traceback" not in told
    assert "bytes are free there" in told
    ran = place.notes
    assert 6 <= len(ran) < 20
    shown = {line.split("'")[1] for line in told.splitlines() if "Completed" in line and "'count-" in line}

    (place.folder / "space").touch()
    code, told = resume()

    assert code == 0, told
    again = {f"count-{note.split()[1]}" for note in place.notes[len(ran) :]}
    assert not shown & again
    assert {f"count {number}" for number in range(20)} == set(place.notes)


def test_fault_D1_file_that_may_not_grow(place: Place) -> None:
    """Without room for a commit the run ends with 3; what is shown is stored, and with room `resume` ends it."""
    place.write(SHORT_OF_SPACE)

    def run(*arguments: str) -> tuple[int, str]:
        done = place.localflow(*arguments)
        return done.returncode, done.stderr

    first = run("run", "flows.py")

    stored = {name for name, state in place.states().items() if state[0] == "COMPLETED"}
    assert {line.split("'")[1] for line in first[1].splitlines() if "Completed" in line and "'count-" in line} <= stored
    assert_goes_on(place, first, lambda: run("resume", "@last"))


def test_fault_D1_full_disk(place: Place) -> None:
    """A disk that is full is named as such with the path; with space again `resume` ends the run."""
    place.write(FULL_DISK)
    state = place.folder / ".localflow"
    state.mkdir(mode=0o700)
    script = (
        'mount -t tmpfs -o size=400k,mode=700 tmpfs .localflow && "$@" run flows.py 2>&1; echo "code $?"; '
        'rm -f .localflow/ballast; touch space; "$@" resume @last 2>&1; echo "code $?"'
    )
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            [*command, f"mount -t tmpfs tmpfs {state}"], stderr=subprocess.DEVNULL, check=False
        ).returncode
    ):
        pytest.skip("this system does not let us mount anything")
    verb = [str(part) for part in (sys.executable, "-m", "localflow")]

    done = subprocess.run([*command, script, "sh", *verb], capture_output=True, text=True, check=False)

    first, _, rest = done.stdout.partition("code ")
    code, _, second = rest.partition("\n")
    assert code == "3", done.stdout
    assert f"state store {place.folder / STORE} is full: " in first
    assert "bytes are free there" in first
    assert "Traceback" not in first
    assert second.endswith("code 0\n"), second
    assert {f"count {number}" for number in range(20)} == set(place.notes)


# -- out of reach ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["read-only", "unreadable", "of others"])
def test_fault_D2_store_without_permission(place: Place, mode: str) -> None:
    """Without the right to write it is told before any task runs: path and cause, exit code 3."""
    place.write(FLOW)
    assert place.localflow("run", "flows.py").returncode == 0
    before = place.notes
    file = place.folder / STORE
    if mode == "of others":
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(file, NOBODY, NOBODY)
    file.chmod({"read-only": 0o400, "unreadable": 0o000, "of others": 0o600}[mode])

    done = place.start("-m", "localflow", "run", "flows.py", before=without_the_rights_of_root).wait()

    assert done.returncode == 3, done.stderr
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr
    assert place.notes == before


def test_fault_D2_directory_in_place_of_the_store(place: Place) -> None:
    """A directory where the file should be is an error before any task runs."""
    place.write(FLOW)
    (place.folder / STORE).mkdir(parents=True)
    (place.folder / ".localflow").chmod(0o700)
    (place.folder / STORE).chmod(0o700)

    assert_refused(place, "is not a file; name the path of a file")


def without_the_rights_of_root() -> None:
    """Have the modes of files hold for this process, as for any user, even if it is root's."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Say where a store is that has a bit of everything."""
    path = tmp_path / "state" / "localflow.db"
    with closing(SqliteStateStore(path)) as store:
        for id in ("first", "second"):
            run = make_flow_run(id=id, arguments=Payload("pickle", b"arguments"), parameters={"limit": 3})
            store.append([run, make_running(run)])
            for number in range(1, 31):
                task = make_task_run(run, number)
                result = Payload("pickle", b"%d" % number * (400 if number % 5 == 0 else 3))
                cache = CacheEntry(f"key-{number}") if number % 4 == 0 else None
                store.append([task, make_running(task), make_log_entry(task, f"loading {number}")])
                store.append([make_completed(task, 2, result=result, cache=cache)])
            store.append([make_completed(run, 2, result=Payload("json", b"5"))])
    return path


def told(ask: Callable[[], object]) -> object:
    """Return an answer, or CorruptStoreError for damage that is told."""
    try:
        return ask()
    except CorruptStoreError:
        return CorruptStoreError


def without_cache(record: Record) -> Record:
    """Return a record without the key under which its result may be found: what the cache has lost does no harm."""
    return record._replace(cache=None) if isinstance(record, StateChange) else record


def everything(path: Path) -> list[object]:
    """Return all that a store tells; damage in the place of what is damaged."""
    try:
        store = SqliteStateStore(path)
    except StoreError:  # of another application or version, where that is what was damaged
        return [CorruptStoreError] * 12
    with closing(store):
        answers = [told(store.list_flow_runs)]
        for id in ("first", "second"):
            answers.append(told(lambda id=id: [without_cache(record) for record in store.read(id)]))
            answers.append(told(lambda id=id: list(store.read_logs(id))))
            answers.extend(told(lambda id=id, number=number: store.load_result(id, number)) for number in (0, 3, 10))
        answers.append(told(lambda: getattr(store.find_cached("key-4", 0.0), "result", None)))
        return answers


def assert_right_or_told(answers: list[object], truth: list[object], damage: str) -> None:
    """Assert that each answer is as it was or that the damage is told.

    What the cache has lost is computed again, and a result may be unknown where its history is told to be damaged.
    """
    first, second = (answers[place] is CorruptStoreError for place in (1, 6))
    unknown = [*[False] * 3, *[first] * 3, *[False] * 2, *[second] * 3, True]
    for answer, right, may_be_unknown in zip(answers, truth, unknown, strict=True):
        assert answer in (right, CorruptStoreError) or (answer is None and may_be_unknown), damage


def put(path: Path, content: bytes) -> None:
    """Write a database that nobody has open."""
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("size", ["small", "large"])
def test_fault_D3_a_changed_byte_is_never_a_wrong_answer(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    """Of 200 random bits that are changed each is told as damage, or does not matter to what is asked."""
    if size == "large":  # too large to be looked at as a whole at each opening
        monkeypatch.setattr(database, "CHECKED_BYTES", 0)
    truth = everything(recorded)
    content = recorded.read_bytes()
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    noticed = 0
    for _ in range(200):
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        put(recorded, damaged)

        answers = everything(recorded)

        noticed += CorruptStoreError in answers
        assert_right_or_told(answers, truth, f"seed {seed}, bit {bit} of byte {place}")
    assert noticed > 20


@pytest.mark.parametrize("size", ["small", "large"])
def test_fault_D3_a_lost_page_is_never_a_wrong_answer(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    """Each page in turn is zeroed: that is told as damage, or does not matter to what is asked."""
    if size == "large":
        monkeypatch.setattr(database, "CHECKED_BYTES", 0)
    truth = everything(recorded)
    content = recorded.read_bytes()
    for page in range(0, len(content), 2048):
        put(recorded, content[:page] + bytes(2048) + content[page + 2048 :])

        assert_right_or_told(everything(recorded), truth, f"page {page // 2048 + 1}")


def test_fault_D3_a_truncated_store_is_never_a_wrong_answer(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file cut anywhere is told as damage, unless nothing of what is asked has gone."""
    monkeypatch.setattr(database, "CHECKED_BYTES", 0)
    truth = everything(recorded)
    content = recorded.read_bytes()
    chance = random.Random(0)
    for end in [0, 1, 100, 511, 512, *(chance.randrange(len(content)) for _ in range(30))]:
        put(recorded, content[:end])

        assert_right_or_told(everything(recorded), truth, f"up to byte {end}")


def test_fault_D3_damage_ends_a_verb_with_3_and_changes_nothing(place: Place) -> None:
    """Every verb that meets a damaged store says so, with the path and what to do; the file stays as it is."""
    place.write(FLOW)
    assert place.localflow("run", "flows.py").returncode == 0
    file = place.folder / STORE
    content = b"garbage!" * 512 + file.read_bytes()[4096:]
    file.write_bytes(content)

    for verb in (["runs"], ["show", "@last"], ["run", "flows.py"], ["resume", "@last"]):
        done = place.localflow(*verb)
        assert done.returncode == 3, verb
        assert str(file) in done.stderr
        assert "doctor --repair" in done.stderr
        assert "Traceback" not in done.stderr
    assert file.read_bytes() == content
    assert len(place.notes) == 3


# -- gone --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removed", [".localflow", f"{STORE}*", STORE])
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
    assert not (place.folder / STORE).exists()


@pytest.mark.parametrize("left", ["nothing", "its log"])
def test_fault_D5_emptied_store_is_no_new_one(place: Place, left: str) -> None:
    """Neither a file of no bytes nor a log without its database is taken for a place to begin anew."""
    place.write(FLOW)
    (place.folder / ".localflow").mkdir(mode=0o700)
    file = place.folder / (STORE if left == "nothing" else f"{STORE}-wal")
    file.touch(mode=0o600)

    assert_refused(place, "0 bytes" if left == "nothing" else "the file is gone")
    assert [each.name for each in (place.folder / ".localflow").iterdir()] == [file.name]


# -- where it cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_fault_D9_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where files cannot be locked a store is refused with the cause and advice, and nothing is made."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)

    with pytest.raises(StoreError, match=f"cannot be locked.*{os.strerror(number)}.*name a path on a local disk"):
        SqliteStateStore(tmp_path / "state" / "localflow.db")
    assert not (tmp_path / "state" / "localflow.db").exists()


def test_fault_D9_file_system_without_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SQLite cannot keep a log beside the database the store is refused with advice."""
    path = tmp_path / "state" / "localflow.db"
    SqliteStateStore(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")

    class Lacking(sqlite3.Connection):
        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:  # type: ignore[override]
            return super().execute(statement.replace("journal_mode = WAL", "journal_mode"), *values)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Lacking, **options))

    with pytest.raises(StoreError, match=r"without shared memory.*name a path on a local disk"):
        SqliteStateStore(path)


# -- versions ----------------------------------------------------------------------------------------------------------


def test_fault_D10_newer_store_is_refused(place: Place) -> None:
    """A store of a later version is refused with both versions named, and left as it is."""
    place.write(FLOW)
    assert place.localflow("run", "flows.py").returncode == 0
    file = place.folder / STORE
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")
    content = file.read_bytes()

    assert_refused(place, "format version 99", f"version {database.FORMAT_VERSION}")
    assert file.read_bytes() == content


def test_fault_D10_older_store_goes_on(place: Place) -> None:
    """A store of version 1 is brought to this one's, a copy is kept, and verbs tell of old and new runs."""
    place.write(FLOW)
    file = place.folder / STORE
    file.parent.mkdir(mode=0o700)
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(GOLDEN.read_text())
    file.chmod(0o600)

    done = place.localflow("run", "flows.py")

    assert done.returncode == 0, done.stderr
    assert "was brought from format version 1 to" in done.stderr
    names = [run["name"] for run in place.read("runs")]
    assert names[1:] == ["shy-lynx", "calm-heron", "brave-otter"]
    assert file.with_name("localflow.db.version-1").exists()


# -- locked ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def locker(recorded: Path) -> sqlite3.Connection:
    """Give the connection of another application, which a test lets take the store for itself."""
    with closing(sqlite3.connect(recorded, isolation_level=None, check_same_thread=False)) as connection:
        yield connection


def test_fault_D11_a_store_locked_for_a_while(
    recorded: Path, locker: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An append waits for whoever holds the store, says after a while who that is, and then succeeds."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    with closing(SqliteStateStore(recorded)) as store:
        locker.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(0.5, locker.execute, ["ROLLBACK"])
        release.start()

        store.append([make_flow_run(id="third")])
        release.join()

        assert [each.flow_run.id for each in store.list_flow_runs(1)] == ["third"]
    (message,) = caplog.messages
    assert f"state store {recorded} has been locked for" in message


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""

IMPATIENT = """
from localflow.builtin.storage import database
database.BUSY_SECONDS, database.PATIENCE_SECONDS = 0.1, 1.0

@task
def load(number):
    note("load", number)
    if number == 1:
        holder = subprocess.Popen([sys.executable, "hold.py", ".localflow/localflow.db"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        note("holder", holder.pid)
        holder.stdout.readline()
        globals()["holder"] = holder  # until this process ends
    return number

@flow
def main():
    return sum(load.submit(number).result() for number in range(3))
"""


def test_fault_D11_a_store_locked_for_good(place: Place) -> None:
    """Beyond all patience the run ends with 3 and names the holder; its task has not failed: it is there."""
    place.write(IMPATIENT)
    (place.folder / "hold.py").write_text(HOLD)

    done = place.localflow("run", "flows.py")

    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    holder = next(note.split()[1] for note in place.notes if note.startswith("holder"))
    assert f"it is held by pid {holder}" in done.stderr
    assert "Failed" not in done.stderr
    assert place.states()["load-0"] == ("COMPLETED", "Completed")
    assert place.states()["load-1"] == ("COMPLETED", "Completed")  # it was committed to the spool before that


# -- forked, sent elsewhere --------------------------------------------------------------------------------------------

FORKING = """
from localflow.builtin.sqlite import SqliteStateStore

store = SqliteStateStore(".localflow/localflow.db")
child = os.fork()
if not child:
    try:
        store.list_flow_runs()
    except BaseException as error:
        note(type(error).__name__, error)
    store.close()
    os._exit(0)
os.waitpid(child, 0)
note("parent", len(store.list_flow_runs()))
store.close()
"""


def test_fault_D13_a_store_used_after_a_fork(place: Place) -> None:
    """The child is told that the store is its parent's, who goes on with it."""
    place.write(FORKING, "forking.py")

    done = place.run("forking.py")

    assert done.returncode == 0, done.stderr
    refused, parent = place.notes
    assert refused.startswith("StoreError state store ")
    assert "is used in its forked child" in refused
    assert parent == "parent 0"


def test_fault_D13_a_flow_that_forks_goes_on(place: Place) -> None:
    """A child that a task has forked, and its end, do not disturb the store of the engine."""
    place.write(
        FLOW
        + """
@flow
def forking():
    load(0)
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return load(1)
"""
    )

    done = place.localflow("run", "flows.py:forking")

    assert done.returncode == 0, done.stderr
    assert place.states() == {"load-0": ("COMPLETED", "Completed"), "load-1": ("COMPLETED", "Completed")}


def test_fault_D13_a_store_is_not_sent_to_another_process(recorded: Path) -> None:
    """A connection to a database does not travel: pickling a store is refused."""
    with closing(SqliteStateStore(recorded)) as store, pytest.raises(TypeError, match="cannot pickle"):
        cloudpickle.dumps(store)


def test_fault_C7_full_durability_waits_for_the_disk(tmp_path: Path) -> None:
    """With durability `full` SQLite is told to have each commit on the disk; otherwise only at checkpoints."""
    path = tmp_path / "state" / "localflow.db"
    with closing(database.open_database(path)):
        for power_safe, synchronous in (True, 2), (False, 1):
            with closing(database.open_writer(path, power_safe=power_safe)) as writer:
                assert writer.execute("PRAGMA synchronous").fetchone() == (synchronous,)
                assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("failpoint", ["created", "claimed", "in-transaction", "committed", "spooling", "spooled"])
def test_fault_C5_kill_at_a_step_of_the_store(place: Place, failpoint: str) -> None:
    """An engine killed while the store is made or a commit is under way leaves a sound store and a run to resume."""
    place.write(FLOW)
    nothing_recorded = failpoint in ("created", "claimed", "in-transaction")

    died = place.localflow("run", "flows.py", LOCALFLOW_FAILPOINT=f"{failpoint}:{3 if 'spool' in failpoint else 1}")

    assert died.returncode == -signal.SIGKILL
    done = place.localflow(*(["run", "flows.py"] if nothing_recorded else ["resume", "@last"]))
    assert done.returncode == 0, done.stderr
    assert set(place.notes) == {"load 0", "load 1", "load 2"}
    with closing(SqliteStateStore(place.folder / STORE)) as store:
        assert store.check() == []
    assert sorted(each.name for each in (place.folder / ".localflow").iterdir() if each.is_file()) == [
        ".gitignore",
        "localflow.db",
    ]


@pytest.mark.parametrize("failpoint", ["in-transaction", "committed"])
def test_fault_C5_kill_while_the_spool_is_filed(place: Place, failpoint: str) -> None:
    """What was committed to the spool is there after the death of an engine that was filing it, and is there once."""
    place.write(FLOW)

    died = place.localflow("run", "flows.py", LOCALFLOW_FAILPOINT=f"{failpoint}:2")

    assert died.returncode == -signal.SIGKILL
    assert place.states() == {f"load-{number}": ("COMPLETED", "Completed") for number in range(3)}
    assert place.notes == ["load 0", "load 1", "load 2"]
    with closing(SqliteStateStore(place.folder / STORE)) as store:
        assert store.check() == []
    assert [*(place.folder / f"{STORE}-spool").iterdir()] == []
