"""Memory of worker processes: what the system tells of it, from its files as Linux writes them."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.process import ProcessExecutor
from localflow.builtin.process.memory import (
    VMSTAT,
    KernelKills,
    available_bytes,
    kill_counter,
    parse_size,
    resident_bytes,
    size_in_words,
)
from localflow.testing import workloads
from localflow.testing.running import CallRunner

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def write(path: Path, text: str) -> None:
    """Write a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [(1, 1), ("4096", 4096), ("2 GiB", 2 << 30), ("500MB", 500_000_000), ("1.5 kib", 1536), (" 1 TB ", 10**12)],
)
def test_a_size_is_a_number_or_a_text(text: int | str, size: int) -> None:
    """Units count in thousands or, with an i, in 1024s; their letters may be of any case."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "2 G", "2 GiB or so", "0", "0.1", 0, -5, "-5 MB", "1e9", "nan"])
def test_what_is_no_size_is_refused(text: int | str) -> None:
    """The message says what a size looks like."""
    with pytest.raises(ValueError, match="must be a number of bytes >= 1 or a text such as '2 GiB'"):
        parse_size(text)


def test_a_wrong_limit_names_the_option() -> None:
    """The executor refuses it when it is made."""
    with pytest.raises(ValueError, match=r"^worker_memory_limit must be a number of bytes"):
        ProcessExecutor(worker_memory_limit="plenty")


@pytest.mark.parametrize(
    ("size", "words"),
    [(17, "17 B"), (1536, "1.5 KiB"), (60 * MIB, "60.0 MiB"), (5900 * MIB, "5.8 GiB"), (2**42, "4096.0 GiB")],
)
def test_sizes_are_told_in_units(size: int, words: str) -> None:
    """Readers get the unit in which a size is a handy number."""
    assert size_in_words(size) == words


def test_the_size_of_a_process_is_told() -> None:
    """This process has some memory, and one that is not there has none."""
    assert (resident_bytes(os.getpid()) or 0) > MIB
    assert resident_bytes(1 << 30) is None


# -- control groups --------------------------------------------------------------------------------------------------


def test_the_least_limit_is_what_there_is(tmp_path: Path) -> None:
    """In version 2 the limits of all groups above count, in version 1 those of the controller's file system."""
    write(tmp_path / "v2", "0::/batch/job\n")
    write(tmp_path / "batch/job/memory.max", "max\n")
    write(tmp_path / "batch/memory.max", f"{64 * MIB}\n")
    write(tmp_path / "v1", "5:cpu:/job\n4:memory:/job\n")
    write(tmp_path / "memory/job/memory.limit_in_bytes", f"{48 * MIB}\n")

    assert available_bytes(tmp_path / "v2", tmp_path) == 64 * MIB
    assert available_bytes(tmp_path / "v1", tmp_path) == 48 * MIB


def test_without_limits_there_is_the_memory_of_the_machine(tmp_path: Path) -> None:
    """Where no group limits it, the physical memory does."""
    assert available_bytes(tmp_path / "no such file", tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf(
        "SC_PAGE_SIZE"
    )


def test_the_own_groups_counter_is_preferred(tmp_path: Path) -> None:
    """The nearest group that counts is read; the machine's count is for those that are in none."""
    write(tmp_path / "v2", "0::/batch/job\n")
    write(tmp_path / "batch/memory.events", "oom 3\noom_kill 2\n")
    write(tmp_path / "v1", "4:memory:/job\n0::/\n")
    write(tmp_path / "memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")

    assert kill_counter(tmp_path / "v2", tmp_path) == tmp_path / "batch/memory.events"
    assert kill_counter(tmp_path / "v1", tmp_path) == tmp_path / "memory/job/memory.oom_control"
    assert kill_counter(tmp_path / "none", tmp_path) == (VMSTAT if VMSTAT.exists() else None)


# -- what the kernel has killed --------------------------------------------------------------------------------------


class Counter:
    """A file as the kernel writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kills = 7
        self.write()

    def kill(self) -> None:
        """Count a kill."""
        self.kills += 1
        self.write()

    def write(self) -> None:
        """Write what is counted."""
        self.path.write_text(f"low 0\noom 9\noom_kill {self.kills}\n")


@pytest.fixture
def counter(tmp_path: Path) -> Counter:
    """A counter that has counted some kills before."""
    return Counter(tmp_path / "memory.events")


def test_a_kill_explains_one_death(counter: Counter) -> None:
    """One kill since the call began is one proof, two are two."""
    kills = KernelKills(counter.path)
    kills.look(100.0)
    assert not kills.explain(100.5)

    counter.kill()
    assert [kills.explain(100.5), kills.explain(100.5)] == [True, False]

    counter.kill()
    counter.kill()
    assert [kills.explain(100.5) for _ in range(3)] == [True, True, False]


def test_a_kill_before_the_call_explains_nothing(counter: Counter) -> None:
    """What is counted when the call begins is the death of another."""
    kills = KernelKills(counter.path)
    kills.look(100.0)
    counter.kill()
    kills.look(102.0)

    assert not kills.explain(102.1)
    assert kills.explain(101.0)


def test_of_a_long_call_only_the_last_seconds_count(counter: Counter) -> None:
    """A kill of long ago does not explain that somebody has sent SIGKILL today."""
    kills = KernelKills(counter.path)
    kills.look(100.0)
    counter.kill()
    for second in range(20):
        kills.look(101.0 + second)

    assert not kills.explain(100.5)


def test_without_a_counter_nothing_is_proven(tmp_path: Path) -> None:
    """Where the kernel does not count, or the file is gone, there is no proof."""
    gone = Counter(tmp_path / "gone")
    kills = KernelKills(gone.path)
    kills.look(100.0)
    gone.path.unlink()
    kills.look(110.0)

    assert not kills.explain(100.5)
    assert not KernelKills(None).explain(100.5)


# -- the limit of workers --------------------------------------------------------------------------------------------


def test_a_limit_costs_an_engine_that_waits_next_to_nothing(tmp_path: Path) -> None:
    """Looking at a long call from time to time takes less than a hundredth of a core."""
    release = tmp_path / "release"

    with CallRunner(ProcessExecutor(workers=1, worker_memory_limit="1 GiB")) as runner:
        call = runner.call(workloads.wait_for_file, str(release))
        runner.run(runner.call(workloads.pid))
        runner.submit(call)
        before = time.process_time()
        threading.Event().wait(2.0)
        used = time.process_time() - before
        release.touch()
        runner.wait_for([call])

    assert used < 0.02
