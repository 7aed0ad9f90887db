"""`localflow logs` shows what runs have said, to people and programs, afterwards and meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Cli

TALK = """
import logging, sys
from localflow import flow, get_run_logger, task

@task(retries=1)
def add(n):
    print("adding", n)
    logging.getLogger("lib").warning("beware\\nof \\x1b[1m%s", n)
    get_run_logger().debug("too quiet")
    if n == 2 and not tried:
        tried.append(n)
        raise ValueError("no")

tried = []

@flow
def inner():
    print("inside")
    add(3)

@task
def call():
    print("calling")
    inner()

@flow
def main():
    get_run_logger().error("begin")
    add(1)
    add(2)
    inner()
    call()
    print("end", file=sys.stderr)
"""

# A flow that says a line, waits for one on its stdin, says another, and so on.
SLOW = """
import sys
from localflow import flow, get_run_logger, task

@task
def wait(n):
    get_run_logger().info("waiting %s", n)
    sys.stdin.readline()
    print("waited", n)

@flow
def main():
    wait(1)
    wait(2)
"""


@pytest.fixture
def run_name(cli: Cli) -> str:
    """Record a run that has said something of each kind, and return its name."""
    Path("talk.py").write_text(TALK)
    done = cli("run", "talk.py:main")
    assert done.returncode == 0, done.stderr
    return re.findall(r"flow run '([\w-]+)' of 'main'", done.stderr)[0]


def shown(text: str) -> list[str]:
    """Return the lines without the time of day."""
    return [re.sub(r"^\d\d:\d\d:\d\d\.\d\d\d \| ", "", line) for line in text.splitlines()]


def test_all_of_a_run_is_shown_in_order(cli: Cli, run_name: str) -> None:
    """Each line tells when, how grave, who and what; further lines are indented, subflows named, texts escaped."""
    done = cli("logs", run_name)

    assert done.returncode == 0
    subflows = dict.fromkeys(re.findall(r"\| ([\w-]+)/add-0 \|", done.stdout))
    first, second = subflows
    assert shown(done.stdout) == [
        f"ERROR   | {run_name} | begin",
        "stdout  | add-0 | adding 1",
        "WARNING | add-0 | beware",
        r"    of \x1b[1m1",
        "stdout  | add-1 | adding 2",
        "WARNING | add-1 | beware",
        r"    of \x1b[1m2",
        "stdout  | add-1 (attempt 2) | adding 2",
        "WARNING | add-1 (attempt 2) | beware",
        r"    of \x1b[1m2",
        f"stdout  | {first} | inside",
        f"stdout  | {first}/add-0 | adding 3",
        f"WARNING | {first}/add-0 | beware",
        r"    of \x1b[1m3",
        "stdout  | call-0 | calling",
        f"stdout  | {second} | inside",
        f"stdout  | {second}/add-0 | adding 3",
        f"WARNING | {second}/add-0 | beware",
        r"    of \x1b[1m3",
        f"stderr  | {run_name} | end",
    ]


def test_a_task_run_has_its_own_lines_and_those_of_flows_it_called(cli: Cli, run_name: str) -> None:
    """RUN/TASK shows one task run, with what went on inside it."""
    only = shown(cli("logs", f"{run_name}/add-0").stdout)
    with_flow = shown(cli("logs", "@last/call").stdout)

    assert only == ["stdout  | add-0 | adding 1", "WARNING | add-0 | beware", r"    of \x1b[1m1"]
    assert [line.split(" | ")[-1] for line in with_flow] == [
        "calling", "inside", "adding 3", "beware", r"    of \x1b[1m3",
    ]  # fmt: skip


def test_levels_and_tails_select(cli: Cli, run_name: str) -> None:
    """`--level` leaves out what is less grave, `-n` all but the last."""
    errors = shown(cli("logs", run_name, "--level", "error").stdout)
    last = shown(cli("logs", run_name, "--level", "WARNING", "-n", "1").stdout)

    assert errors == [f"ERROR   | {run_name} | begin"]
    assert last == [f"stderr  | {run_name} | end"]


def test_json_holds_all_that_is_known(read_json: Any, run_name: str) -> None:
    """`--json` prints a list of entries, texts as they are."""
    entries = read_json("logs", f"{run_name}/add-0")

    assert [(e["level"], e["source"], e["message"]) for e in entries] == [
        ("INFO", "stdout", "adding 1"), ("WARNING", "lib", "beware\nof \x1b[1m1"),
    ]  # fmt: skip
    entry = entries[0]
    assert entry.pop("timestamp").endswith("+00:00")
    assert entry.pop("run_id") == f"{entry.pop('flow_run_id')}-1"
    assert entry == {
        "level": "INFO", "source": "stdout", "message": "adding 1", "run": "add-0", "flow_run": run_name, "attempt": 1,
    }  # fmt: skip


def test_what_cannot_be_found_is_said(cli: Cli, run_name: str) -> None:
    """An unknown run is an error, a run that has said nothing is none."""
    unknown = cli("logs", "nobody")
    silent = cli("logs", f"{run_name}/add-0", "--level", "critical")

    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "no flow run 'nobody'" in unknown.stderr
    assert (silent.returncode, silent.stdout) == (0, "")
    assert "nothing is recorded" in silent.stderr


def test_a_reader_that_leaves_early_is_no_error(cli: Cli, run_name: str) -> None:
    """`localflow logs RUN | head -1` ends quietly."""
    done = subprocess.run(
        f"{sys.executable} -m localflow logs {run_name} | head -1",
        shell=True, capture_output=True, text=True, timeout=50, check=True,
    )  # fmt: skip

    assert shown(done.stdout) == [f"ERROR   | {run_name} | begin"]
    assert done.stderr == ""


# -- while the run goes on -------------------------------------------------------------------------------------------


class Following:
    """A run that waits for its stdin, and a `localflow logs -f` beside it."""

    def __init__(self, store: str, *options: str) -> None:
        Path("slow.py").write_text(SLOW)
        environment = {**os.environ, "LOCALFLOW_STORE": store}
        pipe = subprocess.PIPE
        self.run = subprocess.Popen(
            [sys.executable, "-m", "localflow", "run", "slow.py"], stdin=pipe, stdout=pipe, stderr=pipe,
            text=True, env=environment,
        )  # fmt: skip
        assert self.run.stderr is not None
        while "waiting 1" not in self.run.stderr.readline():  # then the run is recorded
            pass
        self.logs = subprocess.Popen(
            [sys.executable, "-m", "localflow", "logs", "@last", "-f", *options], stdout=pipe, stderr=pipe,
            text=True, env=environment,
        )  # fmt: skip

    def next_line(self) -> str:
        """Wait for a line of the one that follows; the test's own timeout is the deadline."""
        assert self.logs.stdout is not None
        return self.logs.stdout.readline().rstrip("\n")

    def go_on(self) -> None:
        """Let the run's waiting task end."""
        assert self.run.stdin is not None
        self.run.stdin.write("\n")
        self.run.stdin.flush()

    def end(self) -> None:
        """End both processes whatever they do."""
        for process in (self.run, self.logs):
            process.kill()
            process.communicate()


@pytest.fixture
def following(request: pytest.FixtureRequest) -> Iterator[Following]:
    """Start a run and follow it."""
    both = Following(*getattr(request, "param", ("sqlite",)))
    yield both
    both.end()


@pytest.mark.parametrize("following", [("sqlite",), ("json",)], indirect=True)
def test_a_run_is_followed_from_another_process_to_its_end(following: Following) -> None:
    """`-f` shows lines while their task is still at work, and ends when the run does."""
    lines = [following.next_line()]
    assert following.run.poll() is None
    following.go_on()
    lines += [following.next_line(), following.next_line()]
    assert following.run.poll() is None
    following.go_on()
    lines.append(following.next_line())
    rest = following.next_line()

    assert shown("\n".join(lines)) == [
        "INFO    | wait-0 | waiting 1",
        "stdout  | wait-0 | waited 1",
        "INFO    | wait-1 | waiting 2",
        "stdout  | wait-1 | waited 2",
    ]
    assert rest == ""
    assert following.logs.wait(20) == 0


@pytest.mark.parametrize("following", [("sqlite", "--json")], indirect=True)
def test_followed_json_is_one_object_on_each_line(following: Following) -> None:
    """`-f --json` can be read line by line."""
    first = json.loads(following.next_line())
    following.go_on()
    second = json.loads(following.next_line())

    assert (first["run"], first["message"]) == ("wait-0", "waiting 1")
    assert (second["source"], second["message"]) == ("stdout", "waited 1")


def test_ctrl_c_ends_following_quietly(following: Following) -> None:
    """Who has seen enough presses Ctrl-C, and the run goes on."""
    following.next_line()

    following.logs.send_signal(signal.SIGINT)
    out, err = following.logs.communicate(timeout=20)

    assert (following.logs.returncode, out, err) == (0, "", "")
    assert following.run.poll() is None


def test_following_a_run_that_has_ended_shows_it(cli: Cli, run_name: str) -> None:
    """`-f` of what is over is what it would be without."""
    assert cli("logs", run_name, "-f").stdout == cli("logs", run_name).stdout


def test_following_a_task_ends_with_the_task(following: Following) -> None:
    """`-f` of a task run does not wait for the rest of the flow run."""
    command = [sys.executable, "-m", "localflow", "logs", "@last/wait-0", "-f"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as logs:
        assert logs.stdout is not None
        logs.stdout.readline()
        following.go_on()
        rest = logs.stdout.read()

    assert shown(rest) == ["stdout  | wait-0 | waited 1"]
    assert logs.returncode == 0
    assert following.run.poll() is None


def test_following_ends_when_the_engine_is_killed(following: Following) -> None:
    """A run whose engine is killed says nothing more: that is told, with exit code 1."""
    following.next_line()

    following.run.kill()
    _, err = following.logs.communicate(timeout=20)

    assert following.logs.returncode == 1
    assert "its engine is gone" in err
