"""The examples, run as a user runs them: in a folder of one's own, as a script or by the command line."""

from __future__ import annotations

import io
import json
import re
import sqlite3
import subprocess
import sys
import sysconfig
import tokenize
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PYTHON = sys.executable
LOCALFLOW = str(Path(sys.executable).with_name("localflow"))
THREE_PROJECTS = '["orion", "", "critically-important"]'
COMPLETED = "State(name='Completed', type=StateType.COMPLETED, message='All states completed.')"
FAILED = "State(name='Failed', type=StateType.FAILED, message='1/4 states failed.')"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with nothing on stdin."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=55)


def project_names(database: str = "example.db") -> list[str]:
    """Return the names in the table of projects, in the order they came."""
    with closing(sqlite3.connect(database)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM projects ORDER BY id")]


class TestAddProjects:
    """examples/add_projects.py."""

    def test_script_reports_the_bad_row_and_keeps_the_good_ones(self):
        """One task of four fails, the state says so, and both good projects are in the database."""
        ended = run(PYTHON, EXAMPLES / "add_projects.py", THREE_PROJECTS)

        assert ended.stdout == f"{FAILED}\n"
        assert ended.returncode == 1
        assert project_names() == ["orion", "critically-important"]

    def test_script_with_good_rows_completes(self):
        """Without a bad row the flow completes and the script ends with 0."""
        ended = run(PYTHON, EXAMPLES / "add_projects.py", '["orion"]')

        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == f"{COMPLETED}\n"
        assert project_names() == ["orion"]

    def test_command_line_says_what_failed_and_why(self):
        """`localflow run` ends with 1 and names the failed task run and the database's objection."""
        ended = run(LOCALFLOW, "run", EXAMPLES / "add_projects.py", "-p", f"project_names={THREE_PROJECTS}")

        assert ended.returncode == 1
        assert ended.stdout == f"{FAILED}\n"
        assert "add_project-1" in ended.stderr
        assert "CHECK constraint failed" in ended.stderr
        assert project_names() == ["orion", "critically-important"]

    def test_other_parameters_are_taken(self):
        """`-p db_file=` decides which database is filled."""
        arguments = ["-p", 'project_names=["orion"]', "-p", "db_file=other.db"]

        ended = run(LOCALFLOW, "run", EXAMPLES / "add_projects.py", *arguments)

        assert ended.returncode == 0
        assert project_names("other.db") == ["orion"]

    def test_connection_stays_open_for_a_thread(self):
        """Where tasks run beside the body, the body does not close the connection under them."""
        arguments = ["-p", 'project_names=["orion", "lyra"]', "--executor", "thread", "-j", "1"]

        ended = run(LOCALFLOW, "run", EXAMPLES / "add_projects.py", *arguments)

        assert ended.returncode == 0, ended.stderr
        assert project_names() == ["orion", "lyra"]

    def test_worker_processes_refuse_the_connection_by_name(self):
        """On the process executor the task that takes the connection fails with a message that names it."""
        arguments = ["-p", f"project_names={THREE_PROJECTS}", "--executor", "process"]

        ended = run(LOCALFLOW, "run", EXAMPLES / "add_projects.py", *arguments)

        message = "Task 'create_tables': argument 'connection' (sqlite3.Connection) cannot be sent to a worker process"
        assert ended.stdout == f"{FAILED}\n", "the tasks that wait for it have not run"
        assert message in " ".join(ended.stderr.split())

    def test_demo_ends_well_and_shows_the_rows(self):
        """`make demo` shows the failed state and the two good rows, and ends with 0."""
        ended = run("sh", EXAMPLES / "demo.sh", PYTHON)

        assert ended.returncode == 0
        assert FAILED in ended.stdout.splitlines()
        assert ended.stdout.splitlines()[-2:] == ["1|orion", "2|critically-important"]


class TestManualState:
    """examples/manual_state.py."""

    def test_takes_the_other_way_after_a_failure(self):
        """The output is what the example's own docstring shows, and the handled failure does not fail the flow."""
        ended = run(PYTHON, EXAMPLES / "manual_state.py")

        assert ended.returncode == 0
        assert ended.stdout == shown_in(EXAMPLES / "manual_state.py")

    def test_needs_no_other_way_after_a_success(self, tmp_path):
        """With a readable price list the built-in prices are never asked for."""
        (tmp_path / "prices.json").write_text('{"cake": 4}')

        ended = run(LOCALFLOW, "run", EXAMPLES / "manual_state.py", "-p", 'order=["cake", "cake"]')

        assert ended.returncode == 0
        assert "to pay: 8" in ended.stdout
        assert "built-in" not in ended.stdout

    def test_the_returned_future_decides(self):
        """An order that cannot be priced fails the flow, whose state adds up the returned future alone."""
        ended = run(LOCALFLOW, "run", EXAMPLES / "manual_state.py", "-p", 'order=["soup"]')

        assert ended.returncode == 1
        assert "adding up: Failed" in ended.stdout
        assert "1/1 states failed." in ended.stdout


class TestStdlibCensus:
    """examples/stdlib_census.py."""

    @pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
    def test_report_of_known_files(self, tmp_path, executor):
        """Every figure is right for a folder small enough to count by hand, on every executor."""
        write_known_files(tmp_path / "src")

        report = census("-p", f"folder={tmp_path / 'src'}", "--executor", executor)

        assert report == dedent("""\
            modules           5
            lines             14
            functions         4
            longest function  outer in package/one.py, 5 lines
            most imported     os (2), sys (1)
            not parsed        3
              bad.py
              latin.py
              nulls.py
        """)

    def test_tests_can_be_left_out(self, tmp_path):
        """`-p tests=false` leaves out the folders of tests, and installed packages are never counted."""
        write_known_files(tmp_path / "src")

        report = census("-p", f"folder={tmp_path / 'src'}", "-p", "tests=false")

        assert figures(report)["modules"] == 4

    def test_folder_without_python(self, tmp_path):
        """An empty folder gives an empty report."""
        report = census("-p", f"folder={tmp_path}")

        assert figures(report) == {"modules": 0, "lines": 0, "functions": 0, "not parsed": 0}

    def test_functions_agree_with_the_tokenizer(self):
        """On real code the parser's count of functions equals the number of `def` keywords the tokenizer sees."""
        package = Path(sysconfig.get_path("stdlib"), "asyncio")
        sources = [path.read_bytes() for path in package.rglob("*.py")]
        tokens = (token for source in sources for token in tokenize.tokenize(io.BytesIO(source).readline))

        report = census("-p", f"folder={package}", "--executor", "process")

        assert figures(report) == {
            "modules": len(sources),
            "lines": sum(len(source.splitlines()) for source in sources),
            "functions": sum(token.type == tokenize.NAME and token.string == "def" for token in tokens),
            "not parsed": 0,
        }

    @pytest.mark.slow
    def test_every_file_of_the_library_is_in_the_report(self):
        """On the whole library each file is either counted or named, and the lines add up."""
        library = Path(sysconfig.get_path("stdlib"))
        paths = [path for path in library.rglob("*.py") if not {"site-packages", "dist-packages"} & {*path.parts}]

        report = census("--executor", "process")

        found = figures(report)
        not_parsed = [library / name for name in re.findall(r"^  (\S+)$", report, re.MULTILINE)]
        assert len(not_parsed) == found["not parsed"]
        assert found["modules"] == len(paths) - len(not_parsed)
        assert found["lines"] == sum(len(path.read_bytes().splitlines()) for path in {*paths} - {*not_parsed})

    @pytest.mark.slow
    def test_executors_agree(self):
        """The process executor and the sequential one print the same report of the library without its tests."""
        in_processes = census("-p", "tests=false", "--executor", "process")
        in_sequence = census("-p", "tests=false", "--executor", "sequential")

        assert in_processes == in_sequence
        assert figures(in_sequence)["modules"] > 400


def census(*arguments: str) -> str:
    """Run the census by the command line and return its report, without the final state under it."""
    ended = run(LOCALFLOW, "run", EXAMPLES / "stdlib_census.py", *arguments)
    assert ended.returncode == 0, ended.stderr
    report, state = ended.stdout.rstrip().rsplit("\n", 1)
    assert state == COMPLETED
    return report + "\n"


def figures(report: str) -> dict[str, int]:
    """Return the plain numbers of a report."""
    return {name: int(number) for name, number in re.findall(r"^(\w+(?: \w+)?) +(\d+)$", report, re.MULTILINE)}


def write_known_files(folder: Path) -> None:
    """Make a folder of sources with known figures: good, bad and not to be counted."""
    sources = {
        "empty.py": b"",
        "single.py": b"import os, os.path\nfrom . import sibling\nfrom .json import path",
        "package/one.py": b"import os\ndef outer():\n    async def inner():\n        pass\n\n    return inner\n",
        "package/quoted.py": b"'def quoted():'  # def commented():",
        "package/tests/test_one.py": b"from sys import (\n    path)\ndef test(): 'def quoted():'\ndef other(): pass",
        "package/data.txt": b"import json",
        "site-packages/installed.py": b"import json\n",
        "bad.py": b"print 'hello'\n",
        "latin.py": "name = 'caf\u00e9'\n".encode("latin-1"),
        "nulls.py": b"\0",
    }
    for name, source in sources.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source)


def shown_in(example: Path) -> str:
    """Return the output that an example's docstring promises: its last indented block."""
    docstring = example.read_text().split('"""')[1]
    return dedent(re.split(r"\n\n(?=    )", docstring)[-1])


class TestWeatherReport:
    """examples/weather_report.py."""

    @pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
    def test_every_option_has_its_effect_on_every_executor(self, executor):
        """Retries, timeout, cache, map, limit and async task: the histories of both runs prove them."""
        Path("localflow.toml").write_text("[limits]\nstation = 1\n")
        outputs = [run(PYTHON, EXAMPLES / "weather_report.py", executor) for _ in range(2)]
        shown = json.loads(run(LOCALFLOW, "show", "@last", "--json").stdout)
        histories = {run["name"]: [state["name"] for state in run["history"]] for run in shown["task_runs"]}

        assert [ended.stdout for ended in outputs] == [
            "Oslo: 7.0 C, Rome: 21.5 C, Lima: no answer\nState(name='Completed', type=StateType.COMPLETED)\n"
        ] * 2
        assert histories == {
            "calibration-0": ["Pending", "Cached"],
            "read-0": ["Pending", "Running", *["AwaitingRetry", "Retrying"] * 2, "Completed"],
            "read-1": ["Pending", "Running", "Completed"],
            "read-2": ["Pending", "Running", *["AwaitingRetry", "Retrying"] * 2, "TimedOut"],
            "Oslo in degrees": ["Pending", "Running", "Completed"],
            "Rome in degrees": ["Pending", "Running", "Completed"],
            "Lima in degrees": ["Pending", "Running", "Completed"],
            "publish-0": ["Pending", "Running", "Completed"],
        }
        assert "published 3 lines" in run(LOCALFLOW, "logs", "@last/publish-0").stdout
