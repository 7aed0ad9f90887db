"""`localflow runs` and `localflow show` tell what is recorded, to people and to programs."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Cli

ESCAPE = "\x1b]0;x\x07"

MAPPED = """
from localflow import flow, task

@task
def double(x):
    if x % 20 == 19: raise ValueError(f"{x} is odd")
    return 2 * x

@task(retries=2, retry_delay_seconds=0)
def flaky():
    raise OSError("no line")

@task
def total(xs): return sum(xs)

@flow
def main():
    first = double.map(range(400))
    total(double.map(range(3)))
    flaky()
    return total(first)
"""

HOSTILE = f"""
from localflow import flow, task, Failed

@task(name={ESCAPE + "task"!r}, tags=[{ESCAPE!r}])
def bad(text):
    raise ValueError("\\nCOMPLETED fake\\r\\x9b1m\\u202e" + text)

@task
def after(x): ...

@flow(name="\\nCOMPLETED fake {ESCAPE}")
def main(text):
    after(bad(text))
"""


@pytest.fixture
def recorded(cli: Cli, tutorial: str) -> str:
    """Record a run that failed and return its name."""
    done = cli("run", tutorial, "-p", 'names=["orion", "", "vega"]', "-p", "api_token=open sesame")
    assert done.returncode == 1, done.stderr
    return done.stderr.split("'")[1]


def in_terminal(*arguments: str, columns: int = 80, **environment: str) -> str:
    """Run a verb with its stdout on a terminal and return what it printed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    command = [sys.executable, "-m", "localflow", *arguments]
    with subprocess.Popen(command, stdout=theirs, env={**variables, "TERM": "xterm", **environment}) as process:
        os.close(theirs)
        printed = b""
        while True:
            try:
                read = os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not read:
                break
            printed += read
    os.close(ours)
    assert process.returncode == 0
    return printed.decode()


def test_nothing_is_recorded_and_nothing_is_created(cli: Cli, own_folder: Path, read_json: Any) -> None:
    """It says where it looked, on stderr; to a program it says `[]`."""
    done = cli("runs")

    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"no flow run is recorded in {own_folder}/.localflow/localflow.db\n"
    assert read_json("runs") == []
    assert list(own_folder.iterdir()) == []


def test_a_store_without_files_is_simply_empty(cli: Cli) -> None:
    """A store in memory has forgotten what was in another process."""
    done = cli("runs", LOCALFLOW_STORE="memory")

    assert (done.returncode, done.stderr) == (0, "no flow run is recorded in memory\n")


def test_a_damaged_store_is_exit_code_3(cli: Cli, own_folder: Path) -> None:
    """It is left as it is."""
    folder = own_folder / ".localflow"
    folder.mkdir(mode=0o700)
    (folder / "localflow.db").write_bytes(b"not a database" * 1000)
    (folder / "localflow.db").chmod(0o600)

    done = cli("runs")

    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert str(folder / "localflow.db") in done.stderr
    assert (folder / "localflow.db").read_bytes() == b"not a database" * 1000


def test_runs_lists_the_newest_first(cli: Cli, own_folder: Path, read_json: Any) -> None:
    """At most as many as asked for, with subflows and who called them."""
    (own_folder / "flows.py").write_text(
        "from localflow import flow\n@flow\ndef below(): ...\n@flow\ndef above(): below()\n@flow\ndef other(): ...\n"
    )
    for name in ("other", "above"):
        assert cli("run", f"flows.py:{name}").returncode == 0

    listing = read_json("runs")
    table = [line.split() for line in cli("runs").stdout.splitlines()]

    assert [run["flow"] for run in listing] == ["below", "above", "other"]
    assert listing[0]["parent_id"] == listing[0]["root_id"] == listing[1]["id"]
    assert [run["id"] for run in read_json("runs", "-n", "1")] == [listing[0]["id"]]
    assert table[0] == ["RUN", "ID", "FLOW", "STATE", "STARTED", "DURATION", "CALLED", "BY"]
    assert [row[:4] for row in table[1:]] == [[run["name"], run["id"], run["flow"], "Completed"] for run in listing]
    assert table[1][-1] == listing[1]["name"]


def test_show_names_who_called_a_flow(cli: Cli, own_folder: Path, read_json: Any) -> None:
    """The flow run that is shown, by its name."""
    (own_folder / "flows.py").write_text(
        "from localflow import flow\n@flow\ndef below(): ...\n@flow\ndef above(): below()\n"
    )
    assert cli("run", "flows.py:above").returncode == 0

    table = [line.split() for line in cli("show", "@last").stdout.splitlines()]

    assert [row[-1] for row in table[-2:]] == ["BY", read_json("show", "@last")["name"]]


def test_runs_as_json_has_what_programs_need(recorded: str, read_json: Any, tutorial: str) -> None:
    """Instants in UTC, parameters without secrets."""
    [run] = read_json("runs")

    assert run["name"] == recorded
    assert run["flow"] == "Add Projects"
    assert run["state"] == {"type": "FAILED", "name": "Failed", "message": "1/7 states failed."}
    assert run["parameters"] == {"names": ["orion", "", "vega"], "api_token": "***"}
    assert run["entry_point"] == f"{Path(tutorial).absolute()}:main"
    created, started, ended = (datetime.fromisoformat(run[f"{key}_at"]) for key in ("created", "started", "ended"))
    assert created <= started <= ended
    assert created.utcoffset() == timedelta(0)


def test_show_as_json_has_every_task_run_with_its_history(recorded: str, read_json: Any) -> None:
    """In call order, with names of upstreams and why they failed."""
    run = read_json("show", recorded)

    assert run["name"] == recorded
    assert [moment["name"] for moment in run["history"]] == ["Pending", "Running", "Failed"]
    by_name = {task_run["name"]: task_run for task_run in run["task_runs"]}
    assert list(by_name) == [
        "create_tables-0", "add_project-0", "announce-0", "add_project-1", "announce-1", "add_project-2", "announce-2",
    ]  # fmt: skip
    failed, blocked, completed = by_name["add_project-1"], by_name["announce-1"], by_name["announce-2"]
    assert failed["task"] == "add_project"
    assert failed["upstreams"] == ["create_tables-0"]
    assert failed["cause"]["exception_type"] == "ValueError"
    assert [moment["type"] for moment in failed["history"]] == ["PENDING", "RUNNING", "FAILED"]
    assert blocked["state"]["name"] == "NotReady"
    assert blocked["started_at"] is blocked["ended_at"] is blocked["worker"] is None
    assert completed["attempt"] == 1
    assert completed["worker"] == "main"
    assert completed["cpu_seconds"] >= 0
    assert completed["peak_rss_bytes"] > 1_000_000
    assert completed["started_at"] <= completed["ended_at"]


def test_show_prints_a_flow_run_for_people(cli: Cli, recorded: str) -> None:
    """The state, the parameters and a table of task runs."""
    done = cli("show", "@last-failed")

    fields = dict(line.split(None, 1) for line in done.stdout.split("\n\n")[0].splitlines() if " " in line)
    assert "Failed: 1/7 states failed." in fields["State"]
    assert "orion" in done.stdout
    assert "sesame" not in done.stdout
    assert "\nTask runs  5 Completed, 1 Failed, 1 NotReady\n" in done.stdout
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if "-0" in line or "-1" in line}
    assert rows["add_project-1"] == "Failed"
    assert rows["announce-1"] == "NotReady"


def test_show_prints_a_task_run_for_people(cli: Cli, recorded: str) -> None:
    """With its traceback, its history and its result."""
    failed = cli("show", f"{recorded}/add_project-1").stdout
    completed = cli("show", f"{recorded}/create_tables").stdout

    assert "ValueError: a project needs a name" in failed
    assert 'raise ValueError("a project needs a name")' in failed
    assert re.search(r"Upstreams +create_tables-0\n", failed)
    assert [line.split()[2] for line in failed.splitlines()[-3:]] == ["Pending", "Running", "Failed"]
    assert re.search(r'Result +"made"\n', completed)


@pytest.fixture
def mapped(cli: Cli, own_folder: Path) -> str:
    """Record a run with mapped tasks, some of which failed, and return its name."""
    (own_folder / "mapped.py").write_text(MAPPED)
    done = cli("run", "mapped.py")
    assert done.returncode == 1, done.stderr
    return done.stderr.split("'")[1]


def test_a_map_is_one_line_with_its_failures_below(cli: Cli, mapped: str) -> None:
    """With counts; of many failures the first ones, and a count of the rest."""
    done = cli("show", mapped)

    lines = done.stdout.splitlines()
    group = next(place for place, line in enumerate(lines) if line.startswith("double[0..399]"))
    assert "380 Completed, 20 Failed" in lines[group]
    assert [line.split()[0] for line in lines[group + 1 : group + 11]] == [f"double-{n}" for n in range(19, 219, 20)]
    assert lines[group + 11].split() == ["...", "10", "Failed"]
    assert lines[group + 12].split()[:3] == ["double[0..2]", "3", "Completed"]
    assert len(lines) < 40


def test_all_members_of_a_map_are_listed_when_asked_for(cli: Cli, mapped: str, read_json: Any) -> None:
    """By `--all`, by the name of the task, and as JSON."""
    everything, members = cli("show", mapped, "--all").stdout, cli("show", f"{mapped}/double").stdout

    assert len(re.findall(r"^  double-\d+ ", everything, re.MULTILINE)) == 403
    assert len(re.findall(r"^double-\d+ ", members, re.MULTILINE)) == 403
    assert re.search(r"^Task runs +383 Completed, 20 Failed$", members, re.MULTILINE)
    assert [run["map_index"] for run in read_json("show", f"{mapped}/double")] == [*range(400), *range(3)]
    task_runs = read_json("show", mapped)["task_runs"]
    places = {run["name"]: (run["map_number"], run["map_index"]) for run in task_runs}
    assert places["double-399"] == (1, 399)
    assert places["double-402"] == (2, 2)
    assert places["flaky-0"] == places["total-0"] == (None, None)


def test_show_tells_of_attempts(cli: Cli, mapped: str, read_json: Any) -> None:
    """In the table where there was more than one, and each state between them in the history."""
    table, shown = cli("show", mapped).stdout, cli("show", f"{mapped}/flaky").stdout

    row = next(line for line in table.splitlines() if line.startswith("flaky-0"))
    assert "ATTEMPT" in table
    assert row.split()[1:3] == ["Failed", "3"]
    history = [line.split()[2] for line in shown.partition("SINCE")[2].splitlines()[1:]]
    assert history == ["Pending", "Running", "AwaitingRetry", "Retrying", "AwaitingRetry", "Retrying", "Failed"]
    assert read_json("show", f"{mapped}/flaky")["attempt"] == 3


def test_a_task_run_is_found_by_its_id_alone(cli: Cli, mapped: str, read_json: Any) -> None:
    """It is what other programs have in hand."""
    run_id = read_json("show", f"{mapped}/double-19")["id"]

    shown = cli("show", run_id).stdout

    assert re.search(r"^Task run +double-19$", shown, re.MULTILINE)
    assert re.search(r"^Map item +19$", shown, re.MULTILINE)
    assert re.search(r"^called with x=19$", shown, re.MULTILINE)
    assert cli("show", f"{run_id}0000").returncode == 2


def test_the_full_traceback_has_the_frames_of_localflow(cli: Cli, recorded: str) -> None:
    """When asked for; otherwise only those of the user's own code."""
    few = cli("show", f"{recorded}/add_project-1").stdout
    everything = cli("show", f"{recorded}/add_project-1", "--full-traceback").stdout

    assert "tutorial.py" in few
    assert "calls.py" not in few
    assert "tutorial.py" in everything
    assert "calls.py" in everything


def test_a_result_that_others_may_use_is_shown_with_its_key(cli: Cli, own_folder: Path, read_json: Any) -> None:
    """And how long they may."""
    (own_folder / "flows.py").write_text(
        "from datetime import timedelta\nfrom localflow import flow, task\n"
        "@task(cache_key_fn=lambda context, parameters: 'the key', cache_expiration=timedelta(hours=1))\n"
        "def make(): return 1\n"
        "@flow\ndef main(): make()\n"
    )
    cli("run", "flows.py")

    view = read_json("show", "@last/make")

    assert "the key" in view["cache"]["key"]
    lasts = datetime.fromisoformat(view["cache"]["expires_at"]) - datetime.fromisoformat(view["ended_at"])
    assert timedelta(minutes=59) < lasts < timedelta(minutes=61)
    assert "Cached until" in cli("show", "@last/make").stdout
    assert read_json("show", "@last")["task_runs"][0]["cache"] == view["cache"]


def test_show_limits_what_it_lists(cli: Cli, own_folder: Path, read_json: Any) -> None:
    """What failed is always among it, and the rest is counted; `--all` and `--json` have everything."""
    (own_folder / "flows.py").write_text(
        "from localflow import flow, task\n"
        "@task\ndef step(x):\n    if x in (90, 1010): raise ValueError(x)\n"
        "@flow\ndef below(): ...\n"
        "@flow\ndef main():\n    for x in range(1020): step(x)\n    for _ in range(25): below()\n"
    )
    cli("run", "flows.py")

    name = read_json("runs", "-n", "50")[-1]["name"]

    few, everything = cli("show", name).stdout, cli("show", name, "--all").stdout

    shown = re.findall(r"^step-\d+", few, re.MULTILINE)
    assert len(shown) == 1000
    assert "step-90" in shown
    assert "step-1010" in shown
    assert "\n... and 20 more; --all shows them\n" in few
    assert "\n25 flow runs were called:\n" in few
    assert few.endswith("\n... and 5 more; --all shows them\n")
    assert len(re.findall(r"^step-", everything, re.MULTILINE)) == 1020
    assert "--all" not in everything


def test_pickled_results_are_never_opened(cli: Cli, own_folder: Path, read_json: Any) -> None:
    """A value that runs code when it is unpickled does not get to."""
    (own_folder / "flows.py").write_text(
        "from localflow import flow, task\n"
        "class Canary:\n    def __reduce__(self): return open, ('hatched', 'w')\n"
        "@task\ndef lay(): return Canary()\n"
        "@flow\ndef main(egg=Canary()):\n    lay()\n    return Canary()\n"
    )
    assert cli("run", "flows.py").returncode == 0

    assert re.fullmatch(r"<pickled, \d+ bytes>", read_json("show", "@last/lay")["result"])
    assert re.fullmatch(r"<pickled, \d+ bytes>", read_json("show", "@last")["result"])
    for verb in (["runs"], ["show", "@last"], ["show", "@last/lay-0"]):
        assert cli(*verb).returncode == 0
    assert not (own_folder / "hatched").exists()


def test_texts_of_users_never_act_on_the_terminal(cli: Cli, own_folder: Path, read_json: Any) -> None:
    """Control characters, bidi marks and line ends are escaped wherever they are shown."""
    (own_folder / "flows.py").write_text(HOSTILE)
    told = cli("run", "flows.py", "-p", f"text={ESCAPE}")
    assert told.returncode == 1
    outputs = [told, *(cli(*verb.split()) for verb in ("runs", "show @last", "runs --json", "show @last --json"))]
    task_run = read_json("show", "@last")["task_runs"][0]["name"]
    outputs.append(cli("show", f"@last/{task_run}"))

    for done in outputs:
        printed = done.stdout + done.stderr
        assert printed
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", printed)
        assert not any(line.startswith("COMPLETED") for line in printed.splitlines())
    assert task_run == f"{ESCAPE}task-0"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_locale_can_show_every_name(cli: Cli, own_folder: Path, encoding: str) -> None:
    """What an encoding cannot hold is escaped."""
    (own_folder / "flows.py").write_text(
        "from localflow import flow\n@flow(name='Größe 漢字')\ndef main(word): ...\n", encoding="utf-8"
    )

    for verb in (["run", "flows.py", "-p", "word=漢"], ["runs"], ["show", "@last"], ["show", "@last", "--json"]):
        command = [sys.executable, "-m", "localflow", *verb]
        variables = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": encoding}
        done = subprocess.run(command, capture_output=True, env=variables, check=False)
        assert done.returncode == 0, done.stderr
        done.stdout.decode(encoding)


def test_a_terminal_gets_colours_and_short_ids(recorded: str, read_json: Any) -> None:
    """Unless the user refuses them, or it is no terminal."""
    run_id = read_json("runs")[0]["id"]

    coloured, plain = in_terminal("runs"), in_terminal("runs", NO_COLOR="1")
    shown, dumb = in_terminal("show", recorded), in_terminal("show", recorded, TERM="dumb")

    assert "\x1b[31mFailed" in coloured
    assert "\x1b[31mFailed" in shown
    assert "\x1b" not in plain + dumb
    assert run_id[:8] in plain
    assert run_id not in plain


@pytest.mark.parametrize("columns", [1, 30, 60])
def test_a_narrow_terminal_folds_and_cuts_nothing(recorded: str, columns: int) -> None:
    """Every letter of what a wide one shows is there."""
    narrow = in_terminal("show", recorded, columns=columns, NO_COLOR="1")
    wide = in_terminal("show", recorded, columns=500, NO_COLOR="1")

    assert Counter(re.sub(r"\s", "", narrow)) == Counter(re.sub(r"\s", "", wide))


def test_nothing_is_cut_where_there_is_no_terminal(cli: Cli, own_folder: Path) -> None:
    """A long message is on one line, whatever the width of the screen."""
    (own_folder / "flows.py").write_text(
        "from localflow import flow, task\n@task\ndef bad(): raise ValueError('x' * 300)\n@flow\ndef main(): bad()\n"
    )
    cli("run", "flows.py")

    done = cli("show", "@last", COLUMNS="40")

    assert "ValueError: " + "x" * 300 + "\n" in done.stdout


def test_json_is_one_document_on_stdout(cli: Cli, recorded: str) -> None:
    """ASCII only, so that it is whole in every locale."""
    done = cli("show", recorded, "--json")

    assert done.stdout.isascii()
    assert json.loads(done.stdout)["name"] == recorded
    assert done.stderr == ""
