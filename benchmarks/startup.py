"""P10: what a program pays before it does anything: the import, the command line, a first flow on processes."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.measuring import Row, Session, run_python, seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

HELLO = """
from localflow import flow, task

@task
def hello(name):
    return f"hello, {name}"

@flow(executor="process")
def main():
    return hello("world")

assert main().result() == "hello, world"
"""

PROGRAMS = {
    "import localflow": ("-c", "import localflow"),
    "localflow --version": ("-m", "localflow", "--version"),
    "localflow --help": ("-m", "localflow", "--help"),
}
BARE = ("-c", "pass")
LIMITS = {"import localflow": 60.0, "localflow --version": 80.0, "localflow --help": 250.0}  # ms above the bare one
HELLO_LIMIT = 0.30  # seconds


def rows(session: Session) -> Iterator[Row]:
    """Compare with a Python that does nothing."""
    commands = {"bare": BARE, **PROGRAMS, "hello": ("-c", HELLO)}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(session.size(4, tiny=1) * session.repeat):
        for name, arguments in commands.items():
            times[name].append(seconds(lambda arguments=arguments: run_python(*arguments)))  # type: ignore[misc]
    bare = times["bare"]
    for name in PROGRAMS:
        above = [1_000 * (taken - least) for taken, least in zip(times[name], bare, strict=True)]
        yield Row(
            name, "python -c pass", statistics.median(above), unit=" ms more", at_most=LIMITS[name],
            detail=f"{1_000 * statistics.median(times[name]):.0f} ms against {1_000 * statistics.median(bare):.0f} ms",
        )  # fmt: skip
    yield Row("hello world on processes, whole program", "-", statistics.median(times["hello"]), " s", HELLO_LIMIT)
