"""Locks in files: one holder among all processes, free again with the holder's death, waited for without looking."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from localflow.locks import HAS_BELLS, Bell, is_awaited, make_private_directory, take_claim, take_lock

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 10.0
BRIEF = 0.05

with_bells = pytest.mark.skipif(not HAS_BELLS, reason="named pipes cannot be locked on this system")

HOLD = """
import sys
from pathlib import Path
from localflow.locks import *
lock = globals()[sys.argv[2]](Path(sys.argv[1]))
assert lock is not None
print("held", flush=True)
sys.stdin.read()
"""


RACE = """
import os, sys
from pathlib import Path
from localflow.locks import take_claim
path, proof = map(Path, sys.argv[1:])
held = 0
while held < 200:
    claim = take_claim(path)
    if claim is not None:
        os.close(os.open(proof, os.O_CREAT | os.O_EXCL))  # fails while another one holds the claim
        held += 1
        proof.unlink()
        claim.release()
"""


def holder(path: Path, take: str = "take_lock") -> subprocess.Popen[str]:
    """Return a process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path, take], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def rings(bell: Bell, seconds: float = PATIENCE) -> bool:
    """Return whether the bell rings within the time."""
    poll = select.poll()
    poll.register(bell.fileno(), 0)
    return bool(poll.poll(seconds * 1000))


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    """While a lock is held nobody gets it, not even in the same process; released, it is free."""
    path = tmp_path / "lock"
    lock = take_lock(path)
    assert lock is not None

    assert take_lock(path) is None
    lock.release()
    again = take_lock(path)
    assert again is not None
    lock.release()  # a second time
    assert take_lock(path) is None
    again.release()


def test_locks_of_other_processes_count(tmp_path: Path) -> None:
    """A lock that another process holds is not given, and is when that process ends."""
    path = tmp_path / "lock"
    with holder(path) as process:
        assert take_lock(path) is None
        process.communicate("")

    lock = take_lock(path)
    assert lock is not None
    lock.release()


@with_bells
def test_a_killed_holder_rings_at_once(tmp_path: Path) -> None:
    """The bell is silent while the lock is held, and rings as soon as its holder is killed; then it is free."""
    path = tmp_path / "lock"
    with holder(path) as process:
        bell = Bell(path)
        assert take_lock(path) is None
        assert not rings(bell, BRIEF)

        begun = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)

        assert rings(bell)
        lock = take_lock(path)
        assert time.monotonic() - begun < 1.0
        assert lock is not None
    lock.release()
    bell.close()


@with_bells
def test_a_bell_rings_for_each_of_many_releases(tmp_path: Path) -> None:
    """However often a lock is tried in vain and changes hands, a release rings."""
    path = tmp_path / "lock"
    bell = None
    for _ in range(50):
        lock = take_lock(path)
        assert lock is not None
        bell = bell or Bell(path)
        assert take_lock(path) is None
        assert not rings(bell, 0)
        lock.release()
        assert rings(bell, 0)
    assert bell is not None
    bell.close()


@with_bells
def test_it_shows_whether_anybody_waits(tmp_path: Path) -> None:
    """A lock is awaited while somebody listens to its bell."""
    path = tmp_path / "lock"
    assert not is_awaited(path)

    bell = Bell(path)

    assert is_awaited(path)
    bell.close()
    assert not is_awaited(path)


def test_a_forked_child_holds_nothing(tmp_path: Path) -> None:
    """A child that was forked while the lock was held neither keeps it nor can let go of it."""
    path = tmp_path / "lock"
    lock = take_lock(path)
    assert lock is not None
    go, gone = os.pipe()
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            lock.release()
            os.close(gone)
            os.write(told, b".")
            os.read(go, 1)
        finally:
            os._exit(0)
    os.read(ready, 1)

    assert take_lock(path) is None  # the child's release is none of ours
    lock.release()
    again = take_lock(path)
    try:
        assert again is not None  # although the child is alive
        again.release()
    finally:
        for descriptor in (gone, go, ready, told):
            os.close(descriptor)
        os.waitpid(child, 0)


def test_a_started_program_holds_nothing(tmp_path: Path) -> None:
    """A program that was started while the lock was held does not keep it."""
    path = tmp_path / "lock"
    lock = take_lock(path)
    assert lock is not None
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        close_fds=False,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        lock.release()

        again = take_lock(path)

        assert again is not None
        again.release()
        process.communicate(b"\n")


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask, folder and locks are nobody else's, and git does not see them."""
    before = os.umask(0)
    try:
        make_private_directory(tmp_path / "state" / "limits")
        lock = take_lock(tmp_path / "state" / "limits" / "lock")
    finally:
        os.umask(before)

    assert lock is not None
    lock.release()
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in (tmp_path / "state").rglob("*")}
    assert modes["limits"] == stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert modes["lock"] == 0o600
    assert (tmp_path / "state" / ".gitignore").read_text() == "*\n"


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Where others may write there are no locks."""
    (tmp_path / "limits").mkdir()
    (tmp_path / "limits").chmod(0o777)

    with pytest.raises(PermissionError, match="others may write there"):
        make_private_directory(tmp_path / "limits")


@pytest.mark.parametrize("kind", ["link", "file", "folder"])
def test_what_is_no_lock_is_refused(tmp_path: Path, kind: str) -> None:
    """A link is not followed, and a file that is something else is not taken for a lock."""
    path = tmp_path / "lock"
    match kind:
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "file":
            path.write_text("precious") if HAS_BELLS else os.mkfifo(path)
        case _:
            path.mkdir()

    with pytest.raises(OSError, match=str(path)):
        take_lock(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_claim_has_one_holder_and_a_file_while_it_is_held(tmp_path: Path) -> None:
    """A claim is given once at a time; its file, nobody else's, is there as long as it is held."""
    path = tmp_path / "claim"
    before = os.umask(0)
    claim = take_claim(path)
    os.umask(before)
    assert claim is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    assert take_claim(path) is None
    claim.release()
    assert not path.exists()
    again = take_claim(path)
    assert again is not None
    claim.release()  # a second time
    assert take_claim(path) is None
    again.release()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    """What a killed process leaves is a file that means nothing, and that goes with the next claim."""
    path = tmp_path / "claim"
    with holder(path, "take_claim") as process:
        assert take_claim(path) is None
        process.kill()
    assert path.exists()

    claim = take_claim(path)

    assert claim is not None
    claim.release()
    assert not path.exists()


def test_a_forked_child_neither_holds_a_claim_nor_ends_it(tmp_path: Path) -> None:
    """A child that was forked while a claim was held cannot let go of it, and does not keep it after its parent."""
    path = tmp_path / "claim"
    claim = take_claim(path)
    assert claim is not None
    go, gone = os.pipe()
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(gone)
            own = take_claim(path.with_name("other"))  # maybe with the number of the descriptor that was closed
            claim.release()
            held = take_claim(path.with_name("other")) is None
            os.write(told, b"y" if own is not None and held and path.exists() else b"n")
            os.read(go, 1)
        finally:
            os._exit(0)
    try:
        assert os.read(ready, 1) == b"y"

        assert take_claim(path) is None
        claim.release()
        again = take_claim(path)
        assert again is not None
        again.release()
    finally:
        for descriptor in (gone, go, ready, told):
            os.close(descriptor)
        os.waitpid(child, 0)


def test_a_claim_that_vanishes_is_never_held_twice(tmp_path: Path) -> None:
    """Processes that take and release one claim as quickly as they can never hold it together."""
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, tmp_path / "claim", tmp_path / "proof"], stderr=subprocess.PIPE)
        for _ in range(3)
    ]

    for racer in racers:
        _, errors = racer.communicate()
        assert errors == b""
        assert racer.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_claim_is_refused(tmp_path: Path, kind: str) -> None:
    """A link is not followed, and what is no file is not taken for a claim."""
    path = tmp_path / "claim"
    match kind:
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "pipe":
            os.mkfifo(path)
        case _:
            path.mkdir()

    with pytest.raises(OSError, match=str(path)):
        take_claim(path)
    assert not (tmp_path / "elsewhere").exists()
