"""The documents say what is true: their code runs, and what they name exists."""

from __future__ import annotations

import doctest
import inspect
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import tomli

import localflow
from localflow import hookspecs, interfaces, testing
from localflow.cli.app import app
from localflow.keywords import FlowKeywords, Keywords, TaskKeywords
from localflow.options import REQUIRED, read_options
from localflow.plugins import Plugins

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LOCALFLOW = str(Path(sys.executable).with_name("localflow"))
EXECUTORS = ["sequential", "thread", "process"]
ROLES = {"executors": "executor", "stores": "state store", "notifiers": "notifier"}


class Block(NamedTuple):
    """A fenced block of README; its name is the file that its first line says it is."""

    language: str
    name: str
    text: str


def blocks() -> list[Block]:
    """Return README's fenced blocks."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [
        Block(language, name.group(1) if (name := re.match(r"# ([\w.]+)\n", text)) else "", text)
        for language, text in found
    ]


def write_block(name: str, folder: Path) -> Path:
    """Write the block that says it is the file `name` into `folder`."""
    (text,) = [block.text for block in blocks() if block.name == name]
    path = folder / name
    path.write_text(text)
    return path


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=55, **options)


def import_layers() -> list[list[str]]:
    """Return the modules at the top of the package in their layers, those that import others first."""
    contracts = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [re.findall(r"\w+", layer) for layer in layers]


def shown(reference: str) -> dict[str, Any]:
    """Return what `localflow show` tells of a run."""
    view: dict[str, Any] = json.loads(run(LOCALFLOW, "show", reference, "--json").stdout)
    return view


def commands() -> list[tuple[str, click.Command]]:
    """Return the verbs of the command line with their commands; those of a group as `config show`."""
    context = click.Context(app)
    found: list[tuple[str, click.Command]] = []
    for verb in app.list_commands(context):
        command = app.get_command(context, verb)
        assert command is not None
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                found.append((verb, command))
            found += [(f"{verb} {name}", member) for name, member in command.commands.items()]
        else:
            found.append((verb, command))
    return found


def options_of(command: click.Command) -> set[str]:
    """Return all names of a command's options."""
    return {name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts}


def rows(first_column: str, document: str = README) -> list[list[str]]:
    """Return the rows of the table, of README if not told otherwise, whose header begins with `first_column`."""
    _, found, table = document.partition(f"\n| {first_column} |")
    assert found, f"there is no table that begins with {first_column}"
    lines = table.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


class TestReadme:
    """README.md."""

    def test_first_example_runs_as_it_says(self, tmp_path):
        """The example runs by the command under it and prints the sum."""
        write_block("words.py", tmp_path)
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs/one.md").write_text("one two three")
        (tmp_path / "docs/two.md").write_text("four five")
        (command,) = re.findall(r"^\$ localflow (run words\.py .*)$", README, re.MULTILINE)

        ended = run(LOCALFLOW, *command.split())

        assert ended.returncode == 0
        assert "5 words" in ended.stdout

    def test_first_example_goes_on_without_the_unreadable(self, tmp_path):
        """One unreadable file fails its task, blocks the sum, and fails the flow; the other files are counted."""
        write_block("words.py", tmp_path)
        (tmp_path / "bad.md").write_bytes(b"\xff")
        (tmp_path / "good.md").write_text("one")

        ended = run(LOCALFLOW, "run", "words.py")

        assert ended.returncode == 1
        task_runs = json.loads(run(LOCALFLOW, "show", "@last", "--json").stdout)["task_runs"]
        assert [task_run["state"]["name"] for task_run in task_runs] == ["Failed", "Completed", "NotReady"]

    def test_session_is_what_python_prints(self, tmp_path):
        """The interactive session prints what it shows."""
        write_block("words.py", tmp_path)
        (tmp_path / "one.md").write_text("word " * 421)
        (session,) = [block.text for block in blocks() if block.text.startswith(">>> ")]
        (tmp_path / "session.txt").write_text(session)

        ended = run(sys.executable, "-m", "doctest", "session.txt")

        assert (ended.returncode, ended.stdout) == (0, "")

    def test_failure_looks_as_shown(self, monkeypatch):
        """The commands of the failing run print what README shows, but for names, paths and times."""
        monkeypatch.setenv("PATH", str(Path(LOCALFLOW).parent), prepend=os.pathsep)
        (console,) = [block.text for block in blocks() if "show @last\n" in block.text]

        printed = "".join(
            f"$ {command}\n{run('sh', '-c', command.replace('examples/', f'{ROOT}/examples/') + ' 2>&1').stdout}"
            for command in re.findall(r"^\$ (.*)$", console, re.MULTILINE)
        )

        assert doctest.OutputChecker().check_output(masked(console), masked(printed), doctest.ELLIPSIS), printed

    def test_python_is_tested(self):
        """Every block of Python is an interactive session, or a file that a test here writes."""
        source = Path(__file__).read_text()
        python = [block for block in blocks() if block.language == "python" and not block.text.startswith(">>> ")]

        assert [block.text for block in python if f'write_block("{block.name}"' not in source] == []

    def test_failures_are_tried_again_and_timed_out(self, tmp_path):
        """The retries go through the states that are told, the hooks print, and the task that hangs is killed."""
        write_block("stations.py", tmp_path)
        (command,) = re.findall(r"`localflow (run stations\.py .*)`", README)
        (told,) = re.findall(r"the states\s((?:[A-Z]\w+,\s)+[A-Z]\w+\sand\s[A-Z]\w+)", README)

        ended = run(LOCALFLOW, *command.split())

        ask, hang = shown("@last")["task_runs"]
        assert ended.returncode == 1
        assert "ask-0 is Completed at attempt 3" in ended.stdout
        assert "hang-0 is TimedOut at attempt 1" in ended.stdout
        assert [state["name"] for state in ask["history"]] == re.findall(r"[A-Z]\w+", told)
        assert (hang["state"]["type"], hang["state"]["name"]) == ("FAILED", "TimedOut")

    @pytest.mark.parametrize("executor", EXECUTORS)
    def test_map_goes_on_without_what_failed(self, executor, tmp_path):
        """One of the three runs fails, and the sum is that of the other two."""
        write_block("order.py", tmp_path)

        ended = run(LOCALFLOW, "run", "order.py", "--executor", executor)

        *prices, total = shown("@last")["task_runs"]
        assert ended.returncode == 0, ended.stderr
        assert sorted(ended.stdout.splitlines()[:3]) == [
            "find_price-0 Completed",
            "find_price-1 Completed",
            "find_price-2 Failed",
        ]
        assert [run["map_index"] for run in prices] == [0, 1, 2]
        assert shown(f"@last/{total['name']}")["result"] == 5.5

    def test_second_run_uses_the_cache(self, tmp_path):
        """The second run is answered from the cache, in another process, and says so."""
        write_block("squares.py", tmp_path)

        names = []
        for executor in ("sequential", "process"):
            assert run(LOCALFLOW, "run", "squares.py", "--executor", executor).returncode == 0
            names.append(shown("@last/square-0")["state"]["name"])

        assert names == ["Completed", "Cached"]
        assert shown("@last/square-0")["result"] == 144

    @pytest.mark.parametrize("executor", EXECUTORS)
    def test_async_flow_is_run_by_the_command_line(self, executor, tmp_path):
        """`localflow run` runs an async flow as it is, and it gets the data of its tasks."""
        write_block("pages.py", tmp_path)

        ended = run(LOCALFLOW, "run", "pages.py", "--executor", executor)

        assert ended.returncode == 0, ended.stderr
        assert shown("@last")["result"] == ["page 1", "page 2", "page 3"]

    def test_async_flow_is_run_as_a_script(self, tmp_path):
        """As a script it runs in a loop of its own."""
        ended = run(sys.executable, write_block("pages.py", tmp_path))

        assert ended.stdout == "['page 1', 'page 2', 'page 3']\n", ended.stderr

    def test_logs_look_as_shown(self, tmp_path, monkeypatch):
        """What the run says is shown with the name of its task run, and kept."""
        monkeypatch.setenv("PATH", str(Path(LOCALFLOW).parent), prepend=os.pathsep)
        write_block("talk.py", tmp_path)
        (console,) = [block.text for block in blocks() if "run talk.py" in block.text]
        command, _, expected = console.removeprefix("$ ").partition("\n")

        printed = run("sh", "-c", f"{command} 2>&1").stdout

        assert doctest.OutputChecker().check_output(masked(expected), masked(printed), doctest.ELLIPSIS), printed
        recorded = run(LOCALFLOW, "logs", "@last/talk").stdout.splitlines()
        assert [line.partition(" | ")[2] for line in recorded] == [
            line.partition(" | ")[2] for line in expected.splitlines() if " | " in line
        ]

    def test_limit_of_the_settings_holds(self, tmp_path):
        """With the limit and the tag that are told, no two task runs are at work at once."""
        (limit,) = re.findall(r"`(database = \d+)` there", README)
        (tags,) = re.findall(r"`@task\((tags=.*?)\)` or", README)
        (tmp_path / "localflow.toml").write_text(f"[limits]\n{limit}\n")
        (tmp_path / "busy.py").write_text(
            "import time\nfrom localflow import flow, task\n"
            f"@task({tags})\ndef work(n):\n    time.sleep(0.05)\n"
            "@flow\ndef main():\n    work.map(range(4))\n"
        )

        ended = run(LOCALFLOW, "run", "busy.py", "--executor", "thread")

        spans = sorted((run["started_at"], run["ended_at"]) for run in shown("@last")["task_runs"])
        assert ended.returncode == 0, ended.stderr
        assert len(spans) == 4
        assert all(before[1] <= after[0] for before, after in pairwise(spans))

    def test_test_of_a_flow_passes(self, tmp_path):
        """The test passes beside the first example, and leaves no files."""
        write_block("words.py", tmp_path)
        write_block("test_words.py", tmp_path)

        ended = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_words.py")

        assert ended.returncode == 0, ended.stdout
        assert not (tmp_path / ".localflow").exists()

    def test_settings_are_valid(self, tmp_path, monkeypatch):
        """The example of a localflow.toml passes the check."""
        monkeypatch.setenv("OPS_WEBHOOK_URL", "https://example.org/hook")
        (tmp_path / "localflow.toml").write_text(next(block.text for block in blocks() if block.language == "toml"))

        ended = run(LOCALFLOW, "config", "validate")

        assert ended.returncode == 0, ended.stderr

    def test_options_of_verbs_exist(self):
        """Every command of the table is there, and has the options named beside it."""
        verbs = dict(commands())

        for command, purpose in rows("command"):
            verb = " ".join(word for word in command.strip("`").split()[1:] if word.islower())
            told = re.findall(r"`(--?\w[\w-]*)", purpose)
            assert [option for option in told if option not in options_of(verbs[verb])] == []

    def test_no_verb_and_none_of_its_options_is_missing(self):
        """Every verb is in the table, with each of its options by one of its names; all but `config` take `--json`."""
        told = {
            " ".join(word for word in command.strip("`").split()[1:] if word.islower()): purpose
            for command, purpose in rows("command")
        }

        assert told.keys() == dict(commands()).keys()
        for verb, command in commands():
            for parameter in command.params:
                if isinstance(parameter, click.Option) and "--json" not in parameter.opts:
                    assert any(f"`{option}" in told[verb] for option in parameter.opts), (verb, parameter.opts)

    def test_options_of_decorators_are_those_they_take(self):
        """Every option of @task and @flow is in the table, with those that take it, and no other is."""
        both, task = set(Keywords.__annotations__), set(TaskKeywords.__annotations__)
        real = {
            option: "both" if option in both else "`@task`" if option in task else "`@flow`"
            for option in [*TaskKeywords.__annotations__, *FlowKeywords.__annotations__]
        }

        told = {option: of for options, of, *_ in rows("option") for option in re.findall(r"\w+", options)}

        assert told == real

    @pytest.mark.parametrize("decorator", [localflow.task, localflow.flow], ids=["task", "flow"])
    def test_docstring_of_the_decorator_has_its_options(self, decorator):
        """`help(task)` and `help(flow)` tell of every option that they take, and of no other."""
        taken = (TaskKeywords if decorator is localflow.task else FlowKeywords).__annotations__

        arguments = inspect.cleandoc(decorator.__doc__).partition("\nRaises:")[0]
        told = re.findall(r"^ {4}(\w+): ", arguments, re.MULTILINE)

        assert sorted(name for name in told if name != "fn") == sorted(taken)

    def test_public_names_are_those_to_import(self):
        """The table of names lists what `localflow` exports, and nothing else."""
        told = [name for names, _ in rows("from `localflow`") for name in re.findall(r"\w+", names)]

        assert sorted(told) == sorted(localflow.__all__)

    def test_names_of_testing_are_told(self):
        """Everything that `localflow.testing` exports is spoken of."""
        assert [name for name in testing.__all__ if name not in README] == []

    def test_options_are_those_of_the_factories(self):
        """Every option of every built-in plugin is in the table with its default, and no other is."""
        plugins = Plugins.load()
        factories = {
            f"{section}.{name}": plugins.get_factory(role, name)
            for section, role in ROLES.items()
            for name in plugins.names(role)
        }
        real = {
            (table, option.name): option.default
            for table, factory in factories.items()
            for option in read_options(factory).known.values()
        }

        documented = {(table, option): words for table, option, words, _ in option_rows() if "." in table}

        assert documented.keys() == real.keys()
        assert [key for key, words in documented.items() if not is_worded(real[key], words)] == []

    def test_options_of_every_notifier_are_taken(self, tmp_path):
        """What the table says of any notifier is taken by one."""
        values = {"on": '["Failed"]', "flows": '["main"]', "min_duration": "1.5", "type": '"log"'}
        common = [option for table, option, *_ in option_rows() if table.startswith("any")]
        lines = ["[notifiers.mine]", *(f"{option} = {values[option]}" for option in common)]
        (tmp_path / "localflow.toml").write_text("\n".join(lines))

        ended = run(LOCALFLOW, "config", "validate")

        assert sorted(common) == sorted(values)
        assert ended.returncode == 0, ended.stderr

    def test_plugin_is_told_what_its_settings_ask_for(self, tmp_path, monkeypatch):
        """The plugin, installed, is found by its entry point and writes the diary that its table asks for."""
        install_diary(tmp_path / "site", monkeypatch)
        write_block("words.py", tmp_path)
        write_block("localflow.toml", tmp_path)

        ended = run(LOCALFLOW, "run", "words.py")

        told = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
        assert ended.returncode == 0
        assert [(run, state) for run, state, _ in told][:1] == [("add_up-0", "Completed")]
        assert [state for _, state, _ in told] == ["Completed", "Completed"]

    def test_plugin_passes_its_own_test(self, tmp_path, monkeypatch):
        """The plugin's test runs the contract suite, and all of it passes."""
        install_diary(tmp_path / "site", monkeypatch)
        write_block("test_diary.py", tmp_path)

        ended = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_diary.py")

        assert ended.returncode == 0, ended.stdout
        assert re.search(r"^\d\d passed", ended.stdout, re.MULTILINE)

    def test_interfaces_are_what_the_table_says(self):
        """The table of roles names each interface's methods, its hook and its contract suite."""
        for role, hook, required, optional, suite in rows("role"):
            interface = getattr(interfaces, role.strip("`"))
            public = {name for name, value in vars(interface).items() if is_public_method(name, value)}

            assert hasattr(hookspecs, hook.strip("`"))
            assert suite.strip("`") in testing.__all__
            assert set(re.findall(r"\w+", required)) == interface.__abstractmethods__
            assert set(re.findall(r"\w+", optional)) == public - interface.__abstractmethods__


class TestAllDocuments:
    """Every document at the top of the repository."""

    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
    def test_links_lead_somewhere(self, document):
        """Links to files lead to files."""
        targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())

        assert [target for target in targets if not (document.parent / target).exists()] == []

    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
    def test_make_targets_exist(self, document):
        """Every `make TARGET` that is spoken of is in the Makefile."""
        targets = set(re.findall(r"`make (\w+)|^\$ make (\w+)", document.read_text(), re.MULTILINE))
        makefile = (ROOT / "Makefile").read_text()

        for target in {word for pair in targets for word in pair if word}:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE)

    def test_layout_is_complete(self):
        """CONTRIBUTING says of each module and folder of the package what it is for, and of no other."""
        (layout,) = re.findall(r"```text\nlocalflow/\n(.*?)```", CONTRIBUTING, re.DOTALL)
        named = re.findall(r"^ +([\w./]+)  ", layout, re.MULTILINE)

        package = ROOT / "localflow"
        folders = [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
        modules = [path.name for path in package.glob("*.py")]
        assert sorted(named) == sorted([*modules, *folders])

    def test_layout_is_in_the_order_of_imports(self):
        """CONTRIBUTING lists the modules in the order of their layers: what is above imports what is below."""
        (layout,) = re.findall(r"```text\nlocalflow/\n(.*?)```", CONTRIBUTING, re.DOTALL)
        _, *named = re.findall(r"^ +(\w+)[\w./]*  ", layout, re.MULTILINE)
        rank = {module: number for number, layer in enumerate(import_layers()) for module in layer}

        assert named == sorted(named, key=lambda module: rank[module])

    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
    def test_files_of_the_package_exist(self, document):
        """Every module that is spoken of by its path, or by its name in CONTRIBUTING, is there."""
        named = re.findall(r"`([\w/]+\.py)`", document.read_text())

        for path in named:
            assert any((folder / path).exists() for folder in (ROOT, ROOT / "localflow")), path


class TestReliability:
    """What docs/reliability.md says, held to the tests."""

    def test_each_row_of_the_matrix_has_a_test_and_each_fault_a_row(self):
        """The id of a row is in the names of its tests."""
        listed = re.findall(r"^\| ([A-Z]\d+) \|", RELIABILITY, re.MULTILINE)
        sources = "\n".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))

        assert len(listed) == len(set(listed))
        assert set(listed) == set(re.findall(r"def test_fault_([A-Z]\d+)_", sources))

    def test_options_of_resume_are_those_it_takes(self):
        """Each row of the table of options names options that exist."""
        (resume,) = [command for name, command in commands() if name == "resume"]
        named = {option for row in rows("option", RELIABILITY) for option in re.findall(r"--?[a-z]+", row[0])}

        assert named <= options_of(resume)


def masked(printed: str) -> str:
    """Return what the command line printed without what differs from run to run."""
    (flow_run,) = re.findall(r"^flow run '(\S+)' of ", printed, re.MULTILINE)
    printed = printed.replace(flow_run, "NAME")
    printed = re.sub(r"\b\d\d:\d\d:\d\d\.\d{3}\b|\b[\d.]+(us|ms|s)\b", "TIME", printed)
    return re.sub(r" {2,}|(?<=TIME) ", "  ", printed)


def option_rows() -> list[list[str]]:
    """Return the rows of the table of options, with the table's name filled in where it is left out."""
    found, table = [], ""
    for row in rows("table"):
        table = row[0].strip("`") or table
        found.append([table, row[1].strip("`"), *row[2:]])
    return found


def is_worded(default: object, words: str) -> bool:
    """Return whether a default is worded as it is: as code, or in words where it is chosen at run time."""
    if default is None or default is REQUIRED:
        return words == "required" if default is REQUIRED else not words.startswith("`")
    return words == f"`{json.dumps(str(default) if isinstance(default, Path) else default)}`"


def is_public_method(name: str, value: object) -> bool:
    """Return whether a class's attribute is a method or a property that anybody may call."""
    return not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))


def install_diary(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay README's plugin out as pip does, from its pyproject.toml."""
    site.mkdir()
    write_block("localflow_diary.py", site)
    project = tomli.loads(write_block("pyproject.toml", site).read_text())["project"]
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    entry_points = "".join(f"{name} = {target}\n" for name, target in project["entry-points"]["localflow"].items())
    (metadata / "entry_points.txt").write_text(f"[localflow]\n{entry_points}")
    monkeypatch.setenv("PYTHONPATH", str(site))
