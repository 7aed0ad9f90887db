"""`localflow run` runs a flow and ends with the exit code and the words that fit how it went."""

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
    from conftest import Cli

WAITING = """
import time
from localflow import flow, task

@task
def wait_long():
    print("at work", flush=True)
    for _ in range(2000):  # not one long sleep: a signal just before it would be seen only at its end
        time.sleep(0.02)

@task
def later(x): ...

@flow
def main():
    later(wait_long())
"""


def names_from(*names: str) -> list[str]:
    """Return the parameter of the tutorial's flow."""
    return ["-p", f"names={json.dumps(names)}"]


def test_a_completed_run_prints_its_state_and_exits_with_0(cli: Cli, tutorial: str) -> None:
    """Data goes to stdout, everything else to stderr."""
    done = cli("run", tutorial, *names_from("orion"))

    assert done.returncode == 0
    assert done.stdout == "State(name='Completed', type=StateType.COMPLETED, message='All states completed.')\n"
    begin, end = done.stderr.splitlines()
    assert "of 'Add Projects' on executor 'sequential', recorded in " in begin
    assert begin.endswith(str(Path(".localflow/localflow.db")))
    assert begin.split("'")[1] == end.split("'")[1]
    assert "is Completed after" in end


def test_a_failed_run_says_what_failed_and_what_was_not_run(cli: Cli, tutorial: str) -> None:
    """With the user's frames only, and a command that shows more."""
    done = cli("run", tutorial, *names_from("orion", "", "vega"))

    assert done.returncode == 1
    assert done.stdout == "State(name='Failed', type=StateType.FAILED, message='1/7 states failed.')\n"
    report = done.stderr.split("\n\n", 1)[1]
    assert (
        "task run 'add_project-1' is Failed: Task run encountered an exception: ValueError: a project needs" in report
    )
    assert 'raise ValueError("a project needs a name")' in report
    assert "not run because of 'add_project-1': announce-1\n" in report
    assert "/localflow/" not in report
    name = done.stderr.split("'")[1]
    assert report.endswith(f"see: localflow show {name}\nresume: localflow resume {name}\n")


def test_all_that_one_failure_blocked_is_in_one_line(cli: Cli, own_folder: Path) -> None:
    """Chains lead back to the failure at their root, many names are counted, and so are many failures."""
    (own_folder / "flows.py").write_text(
        "from localflow import flow, task\n"
        "@task\ndef root(): raise OSError('gone')\n"
        "@task\ndef step(x): ...\n"
        "@flow\ndef main():\n"
        "    first = root()\n"
        "    for _ in range(12): first = step(first)\n"
        "    for _ in range(7): root()\n"
    )

    done = cli("run", "flows.py")

    listed = ", ".join(f"step-{number}" for number in range(10))
    assert f"not run because of 'root-0': {listed} and 2 more\n" in done.stderr
    assert "\nand 7 more like it: root-1, root-2, root-3, root-4, root-5, root-6, root-7\n" in done.stderr
    assert done.stderr.count("Traceback") == 1


def test_a_failure_is_told_with_all_that_helps(cli: Cli, own_folder: Path) -> None:
    """Once: which item of a map, with which arguments, in which attempt, where, and what it said last."""
    (own_folder / "flows.py").write_text(
        "import json\nfrom localflow import flow, task\n"
        "@task(retries=1, log_prints=True)\ndef read(text, api_token, size=3):\n"
        "    for number in range(9): print('line', number)\n    return json.loads(text)\n"
        "@flow\ndef main(): read.map(['1', '{', '{ ', '2'], api_token='hush', size=4)\n"
    )

    done = cli("run", "flows.py", "--executor", "process", "-j", "1")

    told = done.stderr.partition("\n\n")[2]
    heading, arguments, where, *_ = told.splitlines()
    assert heading.startswith("task run 'read-1' (item 1 of the map) is Failed: Task run encountered an exception: ")
    assert arguments == "    called with text='{', api_token=***, size=4"
    assert re.fullmatch(r"    attempt 2, worker pid \d+", where)
    assert told.count("Traceback") == 1
    assert "in read\n        return json.loads(text)\n" in told.replace(
        "        " + "    " + "return", "        return"
    )
    assert "      ... 2 frames of json left out\n" in told
    assert "\nand 1 more like it: read-2\n" in told
    assert re.findall(r"^      [\d:.]{12} \| INFO    \| line (\d)$", told, re.MULTILINE) == ["4", "5", "6", "7", "8"]
    assert "hush" not in done.stderr
    assert "/localflow/" not in told


def test_the_end_of_a_run_tells_a_failure_once(cli: Cli, own_folder: Path) -> None:
    """The notifier `log` leaves it to the end of the run, unless the settings ask for it."""
    (own_folder / "flows.py").write_text(
        "from localflow import flow, task\n@task\ndef bad(): raise ValueError('boom')\n"
        "@flow\ndef main(): bad()\nif __name__ == '__main__': main()\n"
    )
    line = "task run 'bad-0' of flow run "

    quiet = cli("run", "flows.py")
    by_python = subprocess.run([sys.executable, "flows.py"], capture_output=True, text=True, check=True)
    (own_folder / "localflow.toml").write_text("[notifiers.log]\non = ['Failed']\n")
    loud = cli("run", "flows.py")

    assert quiet.stderr.count("is Failed: Task run") == 1
    assert line not in quiet.stderr
    assert line in loud.stderr
    assert line in by_python.stderr


def test_an_exception_that_goes_on_into_the_flow_is_told_once(cli: Cli, own_folder: Path) -> None:
    """The flow's part of it leads there; `--full-traceback` tells all of each."""
    (own_folder / "flows.py").write_text(
        "from localflow import flow, task\n@task\ndef bad(): raise ValueError('boom')\n"
        "@flow\ndef main():\n    future = bad()\n    return future.result()\n"
    )
    for executor in ("sequential", "thread", "process"):
        done = cli("run", "flows.py", "--executor", executor)
        everything = cli("run", "flows.py", "--executor", executor, "--full-traceback")

        told = done.stderr.partition("\n\n")[2]
        assert told.count("raise ValueError('boom')") == 1
        assert "return future.result()" in told
        assert "... as told above of task run 'bad-0'\n" in told
        assert everything.stderr.count("raise ValueError('boom')") == 2
        assert "calls.py" in everything.stderr


def test_an_exception_of_the_body_and_of_a_subflow_are_both_told(cli: Cli, own_folder: Path) -> None:
    """The report covers the whole tree of flow runs."""
    (own_folder / "flows.py").write_text(
        "from localflow import flow, task\n"
        "@task\ndef bad(): raise KeyError('deep')\n"
        "@task\ndef after(x): ...\n"
        "@flow\ndef below(): bad()\n"
        "@flow\ndef main():\n    after(below())\n    try:\n        bad().result()\n"
        "    except KeyError:\n        raise RuntimeError('at the end')\n"
    )

    done = cli("run", "flows.py")

    assert done.returncode == 1
    assert "Flow run encountered an exception: RuntimeError: at the end" in done.stdout
    assert "is Failed: Task run encountered an exception: KeyError: 'deep'" in done.stderr
    assert 'in main\n        raise RuntimeError("at the end")' in done.stderr.replace("'", '"')
    assert "During handling of the above exception" in done.stderr
    assert "bad().result()" in done.stderr
    assert "/localflow/" not in done.stderr.split("\n\n", 1)[1]
    assert "': after-0" in done.stderr


def test_a_very_long_traceback_is_cut_in_the_middle(cli: Cli, own_folder: Path) -> None:
    """Both ends stay: where it began and what it was."""
    message = "x" * 100_000 + "\\n" + "line\\n" * 1000 + "the end"
    (own_folder / "flows.py").write_text(
        f"from localflow import flow, task\n@task\ndef bad(): raise ValueError('{message}')\n@flow\ndef main(): bad()\n"
    )

    done = cli("run", "flows.py")

    report = done.stderr.split("\n\n", 1)[1]
    assert len(report) < 20_000
    assert "lines left out" in report
    assert "the end\n" in report


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return Completed(message='by hand')", 0),
        ("return Failed(message='by hand')", 1),
        ("return Cancelled(message='by hand')", 130),
        ("return Pending(message='by hand')", 1),
        ("import sys; sys.exit(0)", 1),
        ("import sys; sys.exit(130)", 1),
        ("raise SystemError('not ours')", 1),
    ],
)
def test_the_exit_code_follows_the_final_state(cli: Cli, own_folder: Path, body: str, code: int) -> None:
    """Only COMPLETED is 0, CANCELLED is 130; what the code says about exit codes does not matter."""
    (own_folder / "flows.py").write_text(f"from localflow import *\n@flow\ndef main():\n    {body}\n")

    assert cli("run", "flows.py").returncode == code


def test_parameters_arrive_fitted_and_are_recorded(cli: Cli, own_folder: Path, read_json: Any) -> None:
    """As the annotations say; secrets are recorded but never shown."""
    (own_folder / "flows.py").write_text(
        "from pathlib import Path\nfrom localflow import flow\n"
        "@flow\ndef main(path: Path, ratio: float, tags: list[str], zip_code: str, api_key: str):\n"
        "    print(repr((path, ratio, tags, zip_code, api_key)))\n"
    )

    done = cli(
        "run", "flows.py", "-p", "path=a=b", "--parameter", "ratio=2", "-p", 'tags=["x"]', "-p", "zip_code=01234",
        "-p", "api_key=open sesame",
    )  # fmt: skip

    assert done.stdout.splitlines()[0] == "(PosixPath('a=b'), 2.0, ['x'], '01234', 'open sesame')"
    assert "sesame" not in done.stderr
    parameters = read_json("runs")[0]["parameters"]
    assert parameters["api_key"] == "***"
    assert parameters["zip_code"] == "01234"
    assert parameters["ratio"] == 2.0


def test_the_executor_flag_comes_before_the_file_and_after_the_code(cli: Cli, own_folder: Path, read_json: Any) -> None:
    """Settings < flag < keyword in code; a flag without effect is warned of."""
    (own_folder / "localflow.toml").write_text(
        'executor = "sequential"\n[executors.few]\ntype = "thread"\nworkers = 1\n'
    )
    flows = "from localflow import *\n@flow\ndef open_(): ...\n@flow(executor='thread')\ndef fixed(): ...\n"
    flows += "@flow(executor=ThreadExecutor(workers=1))\ndef made(): ...\n"
    (own_folder / "flows.py").write_text(flows)

    by_flag = cli("run", "flows.py:open_", "--executor", "few", "-j", "2")
    by_code = cli("run", "flows.py:fixed", "--executor", "few", "-j", "3")
    by_object = cli("run", "flows.py:made", "-j", "3")

    assert [run["executor"] for run in read_json("runs")] == ["ThreadExecutor", "thread", "few"]
    assert "warning" not in by_flag.stderr
    assert "warning: --executor has no effect: flow 'fixed' names 'thread' in its code\n" in by_code.stderr
    assert "warning: -j has no effect: flow 'made' makes its ThreadExecutor in its code\n" in by_object.stderr


def test_the_workers_flag_sets_the_number_of_workers(cli: Cli, own_folder: Path) -> None:
    """It wins over the file, for the executor that is chosen, whoever chooses it."""
    (own_folder / "localflow.toml").write_text("[executors.thread]\nworkers = 1\n")
    (own_folder / "flows.py").write_text(
        "import threading\nfrom localflow import flow, task\nboth = threading.Barrier(2, timeout=5)\n"
        "@task\ndef meet(): both.wait()\n"
        "@flow\ndef main():\n    meet(), meet()\n"
    )

    done = cli("run", "flows.py", "--executor", "thread", "-j", "2")

    assert done.returncode == 0, done.stderr


def test_workers_of_an_executor_that_has_none_are_refused_with_advice(cli: Cli, tutorial: str) -> None:
    """The default executor is sequential, so `-j` alone says what else to give."""
    done = cli("run", tutorial, *names_from("orion"), "-j", "2")

    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("-j: [executors.sequential] unknown option 'workers'")
    assert "--executor chooses another one" in done.stderr


def test_functions_of_the_file_travel_to_worker_processes(cli: Cli, own_folder: Path) -> None:
    """Workers cannot import the file; its functions, classes and neighbours work there all the same."""
    (own_folder / "neighbour.py").write_text("def double(x): return 2 * x\n")
    (own_folder / "flows.py").write_text(
        "import os\nfrom dataclasses import dataclass\nimport neighbour\nfrom localflow import flow, task\n"
        "@dataclass\nclass Point:\n    x: int\n"
        "@task\ndef move(point): return Point(neighbour.double(point.x)), os.getpid()\n"
        "@flow\ndef main():\n"
        "    point, pid = move(Point(21)).result()\n"
        "    print(isinstance(point, Point), point.x, pid != os.getpid())\n"
    )

    done = cli("run", "flows.py", "--executor", "process", "-j", "1")

    assert done.stdout.splitlines()[0] == "True 42 True", done.stderr


@pytest.mark.parametrize("executor", ["sequential", "process"])
def test_a_file_may_be_called_like_a_module_of_the_standard_library(own_folder: Path, executor: str) -> None:
    """Tasks that import the module get that one, not the file of the flow."""
    (own_folder / "flows").mkdir()
    (own_folder / "flows" / "colorsys.py").write_text(
        "from localflow import flow, task\n"
        "@task\ndef look():\n    import colorsys\n    return hasattr(colorsys, 'rgb_to_hls')\n"
        "@flow\ndef main(): print(look().result())\n"
    )
    command = [sys.executable, "-m", "localflow", "run", "flows/colorsys.py", "--executor", executor]

    done = subprocess.run(command, cwd=own_folder, capture_output=True, text=True, timeout=30, check=False)

    assert done.stdout.splitlines()[:1] == ["True"], done.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["int", "term", "hup"]
)
def test_a_signal_stops_the_run_and_gives_the_exit_code(
    cli: Cli, own_folder: Path, read_json: Any, number: signal.Signals, code: int
) -> None:
    """128 + its number, with the interruption recorded and no traceback shown."""
    (own_folder / "flows.py").write_text(WAITING)
    command = [sys.executable, "-m", "localflow", "run", "flows.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()

        process.send_signal(number)
        _, told = process.communicate(timeout=20)

    assert process.returncode == code
    assert "Traceback" not in told
    assert "was stopped" in told
    assert read_json("runs")[0]["state"]["name"] == "Interrupted"


def test_a_reader_that_leaves_does_not_change_the_exit_code(own_folder: Path, tutorial: str) -> None:
    """`localflow run ... 2>&1 | head -0` still tells how the run went."""
    for names, code in (("orion",), 0), (("",), 1):
        reading, writing = os.pipe()
        os.close(reading)

        command = [sys.executable, "-m", "localflow", "run", tutorial, *names_from(*names)]
        done = subprocess.run(command, stdout=writing, stderr=writing, check=False)
        os.close(writing)

        assert done.returncode == code


def test_a_state_that_cannot_be_printed_is_never_a_success(own_folder: Path, tutorial: str) -> None:
    """Exit code 4 and one line: the device is full."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "localflow", "run", tutorial, *names_from("orion")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 4
    assert done.stderr.splitlines()[-1] == "error: cannot write to standard output: No space left on device"


def test_notifications_that_failed_are_counted(cli: Cli, own_folder: Path) -> None:
    """They change neither the state nor the exit code."""
    (own_folder / "localflow.toml").write_text('[notifiers.ops]\ntype = "command"\ncommand = ["false"]\n')
    (own_folder / "flows.py").write_text("from localflow import flow\n@flow\ndef main(): ...\n")

    done = cli("run", "flows.py")

    assert done.returncode == 0
    assert "\nwarning: notifications: 2 failed\n" in done.stderr


def test_a_flow_that_closes_stdout_is_told_of(cli: Cli, own_folder: Path) -> None:
    """Exit code 4 and one line, whatever the flow has done to the stream."""
    (own_folder / "flows.py").write_text(
        "import sys\nfrom localflow import flow\n@flow\ndef main(): sys.stdout.close()\n"
    )

    done = cli("run", "flows.py")

    assert done.returncode == 4
    assert "error: cannot write to standard output: I/O operation on closed file" in done.stderr.splitlines()[-1]


def test_a_store_that_cannot_be_opened_is_exit_code_3_before_anything_runs(cli: Cli, own_folder: Path) -> None:
    """The flow's body is not entered."""
    (own_folder / "localflow.toml").write_text('[stores.sqlite]\npath = "/dev/null/x/runs.db"\n')
    (own_folder / "flows.py").write_text("from localflow import flow\n@flow\ndef main(): print('entered')\n")

    done = cli("run", "flows.py")

    assert done.returncode == 3
    assert done.stdout == ""
    assert "/dev/null/x" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_in_localflow_is_exit_code_4_with_a_traceback(cli: Cli, own_folder: Path) -> None:
    """And a line that asks to report it."""
    (own_folder / "flows.py").write_text(
        "import localflow.parameters\nfrom localflow import flow\n"
        "localflow.parameters.describe = None\n@flow\ndef main(n: int): ...\n"
    )

    done = cli("run", "flows.py", "-p", "n=x")

    assert done.returncode == 4
    assert "TypeError: 'NoneType' object is not callable" in done.stderr
    assert "please report it" in done.stderr.splitlines()[-1]
