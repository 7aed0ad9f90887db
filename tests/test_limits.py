"""Limits: at most so many runs with a tag at once, in all threads and processes, handed on at once and fairly."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest

from localflow import State, ThreadExecutor, flow, tags, task
from localflow.errors import StoreError
from localflow.limits import Limits, Permit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BRIEF = 0.05
PATIENCE = 20.0


class Runs:
    """Asks limits for permits, and takes what they grant later."""

    def __init__(self, directory: Path, limits: Mapping[str, int]) -> None:
        self.granted: SimpleQueue[tuple[Any, Permit]] = SimpleQueue()
        self.limits = Limits(directory, limits, lambda token, permit: self.granted.put((token, permit)))

    def ask(self, token: object, *tags: str) -> Permit | None:
        """Ask for a permit."""
        return self.limits.ask(token, tags)

    def take(self, *tags: str) -> Permit:
        """Return a permit that is to be had at once."""
        permit = self.limits.ask("now", tags)
        assert permit is not None
        return permit

    def next(self, seconds: float = PATIENCE) -> tuple[Any, Permit]:
        """Return the next token and permit that are granted."""
        return self.granted.get(timeout=seconds)

    def is_silent(self) -> bool:
        """Return whether nothing is granted for a while."""
        try:
            self.granted.get(timeout=BRIEF)
        except Empty:
            return True
        return False


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A folder of the state folder for the limits."""
    return tmp_path / ".localflow" / "limits"


@pytest.fixture
def make_runs(directory: Path) -> Iterator[Any]:
    """Return a function that makes runs of one engine; they are closed in the end."""
    made: list[Runs] = []

    def make(**limits: int) -> Runs:
        made.append(Runs(directory, limits))
        return made[-1]

    yield make
    for runs in made:
        runs.limits.close()


# -- one engine ------------------------------------------------------------------------------------------------------


def test_only_limited_tags_count(make_runs: Any) -> None:
    """A run whose tags have no limit needs no permit, and gets one at once if it asks."""
    runs = make_runs(database=1)

    assert not runs.limits.applies(())
    assert not runs.limits.applies(("other",))
    assert runs.limits.applies(("other", "database"))
    assert all(runs.ask(number, "other") is not None for number in range(3))


def test_no_more_than_the_limit_get_a_permit(make_runs: Any) -> None:
    """As many as the limit get one at once, one more waits until one of them gives it back."""
    runs = make_runs(database=2)
    first, second = runs.take("database"), runs.take("database", "other")

    assert runs.ask("third", "database") is None
    assert runs.is_silent()
    runs.limits.release(second)
    token, third = runs.next()

    assert token == "third"
    assert runs.ask("fourth", "database") is None
    runs.limits.release(first)
    runs.limits.release(third)
    assert runs.next()[0] == "fourth"


def test_permits_are_granted_in_the_order_of_asking(make_runs: Any) -> None:
    """Who waits longest is next, and nobody who asks later comes first."""
    runs = make_runs(database=1)
    permit, order = runs.take("database"), []
    for number in range(20):
        assert runs.ask(number, "database") is None

    for _ in range(20):
        runs.limits.release(permit)
        token, permit = runs.next()
        order.append(token)

    assert order == list(range(20))


def test_who_asks_just_when_a_slot_goes_free_does_not_overtake(make_runs: Any) -> None:
    """A slot that is given back while somebody waits is that one's, even if another asks in the same moment."""
    runs = make_runs(database=1)
    for _ in range(200):
        permit = runs.take("database")
        assert runs.ask("waits", "database") is None
        runs.limits.release(permit)

        assert runs.ask("late", "database") is None

        token, permit = runs.next()
        assert token == "waits"
        runs.limits.release(permit)
        runs.limits.release(runs.next()[1])


def test_a_permit_given_back_twice_is_given_back_once(make_runs: Any) -> None:
    """Giving back a second time does not take away from the next holder."""
    runs = make_runs(database=1)
    permit = runs.take("database")
    runs.limits.release(permit)
    runs.take("database")

    runs.limits.release(permit)

    assert runs.ask("late", "database") is None
    assert runs.is_silent()


def test_who_withdraws_is_passed_over(make_runs: Any) -> None:
    """A run that is cancelled while it waits, first in line or not, leaves its place to the next."""
    runs = make_runs(database=1)
    permit = runs.take("database")
    for token in ("first", "second", "third"):
        runs.ask(token, "database")
    assert runs.is_silent()

    runs.limits.withdraw("first")
    runs.limits.withdraw("second")
    runs.limits.withdraw("unknown")
    runs.limits.release(permit)

    assert runs.next()[0] == "third"
    assert runs.is_silent()


def test_a_line_that_everybody_left_blocks_nobody(make_runs: Any) -> None:
    """When the only one in line withdraws, other engines find the turnstile free."""
    one, other = make_runs(database=1), make_runs(database=1)
    permit = one.take("database")
    one.ask("waits", "database")
    assert one.is_silent()

    one.limits.withdraw("waits")
    one.limits.release(permit)

    assert other.take("database") is not None


def test_engines_share_the_limits(make_runs: Any) -> None:
    """What one engine holds another one of the same process has to wait for."""
    one, other = make_runs(database=1), make_runs(database=1)
    permit = one.take("database")

    assert other.ask("waits", "database") is None
    one.limits.release(permit)

    assert other.next()[0] == "waits"


def test_different_tags_do_not_wait_for_each_other(make_runs: Any) -> None:
    """Each tag has its own limit, however strange its name is."""
    names = ["a", "A", "../a", "a/b", "", "\udcff", "x" * 5_000]
    runs = make_runs(**dict.fromkeys(names, 1))

    assert all(runs.ask(name, name) is not None for name in names)
    assert all(runs.ask(name, name) is None for name in names)


def test_a_very_high_limit_costs_nothing(make_runs: Any, directory: Path) -> None:
    """Only as many files are made as there are runs at once."""
    runs = make_runs(database=10**18)
    permits = [runs.take("database") for _ in range(3)]
    for permit in permits:
        runs.limits.release(permit)
        assert runs.take("database") is not None

    assert len(list(directory.iterdir())) == 5  # three slots, the turnstile and a probe


def test_a_lowered_limit_holds_for_who_has_it(make_runs: Any) -> None:
    """Who began under a higher limit goes on; under the lower one nobody begins beside the first slots."""
    many, few = make_runs(database=3), make_runs(database=1)
    permits = [many.take("database") for _ in range(3)]

    assert few.ask("few", "database") is None
    for permit in reversed(permits):
        assert few.is_silent()
        many.limits.release(permit)

    assert few.next()[0] == "few"


def test_a_raised_limit_holds_for_who_has_it(make_runs: Any) -> None:
    """Under a higher limit than others have there is room beside them."""
    few, many = make_runs(database=1), make_runs(database=2)
    few.take("database")

    assert many.take("database") is not None
    assert many.ask("third", "database") is None


# -- several tags ----------------------------------------------------------------------------------------------------


def test_a_run_with_several_tags_needs_a_slot_of_each(make_runs: Any) -> None:
    """It waits until all are to be had."""
    runs = make_runs(a=1, b=1)
    a, b = runs.take("a"), runs.take("b")

    assert runs.ask("both", "b", "a", "a") is None
    runs.limits.release(a)
    assert runs.is_silent()
    runs.limits.release(b)

    assert runs.next()[0] == "both"
    assert runs.ask("a", "a") is None
    assert runs.ask("b", "b") is None


def test_a_run_that_waits_holds_nothing(make_runs: Any) -> None:
    """While it waits for one tag, others run with the other one."""
    runs = make_runs(a=1, b=1)
    runs.take("b")

    assert runs.ask("both", "a", "b") is None

    assert runs.take("a") is not None


def test_a_run_with_several_tags_gets_through_a_steady_load(make_runs: Any) -> None:
    """While runs with one of its tags wait all the time, for each of them, it gets all of them in the end."""
    loads, both = make_runs(a=1, b=1), make_runs(a=1, b=1)
    permits = [loads.take(tag) for tag in "ab"]
    for tag in "ab" * 3:
        loads.ask(tag, tag)
    assert both.ask("both", "a", "b") is None
    for permit in permits:
        loads.limits.release(permit)

    deadline = time.monotonic() + PATIENCE
    while both.granted.empty():
        assert time.monotonic() < deadline
        with suppress(Empty):
            tag, permit = loads.next(BRIEF)
            loads.ask(tag, tag)
            loads.limits.release(permit)

    assert both.next()[0] == "both"


def test_runs_with_several_tags_neither_starve_nor_lock_each_other(make_runs: Any) -> None:
    """Under a load of all combinations every run gets its turn, and no limit is ever passed."""
    dice = random.Random(5)
    tags = {"a": 1, "b": 2, "c": 1}
    engines = [make_runs(**tags) for _ in range(2)]
    running: Counter[str] = Counter()
    lock, problems, done = threading.Lock(), [], []

    def drive(runs: Runs, wishes: list[tuple[str, ...]]) -> None:
        open_runs = 0

        def run(wish: tuple[str, ...], permit: Permit) -> None:
            with lock:
                running.update(wish)
                problems.extend(tag for tag in wish if running[tag] > tags[tag])
            time.sleep(0.0005)
            with lock:
                running.subtract(wish)
                done.append(wish)
            runs.limits.release(permit)

        for number, wish in enumerate(wishes):
            permit = runs.limits.ask((number, wish), wish)
            if permit is None:
                open_runs += 1
            else:
                run(wish, permit)
            if open_runs > 10:
                (_, wish), permit = runs.next()
                open_runs -= 1
                run(wish, permit)
        for _ in range(open_runs):
            (_, wish), permit = runs.next()
            run(wish, permit)

    wishes = [[tuple(sorted(dice.sample("abc", dice.randint(1, 3)))) for _ in range(150)] for _ in engines]
    threads = [threading.Thread(target=drive, args=pair) for pair in zip(engines, wishes, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert problems == []
    assert len(done) == 300


# -- the end ---------------------------------------------------------------------------------------------------------


def test_closing_gives_everything_back(make_runs: Any) -> None:
    """Held slots and places in line go to others; the closed one grants nothing more."""
    one, other = make_runs(database=1), make_runs(database=1)
    one.take("database")
    one.ask("waits", "database")
    other.ask("next", "database")

    one.limits.close()
    one.limits.close()  # a second time

    assert other.next()[0] == "next"
    assert one.is_silent()
    assert one.ask("late", "database") is None


def test_it_may_be_closed_while_it_grants(directory: Path) -> None:
    """Closing from within `on_granted`, in the thread of the limits, neither hangs nor leaves anything."""
    closed = threading.Event()

    def on_granted(token: object, permit: Permit) -> None:
        limits.close()
        closed.set()

    limits = Limits(directory, {"database": 1}, on_granted)
    permit = limits.ask("first", ("database",))
    assert permit is not None
    limits.ask("second", ("database",))
    limits.release(permit)

    assert closed.wait(PATIENCE)


def test_a_permit_nobody_takes_is_given_back(directory: Path, make_runs: Any) -> None:
    """If `on_granted` raises, the slot is not lost."""

    def on_granted(token: object, permit: Permit) -> None:
        raise RuntimeError("not now")

    limits = Limits(directory, {"database": 1}, on_granted)
    permit = limits.ask("first", ("database",))
    assert permit is not None
    limits.ask("second", ("database",))
    other = make_runs(database=1)
    other.ask("other", "database")
    limits.release(permit)

    assert other.next()[0] == "other"
    limits.close()


def test_files_are_for_their_owner_alone(make_runs: Any, directory: Path) -> None:
    """Folder 0700, files 0600; nothing of the tags' names is in theirs."""
    make_runs(**{"../secret": 1}).take("../secret")

    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in directory.iterdir()} == {0o600}
    assert not [entry for entry in directory.iterdir() if "secret" in entry.name]


def test_a_folder_that_cannot_be_used_is_told_at_once(tmp_path: Path) -> None:
    """Where there can be no limits, nothing runs as if there were none."""
    (tmp_path / "limits").write_text("")

    with pytest.raises(StoreError, match=r"the \[limits\] cannot be kept in .*limits: "):
        Limits(tmp_path / "limits", {"a": 1}, lambda token, permit: None)


# -- several processes -----------------------------------------------------------------------------------------------

WORK = """
import os, queue, sys, time
from pathlib import Path
from localflow.limits import Limits
directory, log, name, limit, count, seconds, ahead = sys.argv[1:]
granted = queue.SimpleQueue()
limits = Limits(Path(directory), {"database": int(limit)}, lambda token, permit: granted.put(permit))
journal = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def say(mark):
    os.write(journal, f"{mark} {name} {time.monotonic()}\\n".encode())
asked = waiting = 0
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(count)):
    permit = None
    while asked < int(count) and waiting < int(ahead) and permit is None:
        permit = limits.ask(asked, ("database",))
        asked += 1
        waiting += permit is None
    if permit is None:
        permit = granted.get()
        waiting -= 1
    say("S")
    time.sleep(float(seconds))
    say("E")
    limits.release(permit)
limits.close()
"""


def start(directory: Path, name: str, limit: int, count: int, seconds: float, ahead: int = 10) -> subprocess.Popen[str]:
    """Return a process that makes `count` runs of so many seconds, when told to; `ahead` of them wait at a time."""
    directory.parent.mkdir(mode=0o700, exist_ok=True)
    arguments = [directory, directory.parent / "log", name, limit, count, seconds, ahead]
    return subprocess.Popen(
        [sys.executable, "-c", WORK, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def go(*processes: subprocess.Popen[str]) -> None:
    """Have all begin together."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def finish(*processes: subprocess.Popen[str]) -> None:
    """Wait for all to end well."""
    for process in processes:
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


def journal(directory: Path) -> list[tuple[str, str, float]]:
    """Return what the processes did, in order: S or E, by whom, when."""
    lines = [line.split() for line in (directory.parent / "log").read_text().splitlines()]
    return [(mark, name, float(instant)) for mark, name, instant in lines]


def most_at_once(entries: list[tuple[str, str, float]]) -> int:
    """Return how many runs overlapped at most."""
    level = most = 0
    for mark, _, _ in entries:
        level += 1 if mark == "S" else -1
        most = max(most, level)
    return most


def wait_for(directory: Path, count: int) -> list[tuple[str, str, float]]:
    """Return the journal once it has so many entries."""
    deadline = time.monotonic() + PATIENCE
    while not (directory.parent / "log").exists() or len(journal(directory)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return journal(directory)


def test_two_processes_never_run_two_at_once(directory: Path) -> None:
    """A hundred runs in two processes come one after the other, and none is lost."""
    processes = [start(directory, name, 1, 50, 0.001) for name in "ab"]
    go(*processes)
    finish(*processes)

    entries = journal(directory)

    assert most_at_once(entries) == 1
    assert Counter(name for mark, name, _ in entries if mark == "E") == {"a": 50, "b": 50}


def test_several_processes_share_several_slots(directory: Path) -> None:
    """Four processes with a limit of three use all three slots, and never a fourth."""
    processes = [start(directory, name, 3, 20, 0.01, ahead=1) for name in "abcd"]
    go(*processes)
    finish(*processes)

    assert most_at_once(journal(directory)) == 3


@pytest.mark.parametrize("ahead", [1, 10])
def test_no_process_starves(directory: Path, ahead: int) -> None:
    """While others wait, nobody gets much more than its share, however many of its runs wait."""
    processes = [start(directory, name, 1, 60, 0.002, ahead) for name in "abc"]
    go(*processes)
    finish(*processes)

    begun = [name for mark, name, _ in journal(directory) if mark == "S"]

    shares = Counter(begun[:90])  # all three have runs left until then
    assert min(shares[name] for name in "abc") >= 3  # a busy machine may favour one for a while


def test_a_killed_holder_hands_on_at_once(directory: Path) -> None:
    """When its holder is killed with -9, the next one has the slot within moments."""
    victim = start(directory, "victim", 1, 1, 1_000)
    go(victim)
    wait_for(directory, 1)
    heir = start(directory, "heir", 1, 1, 0)
    go(heir)
    time.sleep(BRIEF)  # let it stand in line; if it does not yet, it finds the slot free

    killed_at = time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)
    finish(heir)
    victim.communicate()

    handed_on = next(instant for mark, name, instant in journal(directory) if (mark, name) == ("S", "heir"))
    assert handed_on - killed_at < 1.0


def test_a_killed_waiter_blocks_nobody(directory: Path) -> None:
    """When the first in line is killed with -9, the next one comes up."""
    holder = start(directory, "holder", 1, 1, 0.5)
    go(holder)
    wait_for(directory, 1)
    waiter, heir = (start(directory, name, 1, 1, 0) for name in ("waiter", "heir"))
    go(waiter, heir)

    os.kill(waiter.pid, signal.SIGKILL)
    finish(holder, heir)
    waiter.communicate()

    assert ("E", "heir") in [(mark, name) for mark, name, _ in journal(directory)]


def test_a_stopped_waiter_is_overtaken(directory: Path) -> None:
    """A process that was stopped at the head of the line (Ctrl-Z) does not keep others from free slots."""
    holder = start(directory, "holder", 1, 1, 0.3)
    go(holder)
    wait_for(directory, 1)
    waiter = start(directory, "waiter", 1, 1, 0)
    go(waiter)
    time.sleep(BRIEF)
    os.kill(waiter.pid, signal.SIGSTOP)
    try:
        heir = start(directory, "heir", 1, 1, 0)
        go(heir)
        finish(holder, heir)
    finally:
        os.kill(waiter.pid, signal.SIGCONT)
    finish(waiter)

    assert most_at_once(journal(directory)) == 1


def test_a_child_process_of_a_holder_holds_nothing(directory: Path, make_runs: Any) -> None:
    """A child that a run has forked, and that lives on, does not keep the slot."""
    runs = make_runs(database=1)
    permit = runs.take("database")
    ready, told = os.pipe()
    go_on, gone = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(gone)
            os.write(told, b".")
            os.read(go_on, 1)
        finally:
            os._exit(0)
    os.read(ready, 1)
    try:
        runs.limits.release(permit)
        assert runs.take("database") is not None
    finally:
        for descriptor in (ready, told, go_on, gone):
            os.close(descriptor)
        os.waitpid(child, 0)


def test_waiting_costs_no_processor_time(make_runs: Any) -> None:
    """Who waits sleeps until it is its turn."""
    one, other = make_runs(database=1), make_runs(database=1)
    permit = one.take("database")
    one.ask("first", "database")
    other.ask("second", "database")
    assert one.is_silent()
    before = time.process_time()

    assert one.is_silent()
    spent = time.process_time() - before

    one.limits.release(permit)
    assert spent < BRIEF / 4


# -- flows -----------------------------------------------------------------------------------------------------------

FLOW = """
import os, sys, time
from localflow import flow, task, tags

@task(tags=["database"])
def work(seconds):
    journal = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(journal, f"S {sys.argv[2]} {time.monotonic()}\\n".encode())
    time.sleep(seconds)
    os.write(journal, f"E {sys.argv[2]} {time.monotonic()}\\n".encode())
    os.close(journal)

@flow(executor=sys.argv[1])
def main(count, seconds):
    work.map([seconds] * count)

print("ready", flush=True)
sys.stdin.readline()
state = main(int(sys.argv[3]), float(sys.argv[4]))
assert state.is_completed(), state
"""


def limited(limit: int) -> None:
    """Write settings with a limit for the tag `database`."""
    Path("localflow.toml").write_text(f"[limits]\ndatabase = {limit}\n")


def start_flow(executor: str, name: str, count: int, seconds: float) -> subprocess.Popen[str]:
    """Return a process that runs a flow of so many limited tasks when told to."""
    Path("flow.py").write_text(FLOW.replace("sys.argv[2]", repr(name)))
    return subprocess.Popen(
        [sys.executable, "-c", Path("flow.py").read_text(), executor, name, str(count), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
def test_two_terminals_with_the_same_flow_never_run_two_at_once(executor: str, tmp_path: Path) -> None:
    """A limit of the settings holds for flow runs in several processes, on every executor."""
    limited(1)
    processes = [start_flow(executor, name, 15, 0.005) for name in "ab"]
    go(*processes)
    finish(*processes)

    entries = journal(tmp_path / "limits")

    assert most_at_once(entries) == 1
    assert Counter(name for mark, name, _ in entries if mark == "E") == {"a": 15, "b": 15}


@pytest.mark.parametrize("executor", ["sequential", "process"])
def test_nothing_idles_when_one_terminal_is_killed(executor: str, tmp_path: Path) -> None:
    """A flow run killed with -9 in the middle of a limited task lets the other one go on at once."""
    limited(1)
    victim = start_flow(executor, "victim", 3, 1_000)
    go(victim)
    wait_for(tmp_path / "limits", 1)
    heir = start_flow(executor, "heir", 2, 0.01)
    go(heir)
    time.sleep(BRIEF)

    killed_at = time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)
    finish(heir)
    victim.communicate()

    begun = [instant for mark, name, instant in journal(tmp_path / "limits") if (mark, name) == ("S", "heir")]
    assert len(begun) == 2
    assert begun[0] - killed_at < 5.0  # the heir was perhaps still starting


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_the_limit_is_used_up(executor: str, tmp_path: Path) -> None:
    """With a limit of two, two run at once on an executor with room for more, and the rest waits."""
    limited(2)
    process = start_flow(executor, "a", 10, 0.05)
    go(process)
    finish(process)

    assert most_at_once(journal(tmp_path / "limits")) == 2


def test_a_run_that_waits_for_its_retry_holds_no_slot() -> None:
    """Between two attempts the slot is somebody else's."""
    limited(1)
    order: list[str] = []

    @task(tags=["database"], retries=1, retry_delay_seconds=0.3)
    def fails_once() -> None:
        order.append("try")
        if len(order) == 1:
            raise ValueError("once")

    @task(tags=["database"])
    def other() -> None:
        order.append("other")

    @flow(executor="thread")
    def around() -> None:
        fails_once()
        other()

    assert around().is_completed()
    assert order == ["try", "other", "try"]


def test_tags_of_a_block_are_limited_too() -> None:
    """What counts are all tags of a run, also those of the block it was called in."""
    limited(1)
    running, most = [0], [0]
    lock = threading.Lock()

    @task
    def work() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)
        with lock:
            running[0] -= 1

    @flow(executor="thread")
    def around() -> None:
        with tags("database"):
            for _ in range(8):
                work()

    assert around().is_completed()
    assert most[0] == 1


def test_a_cancelled_run_lets_the_next_one_in() -> None:
    """A limited run that is cancelled, while it waits for its turn, neither blocks the line nor runs."""
    limited(1)
    opened, ran = threading.Event(), []

    @task(tags=["database"])
    def work(name: str) -> None:
        ran.append(name)
        if name == "first":
            assert opened.wait(PATIENCE)

    @flow(executor="thread")
    def around() -> list[State]:
        first, second, third = work("first"), work("second"), work("third")
        assert second.cancel()
        second.wait()
        opened.set()
        return [first.wait(), second.wait(), third.wait()]

    states = around().result(raise_on_failure=False)

    assert [state.name for state in states] == ["Completed", "Cancelled", "Completed"]
    assert ran == ["first", "third"]


def test_a_blocked_run_asks_for_nothing() -> None:
    """A run whose upstream failed takes no slot and needs none."""
    limited(1)

    @task
    def fail() -> None:
        raise ValueError("always")

    @task(tags=["database"])
    def work(value: object = None) -> str:
        return "done"

    @flow(executor="thread")
    def around() -> list[State]:
        blocked = work(fail())
        return [blocked.wait(), work().wait()]

    states = around().result(raise_on_failure=False)

    assert [state.name for state in states] == ["NotReady", "Completed"]


def test_a_run_that_waits_for_a_worker_holds_no_slot(tmp_path: Path) -> None:
    """While the only worker is busy with something else, others may have the slot."""
    limited(1)
    free = []

    @task
    def look() -> None:
        deadline = time.monotonic() + PATIENCE
        while "limited" not in names and time.monotonic() < deadline:
            time.sleep(0.005)
        other = Limits(tmp_path / ".localflow" / "limits", {"database": 1}, lambda token, permit: None)
        permit = other.ask("other", ["database"])
        free.append(permit is not None)
        if permit is not None:
            other.release(permit)
        other.close()

    names: list[str] = []
    tagged = task(name="tagged", tags=["database"])(lambda: "ran")

    @flow(executor=ThreadExecutor(workers=1))
    def main() -> Any:
        look()
        future = tagged()
        names.append("limited")
        return future

    assert main().result() == "ran"
    assert free == [True]
