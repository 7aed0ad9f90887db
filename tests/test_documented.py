"""The documents say what is true: their code runs, and what they name exists."""

from __future__ import annotations

import doctest
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import tomli

from localflow import hookspecs, interfaces, testing
from localflow.options import REQUIRED, read_options
from localflow.plugins import Plugins

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
DOCUMENTS = sorted(ROOT.glob("*.md"))
LOCALFLOW = str(Path(sys.executable).with_name("localflow"))
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


def rows(first_column: str) -> list[list[str]]:
    """Return the rows of the README table whose header begins with `first_column`, without the code marks."""
    _, found, table = README.partition(f"\n| {first_column} |")
    assert found, f"README has no table that begins with {first_column}"
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

    @pytest.mark.parametrize("block", [block for block in blocks() if block.language == "python"], ids=str)
    def test_python_is_tested(self, block):
        """Every block of Python is one of those that the tests here run."""
        assert block.name in {"words.py", "localflow_diary.py", "test_diary.py"} or block.text.startswith(">>> ")

    def test_settings_are_valid(self, tmp_path, monkeypatch):
        """The example of a localflow.toml passes the check."""
        monkeypatch.setenv("OPS_WEBHOOK_URL", "https://example.org/hook")
        (tmp_path / "localflow.toml").write_text(next(block.text for block in blocks() if block.language == "toml"))

        ended = run(LOCALFLOW, "config", "validate")

        assert ended.returncode == 0, ended.stderr

    def test_verbs_and_their_options_exist(self):
        """Every command of the table has the options named beside it."""
        for command, purpose in rows("command"):
            verb = [word for word in command.strip("`").split()[1:] if word.islower()]
            options = re.findall(r"`(--?\w[\w-]*)", purpose)

            ended = run(LOCALFLOW, *verb, "--help")

            assert ended.returncode == 0, command
            assert [option for option in options if option not in ended.stdout] == []

    def test_no_verb_is_missing(self):
        """Every verb of the command line is in the table."""
        listed = run(LOCALFLOW, "--help").stdout.partition("Commands:")[2]

        for verb in re.findall(r"^  (\w+)", listed, re.MULTILINE):
            assert f"\n| `localflow {verb}" in README

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

        assert [target for target in targets if not (ROOT / target).exists()] == []

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


def masked(printed: str) -> str:
    """Return what the command line printed without what differs from run to run."""
    (flow_run,) = re.findall(r"^see: localflow show (\S+)$", printed, re.MULTILINE)
    printed = printed.replace(flow_run, "NAME")
    printed = re.sub(r"\b[\d.]+(us|ms|s)\b", "TIME", printed)
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
