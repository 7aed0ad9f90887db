"""The flow that is killed: sixty tasks in layers, maps and a subflow, whose results are always the same.

What a task does is noted in the file `oracle`, what the flow was shown in `acks`: one write for each line, so that no
two lines mix and none is lost with its writer. The driver copies this file beside the store and runs it from there.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from localflow import TaskFuture, as_completed, flow, get_run_context, task, unmapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TASK_RUNS = 60


def say(file: str, *words: object) -> None:
    """Add a line to a file with one write."""
    line = " ".join(map(str, words)) + "\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def digest(value: object) -> str:
    """Return what tells one value from another, in every process."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


@contextmanager
def effect() -> Iterator[None]:
    """Note that a task begins and ends; take 1 to 30 ms; every tenth task fails in its first attempt."""
    run = get_run_context().task_run
    assert run is not None
    words = run.name, run.attempt, uuid.uuid4().hex
    say("oracle", "S", *words)
    number = zlib.crc32(run.name.encode())
    time.sleep((1 + number % 30) / 1000)
    if number % 10 == 0 and run.attempt == 1:
        raise RuntimeError("first attempts of this one fail")
    yield
    say("oracle", "E", *words)


@task(retries=1)
def load(number: int) -> int:
    """Stand for the first layer."""
    with effect():
        return number * number


@task(retries=1, retry_on_crash=True)
def scale(number: int, factor: int) -> int:
    """Stand for a layer of which each task has one upstream; these are tried again if their worker dies."""
    with effect():
        return number * factor + 1


@task(retries=1)
def pair(left: int, right: int) -> int:
    """Stand for a layer of which each task has several upstreams."""
    with effect():
        return left * 31 + right


@task(retries=1)
def swell(number: int) -> bytes:
    """Return more than stands in a line of a journal."""
    with effect():
        return bytes((number + index) % 251 for index in range(70_000 + number))


@task(retries=1)
def measure(data: bytes) -> int:
    """Take a large argument."""
    with effect():
        return zlib.crc32(data)


@task(retries=1)
def part(number: int) -> int:
    """Stand for what a subflow calls."""
    with effect():
        return number % 1009


@task(retries=1)
def join(numbers: Sequence[int]) -> int:
    """Bring together what the subflow has called."""
    with effect():
        return sum(numbers)


@task(retries=1)
def total(numbers: Sequence[int]) -> int:
    """Bring everything together."""
    with effect():
        return sum(numbers)


def acknowledge(futures: Sequence[TaskFuture[int] | TaskFuture[bytes]]) -> None:
    """Note what the flow is shown, as soon as it is."""
    for future in as_completed(futures):
        if future.state.is_completed():
            say("acks", future.name, digest(future.result()))


@flow
def inner(numbers: list[int]) -> int:
    """Call eight tasks of its own and add up."""
    parts = part.map(numbers)
    acknowledge(parts)
    added = join(parts)
    acknowledge([added])
    return added.result()


@flow
def layers() -> int:
    """Call sixty tasks, nine of them by a subflow."""
    loaded = load.map(range(16))
    scaled = scale.map(loaded, unmapped(3))
    pairs = [pair(scaled[n], scaled[n + 1], wait_for=[loaded[n]]) for n in range(0, 16, 2)]
    swollen = [swell(each) for each in loaded[:3]]
    measured = [measure(each) for each in swollen]
    acknowledge([*loaded, *scaled, *pairs, *swollen, *measured])
    below = inner([each.result() for each in pairs])
    sums = [total(scaled[n : n + 4], wait_for=measured[0]) for n in range(0, 16, 4)]
    last = total([*sums, *measured], wait_for=below)
    acknowledge([*sums, last])
    answer: int = last.result() + below.result()
    return answer
