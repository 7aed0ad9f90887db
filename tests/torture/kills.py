"""How a process is to be killed next: at any moment, at a failpoint, or after it was stopped for a while."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import psutil

from tests.torture.place import MARK

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

#: Failpoints with the number of times that a whole run of the workload reaches them, about.
ENGINE_POINTS = {"before-commit": 60, "after-commit": 60, "started": 2, "claimed": 2, "outcome-read": 50,
                 "in-notifier": 120}  # fmt: skip
PROCESS_POINTS = {"dispatched": 40}
STORE_POINTS = {
    "sqlite": {"in-transaction": 8, "committed": 8, "spooling": 60, "spooled": 60},
    "json": {"mid-line": 70, "line-written": 70, "line-synced": 70, "result-written": 4, "before-replace": 4,
             "after-replace": 4},
    "in-place": {"mid-rewrite": 60},
    "result-after-record": {"before-result": 3},
}  # fmt: skip
FIRST_POINTS = {"sqlite": {"created": 1}, "json": {"before-replace": 1, "after-replace": 1}}
RESUME_POINTS = {"claimed-run": 1}

WORKER_POINTS = {"result-sent": 6}

STOPPED_SECONDS = 0.05

STORE_EXIT_CODE = 3

ENGINE, WORKER, BOTH = "engine", "worker", "both"
#: On processes; threads are none to choose from, and kills of a worker come too late more often: in all that makes
#: about 70 %, 15 % and 15 %.
VICTIMS = {ENGINE: 50, WORKER: 30, BOTH: 20}

FULL_SHARE = 0.7  # of what is done to a program, if the disk may be full
ROOM = 30_000  # bytes that files may grow by, at most, once the disk is said to be full


class Usual(NamedTuple):
    """How long an undisturbed run takes, in seconds."""

    starting: float
    """Until the first task begins."""
    working: float
    """From then to the end."""


class Kill(NamedTuple):
    """What is to be done to a program."""

    kind: str
    """`time`, `failpoint` or `stopped`; `full` if no more can be written from then on, and nothing is killed."""
    victim: str
    """`engine`, `worker` or `both`."""
    after: float = 0.0
    """Seconds from the start of the program, or from when it first does some work."""
    at_work: bool = False
    """From when it first does some work."""
    failpoint: str = ""

    def __str__(self) -> str:
        return f"{self.victim} at {self.failpoint or f'{self.after:.3f} s'}{' of work' * self.at_work} ({self.kind})"


def choose(
    chance: random.Random,
    store: str,
    executor: str,
    usual: Usual,
    *,
    is_first: bool,
    left: float,
    patience: float = 1.0,
    in_store_only: bool = False,
    fills_up: bool = False,
) -> Kill:
    """Draw a kill.

    Args:
        chance: where it is drawn from.
        store: which store is used.
        executor: which executor is used; only that of processes has workers to kill.
        usual: how long an undisturbed run takes.
        is_first: whether this is no resume.
        left: which part of the task runs has not completed.
        patience: by how much everything takes longer now.
        in_store_only: whether only failpoints of the store itself are wanted.
        fills_up: whether the disk may be full, too.
    """
    victim = chance.choices(list(VICTIMS), list(VICTIMS.values()))[0] if executor == "process" else ENGINE
    weights = {"time": 50, "failpoint": 40, "stopped": 10}
    if in_store_only:
        victim, weights = ENGINE, {"failpoint": 1}
    elif fills_up and chance.random() < FULL_SHARE:
        victim, weights = ENGINE, {"full": 1}
    [kind] = chance.choices(list(weights), list(weights.values()))
    working = usual.working * max(left, 0.1)
    if kind == "failpoint":
        points = {**ENGINE_POINTS, **STORE_POINTS.get(store, {})}
        points |= PROCESS_POINTS if executor == "process" else {}
        points |= FIRST_POINTS.get(store, {}) if is_first else RESUME_POINTS
        if executor != "process":
            del points["outcome-read"]
        if in_store_only:
            points = STORE_POINTS[store]
        if victim == WORKER:
            points = WORKER_POINTS
        name = chance.choice(sorted(points))
        count = 1 + int(points[name] * chance.random() ** 1.5 * max(left, 0.1))
        return Kill(kind, victim, failpoint=f"{name}:{count}" + ":stop" * (victim == BOTH))
    at_work = victim != ENGINE or kind == "full" or chance.random() < 0.7
    after = chance.uniform(0, working) if at_work else chance.uniform(usual.starting / 2, usual.starting + working)
    return Kill(kind, victim, after * patience, at_work=at_work)


def perform(
    kill: Kill,
    program: subprocess.Popen[bytes],
    chance: random.Random,
    limit: float,
    works: Callable[[], bool],
    largest: Callable[[], int],
) -> str:
    """Kill as was drawn, and wait for the end of the program; return the victim, empty if nothing was killed.

    Args:
        kill: what was drawn.
        program: what it is done to.
        chance: what is left to it: which worker, and who of two is killed first.
        limit: seconds after which the program should have ended.
        works: tells whether the program has begun to do some work.
        largest: tells how large the largest file is that it writes to, in bytes.

    Raises:
        subprocess.TimeoutExpired: it did not end within the limit.
    """
    if kill.failpoint and kill.victim == BOTH:
        if not _is_stopped(program, limit):
            return ""
        return _kill(program, _workers(program.pid), BOTH, chance, limit)
    if kill.failpoint:
        return ENGINE if program.wait(limit) == -signal.SIGKILL else ""
    latest = time.monotonic() + limit
    while kill.at_work and not works() and program.poll() is None:
        if time.monotonic() > latest:
            raise subprocess.TimeoutExpired(program.args, limit)
        time.sleep(0.002)
    until = time.monotonic() + kill.after
    while program.poll() is None and time.monotonic() < until:
        time.sleep(min(0.002, max(0.0, until - time.monotonic())))
    if program.returncode is not None:
        return ""
    if kill.kind == "full":
        return _fill_up(program, largest() + chance.randint(0, ROOM), limit)
    workers = _workers(program.pid) if kill.victim != ENGINE else []
    return _kill(program, workers, kill.victim, chance, limit, stopped=kill.kind == "stopped")


def _kill(
    program: subprocess.Popen[bytes],
    workers: Sequence[int],
    victim: str,
    chance: random.Random,
    limit: float,
    *,
    stopped: bool = False,
) -> str:
    """Kill the engine, a worker, or both in any order, perhaps stopped for a while; return what was killed."""
    if not workers:
        victim = ENGINE
    victims = [*([program.pid] if victim != WORKER else []), *chance.sample(workers, min(1, len(workers)))]
    chance.shuffle(victims)
    if stopped:
        for pid in victims:
            _send(pid, signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
    killed = [_send(pid, signal.SIGKILL) for pid in victims]
    program.wait(limit)
    return victim if any(killed) else ""


def _fill_up(program: subprocess.Popen[bytes], size: int, limit: float) -> str:
    """Let no file of the engine grow beyond a size, as if the disk were full then; return whether that was told."""
    try:
        resource.prlimit(program.pid, resource.RLIMIT_FSIZE, (size, size))
    except ProcessLookupError:
        return ""
    return ENGINE if program.wait(limit) == STORE_EXIT_CODE else ""


def _is_stopped(program: subprocess.Popen[bytes], limit: float) -> bool:
    """Wait until the program stops itself at a failpoint; return whether it has, rather than ended."""
    latest = time.monotonic() + limit
    while program.poll() is None:
        if time.monotonic() > latest:
            raise subprocess.TimeoutExpired(program.args, limit)
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(program.pid).status() == psutil.STATUS_STOPPED:
                return True
        time.sleep(0.002)
    return False


def _workers(pid: int) -> list[int]:
    try:
        return [worker.pid for supervisor in psutil.Process(pid).children() for worker in supervisor.children()]
    except psutil.NoSuchProcess:
        return []


def _send(pid: int, signum: int) -> bool:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True


def survivors(mark: str) -> list[int]:
    """Return the living processes that carry the mark of a lane, but for this one."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - names alone
        if int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:  # noqa: PTH123 - of a thousand files
                is_ours = wanted in file.read().split(b"\0")
            if is_ours and psutil.Process(int(name)).status() != psutil.STATUS_ZOMBIE:
                found.append(int(name))
        except (OSError, psutil.Error):
            continue
    return found
