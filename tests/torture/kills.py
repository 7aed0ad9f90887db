"""How a process is to be killed next: at any moment, at a failpoint, or after it was stopped for a while."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

import psutil

from tests.torture.place import MARK

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

#: Failpoints with the number of times that a whole run of the workload reaches them, about.
ENGINE_POINTS = {"before-commit": 60, "after-commit": 60, "started": 2, "claimed": 2, "outcome-read": 50,
                 "in-notifier": 120}  # fmt: skip
PROCESS_POINTS = {"dispatched": 40, "result-sent": 12}
STORE_POINTS = {
    "sqlite": {"in-transaction": 8, "committed": 8, "spooling": 60, "spooled": 60},
    "json": {"mid-line": 70, "line-written": 70, "line-synced": 70, "result-written": 4, "before-replace": 4,
             "after-replace": 4},
    "in-place": {"mid-rewrite": 60},
    "result-after-record": {"before-result": 3},
}  # fmt: skip
FIRST_POINTS = {"sqlite": {"created": 1}, "json": {"before-replace": 1, "after-replace": 1}}
RESUME_POINTS = {"claimed-run": 1}

WORKER_POINTS = frozenset({"result-sent"})

STOPPED_SECONDS = 0.05


class Usual(NamedTuple):
    """How long an undisturbed run takes, in seconds."""

    starting: float
    """Until the first task begins."""
    working: float
    """From then to the end."""


class Kill(NamedTuple):
    """What is to be done to a program."""

    kind: str
    """`time`, `failpoint` or `stopped`."""
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
    """
    kind = chance.choices(["time", "failpoint", "stopped"], [50, 40, 10] if not in_store_only else [0, 1, 0])[0]
    working = usual.working * max(left, 0.1)
    if kind == "failpoint":
        points = {**ENGINE_POINTS, **STORE_POINTS.get(store, {})}
        points |= PROCESS_POINTS if executor == "process" else {}
        points |= FIRST_POINTS.get(store, {}) if is_first else RESUME_POINTS
        if executor != "process":
            del points["outcome-read"]
        if in_store_only:
            points = STORE_POINTS[store]
        name = chance.choice(sorted(points))
        count = 1 + int(points[name] * chance.random() ** 1.5 * max(left, 0.1))
        victim = "worker" if name in WORKER_POINTS else "engine"
        return Kill(kind, victim, failpoint=f"{name}:{count}")
    victim = chance.choices(["engine", "worker", "both"], [64, 18, 18])[0] if executor == "process" else "engine"
    at_work = victim != "engine" or chance.random() < 0.7
    after = chance.uniform(0, working) if at_work else chance.uniform(usual.starting / 2, usual.starting + working)
    return Kill(kind, victim, after * patience, at_work=at_work)


def perform(
    kill: Kill, program: subprocess.Popen[bytes], chance: random.Random, limit: float, works: Callable[[], bool]
) -> str:
    """Kill as was drawn, and wait for the end of the program; return the victim, empty if nothing was killed.

    Args:
        kill: what was drawn.
        program: what it is done to.
        chance: what is left to it: which worker, and who of two is killed first.
        limit: seconds after which the program should have ended.
        works: tells whether the program has begun to do some work.

    Raises:
        subprocess.TimeoutExpired: it did not end within the limit.
    """
    if kill.failpoint:
        return "engine" if program.wait(limit) == -signal.SIGKILL else ""
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
    workers = _workers(program.pid) if kill.victim != "engine" else []
    victim = kill.victim if workers else "engine"
    victims = [*([program.pid] if victim != "worker" else []), *chance.sample(workers, min(1, len(workers)))]
    chance.shuffle(victims)
    if kill.kind == "stopped":
        for pid in victims:
            _send(pid, signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
    killed = [_send(pid, signal.SIGKILL) for pid in victims]
    program.wait(limit)
    return victim if any(killed) else ""


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
