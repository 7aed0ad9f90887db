"""The state of runs is its owner's alone, is never unpickled by readers, and no name makes a path."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.conftest import Place

WORK = """
import logging

@task(tags=["db"], cache_policy=INPUTS)
def load(number):
    get_run_logger().warning("loading %s", number)
    return bytes(number)

@task
def fail():
    raise ValueError("no")

@flow
def inner():
    return load(3)

@flow
def main():
    load(10)
    load(3_000_000)
    fail()
    inner()
    look()
"""

LOOK = """
def look():
    for folder, _, names in os.walk(".localflow"):
        for path in [folder, *(os.path.join(folder, name) for name in names)]:
            try:
                note("mode", f"{os.lstat(path).st_mode:o}", path)
            except FileNotFoundError:
                pass
"""

VERBS = """
import sys
from localflow.cli.app import run_app

for line in sys.argv[1:]:
    print(f"== {line}", flush=True)
    print(f"== {line}", file=sys.stderr, flush=True)
    code = run_app(line.split())
    print(f"-> {code}", flush=True)
"""


def state(place: Place) -> list[Path]:
    """Return the state folder and everything in it."""
    root = place.folder / ".localflow"
    return [root, *sorted(root.rglob("*"))]


# -- S1 and S2 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_fault_S1_all_that_is_made_is_the_owners_alone(place: Place, store: str, umask: int) -> None:
    """Folders have mode 0700 and files 0600, while a run goes on and afterwards, whatever the umask."""
    (place.folder / "localflow.toml").write_text("[limits]\ndb = 1\n")
    program = place.write(LOOK + WORK)

    done = place.start(
        "-m", "localflow", "run", f"{program}:main", "--executor", "process", before=lambda: os.umask(umask) and None
    ).wait()

    assert done.returncode == 1, done.stderr
    during = [(int(line.split()[1], 8), line.split()[2]) for line in place.notes if line.startswith("mode")]
    found = during + [(path.lstat().st_mode, str(path.relative_to(place.folder))) for path in state(place)]
    assert len(during) > 3
    wrong = [
        (oct(mode), path)
        for mode, path in found
        if stat.S_ISLNK(mode) or stat.S_IMODE(mode) != (0o700 if stat.S_ISDIR(mode) else 0o600)
    ]
    assert wrong == []


def test_fault_S1_a_link_in_the_place_of_the_store_is_not_followed(place: Place, store: str) -> None:
    """Planted before the first run, to nowhere or to a place of others: refused with exit code 3, and nothing is made.

    (A folder of one's own may well be a link to another one of one's own, on a larger disk.)
    """
    victim = place.folder / "victim"
    (place.folder / ".localflow").mkdir(mode=0o700)
    planted = place.folder / ".localflow" / ("localflow.db" if store == "sqlite" else "runs")
    program = place.write("def look(): ...\n" + WORK)

    for exists in (False, True):
        if exists and store == "sqlite":
            victim.write_text("precious")
        elif exists:
            victim.mkdir()
            victim.chmod(0o777)
        planted.unlink(missing_ok=True)
        planted.symlink_to(victim)

        done = place.localflow("run", f"{program}:main")

        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr
        if exists:
            assert victim.read_text() == "precious" if store == "sqlite" else not [*victim.iterdir()]
        else:
            assert not victim.exists()


def test_fault_S2_a_store_that_others_may_write_is_refused(place: Place, store: str) -> None:
    """By running and by reading verbs, with exit code 3 and the fix; once that is done it is read again."""
    program = place.write("def look(): ...\n" + WORK)
    assert place.localflow("run", f"{program}:inner").returncode == 0
    (place.folder / "verbs.py").write_text(VERBS)
    folder = place.folder / ".localflow"
    [run] = (folder / "runs").glob("*/journal.jsonl") if store == "json" else [folder / "localflow.db"]
    for path in (folder if store == "sqlite" else folder / "runs", run):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o020)

        done = place.run("verbs.py", "show @last", f"run {program}:inner" if path != run else "logs @last")

        assert done.stdout.count("-> 3") == 2, done.stdout + done.stderr
        assert done.stderr.count("others may write it") == 2
        assert f"chmod go-w {path}" in done.stderr
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o020)
    assert len(place.read("runs")) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_fault_S2_a_store_of_somebody_else_is_refused(place: Place, store: str) -> None:
    """Root is told as well that it is not its own."""
    program = place.write("def look(): ...\n" + WORK)
    assert place.localflow("run", f"{program}:inner").returncode == 0
    path = place.folder / ".localflow" / ("localflow.db" if store == "sqlite" else "runs")
    os.chown(path, 4321, -1)

    done = place.localflow("runs")

    assert done.returncode == 3
    assert f"{path} holds state but belongs to user 4321" in done.stderr


# -- S3 --------------------------------------------------------------------------------------------------------------

CANARY = """
import localflow

class Canary:
    def __reduce__(self):
        return (open, ("sung", "w"))

class Trouble(Exception):
    def __init__(self): super().__init__("trouble", Canary())

@task(cache_policy=TASK_SOURCE)
def give(): return Canary()

@task
def fail(bird): raise Trouble

@flow
def main(bird=Canary()):
    given = give()
    fail(bird)
    return [given, bird]
"""


def test_fault_S3_reading_verbs_never_unpickle(place: Place, store: str) -> None:
    """A value that would do something when it is unpickled has done nothing after all of them."""
    program = place.write(CANARY)
    assert place.localflow("run", program).returncode == 0
    (place.folder / "sung").unlink(missing_ok=True)
    (place.folder / "verbs.py").write_text(VERBS)
    verbs = [
        *("runs", "runs --json", "show @last", "show @last --json", "show @last/give-0", "show @last/fail-0 --json"),
        *("logs @last", "logs @last/fail-0 --json", "graph @last", "graph @last --as dot", "graph @last --json"),
        *("plugins", "config show", "config validate", "doctor", "clean --older-than 1d --dry-run"),
        "show @last --full-traceback",
    ]

    done = place.run("verbs.py", *verbs)

    assert done.stdout.count("-> 0") == len(verbs), done.stdout + done.stderr
    assert not (place.folder / "sung").exists()


def test_fault_S3_the_canary_sings(place: Place) -> None:
    """Whoever asks for a value unpickles it: the test above would notice."""
    place.run(place.write(CANARY + "\nmain().result(raise_on_failure=False)\n"))
    (place.folder / "sung").unlink(missing_ok=True)
    reader = (
        "from localflow.project import Project\nfrom localflow.payloads import unpack\n"
        "with Project.load().opened_store() as store:\n"
        "    run = store.list_flow_runs()[0].flow_run\n    unpack(store.load_result(run.id, 1))\n"
    )
    (place.folder / "reader.py").write_text(reader)

    done = place.run("reader.py")

    assert done.returncode == 0, done.stderr
    assert (place.folder / "sung").exists()


# -- S5 --------------------------------------------------------------------------------------------------------------

SOCKETS = """
import psutil

def look(executor):
    family = {os.getpid(), os.getppid()} | {each.pid for each in psutil.Process().children(recursive=True)}
    net = [each for each in psutil.net_connections("inet") if each.pid in family]
    inodes = set()
    for pid in family:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    listening = []
    for line in open("/proc/net/unix").readlines()[1:]:
        words = line.split()
        if words[6] in inodes and int(words[3], 16) & 0x10000:
            listening.append(line)
    note(executor, len(net), len(listening), len(family) > 2)

@task
def hold(number, executor):
    note("began", executor)
    if executor == "sequential":
        look(executor)
    else:
        until(lambda: os.path.exists(f"go-{executor}"))

@flow
def main(executor):
    held = [hold(number, executor) for number in range(2)]
    if executor != "sequential":
        until(lambda: os.path.exists("oracle") and open("oracle").read().count(f"began {executor}") == 2)
        look(executor)
        open(f"go-{executor}", "w").close()
    return held

if __name__ == "__main__":
    for executor in ("sequential", "thread", "process"):
        assert main.with_options(executor=executor)(executor).is_completed()
"""


@pytest.mark.skipif(not os.path.exists("/proc/net/unix"), reason="needs the list of sockets that Linux keeps")  # noqa: PTH110
def test_fault_S5_nothing_listens_while_a_run_goes_on(place: Place) -> None:
    """On no executor has a process of the run a connection to a network, or a socket that others could connect to."""
    done = place.run(place.write(SOCKETS))

    assert done.returncode == 0, done.stderr
    looks = [line.split() for line in place.notes if not line.startswith("began")]
    assert [look[:3] for look in looks] == [
        ["sequential", "0", "0"],
        ["sequential", "0", "0"],
        ["thread", "0", "0"],
        ["process", "0", "0"],
    ]
    assert looks[-1][3] == "True"


# -- S9 --------------------------------------------------------------------------------------------------------------

INJECTED = "'); DROP TABLE flow_runs; --"

STATEMENTS = f"""
NAME = {INJECTED!r}

@task(name=NAME, task_run_name=NAME, tags=[NAME], cache_key_fn=lambda *_: NAME)
def work(text):
    get_run_logger().warning(NAME)
    return text

@flow(name=NAME, flow_run_name=NAME)
def main():
    return [work(NAME), work('" OR 1=1'), work("%_*[]")]
"""


def test_fault_S9_texts_that_look_like_sql_are_texts(place: Place, store: str) -> None:
    """As names, tags, cache keys, log lines, values and references they come back as they went in."""
    ran = place.localflow("run", place.write(STATEMENTS))
    [run] = place.read("runs")
    shown = place.read("show", INJECTED)
    (place.folder / "verbs.py").write_text(VERBS)
    missed = place.run("verbs.py", "show -- %", "show -- _", "show -- '_OR_1=1", "logs -- *")

    assert ran.returncode == 0, ran.stderr
    assert run["name"] == run["flow"] == INJECTED
    assert [each["task"] for each in shown["task_runs"]] == [INJECTED] * 3
    assert shown["task_runs"][0]["tags"] == [INJECTED]
    assert missed.stdout.count("-> 2") == 4, missed.stdout


# -- S8 --------------------------------------------------------------------------------------------------------------

PATHS = """
NAME = "../../../outside/\\0/x"

@task(name=NAME, task_run_name=NAME, tags=[NAME], cache_key_fn=lambda *_: NAME)
def work():
    get_run_logger().warning("hello")
    return bytes(3_000_000)

@flow(name=NAME, flow_run_name=NAME)
def main():
    work()
"""


def test_fault_S8_names_never_become_paths(place: Place, store: str) -> None:
    """Names of flows, tasks, runs and tags, and cache keys, may say what they like: all is in the state folder."""
    inside = place.folder / "a" / "b" / "c" / "d"
    inside.mkdir(parents=True)
    before = {path for path in place.folder.rglob("*") if path.is_dir()}
    (inside / "localflow.toml").write_text("[limits]\n'../../../outside' = 1\n'../../../outside/\\u0000/x' = 1\n")
    program = place.write(PATHS)

    done = place.localflow("run", str(place.folder / program))

    assert done.returncode == 0, done.stderr
    made = {path for path in place.folder.rglob("*") if path.is_dir()} - before
    assert {path.relative_to(place.folder).parts[0] for path in made} <= {".localflow", "__pycache__"}
    for run in place.read("runs"):
        assert re.fullmatch(r"[a-z0-9-]{1,64}", run["id"])
        for task_run in place.task_runs(run["id"]):
            assert re.fullmatch(r"[a-z0-9-]{1,64}", task_run["id"])


def test_fault_S8_references_never_become_paths(place: Place, store: str) -> None:
    """What is no run is answered as such, with exit code 2, wherever it points."""
    assert place.localflow("run", place.write(PATHS)).returncode == 0
    (place.folder / "verbs.py").write_text(VERBS)
    references = ["../localflow.db", "/etc/passwd", "../../../../../../etc/passwd", "%2e%2e", "a\x01b", "'", "*", "-1"]
    verbs = [f"{verb} -- {each}" for verb in ("show", "logs", "graph", "cancel", "resume") for each in references]

    done = place.run("verbs.py", *verbs)

    codes = [line for line in done.stdout.splitlines() if line.startswith("-> ")]
    assert codes == ["-> 2"] * len(verbs), done.stderr
    assert "Traceback" not in done.stderr
    assert "root:" not in done.stdout + done.stderr


@pytest.mark.skip(reason="localflow has no archives to export or import")
def test_fault_S8_archives() -> None:
    """Nothing is taken out of an archive to a place outside."""
